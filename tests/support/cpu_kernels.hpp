// SPDX-License-Identifier: Apache-2.0
/// @file
/// The CPU's kernels that this machine can run, and how far from the oracle they may be.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "core/kernel_table.hpp"
#include "quire/attention.hpp"

namespace quire::testing {

/// Bounds on |o − oracle| / max |v| before output rounding, and on |lse − oracle|.
inline constexpr double kFloat32Bound = 2e-6;
inline constexpr double kHalfBound = 1e-3;
inline constexpr double kWeightBound = 0x1p-9;
inline constexpr double kLseBound = 1e-5;

/// Largest |o − oracle| / max |v| that a kernel may show. Weights rounded to bf16 are off by 2⁻⁹ of
/// themselves at most.
inline double bound_of(const core::KernelRow& kernel, const AttentionSpec& spec) {
  if (kernel.name.find("bf16") != std::string_view::npos) return kWeightBound;
  const bool exact = spec.q_dtype == DType::kFloat32 && spec.kv_dtype == DType::kFloat32;
  return exact ? kFloat32Bound : kHalfBound;
}

/// Calls `f(kernel)` for all CPU kernels that this machine can run and that serve the spec.
template <typename F>
void for_each_kernel(const AttentionSpec& spec, const F& f) {
  std::int32_t found = 0;
  for (const core::KernelRow& kernel : core::kernel_table()) {
    if (kernel.device != DeviceType::kCpu || !kernel.missing.empty()) continue;
    std::string reason;
    if (core::find_kernel(DeviceType::kCpu, spec, kernel.name, reason) == nullptr) continue;
    SCOPED_TRACE(std::string(kernel.name));
    ++found;
    f(kernel);
  }
  EXPECT_GE(found, 1);
}

}  // namespace quire::testing
