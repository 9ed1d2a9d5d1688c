// SPDX-License-Identifier: Apache-2.0
#include "bench/measurement.hpp"

#include <algorithm>

#include "common/statistics.hpp"

namespace quire::tool {
namespace {

// 10⁹ a second are 10³ a microsecond.
constexpr double kGigaPerMicrosecond = 1e3;

double microseconds(double amount, double giga_per_s) {
  return giga_per_s > 0 ? amount / (giga_per_s * kGigaPerMicrosecond) : 0;
}

}  // namespace

double Ceilings::floor_us(double bytes, double flop) const {
  return std::max(microseconds(bytes, read_gb_per_s), microseconds(flop, gflop_per_s));
}

bool Ceilings::bound_by_reading(double bytes, double flop) const {
  return microseconds(bytes, read_gb_per_s) >= microseconds(flop, gflop_per_s);
}

double Measurement::gb_per_s() const { return bytes / us_median / kGigaPerMicrosecond; }
double Measurement::gflop_per_s() const { return flop / us_median / kGigaPerMicrosecond; }

double Measurement::percent_of(const Ceilings& ceilings) const {
  constexpr double kPercent = 100;
  return kPercent * ceilings.floor_us(bytes, flop) / us_median;
}

void Measurement::take_times(const std::vector<double>& microseconds) {
  constexpr double kLow = 0.05;
  constexpr double kHigh = 0.95;
  repetitions = static_cast<std::int64_t>(microseconds.size());
  us_median = quantile(microseconds, 0.5);
  us_p5 = quantile(microseconds, kLow);
  us_p95 = quantile(microseconds, kHigh);
}

}  // namespace quire::tool
