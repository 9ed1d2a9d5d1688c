// SPDX-License-Identifier: Apache-2.0
/// @file
/// `schedule::build` on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "schedule/schedule.hpp"

namespace quire::cuda {

/// Fills the schedule with the segments, ranges and lists of `schedule::build`, bit for bit, from
/// lengths and tables on the device. It leaves no digest, and no running costs that fit into shared
/// memory. One block; does not allocate or synchronise and may be captured.
/// @param batch     Arrays on the device.
/// @param groups    Likewise; without levels prefixes are looked for in the tables.
/// @param schedule  In a workspace on the device.
/// @param near_bytes  What `prepare_schedule` says.
/// @param check     If not null and it holds an offence by then, the schedule becomes empty.
/// @return The launch's error.
cudaError_t launch_schedule(const schedule::Policy& policy, const core::ProblemShape& shape,
                            const core::BatchArrays& batch, const core::PrefixGroups& groups,
                            schedule::ScheduleView schedule, std::size_t near_bytes,
                            const CheckRecord* check, cudaStream_t stream) noexcept;

/// Loads the kernel onto the current device, so that its first launch may be captured.
/// @param shared_memory  Bytes that a block can have there.
/// @param near_bytes     Those of them that a launch may ask for.
cudaError_t prepare_schedule(std::size_t shared_memory, std::size_t& near_bytes) noexcept;

}  // namespace quire::cuda
