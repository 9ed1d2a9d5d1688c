// SPDX-License-Identifier: Apache-2.0
/// @file
/// One work item in bf16: few rows tile by tile, many rows block by block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/bf16/attend_few.hpp"
#include "cpu/bf16/item.hpp"
#include "cpu/bf16/many_rows.hpp"
#include "cpu/bf16/panels.hpp"
#include "cpu/bf16/softmax.hpp"
#include "cpu/finish.hpp"
#include "cpu/item_walk.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Many rows of an item against its keys, block by block. `T` is the element type of K and V.
template <typename T, class Multiply>
class BlockAttend {
 public:
  explicit BlockAttend(const ItemTask& task)
      : task_(task), walk_(task), buffers_(task.buffers, task.shape, task.rows()) {}

  void run() {
    copy_queries(task_, buffers_.q);
    Block blocks[2];
    Block* now = &blocks[0];
    Block* next = &blocks[1];
    find_block(task_.item.kv_begin, *now);
    while (now->count > 0) {
      find_block(now->end(), *next);
      const BlockSight sight = look(*now);
      if (sight.count > 0) {
        for (std::int32_t head = 0; head < task_.num_kv_heads(); ++head) {
          attend_many(head, *now, *next, sight);
        }
      }
      std::swap(now, next);
    }
  }

 private:
  /// Up to kBlockTiles tiles that follow one another.
  struct Block {
    TileKeys tiles[kBlockTiles];
    std::int32_t count = 0;

    [[nodiscard]] std::int32_t end() const {
      return tiles[count - 1].first + tiles[count - 1].count;
    }
  };

  /// The block that starts at `key`, up to the next multiple of kBlockKeys.
  void find_block(std::int32_t key, Block& block) const {
    block.count = 0;
    for (TileKeys& tile : block.tiles) tile.count = 0;
    while (block.count < kBlockTiles && key < task_.item.kv_end &&
           (block.count == 0 || key % kBlockKeys != 0)) {
      walk_.find_keys(key, kKvTile, block.tiles[block.count]);
      key += block.tiles[block.count].count;
      ++block.count;
    }
  }

  /// Without tiles if no row sees a key of the block.
  BlockSight look(const Block& block) const {
    BlockSight sight;
    std::uint64_t any = 0;
    for (std::int32_t tile = 0; tile < block.count; ++tile) {
      sight.tiles[tile] =
          walk_.look(block.tiles[tile],
                     buffers_.words + static_cast<std::ptrdiff_t>(tile) * task_.num_queries());
      sight.first_keys[tile] = block.tiles[tile].first;
      any |= sight.tiles[tile].any;
    }
    sight.count = any == 0 ? 0 : block.count;
    return sight;
  }

  void attend_many(std::int32_t head, const Block& now, const Block& next,
                   const BlockSight& sight) const {
    const BlockRows rows = rows_of_head(task_, buffers_, head);
    const PairPanels& panels = buffers_.panels;
    std::uint64_t poisoned[kBlockTiles] = {};
    const std::ptrdiff_t stride = padded(rows.head_dim_vo);
    for (std::int32_t tile = 0; tile < sight.count; ++tile) {
      const auto keys = walk_.keys_of<T>(now.tiles[tile], head);
      const TileSight& seen = sight.tiles[tile];
      LinesAhead k_ahead = walk_.k_ahead(next.tiles[tile], head, keys.keys.count);
      LinesAhead v_ahead = walk_.v_ahead(next.tiles[tile], head, keys.keys.count);
      pack_keys(keys, rows.head_dim_qk, panels.k_of(tile, rows.head_dim_qk), k_ahead);
      poisoned[tile] = poisoned_keys(keys, seen, rows.head_dim_vo);
      const std::int32_t end = tile + 1 < sight.count ? kKvTile : padded_depth(keys.keys.count);
      pack_values(keys, seen.any & ~poisoned[tile], end, rows.head_dim_vo,
                  panels.v + tile * (kKvTile / 2) * stride, v_ahead);
    }
    attend_slices(head, now, sight, poisoned);
  }

  /// What is done slice by slice: everything but packing.
  void attend_slices(std::int32_t head, const Block& now, const BlockSight& sight,
                     const std::uint64_t* poisoned) const {
    const BlockRows rows = rows_of_head(task_, buffers_, head);
    const std::int32_t slice_queries = Multiply::slice_queries(rows.group);
    const std::int32_t queries = rows.count / rows.group;
    TokenFactors factors[kBlockTiles];
    for (std::int32_t tile = 0; tile < sight.count; ++tile) {
      walk_.factors_of(now.tiles[tile], head, factors[tile]);
    }
    const TokenFactors* const given = walk_.has_token_factors() ? factors : nullptr;
    for (std::int32_t first = 0; first < queries; first += slice_queries) {
      const BlockRows slice = rows.slice(first, std::min(slice_queries, queries - first));
      const BlockSight seen = sight.from(first);
      LogitRule rule = walk_.rule_of(head);
      rule.first_position += first;
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        score_many<Multiply>(slice, seen.tiles[tile], tile,
                             buffers_.panels.k_of(tile, slice.head_dim_qk));
      }
      BlockSoftmax<typename Multiply::Power>(slice, rule, seen, given).run();
      accumulate_many<Multiply>(slice, seen, buffers_.panels.v);
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        add_poisoned<LaneOrder::kPlain>(slice, walk_.keys_of<T>(now.tiles[tile], head),
                                        seen.tiles[tile], poisoned[tile], powers_of(slice, tile));
      }
    }
  }

  const ItemTask& task_;
  ItemWalk walk_;
  BlockBuffers buffers_;
};

/// How VDPBF16PS goes through an item.
struct WayOfDots {
  template <typename T>
  using Few = FewAttend<T>;
  template <typename T>
  using Many = BlockAttend<T, Dots>;
};

/// All rows of an item against its keys. `T` is the element type of K and V.
template <typename T, class Way>
void attend_in_bf16(const ItemTask& task) {
  if (task.rows_per_kv_head() <= Way::template Few<T>::kMostRows) {
    typename Way::template Few<T>(task).run();
  } else {
    typename Way::template Many<T>(task).run();
  }
}

template <class Way>
void block_attend(const ItemTask& task) noexcept {
  clear_states(task);
  if (task.item.kv_begin >= task.item.kv_end) return;
  switch (task.shape.kv_dtype) {
    case DType::kInt8:
      return attend_in_bf16<Int8, Way>(task);
    case DType::kFloat8E4M3:
      return attend_in_bf16<Float8E4M3, Way>(task);
    case DType::kFloat8E5M2:
      return attend_in_bf16<Float8E5M2, Way>(task);
    default:
      return attend_in_bf16<BFloat16, Way>(task);
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
