// SPDX-License-Identifier: Apache-2.0
#include "cpu/workspace.hpp"

namespace quire::cpu {
namespace {

constexpr std::size_t align(std::size_t bytes) {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

}  // namespace

ScratchLayout::ScratchLayout(const Tier& tier, const core::ProblemShape& shape,
                             const schedule::Policy& policy, std::int32_t num_tasks)
    : num_tasks_(static_cast<std::size_t>(num_tasks)),
      max_rows_(static_cast<std::size_t>(
          schedule::max_item_rows(policy.lines[schedule::kSmallUnits], shape))),
      row_elements_(static_cast<std::size_t>(padded(shape.head_dim_vo))),
      buffer_bytes_(align(tier.buffer_bytes(shape, static_cast<std::int32_t>(max_rows_)))),
      states_bytes_(align(max_rows_ * (row_elements_ + 2) * sizeof(float))),
      waiting_rows_(static_cast<std::size_t>(policy.prefixes.max_states) *
                    static_cast<std::size_t>(shape.num_qo_heads)) {
  const auto num_ranges = static_cast<std::size_t>(policy.lines[schedule::kSmallUnits].num_ranges);
  num_slots_ = num_ranges > 1 ? 2 * num_ranges : 0;
}

std::size_t ScratchLayout::bytes() const {
  return num_tasks_ * (buffer_bytes_ + states_bytes_) + num_slots_ * states_bytes_ +
         waiting_rows_ * (row_elements_ + 2) * sizeof(float);
}

std::byte* ScratchLayout::buffers(std::byte* scratch, std::int32_t task_index) const {
  return scratch + static_cast<std::size_t>(task_index) * (buffer_bytes_ + states_bytes_);
}

RowStates ScratchLayout::task_states(std::byte* scratch, std::int32_t task_index) const {
  return states_at(buffers(scratch, task_index) + buffer_bytes_, max_rows_);
}

RowStates ScratchLayout::slot_states(std::byte* scratch, std::int32_t slot) const {
  std::byte* slots = scratch + num_tasks_ * (buffer_bytes_ + states_bytes_);
  return states_at(slots + static_cast<std::size_t>(slot) * states_bytes_, max_rows_);
}

RowStates ScratchLayout::waiting_states(std::byte* scratch) const {
  std::byte* slots = scratch + num_tasks_ * (buffer_bytes_ + states_bytes_);
  return states_at(slots + num_slots_ * states_bytes_, waiting_rows_);
}

RowStates ScratchLayout::states_at(std::byte* base, std::size_t max_rows) const {
  RowStates states;
  states.o = reinterpret_cast<float*>(base);
  states.max = states.o + max_rows * row_elements_;
  states.sum = states.max + max_rows;
  return states;
}

}  // namespace quire::cpu
