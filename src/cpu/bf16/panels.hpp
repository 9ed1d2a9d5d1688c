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

/// Four rows of four blocks of 4 × 32 bits: transposes each lane of 128 bits.
HWY_INLINE void transpose_lanes(__m512i* v) {
  const __m512i ab_low = _mm512_unpacklo_epi32(v[0], v[1]);
  const __m512i ab_high = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i cd_low = _mm512_unpacklo_epi32(v[2], v[3]);
  const __m512i cd_high = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
  v[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
  v[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
  v[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}

/// 16 keys × 16 pairs of components → 16 rows of the panel, `kStride` apart: first within lanes of 128
/// bits, then the lanes.
template <std::int32_t kStride>
HWY_INLINE void pack_key_pairs(const __m512i* keys, std::uint32_t* to) {
  constexpr int kEvenLanes = 0x88;
  constexpr int kOddLanes = 0xdd;
  __m512i v[16];
  HWY_UNROLL(16)
  for (int i = 0; i < 16; ++i) v[i] = keys[i];
  HWY_UNROLL(4)
  for (int i = 0; i < 16; i += 4) transpose_lanes(v + i);
  // Lane L of v[4 · k + j] is row 4 · L + j of keys 4 · k …
  HWY_UNROLL(4)
  for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(v[j], v[4 + j], kEvenLanes);
    const __m512i odd_low = _mm512_shuffle_i32x4(v[j], v[4 + j], kOddLanes);
    const __m512i even_high = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], kEvenLanes);
    const __m512i odd_high = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], kOddLanes);
    std::uint32_t* row = to + j * kStride;
    constexpr int kNext = 4 * kStride;
    _mm512_store_si512(row, _mm512_shuffle_i32x4(even_low, even_high, kEvenLanes));
    _mm512_store_si512(row + kNext, _mm512_shuffle_i32x4(odd_low, odd_high, kEvenLanes));
    _mm512_store_si512(row + 2 * kNext, _mm512_shuffle_i32x4(even_low, even_high, kOddLanes));
    _mm512_store_si512(row + 3 * kNext, _mm512_shuffle_i32x4(odd_low, odd_high, kOddLanes));
  }
}

/// Keys → a tile of panel.k, zeros beyond head_dim. Columns beyond the last key, up to
/// a whole vector, repeat it. @param ahead  A key is a step.
template <PanelOrder kOrder, typename T>
void pack_keys(const HeadKeys<T>& keys, std::int32_t head_dim, std::uint32_t* to,
               LinesAhead& ahead) {
  constexpr bool kInTiles = kOrder == PanelOrder::kTiles;
  constexpr std::int32_t kStride = kInTiles ? kRowPadding : kKvTile;
  const Widener<T> widen;
  const std::int32_t last = keys.keys.count - 1;
  for (std::int32_t key = 0; key <= last; key += kLanes) {
    ahead.step(kLanes);
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
      const std::ptrdiff_t place = kInTiles ? key / 2 * padded_depth(head_dim) : key;
      std::uint32_t* block = to + place + static_cast<std::ptrdiff_t>(at / 2) * kStride;
      pack_key_pairs<kStride>(low, block);
      if (at + kDepthPadding < head_dim) pack_key_pairs<kStride>(high, block + kLanes * kStride);
    }
  }
}

/// Values of keys [0, end), `end` even, → rows of panel.v from `to` on; zeros for keys that are not in `take`.
/// @param ahead  A key is a step.
template <PanelOrder kOrder, typename T>
void pack_values(const HeadKeys<T>& keys, std::uint64_t take, std::int32_t end,
                 std::int32_t head_dim, std::uint32_t* to, LinesAhead& ahead) {
  const Widener<T> widen;
  const std::int32_t stride = padded(head_dim);
  for (std::int32_t key = 0; key < end; key += 2) {
    ahead.step(2);
    for (std::int32_t column = 0; column < stride; column += kWidened) {
      __m512i pairs[kWidened / kRowPadding] = {_mm512_setzero_si512(), _mm512_setzero_si512(),
                                               _mm512_setzero_si512(), _mm512_setzero_si512()};
      const std::int32_t n = head_dim - column;
      if ((take >> key & 3U) != 0)
        load_pair<LaneOrder::kPlain>(keys, key, take, column, n, widen, pairs);
      const std::int32_t vectors = std::min(stride - column, kWidened) / kRowPadding;
      for (std::int32_t i = 0; i < vectors; ++i) {
        const std::int32_t at = column + i * kRowPadding;
        const std::int32_t place =
            kOrder == PanelOrder::kTiles
                ? at / kDepthPadding * kDepthPadding * kBlockKeys / 2 +
                      (key / kDepthPadding * kDepthPadding + at % kDepthPadding) * kTileRows +
                      key % kDepthPadding / 2 * kRowPadding
                : key / 2 * stride + at;
        _mm512_store_si512(to + place, pairs[i]);
      }
    }
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
