// SPDX-License-Identifier: Apache-2.0
/// @file
/// The rows that the bf16 kernels multiply with a block of keys, and the panels that the block is
/// packed into.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/key_block.hpp"

namespace quire::cpu {

/// Tiles of keys that many rows are multiplied with at a time: few passes over o, panels that stay
/// in the caches.
inline constexpr std::int32_t kBlockTiles = 4;
inline constexpr std::int32_t kBlockKeys = kBlockTiles * kKvTile;
using Block = KeyBlock<kBlockTiles>;
using BlockSight = KeyBlockSight<kBlockTiles>;
/// Elements of bf16 that the depth of a product is padded to: what a tile of AMX holds in a row.
inline constexpr std::int32_t kDepthPadding = 32;
/// Rows of a tile of AMX.
inline constexpr std::int32_t kTileRows = 16;

constexpr std::int32_t padded_depth(std::int32_t depth) {
  return (depth + kDepthPadding - 1) / kDepthPadding * kDepthPadding;
}

/// A row of a block's logits, of which the first half becomes its powers of 2 in bf16.
struct ScoreRow {
  /// Elements from one to the next: rows at powers of two apart would share a few sets of a cache.
  static constexpr std::int32_t kStride = kBlockKeys + kRowPadding;

  float* logits = nullptr;                       // [kBlockKeys]
  [[nodiscard]] std::uint16_t* powers() const {  // [kBlockKeys]
    return reinterpret_cast<std::uint16_t*>(logits);
  }
};

/// The rows of one kv head of an item.
struct BlockRows {
  std::int32_t count = 0;  // queries × group
  std::int32_t group = 0;
  std::int32_t head_dim_qk = 0;
  std::int32_t head_dim_vo = 0;
  const std::uint16_t* q = nullptr;  // bf16 [count, padded_depth(head_dim_qk)], zeros at the end
  float* scores = nullptr;           // [count of a slice]: ScoreRow
  float* rescale = nullptr;          // [count of a slice]: what becomes of o when the maximum grows
  RowStates states;                  // of these rows

  [[nodiscard]] const std::uint16_t* q_row(std::int32_t row) const {
    return q + static_cast<std::ptrdiff_t>(row) * padded_depth(head_dim_qk);
  }
  [[nodiscard]] ScoreRow score_row(std::int32_t row) const {
    return {scores + static_cast<std::ptrdiff_t>(row) * ScoreRow::kStride};
  }
  [[nodiscard]] float* o_row(std::int32_t row) const {
    return states.o + static_cast<std::ptrdiff_t>(row) * padded(head_dim_vo);
  }

  /// The rows of queries [first, first + num_queries), with the same scores and rescale: of one slice
  /// at a time.
  [[nodiscard]] BlockRows slice(std::int32_t first, std::int32_t num_queries) const {
    const std::int32_t row = first * group;
    BlockRows rows = *this;
    rows.count = num_queries * group;
    rows.q = q_row(row);
    rows.states = {o_row(row), states.max + row, states.sum + row};
    return rows;
  }
};

/// How the pairs of a panel lie: in rows of all columns, or in tiles of 16 pairs × 16 columns, one
/// after the other.
enum class PanelOrder { kRows, kTiles };

/// A block's keys and values as pairs of bf16, so that a vector holds one pair of 16 columns: what
/// VDPBF16PS and tiles of AMX multiply with.
struct PairPanels {
  // Rows: [kBlockTiles, padded_depth(head_dim_qk) / 2, kKvTile], pairs of components; tiles:
  // [kBlockTiles, kKvTile / 16, padded_depth(head_dim_qk) / 32, 16, 16].
  std::uint32_t* k = nullptr;
  // Rows: [kBlockKeys / 2, padded(head_dim_vo)], pairs of keys; tiles:
  // [columns / 32, kBlockKeys / 32, 2, 16, 16], so that what columns of o need of a block lies together.
  std::uint32_t* v = nullptr;

  /// Where a tile's keys are.
  [[nodiscard]] std::uint32_t* k_of(std::int32_t tile, std::int32_t head_dim_qk) const {
    return k + static_cast<std::ptrdiff_t>(tile) * padded_depth(head_dim_qk) / 2 * kKvTile;
  }
  /// Where the first of a tile's values are.
  [[nodiscard]] std::uint32_t* v_of(PanelOrder order, std::int32_t tile,
                                    std::int32_t head_dim_vo) const {
    const std::int32_t columns = order == PanelOrder::kTiles ? kDepthPadding : padded(head_dim_vo);
    return v + static_cast<std::ptrdiff_t>(tile) * kKvTile / 2 * columns;
  }
};

}  // namespace quire::cpu
