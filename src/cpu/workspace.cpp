// SPDX-License-Identifier: Apache-2.0
#include "cpu/workspace.hpp"

namespace quire::cpu {
namespace {

constexpr std::size_t align(std::size_t bytes) {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

}  // namespace

ScratchLayout::ScratchLayout(const Tier& tier, const core::ProblemShape& shape,
                             const schedule::TilePolicy& policy, std::int32_t num_tasks)
    : num_tasks_(static_cast<std::size_t>(num_tasks)),
      num_slots_(policy.num_ranges > 1 ? 2 * static_cast<std::size_t>(policy.num_ranges) : 0),
      max_rows_(static_cast<std::size_t>(schedule::max_item_rows(policy, shape))),
      row_elements_(static_cast<std::size_t>(padded(shape.head_dim_vo))),
      buffer_bytes_(align(tier.buffer_bytes(shape, static_cast<std::int32_t>(max_rows_)))),
      states_bytes_(align(max_rows_ * (row_elements_ + 2) * sizeof(float))) {}

std::size_t ScratchLayout::bytes() const {
  return num_tasks_ * (buffer_bytes_ + states_bytes_) + num_slots_ * states_bytes_;
}

std::byte* ScratchLayout::buffers(std::byte* scratch, std::int32_t task_index) const {
  return scratch + static_cast<std::size_t>(task_index) * (buffer_bytes_ + states_bytes_);
}

RowStates ScratchLayout::task_states(std::byte* scratch, std::int32_t task_index) const {
  return states_at(buffers(scratch, task_index) + buffer_bytes_);
}

RowStates ScratchLayout::slot_states(std::byte* scratch, std::int32_t slot) const {
  std::byte* slots = scratch + num_tasks_ * (buffer_bytes_ + states_bytes_);
  return states_at(slots + static_cast<std::size_t>(slot) * states_bytes_);
}

RowStates ScratchLayout::states_at(std::byte* base) const {
  RowStates states;
  states.o = reinterpret_cast<float*>(base);
  states.max = states.o + max_rows_ * row_elements_;
  states.sum = states.max + max_rows_;
  return states;
}

}  // namespace quire::cpu
