// SPDX-License-Identifier: Apache-2.0
/// @file
/// How a schedule lies in its workspace. Include schedule.hpp instead.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schedule/arithmetic.hpp"
#include "schedule/schedule.hpp"

namespace quire::schedule {
/// With prefixes, of which each is shared by more requests or prefixes than one; or with parts.
QUIRE_HOST_DEVICE inline std::int64_t max_segments(const Policy& policy,
                                                   std::int32_t max_num_seqs) {
  if (policy.prefixes.max_states == 0) return max_num_seqs;
  return (looks_for_prefixes(policy) ? 2 : kMostFixedParts) * std::int64_t{max_num_seqs};
}

QUIRE_HOST_DEVICE inline std::size_t schedule_bytes(const Policy& policy,
                                                    std::int32_t max_num_seqs) {
  const auto num_segments = static_cast<std::size_t>(max_segments(policy, max_num_seqs));
  std::size_t bytes = sizeof(Header);
  for (const TilePolicy& line : policy.lines) {
    if (line.num_ranges == 0) continue;
    bytes +=
        (num_segments + 1) * sizeof(std::int64_t) +
        static_cast<std::size_t>(line.num_ranges) *
            (sizeof(Range) + static_cast<std::size_t>(line.heads_abreast) * sizeof(std::uint32_t)) +
        sizeof(std::int64_t);
  }
  if (policy.prefixes.max_states > 0) {
    bytes += num_segments * sizeof(StoredSegment) +
             static_cast<std::size_t>(max_listed(policy)) *
                 (sizeof(ListedQuery) +
                  static_cast<std::size_t>(policy.prefixes.num_kv_heads) * sizeof(std::uint32_t)) +
             sizeof(std::int64_t);
  }
  if (looks_for_prefixes(policy)) {
    bytes += prefix_scratch_bytes(detail::min_of(max_num_seqs, policy.prefixes.most_seqs));
  }
  return bytes;
}

QUIRE_HOST_DEVICE inline ScheduleView view_of(const Policy& policy, std::int32_t max_num_seqs,
                                              void* workspace) {
  const auto aligned = [](void* end) {
    constexpr std::uintptr_t kAlignment = alignof(std::int64_t);
    return reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(end) + kAlignment - 1) /
                                   kAlignment * kAlignment);
  };
  const std::int64_t num_segments = max_segments(policy, max_num_seqs);
  ScheduleView view;
  view.header = static_cast<Header*>(workspace);
  void* at = view.header + 1;
  for (int line = 0; line < kLines; ++line) {
    const TilePolicy& tiles = policy.lines[line];
    if (tiles.num_ranges == 0) continue;
    LineView& of = view.lines[line];
    of.cost_before = static_cast<std::int64_t*>(at);
    of.ranges = reinterpret_cast<Range*>(of.cost_before + num_segments + 1);
    of.arrivals = reinterpret_cast<std::uint32_t*>(of.ranges + tiles.num_ranges);
    at = aligned(of.arrivals + tiles.num_ranges * tiles.heads_abreast);
  }
  if (policy.prefixes.max_states == 0) return view;
  view.segments = static_cast<StoredSegment*>(at);
  view.listed = reinterpret_cast<ListedQuery*>(view.segments + num_segments);
  view.listed_arrivals = reinterpret_cast<std::uint32_t*>(view.listed + max_listed(policy));
  view.prefix_scratch =
      aligned(view.listed_arrivals + max_listed(policy) * policy.prefixes.num_kv_heads);
  return view;
}

}  // namespace quire::schedule
