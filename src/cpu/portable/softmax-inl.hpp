// SPDX-License-Identifier: Apache-2.0
/// @file
/// Online softmax of a tile's scores. Compiled once per target.
#if defined(QUIRE_CPU_PORTABLE_SOFTMAX_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_CPU_PORTABLE_SOFTMAX_INL
#undef QUIRE_CPU_PORTABLE_SOFTMAX_INL
#else
#define QUIRE_CPU_PORTABLE_SOFTMAX_INL
#endif

#include <cstdint>
#include <cstdlib>
#include <limits>

#include "cpu/portable/tile.hpp"
#include "cpu/portable/vector-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace quire::cpu::HWY_NAMESPACE {

inline constexpr float kLog2E = 1.44269504F;

/// Lanes [0, kLanes) of a word's bits from bit `first` on.
HWY_INLINE hn::Mask<Floats> mask_of(std::uint64_t word, std::int32_t first) {
  const std::uint64_t bits = word >> first;
  return hn::LoadMaskBits(Floats(), reinterpret_cast<const std::uint8_t*>(&bits));
}

/// Soft cap and ALiBi, in place, in natural units.
inline void bend(float* row, const LogitRule& rule, float slope, std::int32_t distance_to_first) {
  const Floats d;
  const Vec scale = hn::Set(d, rule.scale);
  const Vec cap = hn::Set(d, rule.soft_cap);
  const Vec inverse_cap = hn::Set(d, rule.soft_cap > 0.0F ? 1.0F / rule.soft_cap : 0.0F);
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    Vec x = hn::Mul(hn::Load(d, row + i), scale);
    if (rule.soft_cap > 0.0F) x = hn::Mul(cap, tanh(hn::Mul(x, inverse_cap)));
    const Vec key = hn::Iota(d, static_cast<float>(i));
    const Vec distance = hn::Abs(hn::Sub(hn::Set(d, static_cast<float>(distance_to_first)), key));
    x = hn::NegMulAdd(hn::Set(d, slope), distance, x);
    hn::Store(x, d, row + i);
  }
}

/// Softmax state of one row.
struct RowState {
  float& max;
  float& sum;
  float& rescale;
};

/// Turns logits · 1/scale into 2^(logit − max), 0 where the bit of `seen` is not set.
template <bool kMasked>
HWY_INLINE void soften_row(float* row, float scale_log2, std::uint64_t seen, RowState state) {
  const Floats d;
  const Vec scale = hn::Set(d, scale_log2);
  const Vec nothing = hn::Set(d, -std::numeric_limits<float>::infinity());
  Vec maximum = nothing;
  HWY_UNROLL(4)
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    Vec x = hn::Mul(hn::Load(d, row + i), scale);
    if constexpr (kMasked) x = hn::IfThenElse(mask_of(seen, i), x, nothing);
    maximum = hn::Max(maximum, x);
    hn::Store(x, d, row + i);
  }
  const float old_max = state.max;
  const float new_max = std::max(old_max, max_of_lanes(maximum));
  const Vec shift = hn::Set(d, new_max);
  Vec total = hn::Zero(d);
  HWY_UNROLL(4)
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    Vec p = exp2(hn::Sub(hn::Load(d, row + i), shift));
    if constexpr (kMasked) p = hn::IfThenElseZero(mask_of(seen, i), p);
    total = hn::Add(total, p);
    hn::Store(p, d, row + i);
  }
  state.rescale = old_max == new_max ? 1.0F : hn::GetLane(exp2(hn::Set(d, old_max - new_max)));
  state.sum = state.sum * state.rescale + sum_of_lanes(total);
  state.max = new_max;
}

inline void hide_row(float* row) {
  const Floats d;
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) hn::Store(hn::Zero(d), d, row + i);
}

/// Dot products of a tile → powers of 2, and the rows' new max, sum and rescale.
inline void soften(const HeadRows& rows, const LogitRule& rule, const TileSight& sight,
                   std::int32_t first_key) {
  const bool bent = rule.soft_cap > 0.0F || rule.slopes != nullptr;
  const float scale_log2 = bent ? kLog2E : rule.scale * kLog2E;
  const std::int32_t queries = rows.count / rows.group;
  for (std::int32_t query = 0; query < queries; ++query) {
    const std::uint64_t seen = sight.words[query];
    for (std::int32_t head = 0; head < rows.group; ++head) {
      const std::int32_t row = query * rows.group + head;
      const RowState state{rows.states.max[row], rows.states.sum[row], rows.rescale[row]};
      float* scores = rows.score_row(row);
      if (seen == 0) {
        hide_row(scores);
        state.rescale = 1.0F;
        continue;
      }
      if (bent) {
        const float slope = rule.slopes != nullptr ? rule.slopes[head] : 0.0F;
        bend(scores, rule, slope, rule.first_position + query - first_key);
      }
      if (~seen == 0) {
        soften_row<false>(scores, scale_log2, seen, state);
      } else {
        soften_row<true>(scores, scale_log2, seen, state);
      }
    }
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
