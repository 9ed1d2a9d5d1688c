// SPDX-License-Identifier: Apache-2.0
/// @file
/// Online softmax of a tile's scores. Compiled once per target.
#if defined(QUIRE_CPU_PORTABLE_SOFTMAX_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_CPU_PORTABLE_SOFTMAX_INL
#undef QUIRE_CPU_PORTABLE_SOFTMAX_INL
#else
#define QUIRE_CPU_PORTABLE_SOFTMAX_INL
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/portable/rows_of_head.hpp"
#include "cpu/portable/vector-inl.hpp"
#include "cpu/tile.hpp"

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

/// Times the factors of the keys whose bit in `seen` is set; 0 for the others, whatever theirs are.
HWY_INLINE void scale_row(float* row, const float* factors, std::uint64_t seen) {
  const Floats d;
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    const Vec x = hn::Mul(hn::Load(d, row + i), hn::Load(d, factors + i));
    hn::Store(hn::IfThenElseZero(mask_of(seen, i), x), d, row + i);
  }
}

/// Largest of a row's logits · 1/scale whose bit in `seen` is set, times `scale`.
template <bool kMasked>
HWY_INLINE float max_of_row(const float* row, float scale, std::uint64_t seen) {
  const Floats d;
  const Vec nothing = hn::Set(d, -std::numeric_limits<float>::infinity());
  Vec maximum = nothing;
  HWY_UNROLL(4)
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    Vec x = hn::Mul(hn::Load(d, row + i), hn::Set(d, scale));
    if constexpr (kMasked) x = hn::IfThenElse(mask_of(seen, i), x, nothing);
    maximum = hn::Max(maximum, x);
  }
  return max_of_lanes(maximum);
}

/// Turns logits · 1/scale into 2^(logit − max), 0 where the bit of `seen` is not set.
/// @return Their sum.
template <bool kMasked>
HWY_INLINE float raise_row(float* row, float scale, float max, std::uint64_t seen) {
  const Floats d;
  Vec total = hn::Zero(d);
  HWY_UNROLL(4)
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    const Vec x = hn::MulSub(hn::Load(d, row + i), hn::Set(d, scale), hn::Set(d, max));
    Vec p = exp2(x);
    if constexpr (kMasked) p = hn::IfThenElseZero(mask_of(seen, i), p);
    total = hn::Add(total, p);
    hn::Store(p, d, row + i);
  }
  return sum_of_lanes(total);
}

/// Dot products of a tile → powers of 2, and the rows' new max, sum and rescale.
class Softmax {
 public:
  /// @param factors  Of tokens that have scales of their own, else null.
  Softmax(const HeadRows& rows, const LogitRule& rule, const TileSight& sight,
          std::int32_t first_key, const TokenFactors* factors)
      : rows_(rows), rule_(rule), sight_(sight), first_key_(first_key), factors_(factors) {}

  void run() const {
    find_maxima();
    rescale_sums();
    raise();
  }

 private:
  [[nodiscard]] bool bent() const { return rule_.soft_cap > 0.0F || rule_.slopes != nullptr; }
  [[nodiscard]] float scale() const { return bent() ? kLog2E : rule_.scale * kLog2E; }

  /// Calls `f(row, bits)` for every row.
  template <typename F>
  HWY_INLINE void for_each_row(const F& f) const {
    for (std::int32_t row = 0, query = 0; row < rows_.count; ++query) {
      const std::uint64_t seen = sight_.words[query];
      for (std::int32_t head = 0; head < rows_.group; ++head, ++row) f(row, seen);
    }
  }

  /// New maxima, into rescale for the moment.
  void find_maxima() const {
    const float scale = this->scale();
    for_each_row([&](std::int32_t row, std::uint64_t seen) HWY_ATTR {
      float* scores = rows_.score_row(row);
      if (factors_ != nullptr) scale_row(scores, factors_->k, seen);
      if (bent() && seen != 0) {
        const std::int32_t query = row / rows_.group;
        const float slope = rule_.slopes != nullptr ? rule_.slopes[row % rows_.group] : 0.0F;
        bend(scores, rule_, slope, rule_.first_position + query - first_key_);
      }
      const float max = ~seen == 0 ? max_of_row<false>(scores, scale, seen)
                                   : max_of_row<true>(scores, scale, seen);
      rows_.rescale[row] = std::max(rows_.states.max[row], max);
    });
  }

  /// Moves the new maxima to the states; rescale becomes what it is called.
  void rescale_sums() const {
    std::int32_t row = 0;
    for (; row + kLanes <= rows_.count; row += kLanes) {
      rescale_sums(rows_.states.max + row, rows_.states.sum + row, rows_.rescale + row);
    }
    if (row == rows_.count) return;
    // What follows the last row are the states of another head.
    const std::int32_t rest = rows_.count - row;
    alignas(kBufferAlignment) float max[extent(kLanes)] = {};
    alignas(kBufferAlignment) float sum[extent(kLanes)] = {};
    std::copy_n(rows_.states.max + row, rest, max);
    std::copy_n(rows_.states.sum + row, rest, sum);
    rescale_sums(max, sum, rows_.rescale + row);
    std::copy_n(max, rest, rows_.states.max + row);
    std::copy_n(sum, rest, rows_.states.sum + row);
  }

  static HWY_INLINE void rescale_sums(float* max, float* sum, float* new_max_then_rescale) {
    const Floats d;
    const Vec old_max = hn::LoadU(d, max);
    const Vec new_max = hn::Load(d, new_max_then_rescale);
    const Vec rescale =
        hn::IfThenElse(hn::Eq(old_max, new_max), hn::Set(d, 1.0F), exp2(hn::Sub(old_max, new_max)));
    hn::StoreU(hn::Mul(hn::LoadU(d, sum), rescale), d, sum);
    hn::StoreU(new_max, d, max);
    hn::Store(rescale, d, new_max_then_rescale);
  }

  void raise() const {
    const float scale = this->scale();
    for_each_row([&](std::int32_t row, std::uint64_t seen) HWY_ATTR {
      float* scores = rows_.score_row(row);
      const float max = rows_.states.max[row];
      rows_.states.sum[row] += ~seen == 0 ? raise_row<false>(scores, scale, max, seen)
                                          : raise_row<true>(scores, scale, max, seen);
      if (factors_ != nullptr) scale_row(scores, factors_->v, seen);
    });
  }

  const HeadRows& rows_;
  const LogitRule& rule_;
  const TileSight& sight_;
  std::int32_t first_key_;
  const TokenFactors* factors_;
};

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
