// SPDX-License-Identifier: Apache-2.0
/// @file
/// `schedule::build` on the device.
#pragma once

#include <cuda_runtime_api.h>

#include "schedule/schedule.hpp"

namespace quire::cuda {

/// Fills the schedule as `schedule::build` does, bit for bit, from lengths on the device. One
/// block; does not allocate or synchronise and may be captured.
/// @param batch     Arrays on the device.
/// @param schedule  In a workspace on the device.
/// @param check     If not null and it holds an offence by then, the schedule becomes empty.
/// @return The launch's error.
cudaError_t launch_schedule(const schedule::TilePolicy& policy, const core::ProblemShape& shape,
                            const core::BatchArrays& batch, schedule::ScheduleView schedule,
                            const CheckRecord* check, cudaStream_t stream) noexcept;

/// Loads the kernel onto the current device, so that its first launch may be captured.
cudaError_t prepare_schedule() noexcept;

}  // namespace quire::cuda
