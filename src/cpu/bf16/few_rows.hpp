// SPDX-License-Identifier: Apache-2.0
/// @file
/// A tile against few rows (decode) in bf16: keys and values are used where they lie, each widened
/// once for up to four rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/widen.hpp"
#include "cpu/portable/few_rows-inl.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// acc[row · kKeys + key] += q[row] · k[key] at one place of the head.
template <std::int32_t kRows, std::int32_t kKeys>
HWY_INLINE void add_dots(const std::uint16_t* const* q, std::int32_t at, const __m512i* k,
                         __m512* acc) {
  HWY_UNROLL(4)
  for (std::int32_t row = 0; row < kRows; ++row) {
    const __m512i q_part = _mm512_loadu_si512(q[row] + at);
    HWY_UNROLL(16)
    for (std::int32_t key = 0; key < kKeys; ++key) {
      acc[row * kKeys + key] = dot(acc[row * kKeys + key], q_part, k[key]);
    }
  }
}

/// Dot products of `kRows` rows with 16 / kRows keys.
template <typename T, std::int32_t kRows>
HWY_INLINE __m512 dots(const std::uint16_t* const* q, const T* const* k, std::int32_t head_dim,
                       const Widener<T>& widen) {
  constexpr std::int32_t kKeys = kLanes / kRows;
  __m512 acc[extent(kLanes)];
  HWY_UNROLL(16)
  for (std::int32_t i = 0; i < kLanes; ++i) acc[i] = _mm512_setzero_ps();
  __m512i low[extent(kKeys)];
  __m512i high[extent(kKeys)];
  std::int32_t at = 0;
  for (; at + kWidened <= head_dim; at += kWidened) {
    HWY_UNROLL(16)
    for (std::int32_t key = 0; key < kKeys; ++key) {
      const Widened wide = widen.template load<LaneOrder::kCheapest>(k[key] + at);
      low[key] = wide.low;
      high[key] = wide.high;
    }
    add_dots<kRows, kKeys>(q, at, low, acc);
    add_dots<kRows, kKeys>(q, at + kWidened / 2, high, acc);
  }
  if (at < head_dim) {
    HWY_UNROLL(16)
    for (std::int32_t key = 0; key < kKeys; ++key) {
      const Widened wide = widen.template load<LaneOrder::kPlain>(k[key] + at, head_dim - at);
      low[key] = wide.low;
      high[key] = wide.high;
    }
    add_dots<kRows, kKeys>(q, at, low, acc);
    if (at + kWidened / 2 < head_dim) {
      add_dots<kRows, kKeys>(q, at + kWidened / 2, high, acc);
    }
  }
  return sums_of_16(acc);
}

/// The length of rows that most models have: with it, and rows that fill their blocks, the compiler
/// knows all distances.
inline constexpr std::int32_t kUsualHeadDim = 128;

/// Scores of rows [first, first + kRows), of which those beyond the last repeat it, with keys
/// [begin, end).
/// @tparam kUsual  Rows are of the usual length, and none is beyond the last.
template <bool kUsual, typename T, std::int32_t kRows>
HWY_INLINE void score_block(const BlockRows& rows, std::int32_t first, const HeadKeys<T>& keys,
                            std::int32_t begin, std::int32_t end, const Widener<T>& widen) {
  constexpr std::int32_t kKeys = kLanes / kRows;
  const std::int32_t head_dim = kUsual ? kUsualHeadDim : rows.head_dim_qk;
  const std::uint16_t* q[extent(kRows)];
  float* logits[extent(kRows)];
  for (std::int32_t row = 0; row < kRows; ++row) {
    const std::int32_t place = kUsual ? row : std::min(row, rows.count - 1 - first);
    q[row] = rows.q_row(first) + place * std::ptrdiff_t{padded_depth(head_dim)};
    logits[row] = rows.score_row(first).logits + place * std::ptrdiff_t{ScoreRow::kStride};
  }
  const std::int32_t last = keys.keys.count - 1;
  for (std::int32_t key = begin; key < end; key += kKeys) {
    const T* k[extent(kKeys)];
    if (key + kKeys <= keys.keys.count) {
      HWY_UNROLL(16)
      for (std::int32_t i = 0; i < kKeys; ++i) k[i] = keys.k(key + i);
    } else {
      for (std::int32_t i = 0; i < kKeys; ++i) k[i] = keys.k(std::min(key + i, last));
    }
    alignas(kBufferAlignment) float sums[extent(kLanes)];
    _mm512_store_ps(sums, dots<T, kRows>(q, k, head_dim, widen));
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      std::memcpy(logits[row] + key, sums + row * kKeys, extent(kKeys) * sizeof(float));
    }
  }
}

/// Scores of all rows with keys [begin, end), which begin a turn.
template <typename T>
HWY_INLINE void score_few(const BlockRows& rows, const HeadKeys<T>& keys, std::int32_t begin,
                          std::int32_t end, const Widener<T>& widen) {
  const bool usual = kIsByte<T> && rows.head_dim_qk == kUsualHeadDim;
  std::int32_t first = 0;
  for (; rows.count - first > 2; first += 4) {
    if (usual && rows.count - first >= 4) {
      score_block<true, T, 4>(rows, first, keys, begin, end, widen);
    } else {
      score_block<false, T, 4>(rows, first, keys, begin, end, widen);
    }
  }
  if (rows.count - first == 2) score_block<false, T, 2>(rows, first, keys, begin, end, widen);
  if (rows.count - first == 1) score_block<false, T, 1>(rows, first, keys, begin, end, widen);
}

/// Pairs of two values' elements, 16 columns a vector: in order, or as `places.hpp` tells.
template <LaneOrder kOrder>
HWY_INLINE void pair_up(Widened even, Widened odd, __m512i* pairs) {
  if constexpr (kOrder == LaneOrder::kPlain) {
    even = {deal(even.low), deal(even.high)};
    odd = {deal(odd.low), deal(odd.high)};
  }
  pairs[0] = _mm512_unpacklo_epi16(even.low, odd.low);
  pairs[1] = _mm512_unpackhi_epi16(even.low, odd.low);
  pairs[2] = _mm512_unpacklo_epi16(even.high, odd.high);
  pairs[3] = _mm512_unpackhi_epi16(even.high, odd.high);
}

/// `n` columns of the values of keys `key` and `key` + 1; zeros for a key that is not in `take`.
template <LaneOrder kOrder, typename T>
HWY_INLINE void load_pair(const HeadKeys<T>& keys, std::int32_t key, std::uint64_t take,
                          std::int32_t column, std::int32_t n, const Widener<T>& widen,
                          __m512i* pairs) {
  const std::uint64_t both = take >> key & 3U;
  const std::int32_t odd_key = (both & 2U) != 0 ? key + 1 : key;  // not taken: may not be there
  const T* even = keys.v(key) + column;
  const T* odd = keys.v(odd_key) + column;
  if (both == 3U && n >= kWidened) {
    pair_up<kOrder>(widen.template load<kOrder>(even), widen.template load<kOrder>(odd), pairs);
  } else {
    pair_up<kOrder>(widen.template load<kOrder>(even, (both & 1U) != 0 ? n : 0),
                    widen.template load<kOrder>(odd, (both & 2U) != 0 ? n : 0), pairs);
  }
}

/// Elements from one row's powers to the next one's.
inline constexpr std::ptrdiff_t kPowersStride =
    ScoreRow::kStride * std::ptrdiff_t{sizeof(float) / sizeof(std::uint16_t)};

/// o[row][column …] += Σ p · v for `kRows` rows and up to kWidened columns, all of them if their order
/// is the cheapest. o is rescaled first if the turn is the tile's first.
/// @param turn  Begins with an even key.
/// @tparam kAll  All values of the turn are taken, and their number is even.
template <LaneOrder kOrder, bool kAll, typename T, std::int32_t kRows>
HWY_INLINE void accumulate_block(const BlockRows& rows, std::int32_t first, std::int32_t head_dim,
                                 std::int32_t column, const ValuesTurn<T>& turn,
                                 const Widener<T>& widen) {
  constexpr std::int32_t kColumns = kWidened / kRowPadding;
  const std::int32_t n = std::min(kWidened, head_dim - column);
  const std::uint64_t lanes = kOrder == LaneOrder::kCheapest ? ~std::uint64_t{0} : first_lanes(n);
  const auto mask = [lanes](std::int32_t c)
                        HWY_ATTR { return static_cast<__mmask16>(lanes >> (c * kRowPadding)); };
  const std::uint16_t* const powers = rows.score_row(first).powers();
  float* o[extent(kRows)];
  __m512 acc[extent(kRows * kColumns)];
  HWY_UNROLL(4)
  for (std::int32_t row = 0; row < kRows; ++row) {
    o[row] = rows.o_row(first) + row * std::ptrdiff_t{padded(head_dim)} + column;
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      acc[row * kColumns + c] = _mm512_maskz_loadu_ps(mask(c), o[row] + c * kRowPadding);
    }
  }
  if (turn.begin == 0) {
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      const __m512 rescale = _mm512_set1_ps(rows.rescale[first + row]);
      HWY_UNROLL(4)
      for (std::int32_t c = 0; c < kColumns; ++c) {
        acc[row * kColumns + c] = _mm512_mul_ps(acc[row * kColumns + c], rescale);
      }
    }
  }
  for (std::int32_t key = turn.begin; key < turn.end; key += 2) {
    __m512i v[kColumns];
    if constexpr (kAll) {
      pair_up<kOrder>(widen.template load<kOrder>(turn.keys.v(key) + column),
                      widen.template load<kOrder>(turn.keys.v(key + 1) + column), v);
    } else {
      if ((turn.take >> key & 3U) == 0) continue;
      load_pair<kOrder>(turn.keys, key, turn.take, column, n, widen, v);
    }
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      const __m512i weights = broadcast_pair(powers + row * kPowersStride + key);
      HWY_UNROLL(4)
      for (std::int32_t c = 0; c < kColumns; ++c) {
        acc[row * kColumns + c] = dot(acc[row * kColumns + c], weights, v[c]);
      }
    }
  }
  HWY_UNROLL(4)
  for (std::int32_t row = 0; row < kRows; ++row) {
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      _mm512_mask_storeu_ps(o[row] + c * kRowPadding, mask(c), acc[row * kColumns + c]);
    }
  }
}

/// All columns of `kRows` rows. Whole blocks of them come out in the cheapest order: see places.hpp.
/// Not inlined: loops around it would hold on to its addresses.
template <bool kUsual, bool kAll, typename T, std::int32_t kRows>
HWY_NOINLINE void accumulate_rows(const BlockRows& rows, std::int32_t first,
                                  const ValuesTurn<T>& turn, const Widener<T>& widen) {
  const std::int32_t head_dim = kUsual ? kUsualHeadDim : rows.head_dim_vo;
  std::int32_t column = 0;
  for (; column + kWidened <= head_dim; column += kWidened) {
    accumulate_block<LaneOrder::kCheapest, kAll, T, kRows>(rows, first, head_dim, column, turn,
                                                           widen);
  }
  if (column < head_dim) {
    accumulate_block<LaneOrder::kPlain, false, T, kRows>(rows, first, head_dim, column, turn,
                                                         widen);
  }
}

/// o += Σ p · v of the turn's keys.
template <bool kAll, typename T>
HWY_INLINE void accumulate_few(const BlockRows& rows, const ValuesTurn<T>& turn,
                               const Widener<T>& widen) {
  const bool usual = kIsByte<T> && rows.head_dim_vo == kUsualHeadDim;
  std::int32_t first = 0;
  for (; rows.count - first >= 4; first += 4) {
    if (kAll && usual) {
      accumulate_rows<kAll, kAll, T, 4>(rows, first, turn, widen);
    } else {
      accumulate_rows<false, kAll, T, 4>(rows, first, turn, widen);
    }
  }
  if (rows.count - first == 3) accumulate_rows<false, kAll, T, 3>(rows, first, turn, widen);
  if (rows.count - first == 2) accumulate_rows<false, kAll, T, 2>(rows, first, turn, widen);
  if (rows.count - first == 1) accumulate_rows<false, kAll, T, 1>(rows, first, turn, widen);
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
