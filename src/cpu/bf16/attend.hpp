// SPDX-License-Identifier: Apache-2.0
/// @file
/// One work item in bf16: few rows tile by tile, many rows block by block, all kv heads of a tile
/// before the next tile.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/bf16/few_rows.hpp"
#include "cpu/bf16/many_rows.hpp"
#include "cpu/bf16/panels.hpp"
#include "cpu/bf16/softmax.hpp"
#include "cpu/finish.hpp"
#include "cpu/item_walk.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Rows that go through both products and the softmax between them together: few, so that their
/// logits are still near when they are needed.
inline constexpr std::int32_t kSliceRows = 48;

/// The parts of a thread's buffers. A null base gives offsets, of which the end is the size.
struct BlockBuffers {
  BlockBuffers(std::byte* base, const core::ProblemShape& shape, std::int32_t max_rows) {
    const auto rows = static_cast<std::size_t>(max_rows);
    const auto depth = static_cast<std::size_t>(padded_depth(shape.head_dim_qk));
    const auto vo = static_cast<std::size_t>(padded(shape.head_dim_vo));
    const auto slice_rows =
        static_cast<std::size_t>(std::min(max_rows, std::max(kSliceRows, shape.group_size)));
    constexpr std::size_t kKeys = kBlockKeys;
    const auto take = [&](std::size_t size) {
      std::byte* part = base == nullptr ? nullptr : base + bytes;
      bytes += (size + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
      return part;
    };
    q = reinterpret_cast<std::uint16_t*>(take(rows * depth * sizeof(std::uint16_t)));
    scores = reinterpret_cast<float*>(take(slice_rows * kKeys * sizeof(float)));
    rescale = reinterpret_cast<float*>(take(slice_rows * sizeof(float)));
    panels.k = reinterpret_cast<std::uint32_t*>(take(depth * kKeys * sizeof(std::uint16_t)));
    panels.v = reinterpret_cast<std::uint32_t*>(take(kKeys * vo * sizeof(std::uint16_t)));
    words = reinterpret_cast<std::uint64_t*>(take(kBlockTiles * rows * sizeof(std::uint64_t)));
  }

  std::uint16_t* q = nullptr;  // [rows, padded_depth(head_dim_qk)]
  float* scores = nullptr;     // [slice's rows, kBlockKeys]
  float* rescale = nullptr;    // [slice's rows]
  PairPanels panels;
  std::uint64_t* words = nullptr;  // [kBlockTiles, queries]
  std::size_t bytes = 0;
};

/// Copies the item's rows of q, padded with zeros.
inline void copy_queries(const ItemTask& task, std::uint16_t* to) {
  const core::ProblemShape& shape = task.shape;
  const std::int32_t stride = padded_depth(shape.head_dim_qk);
  const auto bytes = static_cast<std::size_t>(shape.head_dim_qk) * sizeof(std::uint16_t);
  const auto padding = static_cast<std::size_t>(stride - shape.head_dim_qk) * sizeof(std::uint16_t);
  const auto* base = static_cast<const std::uint16_t*>(task.tensors.q.data);
  const std::int64_t first = task.batch.qo_indptr[task.item.seq] + task.item.q_begin;
  for (std::int32_t kv_head = task.item.kv_head_begin; kv_head < task.item.kv_head_end; ++kv_head) {
    for (std::int32_t row = 0; row < task.rows_per_kv_head(); ++row, to += stride) {
      const std::int64_t head = kv_head * shape.group_size + row % shape.group_size;
      std::memcpy(to,
                  base + (first + row / shape.group_size) * task.tensors.q.token_stride +
                      head * task.tensors.q.head_stride,
                  bytes);
      std::memset(to + shape.head_dim_qk, 0, padding);
    }
  }
}

/// All rows of an item against its keys. `T` is the element type of K and V.
template <typename T, class Multiply>
class BlockAttend {
 public:
  explicit BlockAttend(const ItemTask& task)
      : task_(task), walk_(task), buffers_(task.buffers, task.shape, task.rows()) {}

  void run() {
    copy_queries(task_, buffers_.q);
    const bool few = task_.rows_per_kv_head() <= kFewRows;
    const std::int32_t most_tiles = few ? 1 : kBlockTiles;
    Block blocks[2];
    Block* now = &blocks[0];
    Block* next = &blocks[1];
    find_block(task_.item.kv_begin, most_tiles, *now);
    while (now->count > 0) {
      find_block(now->end(), most_tiles, *next);
      const BlockSight sight = look(*now);
      if (sight.count > 0) {
        for (std::int32_t head = 0; head < task_.num_kv_heads(); ++head) {
          if (few) {
            attend_few(head, now->tiles[0], next->tiles[0], sight);
          } else {
            attend_many(head, *now, *next, sight);
          }
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

  /// The block that starts at `key`, up to the next multiple of kBlockKeys if it may have as many.
  void find_block(std::int32_t key, std::int32_t most_tiles, Block& block) const {
    block.count = 0;
    for (TileKeys& tile : block.tiles) tile.count = 0;
    while (block.count < most_tiles && key < task_.item.kv_end &&
           (block.count == 0 || key % kBlockKeys != 0)) {
      walk_.find_keys(key, block.tiles[block.count]);
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
      any |= sight.tiles[tile].any;
    }
    sight.count = any == 0 ? 0 : block.count;
    sight.first_key = block.tiles[0].first;
    return sight;
  }

  BlockRows rows_of(std::int32_t head) const {
    const core::ProblemShape& shape = task_.shape;
    const std::int32_t count = task_.rows_per_kv_head();
    const auto first = static_cast<std::ptrdiff_t>(head) * count;
    BlockRows rows;
    rows.count = count;
    rows.group = shape.group_size;
    rows.head_dim_qk = shape.head_dim_qk;
    rows.head_dim_vo = shape.head_dim_vo;
    rows.q = buffers_.q + first * padded_depth(shape.head_dim_qk);
    rows.scores = buffers_.scores;
    rows.rescale = buffers_.rescale;
    rows.states = {task_.states.o + first * padded(shape.head_dim_vo), task_.states.max + first,
                   task_.states.sum + first};
    return rows;
  }

  void attend_few(std::int32_t head, const TileKeys& now, const TileKeys& next,
                  const BlockSight& sight) const {
    const BlockRows rows = rows_of(head);
    const auto keys = walk_.keys_of<T>(now, head);
    LinesAhead k_ahead = walk_.k_ahead(next, head, now.count);
    LinesAhead v_ahead = walk_.v_ahead(next, head, now.count);
    const std::uint64_t poisoned = poisoned_keys(keys, sight.tiles[0], rows.head_dim_vo);
    const std::uint64_t take = sight.tiles[0].any & ~poisoned;
    score_few(rows, keys, k_ahead);
    BlockSoftmax(rows, walk_.rule_of(head), sight).run();
    accumulate_few(rows, ValuesTask<T>{keys, take, v_ahead});
    add_poisoned(rows, keys, sight, 0, poisoned);
  }

  void attend_many(std::int32_t head, const Block& now, const Block& next,
                   const BlockSight& sight) const {
    const BlockRows rows = rows_of(head);
    const PairPanels& panels = buffers_.panels;
    std::uint64_t poisoned[kBlockTiles] = {};
    const std::ptrdiff_t stride = padded(rows.head_dim_vo);
    for (std::int32_t tile = 0; tile < sight.count; ++tile) {
      const auto keys = walk_.keys_of<T>(now.tiles[tile], head);
      const TileSight& seen = sight.tiles[tile];
      pack_keys(keys, rows.head_dim_qk, panels.k + tile * kKvTile);
      poisoned[tile] = poisoned_keys(keys, seen, rows.head_dim_vo);
      const std::int32_t end = tile + 1 < sight.count ? kKvTile : padded_depth(keys.keys.count);
      pack_values(keys, seen.any & ~poisoned[tile], end, rows.head_dim_vo,
                  panels.v + tile * (kKvTile / 2) * stride);
    }
    attend_slices(head, now, sight, poisoned,
                  {walk_.k_ahead(next.tiles[0], head, rows.count),
                   walk_.k_ahead(next.tiles[1], head, rows.count),
                   walk_.v_ahead(next.tiles[0], head, rows.count),
                   walk_.v_ahead(next.tiles[1], head, rows.count)});
  }

  /// What is done slice by slice: everything but packing.
  void attend_slices(std::int32_t head, const Block& now, const BlockSight& sight,
                     const std::uint64_t* poisoned,
                     std::array<LinesAhead, 2 * kBlockTiles> ahead) const {
    const BlockRows rows = rows_of(head);
    const std::int32_t slice_queries = std::max(1, kSliceRows / rows.group);
    const std::int32_t queries = rows.count / rows.group;
    for (std::int32_t first = 0; first < queries; first += slice_queries) {
      const BlockRows slice = rows.slice(first, std::min(slice_queries, queries - first));
      const BlockSight seen = sight.from(first);
      LogitRule rule = walk_.rule_of(head);
      rule.first_position += first;
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        score_many<Multiply>(slice, seen.tiles[tile], tile, buffers_.panels.k);
      }
      BlockSoftmax(slice, rule, seen).run();
      accumulate_many<Multiply>(slice, seen, buffers_.panels.v);
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        add_poisoned(slice, walk_.keys_of<T>(now.tiles[tile], head), seen, tile, poisoned[tile]);
      }
      for (LinesAhead& lines : ahead) lines.step(slice.count);
    }
  }

  /// Adds the values of poisoned keys to the rows that see them, one by one.
  static void add_poisoned(const BlockRows& rows, const HeadKeys<T>& keys, const BlockSight& sight,
                           std::int32_t tile, std::uint64_t poisoned) {
    for (; poisoned != 0; poisoned &= poisoned - 1) {
      const auto key = static_cast<std::int32_t>(std::countr_zero(poisoned));
      for (std::int32_t row = 0; row < rows.count; ++row) {
        if (((sight.tiles[tile].words[row / rows.group] >> key) & 1U) == 0) continue;
        const std::uint16_t power = rows.score_row(row).powers()[tile * kKvTile + key];
        float* o = rows.o_row(row);
        for (std::int32_t i = 0; i < rows.head_dim_vo; ++i) {
          o[i] += core::float_from_bfloat16(power) * to_float(keys.v(key)[i]);
        }
      }
    }
  }

  const ItemTask& task_;
  ItemWalk walk_;
  BlockBuffers buffers_;
};

template <class Multiply>
void block_attend(const ItemTask& task) noexcept {
  clear_states(task);
  if (task.item.kv_begin >= task.item.kv_end) return;
  switch (task.shape.kv_dtype) {
    case DType::kInt8:
      return BlockAttend<Int8, Multiply>(task).run();
    case DType::kFloat8E4M3:
      return BlockAttend<Float8E4M3, Multiply>(task).run();
    case DType::kFloat8E5M2:
      return BlockAttend<Float8E5M2, Multiply>(task).run();
    default:
      return BlockAttend<BFloat16, Multiply>(task).run();
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
