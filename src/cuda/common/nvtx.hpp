// SPDX-License-Identifier: Apache-2.0
/// @file
/// Names for profilers: ranges of host code in the NVTX domain `quire`, which Nsight Systems shows.
#pragma once

#include <nvtx3/nvtx3.hpp>

namespace quire::cuda {

struct NvtxDomain {
  static constexpr const char* name = "quire";
};

/// From its making to its end. Where no tool is attached, two tests of a null pointer.
using NvtxRange = nvtx3::scoped_range_in<NvtxDomain>;

}  // namespace quire::cuda
