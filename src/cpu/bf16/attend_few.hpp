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

/// Keys of a tile.
inline constexpr std::int32_t kFewKeys = 64;
/// As many heads go through the softmax together, if the buffer of scores holds their rows.
inline constexpr std::int32_t kMostHeads = 32;
/// What is asked for lies so far behind what is worked on, and goes to the first-level cache: far
/// enough for memory, near enough not to be pushed out before it is used.
inline constexpr std::int32_t kAheadBytes = 16384;
/// Bytes of a head's values, for each of its rows, that are added before those of the next head: more
/// and memory is read out of order and asked for in bursts, less and o is loaded and stored too often.
inline constexpr std::int32_t kValuesBytes = 256;

/// Keys of a head that are scored before those of the next head: as few as one vector of products
/// takes. With all rows of a page's head at a time memory is read 2 KiB apart, which takes longer.
constexpr std::int32_t keys_in_turn(std::int32_t rows) {
  const std::int32_t left = rows % 4;  // rows of the last block, whose vector holds the most keys
  return left == 1 || left == 2 ? kLanes / left : kLanes / 4;
}

/// Rows of heads that lie together: `bytes` at `rows[i] + offset`.
struct RowRun {
  const std::byte* const* rows = nullptr;
  std::int32_t count = 0;
  std::ptrdiff_t offset = 0;
  std::int32_t bytes = 0;

  [[nodiscard]] LinesAhead from(std::int32_t row, std::int32_t num_rows, std::int32_t steps) const {
    return {rows + row, num_rows, offset, bytes, std::max(1, steps)};
  }
};

/// What lies `far` rows ahead in a run of rows and the next one.
class RunsAhead {
 public:
  /// @param steps  Of the work on all rows of the run.
  RunsAhead(const RowRun& run, const RowRun& next, std::int32_t far, std::int32_t steps)
      : here_(run.from(std::min(far, run.count), std::max(0, run.count - far),
                       steps * (run.count - far) / run.count)),
        there_(next.from(0, std::min(far, next.count),
                         steps * std::min(far, run.count) / run.count)) {}

  HWY_INLINE void step(std::int32_t steps) {
    (here_.done() ? there_ : here_).template step<kFirstLevel>(steps);
  }

 private:
  LinesAhead here_;
  LinesAhead there_;
};

/// `T` is the element type of K and V.
template <typename T>
class FewAttend {
 public:
  static constexpr std::int32_t kMostRows = kFewRows;

  explicit FewAttend(const ItemTask& task)
      : task_(task),
        walk_(task),
        buffers_(task.buffers, task.shape, task.rows()),
        one_rule_(has_one_rule(task)),
        turn_(keys_in_turn(task.rows_per_kv_head())) {
    const std::int32_t heads = task.num_kv_heads();
    const std::int32_t most = std::min(kMostHeads, kScoreRows / task.rows_per_kv_head());
    const std::int32_t groups = (heads + most - 1) / most;
    heads_together_ = (heads + groups - 1) / groups;
    const bool apart = task.tensors.k.head_stride != task.shape.head_dim_qk ||
                       task.tensors.v.head_stride != task.shape.head_dim_vo;
    heads_in_run_ = apart ? 1 : heads_together_;
  }

  void run() {
    TileKeys tiles[2];
    TileKeys* now = &tiles[0];
    TileKeys* next = &tiles[1];
    walk_.find_keys(task_.item.kv_begin, kFewKeys, *now);
    const RowRun first = keys_of(*now, 0);
    first.from(0, std::min(far(first), first.count), 1).template step<kFirstLevel>();
    order_queries();
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

  /// Whether the logits of all heads follow one rule.
  static bool has_one_rule(const ItemTask& task) {
    const core::LayerTensors& tensors = task.tensors;
    const bool one_scale = tensors.k_scale == nullptr || tensors.scale_head_stride == 0;
    const bool bent = task.shape.logits_soft_cap > 0.0F || tensors.alibi_slopes != nullptr;
    const bool of_tokens = tensors.k_token_scale.data != nullptr;
    return one_scale && !bent && !of_tokens;
  }

  /// Heads [begin, …) of a run that begins with head `begin` of the item.
  [[nodiscard]] std::int32_t end_of_run(std::int32_t begin) const {
    const std::int32_t group_end = (begin / heads_together_ + 1) * heads_together_;
    return std::min({begin + heads_in_run_, group_end, task_.num_kv_heads()});
  }
  [[nodiscard]] RowRun keys_of(const TileKeys& tile, std::int32_t head) const {
    const std::int32_t bytes = (end_of_run(head) - head) * task_.shape.head_dim_qk;
    return {tile.k, tile.count, walk_.keys_of<T>(tile, head).k_offset,
            bytes * static_cast<std::int32_t>(sizeof(T))};
  }
  [[nodiscard]] RowRun values_of(const TileKeys& tile, std::int32_t head) const {
    const std::int32_t bytes = (end_of_run(head) - head) * task_.shape.head_dim_vo;
    return {tile.v, tile.count, walk_.keys_of<T>(tile, head).v_offset,
            bytes * static_cast<std::int32_t>(sizeof(T))};
  }
  /// Rows that are asked for ahead of those that are worked on.
  [[nodiscard]] std::int32_t far(const RowRun& run) const {
    return std::clamp(kAheadBytes / run.bytes, turn_, kFewKeys);
  }

  void attend_heads(std::int32_t begin, std::int32_t end, const TileKeys& now, const TileKeys& next,
                    const TileSight& sight) const {
    BlockRows rows[kMostHeads];
    for (std::int32_t head = begin; head < end; ++head) {
      rows[head - begin] =
          rows_of_head(task_, buffers_, head, (head - begin) * task_.rows_per_kv_head());
    }
    for (std::int32_t head = begin; head < end;) {
      const std::int32_t run_end = end_of_run(head);
      score_run(head, run_end, rows + (head - begin), now,
                run_end < end ? keys_of(now, run_end) : values_of(now, begin));
      head = run_end;
    }
    if (one_rule_) {
      soften(begin, end - begin, rows[0], now, sight);
    } else {
      for (std::int32_t head = begin; head < end; ++head) {
        soften(head, 1, rows[head - begin], now, sight);
      }
    }
    for (std::int32_t head = begin; head < end;) {
      const std::int32_t run_end = end_of_run(head);
      const bool last = run_end == task_.num_kv_heads();
      add_run(head, run_end, rows + (head - begin), now,
              run_end < end ? values_of(now, run_end) : keys_of(last ? next : now, last ? 0 : end),
              sight);
      head = run_end;
    }
  }

  /// Keys are used in the order in which they lie: a few of all heads of a run, then the next ones.
  /// @param rows  Of the heads. @param next  What follows the run.
  void score_run(std::int32_t begin, std::int32_t end, const BlockRows* rows, const TileKeys& now,
                 const RowRun& next) const {
    const Widener<T> widen;
    const RowRun run = keys_of(now, begin);
    RunsAhead ahead(run, next, far(run), (end - begin) * now.count);
    for (std::int32_t key = 0; key < now.count; key += turn_) {
      const std::int32_t count = std::min(turn_, now.count - key);
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

  /// Adds values, in the same order.
  void add_run(std::int32_t begin, std::int32_t end, const BlockRows* rows, const TileKeys& now,
               const RowRun& next, const TileSight& sight) const {
    std::uint64_t poisoned[kMostHeads];
    std::uint64_t take = sight.any;
    for (std::int32_t head = begin; head < end; ++head) {
      poisoned[head - begin] =
          poisoned_keys(walk_.keys_of<T>(now, head), sight, task_.shape.head_dim_vo);
      take &= ~poisoned[head - begin];
    }
    const Widener<T> widen;
    const RowRun run = values_of(now, begin);
    RunsAhead ahead(run, next, far(run), (end - begin) * now.count);
    const auto bytes = task_.shape.head_dim_vo * static_cast<std::int32_t>(sizeof(T));
    const std::int32_t turn =
        std::clamp(kValuesBytes * task_.rows_per_kv_head() / bytes / 2 * 2, 2, kFewKeys);
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
  bool one_rule_;                // of all heads' logits
  std::int32_t turn_;            // keys_in_turn
  std::int32_t heads_together_;  // in the softmax
  std::int32_t heads_in_run_;    // whose rows lie together
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
