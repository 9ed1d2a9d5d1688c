// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels on CUDA cores: every pair of a float dtype and one of K and V.
#pragma once

#include "cuda/attend/params.hpp"

namespace quire::cuda::simt {

inline constexpr std::int32_t kHeadDimStep = 8;
inline constexpr std::int32_t kNarrowHeadDimStep = 16;  ///< rows begin at multiples of 16 bytes
inline constexpr std::int32_t kMaxHeadDim = 512;
/// 32 bits count the elements of all partial results.
inline constexpr std::int32_t kMaxGroupSize = 2048;
inline constexpr std::int32_t kBlocksPerMultiprocessor = 4;

/// @return The kernel for queries of float32, float16 or bfloat16 and keys of these or of 8 bits, or for
///   both of float8_e4m3.
AttendKernel kernel_for(DType q_dtype, DType kv_dtype);
/// For keys of 8 bits.
AttendKernel narrow_kernel_for(DType q_dtype, DType kv_dtype);

}  // namespace quire::cuda::simt
