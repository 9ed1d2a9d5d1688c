// SPDX-License-Identifier: Apache-2.0
/// @file
/// Walks a schedule on the device, for comparison with the host's walk.
#pragma once

#include <cuda_runtime_api.h>

#include "schedule/schedule.hpp"

namespace quire::testing {

/// What the workers of a schedule find, on the device.
struct Walk {
  const std::int32_t* item_begin = nullptr;  // [num_workers + 1]: room of each worker in items
  schedule::WorkItem* items = nullptr;       // [item_begin[num_workers]]
  std::int32_t* num_items = nullptr;         // [num_workers]: found, room or not
};

/// One thread per worker steps a `WorkCursor` to its end.
cudaError_t launch_walk(const schedule::TilePolicy& policy, const core::ProblemShape& shape,
                        const core::BatchArrays& batch, schedule::ScheduleView schedule,
                        const Walk& walk) noexcept;

}  // namespace quire::testing
