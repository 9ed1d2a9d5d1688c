// SPDX-License-Identifier: Apache-2.0
/// @file
/// The order in which few rows (decode) go through a tile, the same for all tiers: that of memory. Of
/// heads whose rows lie together, a few keys of one head, then as many of the next; meanwhile what
/// follows is asked for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/item_walk.hpp"

namespace quire::cpu {

/// What is asked for lies so far behind what is worked on and goes to the first-level cache: far
/// enough for memory, near enough to be there still when it is used.
inline constexpr std::int32_t kAheadBytes = 16384;
/// More values of a head are not added before those of the next one.
inline constexpr std::int32_t kMostValuesBytes = 2048;
/// Rows whose scores a thread's buffer holds at least, and heads that have some there together.
inline constexpr std::int32_t kScoreRows = 128;
inline constexpr std::int32_t kMostHeads = 32;

/// Rows of heads that lie together: `bytes` at `rows[i] + offset`.
struct RowRun {
  const std::byte* const* rows = nullptr;
  std::int32_t count = 0;
  std::ptrdiff_t offset = 0;
  std::int32_t bytes = 0;

  /// Asks for `num_rows` rows from `row` on. @param steps  See `LinesAhead`; what is below 1 is 1.
  [[nodiscard]] LinesAhead ahead(std::int32_t row, std::int32_t num_rows,
                                 std::int32_t steps) const {
    return {rows + row, num_rows, offset, bytes, std::max(1, steps)};
  }
};

/// Asks for what lies `far` rows ahead in a run and the one that follows.
class RunsAhead {
 public:
  /// @param steps  Of the work on all rows of the run.
  RunsAhead(const RowRun& run, const RowRun& next, std::int32_t far, std::int32_t steps)
      : here_(run.ahead(std::min(far, run.count), std::max(0, run.count - far),
                        steps * (run.count - far) / run.count)),
        there_(next.ahead(0, std::min(far, next.count),
                          steps * std::min(far, run.count) / run.count)) {}

  HWY_INLINE void step(std::int32_t steps) {
    (here_.done() ? there_ : here_).template step<kFirstLevel>(steps);
  }

 private:
  LinesAhead here_;
  LinesAhead there_;
};

/// How the heads of an item are divided.
class HeadRuns {
 public:
  /// @param turn  Keys that are scored of a head before those of the next one.
  /// @param values_bytes  Values of a head, for each of its rows, that are added before those of the
  ///   next one: with more, memory is read out of order and asked for in bursts; with less, o is
  ///   loaded and stored too often.
  HeadRuns(const ItemTask& task, std::int32_t turn, std::int32_t values_bytes)
      : task_(task),
        turn_(turn),
        values_bytes_(values_bytes),
        element_bytes_(static_cast<std::int32_t>(size_of(task.shape.kv_dtype))) {
    const std::int32_t heads = task.num_kv_heads();
    const std::int32_t most = std::min(kMostHeads, kScoreRows / task.rows_per_kv_head());
    const std::int32_t groups = (heads + most - 1) / most;
    together_ = (heads + groups - 1) / groups;
    const bool apart = task.tensors.k.head_stride != task.shape.head_dim_qk ||
                       task.tensors.v.head_stride != task.shape.head_dim_vo;
    in_run_ = apart ? 1 : together_;
    const core::LayerTensors& tensors = task.tensors;
    const bool one_scale = tensors.k_scale == nullptr || tensors.scale_head_stride == 0;
    const bool bent = task.shape.logits_soft_cap > 0.0F || tensors.alibi_slopes != nullptr;
    one_rule_ = one_scale && !bent && tensors.k_token_scale.data == nullptr;
  }

  [[nodiscard]] std::int32_t turn() const { return turn_; }
  /// Likewise of values: an even number.
  [[nodiscard]] std::int32_t values_turn() const {
    const std::int32_t bytes = std::min(kMostValuesBytes, values_bytes_ * task_.rows_per_kv_head());
    const std::int32_t keys = bytes / (task_.shape.head_dim_vo * element_bytes_) / 2 * 2;
    return std::clamp(keys, 2, kKvTile);
  }

  /// The heads from `begin` on whose scores are there at the same time, and those of them whose rows
  /// lie together.
  [[nodiscard]] std::int32_t end_of_group(std::int32_t begin) const {
    return std::min((begin / together_ + 1) * together_, task_.num_kv_heads());
  }
  [[nodiscard]] std::int32_t end_of_run(std::int32_t begin) const {
    return std::min(begin + in_run_, end_of_group(begin));
  }

  /// Heads from `begin` on whose logits follow one rule, so that their rows can go through the softmax
  /// together: all of a group, or one.
  [[nodiscard]] std::int32_t end_of_rule(std::int32_t begin) const {
    return one_rule_ ? end_of_group(begin) : begin + 1;
  }
  /// What the rows of `heads` heads see: a word for each, as if it were a query of its own.
  /// @param words  [heads · rows of a head], written.
  [[nodiscard]] TileSight sight_of_rows(const TileSight& sight, std::int32_t heads,
                                        std::uint64_t* words) const {
    const std::int32_t rows = task_.rows_per_kv_head();
    for (std::int32_t row = 0; row < heads * rows; ++row) {
      words[row] = sight.words[row % rows / task_.shape.group_size];
    }
    return {words, sight.any, sight.all};
  }

  /// Rows of a run that begins with head `begin` of the item.
  [[nodiscard]] RowRun keys_of(const TileKeys& tile, std::int32_t begin) const {
    return run_of(tile.k, tile.count, begin, task_.tensors.k, task_.shape.head_dim_qk);
  }
  [[nodiscard]] RowRun values_of(const TileKeys& tile, std::int32_t begin) const {
    return run_of(tile.v, tile.count, begin, task_.tensors.v, task_.shape.head_dim_vo);
  }

  /// For the work on a tile's keys: after the keys of the group come its values.
  [[nodiscard]] RunsAhead ahead_of_keys(const TileKeys& tile, std::int32_t begin) const {
    const std::int32_t end = end_of_run(begin);
    const bool last = end == end_of_group(begin);
    const RowRun run = keys_of(tile, begin);
    return {run, last ? values_of(tile, begin / together_ * together_) : keys_of(tile, end),
            far(run), (end - begin) * tile.count};
  }
  /// After the values come the keys of the next group or tile.
  [[nodiscard]] RunsAhead ahead_of_values(const TileKeys& tile, const TileKeys& next,
                                          std::int32_t begin) const {
    const std::int32_t end = end_of_run(begin);
    const RowRun run = values_of(tile, begin);
    const std::int32_t steps = (end - begin) * tile.count;
    if (end == task_.num_kv_heads()) return {run, keys_of(next, 0), far(run), steps};
    const bool last = end == end_of_group(begin);
    return {run, last ? keys_of(tile, end) : values_of(tile, end), far(run), steps};
  }
  /// What is asked for before any work on the item's first tile.
  void ask_for_first(const TileKeys& tile) const {
    const RowRun run = keys_of(tile, 0);
    run.ahead(0, std::min(far(run), run.count), 1).template step<kFirstLevel>();
  }

 private:
  [[nodiscard]] RowRun run_of(const std::byte* const* rows, std::int32_t count, std::int32_t begin,
                              const core::Pages& pages, std::int32_t head_dim) const {
    const std::ptrdiff_t kv_head = task_.item.kv_head_begin + begin;
    return {rows, count, kv_head * pages.head_stride * element_bytes_,
            (end_of_run(begin) - begin) * head_dim * element_bytes_};
  }
  [[nodiscard]] std::int32_t far(const RowRun& run) const {
    return std::clamp(kAheadBytes / run.bytes, turn_, kKvTile);
  }

  const ItemTask& task_;
  std::int32_t turn_;
  std::int32_t values_bytes_;
  std::int32_t element_bytes_;
  std::int32_t together_;
  std::int32_t in_run_;
  bool one_rule_;  // of all heads' logits
};

}  // namespace quire::cpu
