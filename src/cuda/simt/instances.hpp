// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels on CUDA cores: every pair of float dtypes.
#pragma once

#include "cuda/attend/params.hpp"

namespace quire::cuda::simt {

inline constexpr std::int32_t kHeadDimStep = 8;
inline constexpr std::int32_t kMaxHeadDim = 512;

/// @return The kernel for queries and keys of these dtypes, each float32, float16 or bfloat16.
AttendKernel kernel_for(DType q_dtype, DType kv_dtype);

}  // namespace quire::cuda::simt
