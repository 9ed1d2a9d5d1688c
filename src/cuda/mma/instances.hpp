// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which instances of the tensor-core kernel there are: QUIRE_CUDA_DTYPES × QUIRE_CUDA_HEAD_DIMS.
#pragma once

#include <span>

#include "core/kernel_table.hpp"
#include "cuda/attend/params.hpp"

namespace quire::cuda::mma {

/// Heads of a group at most: the rows of one query make one unit.
inline constexpr std::int32_t kMaxGroupSize = 32;

/// The kernel of one dtype and pair of head dims.
struct Instance {
  DType dtype = DType::kNone;  ///< of q, K and V
  core::HeadDims head_dims;
  AttendKernel large;  ///< where a block can have as much shared memory as it asks for
  AttendKernel small;  ///< where a block can have 99 KiB
};

std::span<const Instance> instances();

}  // namespace quire::cuda::mma
