// SPDX-License-Identifier: Apache-2.0
/// @file
/// One work item: all its rows against its keys, block by block, all kv heads of a block before the
/// next, so that memory is read page after page. Compiled once per target.
#if defined(QUIRE_CPU_PORTABLE_ATTEND_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_CPU_PORTABLE_ATTEND_INL
#undef QUIRE_CPU_PORTABLE_ATTEND_INL
#else
#define QUIRE_CPU_PORTABLE_ATTEND_INL
#endif

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/finish.hpp"
#include "cpu/head_runs.hpp"
#include "cpu/item_walk.hpp"
#include "cpu/portable/few_rows-inl.hpp"
#include "cpu/portable/many_rows-inl.hpp"
#include "cpu/portable/softmax-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace quire::cpu::HWY_NAMESPACE {

/// The parts of a thread's buffers. A null base gives offsets, of which the end is the size.
struct Buffers {
  Buffers(std::byte* base, const core::ProblemShape& shape, std::int32_t max_rows) {
    const std::size_t rows = static_cast<std::size_t>(max_rows);
    const auto qk = static_cast<std::size_t>(padded(shape.head_dim_qk));
    const auto slice_rows =
        static_cast<std::size_t>(std::min((max_rows + kRowPadding - 1) / kRowPadding * kRowPadding,
                                          std::max(kSliceRows, kScoreRows)));
    const auto v_columns = extent(panels_of(padded(shape.head_dim_vo)) * kPanelColumns);
    constexpr std::size_t kKeys = kFp32BlockKeys;
    std::size_t at = 0;
    const auto take = [&](std::size_t size) {
      std::byte* part = base == nullptr ? nullptr : base + at;
      at += (size + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
      return part;
    };
    q = reinterpret_cast<float*>(take(rows * qk * sizeof(float)));
    scores = reinterpret_cast<float*>(take(slice_rows * HeadRows::kScoreStride * sizeof(float)));
    // Written a vector at a time.
    rescale = reinterpret_cast<float*>(take((slice_rows + kRowPadding) * sizeof(float)));
    panels.k = reinterpret_cast<float*>(take(kKeys * qk * sizeof(float)));
    panels.v = reinterpret_cast<float*>(take(kKeys * v_columns * sizeof(float)));
    words = reinterpret_cast<std::uint64_t*>(take(kFp32BlockTiles * rows * sizeof(std::uint64_t)));
    bytes = at;
  }

  float* q = nullptr;        // [rows, padded(head_dim_qk)]
  float* scores = nullptr;   // [rows of a slice, HeadRows::kScoreStride]
  float* rescale = nullptr;  // [rows of a slice]
  Panels panels;
  std::uint64_t* words = nullptr;  // [kFp32BlockTiles, queries]
  std::size_t bytes = 0;
};

inline std::size_t buffer_bytes(const core::ProblemShape& shape, std::int32_t max_rows) noexcept {
  return Buffers(nullptr, shape, max_rows).bytes;
}

/// Widens the item's rows of q to fp32, padded with zeros, and takes their scales in.
inline void load_queries(const ItemTask& task, float* to) {
  const core::ProblemShape& shape = task.shape;
  const std::int32_t stride = padded(shape.head_dim_qk);
  with_element_type(shape.q_dtype, [&](auto element) HWY_ATTR {
    const Floats d;
    const auto* base = static_cast<decltype(element)>(task.tensors.q.data);
    for (std::int32_t kv_head = task.item.kv_head_begin; kv_head < task.item.kv_head_end;
         ++kv_head) {
      for (std::int32_t row = 0; row < task.rows_per_kv_head(); ++row, to += stride) {
        const std::int64_t head = kv_head * shape.group_size + row % shape.group_size;
        const auto* from = base +
                           task.token_of(row / shape.group_size) * task.tensors.q.token_stride +
                           head * task.tensors.q.head_stride;
        std::int32_t at = 0;
        for (; at + kLanes <= shape.head_dim_qk; at += kLanes) {
          hn::Store(load(d, from + at), d, to + at);
        }
        if (kHasHalfTail && at < shape.head_dim_qk) {
          hn::Store(load_half(from + at), d, to + at);
          at += kLanes;
        }
        for (; at < stride; at += kLanes) hn::Store(hn::Zero(d), d, to + at);
        if (task.tensors.q_scale == nullptr) continue;
        const auto scale =
            hn::Set(d, task.tensors.q_scale[head * task.tensors.q_scale_head_stride]);
        for (at = 0; at < stride; at += kLanes) {
          hn::Store(hn::Mul(hn::Load(d, to + at), scale), d, to + at);
        }
      }
    }
  });
}

/// All rows of an item against its keys. `T` is the element type of K and V.
template <typename T>
class Attend {
 public:
  explicit Attend(const ItemTask& task)
      : task_(task), walk_(task), buffers_(task.buffers, task.shape, task.rows()) {}

  void run() {
    if (task_.rows_per_kv_head() <= kFewRows) {
      run_few();
    } else {
      run_many();
    }
  }

 private:
  void run_many() {
    Fp32Block blocks[2];
    Fp32Block* now = &blocks[0];
    Fp32Block* next = &blocks[1];
    find_block(walk_, task_.item.kv_begin, kFp32BlockTiles, *now);
    while (now->count > 0) {
      find_block(walk_, now->end(), kFp32BlockTiles, *next);
      const Fp32BlockSight sight = look(walk_, *now, buffers_.words);
      for (std::int32_t head = 0; sight.count > 0 && head < task_.num_kv_heads(); ++head) {
        attend_many(head, *now, *next, sight);
      }
      std::swap(now, next);
    }
  }

  void run_few() {
    constexpr std::int32_t kValuesBytes = 512;
    const HeadRuns runs(task_, keys_in_turn(task_.rows_per_kv_head()), kValuesBytes);
    TileKeys tiles[2];
    TileKeys* now = &tiles[0];
    TileKeys* next = &tiles[1];
    walk_.find_keys(task_.item.kv_begin, kKvTile, *now);
    runs.ask_for_first(*now);
    while (now->count > 0) {
      walk_.find_keys(now->first + now->count, kKvTile, *next);
      const TileSight sight = walk_.look(*now, buffers_.words);
      for (std::int32_t head = 0; sight.any != 0 && head < task_.num_kv_heads();) {
        const std::int32_t end = runs.end_of_group(head);
        attend_group(runs, head, end, *now, *next, sight);
        head = end;
      }
      std::swap(now, next);
    }
  }

  /// @param score_row  Where the head's scores begin in the buffer.
  HeadRows rows_of(std::int32_t head, std::int32_t score_row = 0) const {
    const core::ProblemShape& shape = task_.shape;
    const std::int32_t count = task_.rows_per_kv_head();
    const auto first = static_cast<std::ptrdiff_t>(head) * count;
    HeadRows rows;
    rows.count = count;
    rows.group = shape.group_size;
    rows.head_dim_qk = shape.head_dim_qk;
    rows.head_dim_vo = shape.head_dim_vo;
    rows.q = buffers_.q + first * padded(shape.head_dim_qk);
    rows.scores = buffers_.scores + static_cast<std::ptrdiff_t>(score_row) * HeadRows::kScoreStride;
    rows.rescale = buffers_.rescale + score_row;
    rows.states = {task_.states.o + first * padded(shape.head_dim_vo), task_.states.max + first,
                   task_.states.sum + first};
    return rows;
  }

  void attend_group(const HeadRuns& runs, std::int32_t begin, std::int32_t end, const TileKeys& now,
                    const TileKeys& next, const TileSight& sight) const {
    HeadRows rows[kMostHeads];
    for (std::int32_t head = begin; head < end; ++head) {
      rows[head - begin] = rows_of(head, (head - begin) * task_.rows_per_kv_head());
    }
    for (std::int32_t head = begin; head < end; head = runs.end_of_run(head)) {
      score_run(runs, head, rows + (head - begin), now);
    }
    for (std::int32_t head = begin; head < end; head = runs.end_of_rule(head)) {
      soften(runs, head, rows[head - begin], now, sight);
    }
    for (std::int32_t head = begin; head < end; head = runs.end_of_run(head)) {
      add_run(runs, head, rows + (head - begin), now, next, sight);
    }
  }

  /// @param rows  Of the run's heads, from head `begin` on.
  void score_run(const HeadRuns& runs, std::int32_t begin, const HeadRows* rows,
                 const TileKeys& now) const {
    const std::int32_t end = runs.end_of_run(begin);
    RunsAhead ahead = runs.ahead_of_keys(now, begin);
    for (std::int32_t key = 0; key < now.count; key += runs.turn()) {
      const std::int32_t count = std::min(runs.turn(), now.count - key);
      for (std::int32_t head = begin; head < end; ++head) {
        ahead.step(count);
        score_few(rows[head - begin], walk_.keys_of<T>(now, head), key, key + count);
      }
    }
  }

  void soften(const HeadRuns& runs, std::int32_t head, HeadRows rows, const TileKeys& keys,
              const TileSight& sight) const {
    const std::int32_t heads = runs.end_of_rule(head) - head;
    Fp32BlockSight seen;
    seen.count = 1;
    seen.first_keys[0] = keys.first;
    seen.tiles[0] = sight;
    if (heads > 1) {
      seen.tiles[0] = runs.sight_of_rows(sight, heads, buffers_.words + task_.num_queries());
      rows.count *= heads;
      rows.group = 1;
    }
    const LogitRule rule = walk_.rule_of(head);
    TokenFactors factors;
    Softmax(rows, rule, seen, walk_.factors_of(keys, head, factors)).run();
  }

  void add_run(const HeadRuns& runs, std::int32_t begin, const HeadRows* rows, const TileKeys& now,
               const TileKeys& next, const TileSight& sight) const {
    const std::int32_t end = runs.end_of_run(begin);
    std::uint64_t poisoned[kMostHeads];
    for (std::int32_t head = begin; head < end; ++head) {
      poisoned[head - begin] =
          poisoned_keys(walk_.keys_of<T>(now, head), sight, task_.shape.head_dim_vo);
    }
    RunsAhead ahead = runs.ahead_of_values(now, next, begin);
    for (std::int32_t key = 0; key < now.count; key += runs.values_turn()) {
      const std::int32_t count = std::min(runs.values_turn(), now.count - key);
      for (std::int32_t head = begin; head < end; ++head) {
        ahead.step(count);
        accumulate_few(rows[head - begin],
                       ValuesTurn<T>{walk_.keys_of<T>(now, head),
                                     sight.any & ~poisoned[head - begin], key, key + count});
      }
    }
    for (std::int32_t head = begin; head < end; ++head) {
      accumulate_poisoned(rows[head - begin], walk_.keys_of<T>(now, head), sight, 0,
                          poisoned[head - begin]);
    }
  }

  void attend_many(std::int32_t head, const Fp32Block& now, const Fp32Block& next,
                   const Fp32BlockSight& sight) const {
    const HeadRows rows = rows_of(head);
    const Panels& panels = buffers_.panels;
    const LogitRule rule = walk_.rule_of(head);
    TokenFactors factors[kFp32BlockTiles];
    std::uint64_t poisoned[kFp32BlockTiles];
    LinesAhead k_ahead[kFp32BlockTiles];
    LinesAhead v_ahead[kFp32BlockTiles];
    for (std::int32_t tile = 0; tile < sight.count; ++tile) {
      const auto keys = walk_.keys_of<T>(now.tiles[tile], head);
      const TileSight& seen = sight.tiles[tile];
      const std::int32_t end = tile + 1 < sight.count ? kKvTile : keys.keys.count;
      poisoned[tile] = poisoned_keys(keys, seen, rows.head_dim_vo);
      pack_keys(keys, tile, rows.head_dim_qk, panels);
      pack_values(keys, seen.any & ~poisoned[tile], tile, end, rows.head_dim_vo, panels);
      walk_.factors_of(now.tiles[tile], head, factors[tile]);
      k_ahead[tile] = walk_.k_ahead(next.tiles[tile], head, rows.count);
      v_ahead[tile] = walk_.v_ahead(next.tiles[tile], head, rows.count);
    }
    const TokenFactors* const given = walk_.has_token_factors() ? factors : nullptr;
    for (std::int32_t first = 0; first < rows.count; first += kSliceRows) {
      const HeadRows slice = rows.slice(first, std::min(kSliceRows, rows.count - first));
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        score_many(slice, sight.tiles[tile], tile, panels, k_ahead[tile]);
      }
      Softmax(slice, rule, sight, given).run();
      accumulate_many(slice, sight, panels, v_ahead);
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        accumulate_poisoned(slice, walk_.keys_of<T>(now.tiles[tile], head), sight.tiles[tile], tile,
                            poisoned[tile]);
      }
    }
  }

  const ItemTask& task_;
  ItemWalk walk_;
  Buffers buffers_;
};

inline void attend(const ItemTask& task) noexcept {
  clear_states(task);
  if (task.item.kv_begin >= task.item.kv_end) return;
  load_queries(task, Buffers(task.buffers, task.shape, task.rows()).q);
  with_element_type(task.shape.kv_dtype, [&](auto element) HWY_ATTR {
    Attend<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(task).run();
  });
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
