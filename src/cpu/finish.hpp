// SPDX-License-Identifier: Apache-2.0
/// @file
/// From the states of an item's rows to o and lse.
#pragma once

#include <cstdint>

#include "cpu/tier.hpp"

namespace quire::cpu {

/// Adds a piece's states to those of the pieces before it. To be called in the order of the keys,
/// beginning with `clear_states`.
void add_piece(const Tier& tier, const ItemTask& task, const RowStates& piece);

/// States of rows that have seen no key.
void clear_states(const ItemTask& task);

/// Writes o and lse of the item's rows.
void write_results(const Tier& tier, const ItemTask& task);

/// What is known of one row after all of its keys.
struct RowState {
  const float* o = nullptr;  // as in `RowStates`
  float max = 0.0F;
  float sum = 0.0F;
};

/// Writes o and lse of a head's row. Sinks enter here, once for every row.
void write_row(const Tier& tier, const ItemTask& task, std::int64_t token, std::int64_t head,
               const RowState& state);

/// Writes o = 0 and lse = −inf for rows [first, last) of q.
void write_nothing(const core::ProblemShape& shape, const core::LayerTensors& tensors,
                   std::int64_t first, std::int64_t last);

}  // namespace quire::cpu
