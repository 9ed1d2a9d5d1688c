// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which instances of the tensor-core kernel there are: QUIRE_CUDA_DTYPES × QUIRE_CUDA_HEAD_DIMS,
/// one for each dtype of K and V. Those of 8 bits take queries of both 16-bit dtypes.
#pragma once

#include <span>

#include "core/kernel_table.hpp"
#include "cuda/attend/params.hpp"

namespace quire::cuda::mma {

/// Heads of a group at most: the rows of one query make one unit.
inline constexpr std::int32_t kMaxGroupSize = 32;

/// The kernel of one dtype of K and V and pair of head dims.
struct Instance {
  core::SetOf<DType> q_dtypes;
  DType kv_dtype = DType::kNone;
  core::HeadDims head_dims;
  AttendKernel large;  ///< where a block can have as much shared memory as it asks for
  AttendKernel small;  ///< where a block can have 99 KiB
};

std::span<const Instance> instances();

}  // namespace quire::cuda::mma
