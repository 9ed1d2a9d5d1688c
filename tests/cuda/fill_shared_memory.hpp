// SPDX-License-Identifier: Apache-2.0
/// @file
/// What kernels find in shared memory if they do not write it first.
#pragma once

#include <cuda_runtime_api.h>

namespace quire::testing {

/// Fills the shared memory of all multiprocessors with a byte.
cudaError_t fill_shared_memory(unsigned char value, cudaStream_t stream);

}  // namespace quire::testing
