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

/// Bounds on |o − oracle| / max |v| before output rounding, scales of v included, and on
/// |lse − oracle|.
inline constexpr double kFloat32Bound = 2e-6;
inline constexpr double kHalfBound = 1e-3;
inline constexpr double kLseBound = 1e-5;

/// Of kernels in bf16. They round each weight p · s, of p = exp(logit − reference) and the scale s of
/// a token's values, and divide by the sum of p as it was before. Rounding to 8 bits moves a weight by
/// 1/257 of itself at most, as it does 1 + 2⁻⁸. So |δo| ≤ Σ p s |v| / Σ p / 257, which is no more than
/// max |s v| / 257: a row that sees one key, of scale 1 + 2⁻⁸, attains it. What 2⁻⁸ is more, 1.5e-5,
/// is for arithmetic in fp32.
inline constexpr double kWeightBound = 0x1p-8;
/// Where the reference is the maximum and tokens have no scales, the largest weight is 1, which
/// rounding does not move. The others move o by max |v| (Σ p − 1) / Σ p / 257 at most: by half of the
/// above as long as Σ p ≤ 2. Where it is more, δo is a sum over random v of standard deviation σ: its
/// own is at most σ √(Σ p − 1) / Σ p / 257, since p² ≤ p, and so never more than half of σ / 257. And
/// max |v| is some σ.
inline constexpr double kLargestIsOneBound = kWeightBound / 2.0;

[[nodiscard]] inline bool rounds_weights(const core::KernelRow& kernel) {
  return kernel.name.ends_with("bf16");
}

/// Largest |o − oracle| / max |v| that a kernel may show.
inline double bound_of(const core::KernelRow& kernel, const AttentionSpec& spec) {
  if (rounds_weights(kernel)) {
    const bool largest_is_one =
        kernel.name == "cpu.avx512_bf16" && spec.kv_scale != KvScale::kPerToken;
    return largest_is_one ? kLargestIsOneBound : kWeightBound;
  }
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
