// SPDX-License-Identifier: Apache-2.0
/// @file
/// Online softmax of a block's logits, 16 rows at a time so that the sums over lanes are shared.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/widen.hpp"
#include "cpu/portable/softmax-inl.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

inline constexpr std::int32_t kSoftmaxRows = 16;
inline constexpr std::int32_t kVectorsPerTile = kKvTile / kRowPadding;

// 2^x, relative error ≤ 2.7e-6: a hundredth of what rounding to bf16 adds. Two ways, since VREDUCEPS
// is the shorter one on Intel's cores and slow on AMD's.

struct PowerByRounding {
  static HWY_INLINE __m512 of(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    // Minimax of 2^f on [−0.5, 0.5], degree 4.
    __m512 p = _mm512_set1_ps(0.00957010221F);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0559178591F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240247443F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693121791F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.999999285F));
    return _mm512_scalef_ps(p, whole);
  }
};

struct PowerByReducing {
  static HWY_INLINE __m512 of(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    // Minimax of 2^f on [0, 1], degree 4.
    __m512 p = _mm512_set1_ps(0.0135341687F);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0520114638F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.241442755F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693003833F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000262F));
    return _mm512_scalef_ps(p, x);  // by the power of ⌊x⌋
  }
};

/// What becomes of sums when the maximum grows: 0 where there are none yet, and only there.
template <class Power>
HWY_INLINE __m512 rescale_of_sums(__m512 old, __m512 now, __mmask16 grows) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const __mmask16 has_sums = _mm512_cmp_ps_mask(old, nothing, _CMP_NEQ_UQ);
  const __m512 least = _mm512_set1_ps(std::numeric_limits<float>::min());
  const __m512 factor = _mm512_max_ps(Power::of(_mm512_sub_ps(old, now)), least);
  return _mm512_mask_mov_ps(_mm512_set1_ps(1.0F), grows, _mm512_maskz_mov_ps(has_sums, factor));
}

class BlockSoftmax {
 public:
  /// @param factors  [tiles], of tokens that have scales of their own, else null.
  BlockSoftmax(const BlockRows& rows, const LogitRule& rule, const BlockSight& sight,
               const TokenFactors* factors)
      : rows_(rows), rule_(rule), sight_(sight), factors_(factors) {}

  /// Dot products → powers of 2 in bf16, and the rows' new max, sum and rescale.
  void run() const {
    for (std::int32_t first = 0; first < rows_.count; first += kSoftmaxRows) {
      run_rows(first, std::min(kSoftmaxRows, rows_.count - first));
    }
  }

 private:
  [[nodiscard]] bool bent() const { return rule_.soft_cap > 0.0F || rule_.slopes != nullptr; }
  [[nodiscard]] float scale() const { return bent() ? kLog2E : rule_.scale * kLog2E; }
  [[nodiscard]] std::uint64_t seen(std::int32_t row, std::int32_t tile) const {
    return sight_.tiles[tile].words[row / rows_.group];
  }

  void run_rows(std::int32_t first, std::int32_t count) const {
    if (factors_ != nullptr) scale_rows(first, count);
    if (bent()) bend_rows(first, count);
    const auto lanes = static_cast<__mmask16>(first_lanes(count));
    Vec each[kSoftmaxRows];
    for (std::int32_t i = count; i < kSoftmaxRows; ++i) each[i] = hn::Zero(Floats());
    for (std::int32_t i = 0; i < count; ++i) each[i].raw = maxima_of_row(first + i);
    const __m512 top = maxima_of<kSoftmaxRows>(each).raw;
    float* max = rows_.states.max + first;
    float* sum = rows_.states.sum + first;
    const __m512 old = _mm512_maskz_loadu_ps(lanes, max);
    const __mmask16 grows = _mm512_cmp_ps_mask(top, old, _CMP_GT_OQ);
    const __m512 now = _mm512_mask_mov_ps(old, grows, top);
    const __m512 rescale = rescale_of_sums<PowerByRounding>(old, now, grows);
    _mm512_mask_storeu_ps(max, lanes, now);
    _mm512_mask_storeu_ps(rows_.rescale + first, lanes, rescale);
    for (std::int32_t i = 0; i < count; ++i) each[i].raw = raise_row(first + i);
    const __m512 total = sums_of<kSoftmaxRows>(each).raw;
    _mm512_mask_storeu_ps(sum, lanes,
                          _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, sum), rescale, total));
  }

  void scale_rows(std::int32_t first, std::int32_t count) const {
    for (std::int32_t row = first; row < first + count; ++row) {
      for (std::int32_t tile = 0; tile < sight_.count; ++tile) {
        scale_row(rows_.score_row(row).logits + tile * kKvTile, kKvTile, factors_[tile].k,
                  seen(row, tile));
      }
    }
  }

  void bend_rows(std::int32_t first, std::int32_t count) const {
    for (std::int32_t row = first; row < first + count; ++row) {
      const std::int32_t query = row / rows_.group;
      const float slope = rule_.slopes != nullptr ? rule_.slopes[row % rows_.group] : 0.0F;
      for (std::int32_t tile = 0; tile < sight_.count; ++tile) {
        if (seen(row, tile) == 0) continue;
        bend(rows_.score_row(row).logits + tile * kKvTile, kKvTile, rule_, slope,
             rule_.first_position + query - sight_.first_keys[tile]);
      }
    }
  }

  /// Largest logits of lanes, in units of log 2. A row with a NaN becomes NaN whatever this is.
  HWY_INLINE __m512 maxima_of_row(std::int32_t row) const {
    const float scale = this->scale();
    const __m512 top = scale < 0.0F ? ends_of_row<true>(row) : ends_of_row<false>(row);
    if (scale != 0.0F) return _mm512_mul_ps(top, _mm512_set1_ps(scale));
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(top, nothing, _CMP_EQ_OQ), nothing);
  }

  /// Smallest or largest dot products of lanes.
  template <bool kSmallest>
  HWY_INLINE __m512 ends_of_row(std::int32_t row) const {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const auto further = [](__m512 end, __mmask16 lanes, __m512 x) {
      return kSmallest ? _mm512_mask_min_ps(end, lanes, end, x)
                       : _mm512_mask_max_ps(end, lanes, end, x);
    };
    __m512 end = _mm512_set1_ps(kSmallest ? kInfinity : -kInfinity);
    for (std::int32_t tile = 0; tile < sight_.count; ++tile) {
      const std::uint64_t word = seen(row, tile);
      const float* logits = rows_.score_row(row).logits + tile * kKvTile;
      HWY_UNROLL(4)
      for (std::int32_t i = 0; i < kVectorsPerTile; ++i) {
        const auto lanes = static_cast<__mmask16>(word >> (i * kRowPadding));
        end = further(end, lanes, _mm512_load_ps(logits + i * kRowPadding));
      }
    }
    return end;
  }

  /// @return Sums of the lanes.
  HWY_INLINE __m512 raise_row(std::int32_t row) const {
    const __m512 scale = _mm512_set1_ps(this->scale());
    const __m512 max = _mm512_set1_ps(rows_.states.max[row]);
    __m512 total = _mm512_setzero_ps();
    for (std::int32_t tile = 0; tile < sight_.count; ++tile) {
      const std::uint64_t word = seen(row, tile);
      const float* logits = rows_.score_row(row).logits + tile * kKvTile;
      std::uint16_t* powers = rows_.score_row(row).powers() + tile * kKvTile;
      __m512 p[kVectorsPerTile];
      HWY_UNROLL(4)
      for (std::int32_t i = 0; i < kVectorsPerTile; ++i) {
        const auto lanes = static_cast<__mmask16>(word >> (i * kRowPadding));
        const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(logits + i * kRowPadding), scale, max);
        p[i] = _mm512_maskz_mov_ps(lanes, PowerByRounding::of(x));
        total = _mm512_add_ps(total, p[i]);
        if (factors_ != nullptr) {
          p[i] =
              _mm512_maskz_mul_ps(lanes, p[i], _mm512_load_ps(factors_[tile].v + i * kRowPadding));
        }
      }
      // Narrower than the logits they replace, which have been read.
      _mm512_store_si512(powers, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
      _mm512_store_si512(powers + kKvTile / 2, (__m512i)_mm512_cvtne2ps_pbh(p[3], p[2]));
    }
    return total;
  }

  const BlockRows& rows_;
  const LogitRule& rule_;
  const BlockSight& sight_;
  const TokenFactors* factors_;
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
