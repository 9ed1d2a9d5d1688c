// SPDX-License-Identifier: Apache-2.0
/// @file
/// The rows that the fp32 kernels multiply with a block of keys.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/key_block.hpp"

namespace quire::cpu {

/// Tiles of keys that many rows are multiplied with at a time: fewer passes over o, and panels that
/// the first-level cache holds a part of for all rows of a slice.
inline constexpr std::int32_t kFp32BlockTiles = 2;
inline constexpr std::int32_t kFp32BlockKeys = kFp32BlockTiles * kKvTile;
using Fp32Block = KeyBlock<kFp32BlockTiles>;
using Fp32BlockSight = KeyBlockSight<kFp32BlockTiles>;

/// Rows of one kv head of an item: all of them or a slice.
struct HeadRows {
  /// Elements from one row of scores to the next: rows at powers of two apart would share a few sets
  /// of a cache.
  static constexpr std::int32_t kScoreStride = kFp32BlockKeys + kRowPadding;

  std::int32_t first = 0;  // of the head's rows
  std::int32_t count = 0;  // all: queries × group
  std::int32_t group = 0;
  std::int32_t head_dim_qk = 0;
  std::int32_t head_dim_vo = 0;
  const float* q = nullptr;  // [count, padded(head_dim_qk)]
  float* scores = nullptr;   // [count of a slice, kScoreStride]: logits, then their powers of 2
  float* rescale = nullptr;  // [count of a slice]: what becomes of o when the maximum grows
  RowStates states;          // of these rows

  [[nodiscard]] const float* q_row(std::int32_t row) const {
    return q + static_cast<std::ptrdiff_t>(row) * padded(head_dim_qk);
  }
  [[nodiscard]] float* score_row(std::int32_t row) const {
    return scores + static_cast<std::ptrdiff_t>(row) * kScoreStride;
  }
  [[nodiscard]] float* o_row(std::int32_t row) const {
    return states.o + static_cast<std::ptrdiff_t>(row) * padded(head_dim_vo);
  }
  /// The item's query that a row belongs to.
  [[nodiscard]] std::int32_t query(std::int32_t row) const { return (first + row) / group; }

  /// Rows [from, from + num_rows), with the same scores and rescale: of one slice at a time.
  [[nodiscard]] HeadRows slice(std::int32_t from, std::int32_t num_rows) const {
    HeadRows rows = *this;
    rows.first = first + from;
    rows.count = num_rows;
    rows.q = q_row(from);
    rows.states = {o_row(from), states.max + from, states.sum + from};
    return rows;
  }
};

}  // namespace quire::cpu
