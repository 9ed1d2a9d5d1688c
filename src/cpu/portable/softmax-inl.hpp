// SPDX-License-Identifier: Apache-2.0
/// @file
/// Online softmax of a block's scores. Compiled once per target.
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

/// Soft cap and ALiBi, in place, in natural units. @param keys  A multiple of kRowPadding.
inline void bend(float* row, std::int32_t keys, const LogitRule& rule, float slope,
                 std::int32_t distance_to_first) {
  const Floats d;
  const Vec scale = hn::Set(d, rule.scale);
  const Vec cap = hn::Set(d, rule.soft_cap);
  const Vec inverse_cap = hn::Set(d, rule.soft_cap > 0.0F ? 1.0F / rule.soft_cap : 0.0F);
  for (std::int32_t i = 0; i < keys; i += kLanes) {
    Vec x = hn::Mul(hn::Load(d, row + i), scale);
    if (rule.soft_cap > 0.0F) x = hn::Mul(cap, tanh(hn::Mul(x, inverse_cap)));
    const Vec key = hn::Iota(d, static_cast<float>(i));
    const Vec distance = hn::Abs(hn::Sub(hn::Set(d, static_cast<float>(distance_to_first)), key));
    x = hn::NegMulAdd(hn::Set(d, slope), distance, x);
    hn::Store(x, d, row + i);
  }
}

/// Times the factors of the keys whose bit in `seen` is set; 0 for the others, whatever theirs are.
/// @param keys  A multiple of kRowPadding.
HWY_INLINE void scale_row(float* row, std::int32_t keys, const float* factors, std::uint64_t seen) {
  const Floats d;
  for (std::int32_t i = 0; i < keys; i += kLanes) {
    const Vec x = hn::Mul(hn::Load(d, row + i), hn::Load(d, factors + i));
    hn::Store(hn::IfThenElseZero(mask_of(seen, i), x), d, row + i);
  }
}

/// Lanes of the largest of 64 logits · 1/scale whose bit in `seen` is set, times `scale`.
template <bool kMasked>
HWY_INLINE Vec maxima_of_lanes(const float* row, float scale, std::uint64_t seen, Vec maxima) {
  const Floats d;
  const Vec nothing = hn::Set(d, -std::numeric_limits<float>::infinity());
  HWY_UNROLL(4)
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    Vec x = hn::Mul(hn::Load(d, row + i), hn::Set(d, scale));
    if constexpr (kMasked) x = hn::IfThenElse(mask_of(seen, i), x, nothing);
    maxima = hn::Max(maxima, x);
  }
  return maxima;
}

/// Turns 64 logits · 1/scale into 2^(logit − max), 0 where the bit of `seen` is not set.
/// @return `sums` and theirs, lane by lane.
template <bool kMasked>
HWY_INLINE Vec raise_lanes(float* row, float scale, float max, std::uint64_t seen, Vec sums) {
  const Floats d;
  HWY_UNROLL(4)
  for (std::int32_t i = 0; i < kKvTile; i += kLanes) {
    const Vec x = hn::MulSub(hn::Load(d, row + i), hn::Set(d, scale), hn::Set(d, max));
    Vec p = exp2(x);
    if constexpr (kMasked) p = hn::IfThenElseZero(mask_of(seen, i), p);
    sums = hn::Add(sums, p);
    hn::Store(p, d, row + i);
  }
  return sums;
}

/// Dot products of a block → powers of 2, and the rows' new max, sum and rescale. As many rows as a
/// vector has lanes go together, so that the sums over lanes are shared.
class Softmax {
 public:
  /// @param factors  [tiles], of tokens that have scales of their own, else null.
  Softmax(const HeadRows& rows, const LogitRule& rule, const Fp32BlockSight& sight,
          const TokenFactors* factors)
      : rows_(rows),
        rule_(rule),
        sight_(sight),
        factors_(factors),
        bends_(rule.soft_cap > 0.0F || rule.slopes != nullptr),
        scale_(bends_ ? kLog2E : rule.scale * kLog2E) {}

  void run() const {
    for (std::int32_t first = 0; first < rows_.count; first += kLanes) {
      run_rows(first, std::min(kLanes, rows_.count - first));
    }
  }

 private:
  void run_rows(std::int32_t first, std::int32_t count) const {
    const Floats d;
    if (factors_ != nullptr || bends_) bend_rows(first, count);
    Vec each[extent(kLanes)];
    for (Vec& lanes : each) lanes = hn::Zero(d);
    for (std::int32_t i = 0; i < count; ++i) each[i] = maxima_of_row(first + i);
    // What follows the last row are the states of another head.
    alignas(kBufferAlignment) float max[extent(kLanes)] = {};
    alignas(kBufferAlignment) float sum[extent(kLanes)] = {};
    std::copy_n(rows_.states.max + first, count, max);
    std::copy_n(rows_.states.sum + first, count, sum);
    const Vec old = hn::Load(d, max);
    const Vec top = maxima_of<kLanes>(each);
    const Vec now = hn::IfThenElse(hn::Gt(top, old), top, old);
    const Vec rescale = hn::IfThenElse(hn::Eq(old, now), hn::Set(d, 1.0F), exp2(hn::Sub(old, now)));
    hn::Store(now, d, max);
    hn::StoreU(rescale, d, rows_.rescale + first);
    for (std::int32_t i = 0; i < count; ++i) each[i] = raise_row(first + i, max[i]);
    hn::Store(hn::MulAdd(hn::Load(d, sum), rescale, sums_of<kLanes>(each)), d, sum);
    std::copy_n(max, count, rows_.states.max + first);
    std::copy_n(sum, count, rows_.states.sum + first);
  }

  /// Calls `f(tile, logits, bits)` for the tiles of a row.
  template <typename F>
  HWY_INLINE void for_each_tile(std::int32_t row, const F& f) const {
    const std::int32_t query = rows_.query(row);
    for (std::int32_t tile = 0; tile < sight_.count; ++tile) {
      f(tile, rows_.score_row(row) + tile * kKvTile, sight_.tiles[tile].words[query]);
    }
  }

  void bend_rows(std::int32_t first, std::int32_t count) const {
    for (std::int32_t row = first; row < first + count; ++row) {
      const float slope =
          rule_.slopes != nullptr ? rule_.slopes[(rows_.first + row) % rows_.group] : 0.0F;
      for_each_tile(row, [&](std::int32_t tile, float* logits, std::uint64_t seen) HWY_ATTR {
        if (factors_ != nullptr) scale_row(logits, kKvTile, factors_[tile].k, seen);
        if (!bends_ || seen == 0) return;
        bend(logits, kKvTile, rule_, slope,
             rule_.first_position + rows_.query(row) - sight_.first_keys[tile]);
      });
    }
  }

  HWY_INLINE Vec maxima_of_row(std::int32_t row) const {
    Vec maxima = hn::Set(Floats(), -std::numeric_limits<float>::infinity());
    for_each_tile(row, [&](std::int32_t, const float* logits, std::uint64_t seen) HWY_ATTR {
      maxima = ~seen == 0 ? maxima_of_lanes<false>(logits, scale_, seen, maxima)
                          : maxima_of_lanes<true>(logits, scale_, seen, maxima);
    });
    return maxima;
  }

  HWY_INLINE Vec raise_row(std::int32_t row, float max) const {
    Vec sums = hn::Zero(Floats());
    for_each_tile(row, [&](std::int32_t tile, float* logits, std::uint64_t seen) HWY_ATTR {
      sums = ~seen == 0 ? raise_lanes<false>(logits, scale_, max, seen, sums)
                        : raise_lanes<true>(logits, scale_, max, seen, sums);
      if (factors_ != nullptr) scale_row(logits, kKvTile, factors_[tile].v, seen);
    });
    return sums;
  }

  const HeadRows& rows_;
  const LogitRule& rule_;
  const Fp32BlockSight& sight_;
  const TokenFactors* factors_;
  bool bends_;
  float scale_;
};

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
