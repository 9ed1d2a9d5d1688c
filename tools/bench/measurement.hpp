// SPDX-License-Identifier: Apache-2.0
/// @file
/// What measuring a workload gives, and how it is held against a machine's ceilings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/accuracy.hpp"

namespace quire::tool {

/// What a machine can do.
struct Ceilings {
  double read_gb_per_s = 0;  ///< Streaming read of memory that no cache holds.
  double gflop_per_s = 0;    ///< Arithmetic, two operations a multiply-add; 0 if not measured.

  /// @return Microseconds that reading or, if it takes longer, computing takes.
  [[nodiscard]] double floor_us(double bytes, double flop) const;
  /// @return True if reading takes longer than computing, as far as both are known.
  [[nodiscard]] bool bound_by_reading(double bytes, double flop) const;
};

/// Times of one workload.
struct Measurement {
  std::string kernel;
  std::int64_t repetitions = 0;
  double us_median = 0;
  double us_p5 = 0;
  double us_p95 = 0;
  double us_schedule = 0;  ///< Median of `Attention::schedule`, once per step.
  double us_both = 0;      ///< Median of both in one graph; on a GPU.
  double bytes = 0;
  double flop = 0;
  SpotCheckResult checks;

  [[nodiscard]] double gb_per_s() const;
  [[nodiscard]] double gflop_per_s() const;
  /// @return The floor, of the median time, in per cent.
  [[nodiscard]] double percent_of(const Ceilings& ceilings) const;
  /// @return True if reading, not arithmetic, is the nearer ceiling.
  [[nodiscard]] bool bound_by_reading(const Ceilings& ceilings) const {
    return ceilings.bound_by_reading(bytes, flop);
  }
  /// Fills in the times of `run`.
  void take_times(const std::vector<double>& microseconds);
};

}  // namespace quire::tool
