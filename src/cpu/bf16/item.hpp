// SPDX-License-Identifier: Apache-2.0
/// @file
/// What both ways through an item share in bf16: buffers, queries, the rows of a head, and values
/// that are no numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "cpu/bf16/multiply.hpp"
#include "cpu/bf16/places.hpp"
#include "cpu/bf16/softmax.hpp"
#include "cpu/elements.hpp"
#include "cpu/head_runs.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// The parts of a thread's buffers. A null base gives offsets, of which the end is the size.
struct BlockBuffers {
  BlockBuffers(std::byte* base, const core::ProblemShape& shape, std::int32_t max_rows) {
    const auto rows = static_cast<std::size_t>(max_rows);
    const auto depth = static_cast<std::size_t>(padded_depth(shape.head_dim_qk));
    const auto vo = static_cast<std::size_t>(padded(shape.head_dim_vo));
    const auto slice_rows = static_cast<std::size_t>(std::min(
        max_rows, std::max(kScoreRows, shape.group_size * Dots::slice_queries(shape.group_size))));
    constexpr std::size_t kKeys = kBlockKeys;
    const auto take = [&](std::size_t size) {
      std::byte* part = base == nullptr ? nullptr : base + bytes;
      bytes += (size + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
      return part;
    };
    q = reinterpret_cast<std::uint16_t*>(take(rows * depth * sizeof(std::uint16_t)));
    scores = reinterpret_cast<float*>(take(slice_rows * ScoreRow::kStride * sizeof(float)));
    rescale = reinterpret_cast<float*>(take(slice_rows * sizeof(float)));
    panels.k = reinterpret_cast<std::uint32_t*>(take(depth * kKeys * sizeof(std::uint16_t)));
    panels.v = reinterpret_cast<std::uint32_t*>(take(kKeys * vo * sizeof(std::uint16_t)));
    words = reinterpret_cast<std::uint64_t*>(take(kBlockTiles * rows * sizeof(std::uint64_t)));
    const auto columns = static_cast<std::size_t>(shape.num_kv_heads) * kTileRows;
    q_columns = reinterpret_cast<std::uint32_t*>(take(columns * depth * sizeof(std::uint16_t)));
  }

  std::uint16_t* q = nullptr;  // [rows, padded_depth(head_dim_qk)]
  float* scores = nullptr;     // [slice's rows]: ScoreRow
  float* rescale = nullptr;    // [slice's rows]
  PairPanels panels;
  std::uint64_t* words = nullptr;  // [kBlockTiles, queries]
  std::uint32_t* q_columns =
      nullptr;  // [kv heads, padded_depth(head_dim_qk) / 2, columns]: few rows
  std::size_t bytes = 0;
};

/// Copies the item's rows of q, padded with zeros.
inline void copy_queries(const ItemTask& task, std::uint16_t* to) {
  const core::ProblemShape& shape = task.shape;
  const std::int32_t stride = padded_depth(shape.head_dim_qk);
  const auto bytes = static_cast<std::size_t>(shape.head_dim_qk) * sizeof(std::uint16_t);
  const auto padding = static_cast<std::size_t>(stride - shape.head_dim_qk) * sizeof(std::uint16_t);
  const auto* base = static_cast<const std::uint16_t*>(task.tensors.q.data);
  for (std::int32_t kv_head = task.item.kv_head_begin; kv_head < task.item.kv_head_end; ++kv_head) {
    for (std::int32_t row = 0; row < task.rows_per_kv_head(); ++row, to += stride) {
      const std::int64_t head = kv_head * shape.group_size + row % shape.group_size;
      std::memcpy(to,
                  base + task.token_of(row / shape.group_size) * task.tensors.q.token_stride +
                      head * task.tensors.q.head_stride,
                  bytes);
      std::memset(to + shape.head_dim_qk, 0, padding);
    }
  }
}

/// The rows of kv head `head` of the item; their scores begin at `score_row` of the buffer.
inline BlockRows rows_of_head(const ItemTask& task, const BlockBuffers& buffers, std::int32_t head,
                              std::int32_t score_row = 0) {
  const core::ProblemShape& shape = task.shape;
  const std::int32_t count = task.rows_per_kv_head();
  const auto first = static_cast<std::ptrdiff_t>(head) * count;
  BlockRows rows;
  rows.count = count;
  rows.group = shape.group_size;
  rows.head_dim_qk = shape.head_dim_qk;
  rows.head_dim_vo = shape.head_dim_vo;
  rows.q = buffers.q + first * padded_depth(shape.head_dim_qk);
  rows.scores = buffers.scores + static_cast<std::ptrdiff_t>(score_row) * ScoreRow::kStride;
  rows.rescale = buffers.rescale + score_row;
  rows.states = {task.states.o + first * padded(shape.head_dim_vo), task.states.max + first,
                 task.states.sum + first};
  return rows;
}

/// Of a tile of a block, for `add_poisoned`.
inline auto powers_of(const BlockRows& rows, std::int32_t tile) {
  return [&rows, tile](std::int32_t row, std::int32_t key) {
    return rows.score_row(row).powers()[tile * kKvTile + key];
  };
}

/// Adds a poisoned key's values to a row of o.
/// @param power  bf16
template <LaneOrder kOrder, typename T>
void add_value(float* o, std::uint16_t power, const T* v, std::int32_t head_dim) {
  for (std::int32_t i = 0; i < head_dim; ++i) {
    const std::int32_t place = kOrder == LaneOrder::kPlain ? i : place_of<T>(i, head_dim);
    o[place] += core::float_from_bfloat16(power) * to_float(v[i]);
  }
}

/// Adds the values of poisoned keys to the rows that see them, one by one.
/// @param power_of  (row, key) → bf16
template <LaneOrder kOrder, typename T, typename F>
void add_poisoned(const BlockRows& rows, const HeadKeys<T>& keys, const TileSight& sight,
                  std::uint64_t poisoned, const F& power_of) {
  for (; poisoned != 0; poisoned &= poisoned - 1) {
    const auto key = static_cast<std::int32_t>(std::countr_zero(poisoned));
    for (std::int32_t row = 0; row < rows.count; ++row) {
      if (((sight.words[row / rows.group] >> key) & 1U) == 0) continue;
      add_value<kOrder>(rows.o_row(row), power_of(row, key), keys.v(key), rows.head_dim_vo);
    }
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
