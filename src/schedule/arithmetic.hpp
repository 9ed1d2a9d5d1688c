// SPDX-License-Identifier: Apache-2.0
/// @file
/// Division that GPUs do fast, and sums of floors.
#pragma once

#include <cstdint>

#include "schedule/host_device.hpp"

namespace quire::schedule {
namespace detail {

/// ⌊a / b⌋ for a ≥ 0 and b > 0; GPUs divide 32-bit numbers much faster.
QUIRE_OUTLINED std::int64_t quotient(std::int64_t a, std::int64_t b) {
  if (((a | b) >> 32) == 0) {
    return static_cast<std::int64_t>(static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b));
  }
  return a / b;
}

QUIRE_HOST_DEVICE inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return quotient(a + b - 1, b);
}

template <typename T>
QUIRE_HOST_DEVICE constexpr T min_of(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
QUIRE_HOST_DEVICE constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}

/// Σ ⌊(a·i + b) / m⌋ over i in [0, n), for a, b ≥ 0 and m > 0. O(log m), by Euclid's algorithm on
/// the lattice points under the line.
QUIRE_OUTLINED std::int64_t floor_sum(std::int64_t n, std::int64_t m, std::int64_t a,
                                      std::int64_t b) {
  std::int64_t sum = 0;
  QUIRE_ROLLED
  while (n > 0) {
    const std::int64_t slope = quotient(a, m);
    const std::int64_t start = quotient(b, m);
    sum += (n - 1) * n / 2 * slope + n * start;
    a -= slope * m;
    b -= start * m;
    const std::int64_t top = a * n + b;
    if (top < m) break;
    n = quotient(top, m);
    b = top - n * m;
    const std::int64_t swapped = m;
    m = a;
    a = swapped;
  }
  return sum;
}

/// Σ ⌊max(0, a·i + b) / m⌋ over i in [0, n), for a, m > 0 and any b.
QUIRE_HOST_DEVICE inline std::int64_t clamped_floor_sum(std::int64_t n, std::int64_t m,
                                                        std::int64_t a, std::int64_t b) {
  const std::int64_t zeros = b < 0 ? min_of(n, ceil_div(-b, a)) : 0;
  return floor_sum(n - zeros, m, a, b + a * zeros);
}

}  // namespace detail

}  // namespace quire::schedule
