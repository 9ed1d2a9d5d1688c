// SPDX-License-Identifier: Apache-2.0
/// @file
/// Who makes a schedule: one thread of the host, or a block of the device, by the same functions.
#pragma once

#include <cstdint>

#include "schedule/host_device.hpp"

namespace quire::schedule {

/// One thread, and the vocabulary of a team.
struct SingleThread {
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t rank() const { return 0; }  ///< of the thread
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t size() const { return 1; }  ///< of the team
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t warp() const {
    return 0;
  }  ///< threads that compare tables together
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t num_warps() const { return 1; }
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_first_of_warp() const { return true; }
  QUIRE_HOST_DEVICE void sync() const {}
  [[nodiscard]] QUIRE_HOST_DEVICE bool any(bool value) const {
    return value;
  }  ///< of all threads; synchronises
  /// Sum over the threads before this one; synchronises. @param total  Of all.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int64_t sum_before(std::int64_t value,
                                                          std::int64_t& total) const {
    total = value;
    return 0;
  }
  /// How long two tables are the same from `begin` on, up to `end`; to the first of the warp.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t matching_until(const std::int32_t* a,
                                                              const std::int32_t* b,
                                                              std::int32_t begin,
                                                              std::int32_t end) const {
    while (begin < end && a[begin] == b[begin]) ++begin;
    return begin;
  }
  template <typename T>
  QUIRE_HOST_DEVICE void lower_to(T& to, T value) const {
    to = value < to ? value : to;
  }
  template <typename T>
  QUIRE_HOST_DEVICE void add(T& to, T value) const {
    to += value;
  }
  /// Writes `value` where `expected` is. @return What was there.
  [[nodiscard]] QUIRE_HOST_DEVICE std::uint64_t exchange_if(std::uint64_t& place,
                                                            std::uint64_t expected,
                                                            std::uint64_t value) const {
    const std::uint64_t before = place;
    if (before == expected) place = value;
    return before;
  }
};

}  // namespace quire::schedule
