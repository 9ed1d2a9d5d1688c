// SPDX-License-Identifier: Apache-2.0
/// @file
/// Walks a schedule on the device, for comparison with the host's walk.
#pragma once

#include <cuda_runtime_api.h>

#include "schedule/schedule.hpp"

namespace quire::testing {

/// What the ranges of a line find, on the device.
struct Walk {
  const std::int32_t* item_begin = nullptr;  // [num_ranges + 1]: room of each range in items
  schedule::WorkItem* items = nullptr;       // [item_begin[num_ranges]]
  std::int32_t* num_items = nullptr;         // [num_ranges]: found, room or not
};

/// One thread per range steps a `WorkCursor` to its end.
cudaError_t launch_walk(const schedule::Policy& policy, const core::ProblemShape& shape,
                        const core::BatchArrays& batch, schedule::ScheduleView schedule, int line,
                        const Walk& walk) noexcept;

}  // namespace quire::testing
