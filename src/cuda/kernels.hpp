// SPDX-License-Identifier: Apache-2.0
/// @file
/// From a row of the kernel table to a compiled kernel.
#pragma once

#include <cstddef>
#include <string_view>

#include "core/backend.hpp"
#include "cuda/attend/params.hpp"

namespace quire::cuda {

inline constexpr std::string_view kSimtName = "cuda.simt";

/// @param shared_bytes  Shared memory that a block of the device can have.
/// @throws Error `kInternal` if the table and the compiled kernels disagree.
AttendKernel kernel_for(const core::AttentionConfig& config, std::size_t shared_bytes);

}  // namespace quire::cuda
