// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which instances of the Hopper kernel there are; none if sm_90a is not compiled for.
#pragma once

#include <span>

#include "core/kernel_table.hpp"
#include "cuda/attend/params.hpp"

namespace quire::cuda::sm90 {

/// The kernel of one dtype and pair of head dims.
struct Instance {
  core::SetOf<DType> q_dtypes;
  DType kv_dtype = DType::kNone;
  core::HeadDims head_dims;
  AttendKernel kernel;
};

std::span<const Instance> instances();

}  // namespace quire::cuda::sm90
