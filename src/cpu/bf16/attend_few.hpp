// SPDX-License-Identifier: Apache-2.0
/// @file
/// Few rows of an item (decode): tile by tile, all kv heads of a tile before the next tile, so that
/// memory is read page after page. The softmax takes the rows of several heads together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/bf16/few_rows.hpp"
#include "cpu/bf16/item.hpp"
#include "cpu/item_walk.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Keys of a tile: what is worked on and what is fetched for all heads shares a second-level cache.
inline constexpr std::int32_t kFewKeys = 64;
/// Keys of a head that are scored before those of the next head: as few as one vector of products
/// takes. With all rows of a page's head at a time memory is read 2 KiB apart, which takes longer.
constexpr std::int32_t keys_in_turn(std::int32_t rows) {
  if (rows <= 2) return kLanes / rows;
  return rows == 5 || rows == 6 ? kFewKeys
                                : kLanes / 4;  // of 5 and 6, the last ones go by themselves
}
/// Rows of as many heads as fit go through the softmax together.
inline constexpr std::int32_t kScoreRows = 48;

/// `T` is the element type of K and V.
template <typename T>
class FewAttend {
 public:
  static constexpr std::int32_t kMostRows = kFewRows;

  explicit FewAttend(const ItemTask& task)
      : task_(task),
        walk_(task),
        buffers_(task.buffers, task.shape, task.rows()),
        heads_together_(find_heads_together(task)) {}

  void run() {
    order_queries();
    TileKeys tiles[2];
    TileKeys* now = &tiles[0];
    TileKeys* next = &tiles[1];
    walk_.find_keys(task_.item.kv_begin, kFewKeys, *now);
    while (now->count > 0) {
      walk_.find_keys(now->first + now->count, kFewKeys, *next);
      const TileSight sight = walk_.look(*now, buffers_.words);
      const std::int32_t heads = task_.num_kv_heads();
      for (std::int32_t head = 0; sight.any != 0 && head < heads; head += heads_together_) {
        attend_heads(head, std::min(heads, head + heads_together_), *now, *next, sight);
      }
      std::swap(now, next);
    }
    for (std::int32_t row = 0; row < task_.rows(); ++row) {
      order_columns<T>(
          task_.states.o + static_cast<std::ptrdiff_t>(row) * padded(task_.shape.head_dim_vo),
          task_.shape.head_dim_vo);
    }
  }

 private:
  void order_queries() const {
    const std::int32_t head_dim = task_.shape.head_dim_qk;
    copy_queries(task_, buffers_.q);
    for (std::int32_t row = 0; row < task_.rows(); ++row) {
      order_query<T>(buffers_.q + static_cast<std::ptrdiff_t>(row) * padded_depth(head_dim),
                     head_dim);
    }
  }

  /// Heads whose logits follow one rule and whose scores the buffer holds.
  static std::int32_t find_heads_together(const ItemTask& task) {
    const core::LayerTensors& tensors = task.tensors;
    const bool one_scale = tensors.k_scale == nullptr || tensors.scale_head_stride == 0;
    const bool bent = task.shape.logits_soft_cap > 0.0F || tensors.alibi_slopes != nullptr;
    const bool of_tokens = tensors.k_token_scale.data != nullptr;
    if (!one_scale || bent || of_tokens) return 1;
    return std::max(1, kScoreRows / task.rows_per_kv_head());
  }

  void attend_heads(std::int32_t begin, std::int32_t end, const TileKeys& now, const TileKeys& next,
                    const TileSight& sight) const {
    score_heads(begin, end, now, next);
    const std::int32_t rows_per_head = task_.rows_per_kv_head();
    soften(begin, end - begin, now, sight);
    for (std::int32_t head = begin; head < end; ++head) {
      const BlockRows rows = rows_of_head(task_, buffers_, head, (head - begin) * rows_per_head);
      const auto keys = walk_.keys_of<T>(now, head);
      LinesAhead ahead = walk_.v_ahead(next, head, now.count);
      const std::uint64_t poisoned = poisoned_keys(keys, sight, rows.head_dim_vo);
      accumulate_few(rows, ValuesTask<T>{keys, sight.any & ~poisoned, ahead});
      add_poisoned<LaneOrder::kCheapest>(rows, keys, sight, poisoned, powers_of(rows, 0));
    }
  }

  /// Keys are read in the order in which they lie: a few of all heads, then the next ones. Meanwhile
  /// those of the next tile are asked for, the heads' shares one after another.
  void score_heads(std::int32_t begin, std::int32_t end, const TileKeys& now,
                   const TileKeys& next) const {
    const std::int32_t heads = end - begin;
    BlockRows rows[kScoreRows];
    for (std::int32_t i = 0; i < heads; ++i) {
      rows[i] = rows_of_head(task_, buffers_, begin + i, i * task_.rows_per_kv_head());
    }
    const Widener<T> widen;
    const std::int32_t turn = keys_in_turn(task_.rows_per_kv_head());
    LinesAhead ahead = walk_.k_ahead(next, begin, now.count);
    std::int32_t shares = 1;
    std::int32_t steps = now.count;  // left of the share
    for (std::int32_t key = 0; key < now.count; key += turn) {
      const std::int32_t count = std::min(turn, now.count - key);
      for (std::int32_t i = 0; i < heads; ++i) {
        ahead.step(count);
        steps -= count;
        if (steps <= 0 && shares < heads) {
          ahead = walk_.k_ahead(next, begin + shares++, now.count);
          steps += now.count;
        }
        score_few(rows[i], walk_.keys_of<T>(now, begin + i), key, key + count, widen);
      }
    }
  }

  void soften(std::int32_t head, std::int32_t heads, const TileKeys& keys,
              const TileSight& sight) const {
    BlockRows rows = rows_of_head(task_, buffers_, head);
    BlockSight seen;
    seen.count = 1;
    seen.first_keys[0] = keys.first;
    seen.tiles[0] = sight;
    if (heads > 1) {  // a word for each row, as if it were a query of its own
      std::uint64_t* words = buffers_.words + task_.num_queries();
      for (std::int32_t row = 0; row < heads * rows.count; ++row) {
        words[row] = sight.words[row % rows.count / rows.group];
      }
      seen.tiles[0].words = words;
      rows.count *= heads;
      rows.group = 1;
    }
    TokenFactors factors;
    BlockSoftmax(rows, walk_.rule_of(head), seen, walk_.factors_of(keys, head, factors)).run();
  }

  const ItemTask& task_;
  ItemWalk walk_;
  BlockBuffers buffers_;
  std::int32_t heads_together_;
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
