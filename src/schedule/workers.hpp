// SPDX-License-Identifier: Apache-2.0
/// @file
/// How many ranges a line falls into, and who takes them. Include schedule.hpp instead.
#pragma once

#include <cstdint>

#include "schedule/arithmetic.hpp"
#include "schedule/units.hpp"

namespace quire::schedule {
/// Of a range: what pays, and so much that no two cuts can fall into one tile.
QUIRE_HOST_DEVICE inline std::int64_t least_range_cost(const TilePolicy& policy,
                                                       const core::ProblemShape& shape) {
  return detail::max_of(policy.min_range_cost, max_cost_of_kv_tile(policy, shape));
}

/// Ranges in use for a line of `total_cost`.
/// @param least_cost  Of a range.
/// @param workers     That take shares of the line; 0: `num_ranges` says how many ranges there can
///   be.
QUIRE_HOST_DEVICE inline std::int32_t ranges_for(const TilePolicy& policy, std::int64_t least_cost,
                                                 std::int64_t total_cost, std::int32_t workers) {
  if (total_cost == 0) return 0;
  const std::int32_t in_turn =
      workers == 0
          ? policy.num_ranges
          : detail::min_of(policy.num_ranges, workers * policy.shares_at_once *
                                                  policy.ranges_in_turn / policy.heads_abreast);
  const bool is_much = total_cost >= least_cost * 2 * policy.ranges_in_turn * in_turn;
  if (is_much) return detail::max_of(1, in_turn);
  const std::int64_t that_pay = detail::quotient(total_cost, least_cost);
  const std::int32_t most = detail::max_of(1, in_turn / policy.ranges_in_turn);
  return static_cast<std::int32_t>(
      detail::max_of<std::int64_t>(1, detail::min_of<std::int64_t>(most, that_pay)));
}

/// Workers that take large units only, if that is better than that all take both, or 0.
QUIRE_HOST_DEVICE inline std::int32_t find_large_workers(const Policy& policy,
                                                         const std::int64_t (&total_cost)[kLines]) {
  const TilePolicy& small = policy.lines[kSmallUnits];
  const TilePolicy& large = policy.lines[kLargeUnits];
  const std::int64_t small_cost = total_cost[kSmallUnits] * small.heads_abreast;
  const std::int64_t large_cost = total_cost[kLargeUnits] * large.heads_abreast;
  const auto least = [](const TilePolicy& line) {  // that take a range
    return (line.heads_abreast + line.shares_at_once - 1) / line.shares_at_once;
  };
  const std::int32_t step = least(large);
  const std::int32_t most = policy.workers - least(small);
  const auto small_workers = [&](std::int32_t large_workers) -> std::int64_t {
    return detail::min_of(policy.workers - large_workers, small.most_workers);
  };
  // Until large units are done before the small ones; or one step less, if that is better.
  std::int32_t workers = step;
  QUIRE_ROLLED
  while (large_cost * small_workers(workers) > small_cost * workers) {
    if (workers + step > most) break;
    workers += step;
  }
  if (workers > most) return 0;
  const auto is_done_later = [&](std::int32_t than) {  // large units than small ones
    return large_cost * small_workers(than) > small_cost * than;
  };
  if (workers > step && large_cost * small_workers(workers) < small_cost * (workers - step)) {
    workers -= step;
  }
  // What either takes, as a fraction.
  const bool is_large = is_done_later(workers);
  const std::int64_t cost = is_large ? large_cost : small_cost;
  const std::int64_t by = is_large ? workers : small_workers(workers);
  const std::int64_t all = policy.workers;
  const std::int64_t readers = small_workers(0);
  const std::int64_t cost_of_both =
      small_cost * all + (large_cost + policy.cost_of_change * all) * readers;
  return cost * all * readers <= cost_of_both * by ? workers : 0;
}

QUIRE_HOST_DEVICE inline void divide(const Policy& policy, const std::int64_t (&least_cost)[kLines],
                                     const std::int64_t (&total_cost)[kLines], Overview& overview) {
  const bool has_both = total_cost[kSmallUnits] > 0 && total_cost[kLargeUnits] > 0;
  overview.large_workers = has_both && policy.workers > 0 && overview.num_prefixes > 0
                               ? find_large_workers(policy, total_cost)
                               : 0;
  const std::int32_t large = overview.large_workers;
  for (int line = 0; line < kLines; ++line) {
    const std::int32_t workers = line == kLargeUnits || large == 0 ? large : policy.workers - large;
    overview.num_ranges[line] =
        ranges_for(policy.lines[line], least_cost[line], total_cost[line], workers);
  }
}

QUIRE_HOST_DEVICE inline void divide(const Policy& policy, const core::ProblemShape& shape,
                                     const std::int64_t (&total_cost)[kLines], Overview& overview) {
  std::int64_t least_cost[kLines] = {};
  for (int line = 0; line < kLines; ++line) {
    least_cost[line] = least_range_cost(policy.lines[line], shape);
  }
  divide(policy, least_cost, total_cost, overview);
}

}  // namespace quire::schedule
