// SPDX-License-Identifier: Apache-2.0
/// @file
/// What measuring needs on a GPU: a kernel that does nothing and one that only reads.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace quire::tool {

cudaError_t launch_nothing(cudaStream_t stream) noexcept;

/// Reads memory once, in loads of 16 bytes. @param bytes  A multiple of 16.
/// @param num_sms  Of the current device.
/// @param sink     4 bytes on the device, so that the loads have a purpose.
cudaError_t launch_read(const void* data, std::size_t bytes, int num_sms, void* sink,
                        cudaStream_t stream) noexcept;

}  // namespace quire::tool
