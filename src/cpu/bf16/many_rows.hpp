// SPDX-License-Identifier: Apache-2.0
/// @file
/// A block of keys against many rows (prefill) by VDPBF16PS.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "cpu/bf16/multiply.hpp"
#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/softmax.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Keys that rows [first, first + count) need of a tile: up to the last that one of them sees.
inline std::int32_t keys_needed(const BlockRows& rows, const TileSight& sight, std::int32_t first,
                                std::int32_t count) {
  std::uint64_t seen = sight.all;
  if (~seen == 0) return kKvTile;
  const std::int32_t last_query = (first + count - 1) / rows.group;
  for (std::int32_t query = first / rows.group; query <= last_query; ++query) {
    seen |= sight.words[query];
  }
  return static_cast<std::int32_t>(std::bit_width(seen));
}

/// Logits of all rows and a tile's keys.
inline void score_many(const BlockRows& rows, const TileSight& sight, std::int32_t tile,
                       const std::uint32_t* panel) {
  PairProduct product;
  product.a_stride = padded_depth(rows.head_dim_qk);
  product.b = panel;
  product.b_stride = kKvTile;
  product.c_stride = ScoreRow::kStride;
  product.pairs = padded_depth(rows.head_dim_qk) / 2;
  for (std::int32_t first = 0; first < rows.count;) {
    const std::int32_t count = Dots::next_rows(rows.count - first);
    const std::int32_t keys = keys_needed(rows, sight, first, count);
    if (keys > 0) {
      product.a = rows.q_row(first);
      product.c = rows.score_row(first).logits + tile * kKvTile;
      Dots::multiply(count, (keys + kRowPadding - 1) / kRowPadding, product);
    }
    first += count;
  }
}

/// o = o · rescale + p · v for all rows.
inline void accumulate_many(const BlockRows& rows, const BlockSight& sight,
                            const std::uint32_t* panel) {
  constexpr std::int32_t kColumns = kDotColumns * kRowPadding;
  PairProduct product;
  product.a_stride = 2 * ScoreRow::kStride;  // powers lie where logits did
  product.b_stride = padded(rows.head_dim_vo);
  product.c_stride = product.b_stride;
  for (std::int32_t column = 0; column < product.b_stride; column += kColumns) {
    const std::int32_t vectors =
        std::min(static_cast<std::int32_t>(product.b_stride) - column, kColumns) / kRowPadding;
    product.b = panel + column;
    for (std::int32_t first = 0; first < rows.count;) {
      const std::int32_t count = Dots::next_rows(rows.count - first);
      std::int32_t keys = 0;
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        const std::int32_t needed = keys_needed(rows, sight.tiles[tile], first, count);
        if (needed > 0) keys = tile * kKvTile + needed;
      }
      if (keys > 0) {
        product.a = rows.score_row(first).powers();
        product.c = rows.o_row(first) + column;
        product.rescale = rows.rescale + first;
        product.pairs = (keys + 1) / 2;
        Dots::multiply(count, vectors, product);
      }
      first += count;
    }
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
