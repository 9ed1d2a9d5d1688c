// SPDX-License-Identifier: Apache-2.0
/// @file
/// Keys and values of a tile, packed once for many rows into pairs of bf16.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/bf16/few_rows.hpp"
#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/widen.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// 16 keys × 16 pairs of components → 16 rows of the panel.
HWY_INLINE void pack_key_pairs(const __m512i* keys, std::uint32_t* to) {
  Vec block[extent(kLanes)];
  HWY_UNROLL(16)
  for (std::int32_t i = 0; i < kLanes; ++i) block[i].raw = _mm512_castsi512_ps(keys[i]);
  transpose(block);
  HWY_UNROLL(16)
  for (std::int32_t i = 0; i < kLanes; ++i) {
    _mm512_store_si512(to + i * kBlockKeys, _mm512_castps_si512(block[i].raw));
  }
}

/// Keys → columns of panel.k from `to` on, zeros beyond head_dim. Columns beyond the last key, up to
/// a whole vector, repeat it.
template <typename T>
void pack_keys(const HeadKeys<T>& keys, std::int32_t head_dim, std::uint32_t* to) {
  const Widener<T> widen;
  const std::int32_t last = keys.keys.count - 1;
  for (std::int32_t key = 0; key <= last; key += kLanes) {
    for (std::int32_t at = 0; at < head_dim; at += kWidened) {
      __m512i low[extent(kLanes)];
      __m512i high[extent(kLanes)];
      for (std::int32_t i = 0; i < kLanes; ++i) {
        const T* from = keys.k(std::min(key + i, last)) + at;
        const Widened wide = at + kWidened <= head_dim
                                 ? widen.template load<LaneOrder::kPlain>(from)
                                 : widen.template load<LaneOrder::kPlain>(from, head_dim - at);
        low[i] = wide.low;
        high[i] = wide.high;
      }
      std::uint32_t* block = to + static_cast<std::ptrdiff_t>(at / 2) * kBlockKeys + key;
      pack_key_pairs(low, block);
      if (at + kDepthPadding < head_dim) pack_key_pairs(high, block + kLanes * kBlockKeys);
    }
  }
}

/// Values of keys [0, end), `end` even, → rows of panel.v from `to` on; zeros for keys that are not in `take`.
template <typename T>
void pack_values(const HeadKeys<T>& keys, std::uint64_t take, std::int32_t end,
                 std::int32_t head_dim, std::uint32_t* to) {
  const Widener<T> widen;
  const std::int32_t stride = padded(head_dim);
  for (std::int32_t key = 0; key < end; key += 2, to += stride) {
    for (std::int32_t column = 0; column < stride; column += kWidened) {
      __m512i pairs[kWidened / kRowPadding] = {_mm512_setzero_si512(), _mm512_setzero_si512(),
                                               _mm512_setzero_si512(), _mm512_setzero_si512()};
      const std::int32_t n = head_dim - column;
      if ((take >> key & 3U) != 0)
        load_pair<LaneOrder::kPlain>(keys, key, take, column, n, widen, pairs);
      const std::int32_t vectors = std::min(stride - column, kWidened) / kRowPadding;
      for (std::int32_t i = 0; i < vectors; ++i) {
        _mm512_store_si512(to + column + i * kRowPadding, pairs[i]);
      }
    }
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
