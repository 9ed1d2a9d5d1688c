// SPDX-License-Identifier: Apache-2.0
/// @file
/// One work item in bf16: few rows tile by tile, many rows block by block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/bf16/attend_few.hpp"
#include "cpu/bf16/item.hpp"
#include "cpu/bf16/many_rows.hpp"
#include "cpu/bf16/pack_block.hpp"
#include "cpu/bf16/softmax.hpp"
#include "cpu/finish.hpp"
#include "cpu/item_walk.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Many rows of an item against its keys, block by block. `T` is the element type of K and V.
template <typename T>
class BlockAttend {
 public:
  explicit BlockAttend(const ItemTask& task)
      : task_(task), walk_(task), buffers_(task.buffers, task.shape, task.rows()) {}

  void run() {
    copy_queries(task_, buffers_.q);
    Block blocks[2];
    Block* now = &blocks[0];
    Block* next = &blocks[1];
    find_block(walk_, task_.item.kv_begin, kBlockTiles, *now);
    while (now->count > 0) {
      find_block(walk_, now->end(), kBlockTiles, *next);
      const BlockSight sight = look(walk_, *now, buffers_.words);
      for (std::int32_t head = 0; sight.count > 0 && head < task_.num_kv_heads(); ++head) {
        std::uint64_t poisoned[kBlockTiles] = {};
        pack_block<PanelOrder::kRows, T>(walk_, head, *now, next, sight, buffers_.panels, poisoned);
        attend_slices(head, *now, sight, poisoned);
      }
      std::swap(now, next);
    }
  }

 private:
  /// What is done slice by slice: everything but packing.
  void attend_slices(std::int32_t head, const Block& now, const BlockSight& sight,
                     const std::uint64_t* poisoned) const {
    const BlockRows rows = rows_of_head(task_, buffers_, head);
    const std::int32_t slice_queries = Dots::slice_queries(rows.group);
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
        score_many(slice, seen.tiles[tile], tile, buffers_.panels.k_of(tile, slice.head_dim_qk));
      }
      BlockSoftmax(slice, rule, seen, given).run();
      accumulate_many(slice, seen, buffers_.panels.v);
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
  using Many = BlockAttend<T>;
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
