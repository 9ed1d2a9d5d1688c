// SPDX-License-Identifier: Apache-2.0
/// @file
/// Division of many numbers by one that the compiler does not know.
#pragma once

#include <bit>
#include <cstdint>

#include "schedule/host_device.hpp"

namespace quire::cuda {

/// n / divisor as one multiplication, for 0 ≤ n < 2³¹. After Granlund and Montgomery, "Division by
/// invariant integers using multiplication" (1994): with 2^s ≥ d and m = ⌈2^(31+s) / d⌉, n / d is
/// n·m / 2^(31+s).
class FastDivisor {
 public:
  FastDivisor() = default;
  /// @param divisor  ≥ 1.
  explicit FastDivisor(std::int32_t divisor) : divisor_(divisor) {
    const auto d = static_cast<std::uint64_t>(divisor);
    const auto power = static_cast<std::uint32_t>(std::bit_width(d - 1));
    multiplier_ = static_cast<std::uint32_t>(((std::uint64_t{1} << (31 + power)) + d - 1) / d);
    shift_ = 31 + power;
  }

  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t quotient(std::int32_t n) const {
    return static_cast<std::int32_t>(
        static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * multiplier_ >> shift_);
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t remainder(std::int32_t n,
                                                         std::int32_t quotient) const {
    return n - quotient * divisor_;
  }

 private:
  std::int32_t divisor_ = 1;
  std::uint32_t multiplier_ = 1U << 31;
  std::uint32_t shift_ = 31;
};

}  // namespace quire::cuda
