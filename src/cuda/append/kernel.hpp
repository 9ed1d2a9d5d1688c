// SPDX-License-Identifier: Apache-2.0
/// @file
/// New keys and values into their pages.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.hpp"
#include "quire/attention.hpp"

namespace quire::cuda {

/// @param check  If not null and it holds an offence by then, nothing is written.
/// @return The launch's error.
cudaError_t launch_append(const core::BatchArrays& batch, const core::AppendArrays& arrays,
                          const CheckRecord* check, cudaStream_t stream) noexcept;

}  // namespace quire::cuda
