// SPDX-License-Identifier: Apache-2.0
/// @file
/// Partial results of the same queries over disjoint keys, joined.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.hpp"

namespace quire::cuda {

/// @return The launch's error.
cudaError_t launch_merge(const core::MergeArrays& arrays, cudaStream_t stream) noexcept;

}  // namespace quire::cuda
