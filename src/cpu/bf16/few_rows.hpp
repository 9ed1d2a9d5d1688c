// SPDX-License-Identifier: Apache-2.0
/// @file
/// A tile against few rows (decode) in bf16: keys and values are used where they lie, each widened
/// once for up to four rows, while the next tile is fetched.
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

/// Scores of rows [first, first + kRows), of which those beyond the last repeat it, with keys
/// [begin, end).
template <typename T, std::int32_t kRows>
HWY_INLINE void score_block(const BlockRows& rows, std::int32_t first, const HeadKeys<T>& keys,
                            std::int32_t begin, std::int32_t end, const Widener<T>& widen) {
  constexpr std::int32_t kKeys = kLanes / kRows;
  const std::uint16_t* q[extent(kRows)];
  for (std::int32_t row = 0; row < kRows; ++row) {
    q[row] = rows.q_row(std::min(first + row, rows.count - 1));
  }
  const std::int32_t last = keys.keys.count - 1;
  for (std::int32_t key = begin; key < end; key += kKeys) {
    const T* k[extent(kKeys)];
    if (key + 2 * kKeys <= keys.keys.count) {
      HWY_UNROLL(16)
      for (std::int32_t i = 0; i < kKeys; ++i) {
        k[i] = keys.k(key + i);
        fetch_near(keys.k(key + kKeys + i), rows.head_dim_qk);
      }
    } else {
      for (std::int32_t i = 0; i < kKeys; ++i) k[i] = keys.k(std::min(key + i, last));
    }
    alignas(kBufferAlignment) float sums[extent(kLanes)];
    _mm512_store_ps(sums, dots<T, kRows>(q, k, rows.head_dim_qk, widen));
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      std::memcpy(rows.score_row(std::min(first + row, rows.count - 1)).logits + key,
                  sums + row * kKeys, extent(kKeys) * sizeof(float));
    }
  }
}

/// Scores of all rows with keys [begin, end), whose number is a multiple of 16 but for the last ones.
template <typename T>
HWY_INLINE void score_few(const BlockRows& rows, const HeadKeys<T>& keys, std::int32_t begin,
                          std::int32_t end, const Widener<T>& widen) {
  std::int32_t first = 0;
  for (; rows.count - first > 2; first += 4) {
    score_block<T, 4>(rows, first, keys, begin, end, widen);
  }
  if (rows.count - first == 2) score_block<T, 2>(rows, first, keys, begin, end, widen);
  if (rows.count - first == 1) score_block<T, 1>(rows, first, keys, begin, end, widen);
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

/// o[row][column …] = o · rescale + Σ p · v for `kRows` rows and up to kWidened columns, all of them
/// if their order is the cheapest.
/// @tparam kAll  All values are taken, and their number is even.
template <LaneOrder kOrder, bool kAll, typename T, std::int32_t kRows>
void accumulate_block(const BlockRows& rows, std::int32_t first, std::int32_t column,
                      const ValuesTask<T>& task, const Widener<T>& widen) {
  constexpr std::int32_t kColumns = kWidened / kRowPadding;
  const std::int32_t n = std::min(kWidened, rows.head_dim_vo - column);
  const std::uint64_t lanes = first_lanes(n);
  float* o[extent(kRows)];
  const std::uint16_t* p[extent(kRows)];
  __m512 acc[extent(kRows * kColumns)];
  HWY_UNROLL(4)
  for (std::int32_t row = 0; row < kRows; ++row) {
    const std::int32_t index = std::min(first + row, rows.count - 1);
    o[row] = rows.o_row(index) + column;
    p[row] = rows.score_row(index).powers();
    const __m512 rescale = _mm512_set1_ps(rows.rescale[index]);
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      const auto mask = static_cast<__mmask16>(lanes >> (c * kRowPadding));
      acc[row * kColumns + c] =
          _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, o[row] + c * kRowPadding), rescale);
    }
  }
  const bool fetches = first == 0 && column == 0;
  for (std::int32_t key = 0; key < task.keys.keys.count; key += 2) {
    if (fetches) {
      task.ahead.step(2);
      const std::int32_t last = task.keys.keys.count - 1;
      fetch_near(task.keys.v(std::min(key + 4, last)), rows.head_dim_vo);
      fetch_near(task.keys.v(std::min(key + 5, last)), rows.head_dim_vo);
    }
    __m512i v[kColumns];
    if constexpr (kAll) {
      pair_up<kOrder>(widen.template load<kOrder>(task.keys.v(key) + column),
                      widen.template load<kOrder>(task.keys.v(key + 1) + column), v);
    } else {
      if ((task.take >> key & 3U) == 0) continue;
      load_pair<kOrder>(task.keys, key, task.take, column, n, widen, v);
    }
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      const __m512i weights = broadcast_pair(p[row] + key);
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
      const auto mask = static_cast<__mmask16>(lanes >> (c * kRowPadding));
      _mm512_mask_storeu_ps(o[row] + c * kRowPadding, mask, acc[row * kColumns + c]);
    }
  }
}

template <LaneOrder kOrder, bool kAll, typename T>
void accumulate_columns(const BlockRows& rows, std::int32_t column, const ValuesTask<T>& task,
                        const Widener<T>& widen) {
  std::int32_t first = 0;
  for (; rows.count - first > 2; first += 4) {
    accumulate_block<kOrder, kAll, T, 4>(rows, first, column, task, widen);
  }
  if (rows.count - first == 2) {
    accumulate_block<kOrder, kAll, T, 2>(rows, first, column, task, widen);
  }
  if (rows.count - first == 1) {
    accumulate_block<kOrder, kAll, T, 1>(rows, first, column, task, widen);
  }
}

/// Whole blocks of columns come out in the cheapest order: see places.hpp.
template <typename T>
void accumulate_few(const BlockRows& rows, const ValuesTask<T>& task) {
  const Widener<T> widen;
  const std::int32_t count = task.keys.keys.count;
  const bool all = task.take == first_lanes(count) && count % 2 == 0;
  std::int32_t column = 0;
  for (; column + kWidened <= rows.head_dim_vo; column += kWidened) {
    if (all) {
      accumulate_columns<LaneOrder::kCheapest, true, T>(rows, column, task, widen);
    } else {
      accumulate_columns<LaneOrder::kCheapest, false, T>(rows, column, task, widen);
    }
  }
  if (column < rows.head_dim_vo) {
    accumulate_columns<LaneOrder::kPlain, false, T>(rows, column, task, widen);
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
