// SPDX-License-Identifier: Apache-2.0
/// @file
/// Copies of pages: one launch of independent ops.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/copy/part.hpp"

namespace quire::cuda {

/// @param crosses_link  Whether some of the memory is the host's.
/// @return The launch's error.
cudaError_t launch_copy(const CopyParams& params, bool crosses_link, cudaStream_t stream) noexcept;

}  // namespace quire::cuda
