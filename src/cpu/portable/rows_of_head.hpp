// SPDX-License-Identifier: Apache-2.0
/// @file
/// The rows that the fp32 kernels multiply with a tile of keys.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/tile.hpp"

namespace quire::cpu {

/// The rows of one kv head of an item.
struct HeadRows {
  std::int32_t count = 0;  // queries × group
  std::int32_t group = 0;
  std::int32_t head_dim_qk = 0;
  std::int32_t head_dim_vo = 0;
  const float* q = nullptr;  // [count, padded(head_dim_qk)]
  float* scores = nullptr;   // [count, kKvTile]: logits, then their powers of 2
  float* rescale = nullptr;  // [count]: what becomes of o when the maximum grows
  RowStates states;          // of these rows

  [[nodiscard]] const float* q_row(std::int32_t row) const {
    return q + static_cast<std::ptrdiff_t>(row) * padded(head_dim_qk);
  }
  [[nodiscard]] float* score_row(std::int32_t row) const {
    return scores + static_cast<std::ptrdiff_t>(row) * kKvTile;
  }
  [[nodiscard]] float* o_row(std::int32_t row) const {
    return states.o + static_cast<std::ptrdiff_t>(row) * padded(head_dim_vo);
  }
};

}  // namespace quire::cpu
