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
#include "cpu/head_runs.hpp"
#include "cpu/item_walk.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// `T` is the element type of K and V.
template <typename T>
class FewAttend {
 public:
  static constexpr std::int32_t kMostRows = kFewRows;
  static constexpr std::int32_t kValuesBytes = 384;  // see HeadRuns

  explicit FewAttend(const ItemTask& task)
      : task_(task),
        walk_(task),
        buffers_(task.buffers, task.shape, task.rows()),
        runs_(task, keys_in_turn(task.rows_per_kv_head()), kValuesBytes) {}

  void run() {
    TileKeys tiles[2];
    TileKeys* now = &tiles[0];
    TileKeys* next = &tiles[1];
    walk_.find_keys(task_.item.kv_begin, kKvTile, *now);
    runs_.ask_for_first(*now);
    order_queries();
    while (now->count > 0) {
      walk_.find_keys(now->first + now->count, kKvTile, *next);
      const TileSight sight = walk_.look(*now, buffers_.words);
      for (std::int32_t head = 0; sight.any != 0 && head < task_.num_kv_heads();) {
        const std::int32_t end = runs_.end_of_group(head);
        attend_group(head, end, *now, *next, sight);
        head = end;
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

  void attend_group(std::int32_t begin, std::int32_t end, const TileKeys& now, const TileKeys& next,
                    const TileSight& sight) const {
    BlockRows rows[kMostHeads];
    for (std::int32_t head = begin; head < end; ++head) {
      rows[head - begin] =
          rows_of_head(task_, buffers_, head, (head - begin) * task_.rows_per_kv_head());
    }
    for (std::int32_t head = begin; head < end; head = runs_.end_of_run(head)) {
      score_run(head, rows + (head - begin), now);
    }
    for (std::int32_t head = begin; head < end; head = runs_.end_of_rule(head)) {
      soften(head, runs_.end_of_rule(head) - head, rows[head - begin], now, sight);
    }
    for (std::int32_t head = begin; head < end; head = runs_.end_of_run(head)) {
      add_run(head, rows + (head - begin), now, next, sight);
    }
  }

  /// @param rows  Of the run's heads, from head `begin` on.
  void score_run(std::int32_t begin, const BlockRows* rows, const TileKeys& now) const {
    const Widener<T> widen;
    const std::int32_t end = runs_.end_of_run(begin);
    RunsAhead ahead = runs_.ahead_of_keys(now, begin);
    for (std::int32_t key = 0; key < now.count; key += runs_.turn()) {
      const std::int32_t count = std::min(runs_.turn(), now.count - key);
      for (std::int32_t head = begin; head < end; ++head) {
        ahead.step(count);
        score_few(rows[head - begin], walk_.keys_of<T>(now, head), key, key + count, widen);
      }
    }
  }

  void soften(std::int32_t head, std::int32_t heads, BlockRows rows, const TileKeys& keys,
              const TileSight& sight) const {
    BlockSight seen;
    seen.count = 1;
    seen.first_keys[0] = keys.first;
    seen.tiles[0] = sight;
    if (heads > 1) {
      seen.tiles[0] = runs_.sight_of_rows(sight, heads, buffers_.words + task_.num_queries());
      rows.count *= heads;
      rows.group = 1;
    }
    TokenFactors factors;
    BlockSoftmax(rows, walk_.rule_of(head), seen, walk_.factors_of(keys, head, factors)).run();
  }

  void add_run(std::int32_t begin, const BlockRows* rows, const TileKeys& now, const TileKeys& next,
               const TileSight& sight) const {
    const std::int32_t end = runs_.end_of_run(begin);
    std::uint64_t poisoned[kMostHeads];
    std::uint64_t take = sight.any;
    for (std::int32_t head = begin; head < end; ++head) {
      poisoned[head - begin] =
          poisoned_keys(walk_.keys_of<T>(now, head), sight, task_.shape.head_dim_vo);
      take &= ~poisoned[head - begin];
    }
    const Widener<T> widen;
    const std::int32_t turn = runs_.values_turn();
    RunsAhead ahead = runs_.ahead_of_values(now, next, begin);
    // Keys that are there and taken by all heads, in pairs, need no questions.
    const std::int32_t plain = take == first_lanes(now.count) ? now.count / 2 * 2 : 0;
    for (std::int32_t key = 0; key < now.count;) {
      const bool all = key < plain;
      const std::int32_t count = std::min(turn, (all ? plain : now.count) - key);
      for (std::int32_t head = begin; head < end; ++head) {
        ahead.step(count);
        const ValuesTurn<T> values{walk_.keys_of<T>(now, head), sight.any & ~poisoned[head - begin],
                                   key, key + count};
        if (all) {
          accumulate_few<true>(rows[head - begin], values, widen);
        } else {
          accumulate_few<false>(rows[head - begin], values, widen);
        }
      }
      key += count;
    }
    for (std::int32_t head = begin; head < end; ++head) {
      const BlockRows& of_head = rows[head - begin];
      add_poisoned<LaneOrder::kCheapest>(of_head, walk_.keys_of<T>(now, head), sight,
                                         poisoned[head - begin], powers_of(of_head, 0));
    }
  }

  const ItemTask& task_;
  ItemWalk walk_;
  BlockBuffers buffers_;
  HeadRuns runs_;
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
