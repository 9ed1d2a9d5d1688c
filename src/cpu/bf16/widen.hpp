// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of keys and values as bf16, exactly: bf16 as it is, 8-bit elements through a table of the
/// magnitudes' codes (VPERMI2B), which knows subnormals, infinities and NaN too.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "cpu/bf16/target.hpp"
#include "cpu/elements.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Elements that are widened at a time: two vectors of bf16.
inline constexpr std::int32_t kWidened = 64;

/// 64 elements of a row: in their order, or as they come cheapest (`LaneOrder`).
struct Widened {
  __m512i low;   // in order: elements 0 … 31
  __m512i high;  // 32 … 63
};

/// Where the cheapest order of widened elements differs from theirs. Elements are told in chunks of
/// four, as 128 bits of fp32 hold them; interleaving works within lanes of 128 bits.
enum class LaneOrder {
  kPlain,    ///< Elements in their order.
  kCheapest  ///< 8-bit elements: chunks 0 1, 4 5, 8 9, 12 13, then 2 3, 6 7, 10 11, 14 15.
};

/// Moves the quarters of a vector's two halves beside each other, so that interleaving within lanes
/// of 128 bits gives elements in their order.
HWY_INLINE __m512i deal(__m512i v) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), v);
}

/// Bits [0, n) set; all from 64 on, none below 1.
HWY_INLINE std::uint64_t first_lanes(std::int32_t n) {
  constexpr std::int32_t kBits = 64;
  return n <= 0 ? 0 : ~std::uint64_t{0} >> (kBits - std::min(n, kBits));
}

template <typename T>
inline constexpr bool kIsByte = sizeof(T) == 1;

template <typename T>
class Widener;

template <>
class Widener<BFloat16> {
 public:
  template <LaneOrder>
  HWY_INLINE Widened load(const BFloat16* from) const {
    return {_mm512_loadu_si512(from), _mm512_loadu_si512(from + kWidened / 2)};
  }
  /// The first `n` elements, then zeros; no other memory is touched.
  template <LaneOrder>
  HWY_INLINE Widened load(const BFloat16* from, std::int32_t n) const {
    const auto lanes = first_lanes(n);
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>(lanes), from),
            _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lanes >> 32), from + kWidened / 2)};
  }
};

/// The bytes of bf16's codes of the 128 magnitudes of an 8-bit dtype.
template <typename T>
struct MagnitudeTable {
  MagnitudeTable() {
    for (std::uint32_t code = 0; code < low.size(); ++code) {
      const float value = to_float(std::bit_cast<T>(static_cast<std::uint8_t>(code)));
      const std::uint16_t bits = core::bfloat16_from_float(value);
      low[code] = static_cast<std::uint8_t>(bits);
      high[code] = static_cast<std::uint8_t>(bits >> 8 & 0x7fU);
    }
  }
  alignas(64) std::array<std::uint8_t, 128> low;
  alignas(64) std::array<std::uint8_t, 128> high;
};

template <typename T>
class TableWidener {
 public:
  TableWidener() {
    static const MagnitudeTable<T> table;
    low_[0] = _mm512_load_si512(table.low.data());
    low_[1] = _mm512_load_si512(table.low.data() + 64);
    high_[0] = _mm512_load_si512(table.high.data());
    high_[1] = _mm512_load_si512(table.high.data() + 64);
  }
  template <LaneOrder kOrder>
  HWY_INLINE Widened load(const T* from) const {
    return widen<kOrder>(_mm512_loadu_si512(from));
  }
  template <LaneOrder kOrder>
  HWY_INLINE Widened load(const T* from, std::int32_t n) const {
    return widen<kOrder>(_mm512_maskz_loadu_epi8(first_lanes(n), from));
  }

 private:
  static constexpr bool kIsInteger = std::is_same_v<T, Int8>;

  template <LaneOrder kOrder>
  HWY_INLINE Widened widen(__m512i codes) const {
    if constexpr (kOrder == LaneOrder::kPlain) codes = deal(codes);
    const __m512i magnitude = kIsInteger ? _mm512_abs_epi8(codes) : codes;
    const __m512i low = _mm512_permutex2var_epi8(low_[0], magnitude, low_[1]);
    __m512i high = _mm512_permutex2var_epi8(high_[0], magnitude, high_[1]);
    if constexpr (kIsInteger) {
      constexpr char kHighOf128 = 0x43;  // −128 has no magnitude below 128; its low byte is 0
      high =
          _mm512_mask_mov_epi8(high, _mm512_movepi8_mask(magnitude), _mm512_set1_epi8(kHighOf128));
    }
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    high = _mm512_ternarylogic_epi64(high, codes, sign, kOrAnd);
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }

  __m512i low_[2];
  __m512i high_[2];
};

template <>
class Widener<Int8> : public TableWidener<Int8> {};
template <>
class Widener<Float8E4M3> : public TableWidener<Float8E4M3> {};
template <>
class Widener<Float8E5M2> : public TableWidener<Float8E5M2> {};

HWY_INLINE __m512bh as_bf16(__m512i bits) { return (__m512bh)bits; }

/// Sum of products of pairs: acc[i] + a[2i] · b[2i] + a[2i + 1] · b[2i + 1].
HWY_INLINE __m512 dot(__m512 acc, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(acc, as_bf16(a), as_bf16(b));
}

/// Lanes of 128 bits: sums of a's neighbours, then of b's.
HWY_INLINE __m512 add_lanes(__m512 a, __m512 b) {
  constexpr int kEvenLanes = 0x88;
  constexpr int kOddLanes = 0xdd;
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, kEvenLanes),
                       _mm512_shuffle_f32x4(a, b, kOddLanes));
}

/// Lane i is the sum of the lanes of v[i]. Neighbours are added within lanes of 128 bits first, where
/// moving costs least.
HWY_INLINE __m512 sums_of_16(const __m512* v) {
  __m512 quarters[4];
  HWY_UNROLL(4)
  for (int i = 0; i < 4; ++i, v += 4) {
    const __m512 low =
        _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 high =
        _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    quarters[i] =
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(low), _mm512_castps_pd(high)));
    quarters[i] = _mm512_add_ps(quarters[i], _mm512_castpd_ps(_mm512_unpackhi_pd(
                                                 _mm512_castps_pd(low), _mm512_castps_pd(high))));
  }
  return add_lanes(add_lanes(quarters[0], quarters[1]), add_lanes(quarters[2], quarters[3]));
}

/// A pair of bf16 in every lane.
HWY_INLINE __m512i broadcast_pair(const std::uint16_t* pair) {
  std::int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
