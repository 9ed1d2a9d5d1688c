// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the backend's scratch workspace is laid out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/tier.hpp"

namespace quire::cpu {

/// Scratch: for each task the tier's buffers and the states of its item; then the partial results
/// of split units, two slots per range; then the states of queries that share prefixes.
class ScratchLayout {
 public:
  ScratchLayout(const Tier& tier, const core::ProblemShape& shape, const schedule::Policy& policy,
                std::int32_t num_tasks);

  /// Tasks that there is room for.
  [[nodiscard]] std::int64_t num_tasks() const { return static_cast<std::int64_t>(num_tasks_); }
  [[nodiscard]] std::size_t bytes() const;
  [[nodiscard]] std::byte* buffers(std::byte* scratch, std::int32_t task_index) const;
  [[nodiscard]] RowStates task_states(std::byte* scratch, std::int32_t task_index) const;
  /// @param slot See `schedule::partial_slot`.
  [[nodiscard]] RowStates slot_states(std::byte* scratch, std::int32_t slot) const;
  /// Of queries whose results wait for those of other segments, see `Join`.
  [[nodiscard]] RowStates waiting_states(std::byte* scratch) const;

 private:
  [[nodiscard]] RowStates states_at(std::byte* base, std::size_t max_rows) const;

  std::size_t num_tasks_;
  std::size_t num_slots_ = 0;
  std::size_t max_rows_;
  std::size_t row_elements_;
  std::size_t buffer_bytes_;
  std::size_t states_bytes_;
  std::size_t waiting_rows_;
};

}  // namespace quire::cpu
