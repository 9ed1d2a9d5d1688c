// SPDX-License-Identifier: Apache-2.0
/// @file
/// Blocks of tiles: the keys that many rows are multiplied with at a time.
#pragma once

#include <cstdint>

#include "cpu/item_walk.hpp"

namespace quire::cpu {

/// Up to `kTiles` tiles that follow one another.
template <std::int32_t kTiles>
struct KeyBlock {
  TileKeys tiles[kTiles];
  std::int32_t count = 0;

  [[nodiscard]] std::int32_t end() const { return tiles[count - 1].first + tiles[count - 1].count; }
};

/// What a block's rows see of its tiles.
template <std::int32_t kTiles>
struct KeyBlockSight {
  TileSight tiles[kTiles];
  std::int32_t first_keys[kTiles] = {};
  std::int32_t count = 0;  // tiles

  /// What queries from `query` on see.
  [[nodiscard]] KeyBlockSight from(std::int32_t query) const {
    KeyBlockSight sight = *this;
    for (std::int32_t tile = 0; tile < count; ++tile) sight.tiles[tile].words += query;
    return sight;
  }
};

/// The block that starts at `key`, up to the next multiple of `most` tiles; empty at the item's end.
template <std::int32_t kTiles>
void find_block(const ItemWalk& walk, std::int32_t key, std::int32_t most,
                KeyBlock<kTiles>& block) {
  block.count = 0;
  for (TileKeys& tile : block.tiles) tile.count = 0;
  while (key < walk.task().item.kv_end && (block.count == 0 || key % (most * kKvTile) != 0)) {
    walk.find_keys(key, kKvTile, block.tiles[block.count]);
    key += block.tiles[block.count].count;
    ++block.count;
  }
}

/// Without tiles if no row sees a key of the block. @param words  [kTiles, queries], written.
template <std::int32_t kTiles>
KeyBlockSight<kTiles> look(const ItemWalk& walk, const KeyBlock<kTiles>& block,
                           std::uint64_t* words) {
  KeyBlockSight<kTiles> sight;
  std::uint64_t any = 0;
  for (std::int32_t tile = 0; tile < block.count; ++tile, words += walk.task().num_queries()) {
    sight.tiles[tile] = walk.look(block.tiles[tile], words);
    sight.first_keys[tile] = block.tiles[tile].first;
    any |= sight.tiles[tile].any;
  }
  sight.count = any == 0 ? 0 : block.count;
  return sight;
}

}  // namespace quire::cpu
