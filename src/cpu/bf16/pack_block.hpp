// SPDX-License-Identifier: Apache-2.0
/// @file
/// Packing a block of keys for many rows, the same for both ways to multiply.
#pragma once

#include <cstdint>

#include "cpu/bf16/panels.hpp"
#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/softmax.hpp"
#include "cpu/key_block.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Packs a block for kv head `head` of the item. @param next  Asked for meanwhile; null: nothing is.
/// @param poisoned  [kBlockTiles], written: see `poisoned_keys`.
template <PanelOrder kOrder, typename T>
void pack_block(const ItemWalk& walk, std::int32_t head, const Block& block, const Block* next,
                const BlockSight& sight, const PairPanels& panels, std::uint64_t* poisoned) {
  const core::ProblemShape& shape = walk.task().shape;
  for (std::int32_t tile = 0; tile < sight.count; ++tile) {
    const auto keys = walk.keys_of<T>(block.tiles[tile], head);
    const TileSight& seen = sight.tiles[tile];
    LinesAhead k_ahead;
    LinesAhead v_ahead;
    if (next != nullptr) {
      k_ahead = walk.k_ahead(next->tiles[tile], head, keys.keys.count);
      v_ahead = walk.v_ahead(next->tiles[tile], head, keys.keys.count);
    }
    pack_keys<kOrder>(keys, shape.head_dim_qk, panels.k_of(tile, shape.head_dim_qk), k_ahead);
    poisoned[tile] = poisoned_keys(keys, seen, shape.head_dim_vo);
    const std::int32_t end = tile + 1 < sight.count ? kKvTile : padded_depth(keys.keys.count);
    pack_values<kOrder>(keys, seen.any & ~poisoned[tile], end, shape.head_dim_vo,
                        panels.v_of(kOrder, tile, shape.head_dim_vo), v_ahead);
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
