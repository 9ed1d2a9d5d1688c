// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where ranges begin on a line. Include schedule.hpp instead.
#pragma once

#include <cstdint>

#include "schedule/arithmetic.hpp"
#include "schedule/units.hpp"

namespace quire::schedule {
namespace detail {

/// The segment that holds `cost` of a line: the last one whose running cost is ≤ `cost`.
QUIRE_HOST_DEVICE inline std::int32_t segment_at(const std::int64_t* cost_before,
                                                 std::int32_t num_segments, std::int64_t cost) {
  std::int32_t low = 0;
  std::int32_t high = num_segments;
  QUIRE_ROLLED
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    if (cost_before[middle] <= cost) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Equal cuts of a line, before snapping to tiles.
class EqualCuts {
 public:
  QUIRE_HOST_DEVICE EqualCuts(std::int64_t total_cost, std::int32_t num_ranges)
      : num_ranges_(num_ranges),
        length_(quotient(total_cost, num_ranges)),
        longer_(total_cost - length_ * num_ranges) {}

  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t num_ranges() const { return num_ranges_; }

  /// Start of range `index`. The first ones are one longer than the others.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int64_t at(std::int64_t index) const {
    return length_ * index + min_of(index, longer_);
  }
  /// The first range that starts at `cost` or behind it.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int64_t first_from(std::int64_t cost) const {
    const std::int64_t end_of_longer = longer_ * (length_ + 1);
    if (cost <= end_of_longer) return ceil_div(cost, length_ + 1);
    return longer_ + ceil_div(cost - end_of_longer, length_);
  }

 private:
  std::int32_t num_ranges_;
  std::int64_t length_;
  std::int64_t longer_;
};

/// The first place after a unit; a segment without queries may follow.
QUIRE_HOST_DEVICE inline Cut after_unit(const SegmentUnits& units, Cut cut) {
  cut.kv_tile = 0;
  if (++cut.q_tile < units.q_tiles) return cut;
  cut.q_tile = 0;
  if (++cut.head_unit < units.head_units) return cut;
  cut.head_unit = 0;
  ++cut.segment;
  return cut;
}

/// The ranges that start inside a unit that may be split, past its first tile, as a split unit.
QUIRE_HOST_DEVICE inline SplitUnit split_unit(const EqualCuts& cuts, const UnitLine& line,
                                              std::int32_t q_tile, std::int64_t unit_begin) {
  const std::int64_t unit_end = unit_begin + line.cost_of_unit(q_tile);
  const std::int32_t tiles = line.kv_tiles(q_tile);
  const auto is_inner = [&](std::int64_t index) {
    const std::int64_t cost = cuts.at(index);
    if (cost >= unit_end) return false;
    const std::int32_t at = line.snap(q_tile, cost - unit_begin, false);
    return at > 0 && at < tiles;
  };
  std::int64_t first = cuts.first_from(unit_begin);
  std::int64_t last = min_of<std::int64_t>(cuts.first_from(unit_end), cuts.num_ranges() - 1);
  QUIRE_ROLLED
  while (last >= first && !is_inner(last)) --last;
  QUIRE_ROLLED
  while (first <= last && !is_inner(first)) ++first;
  return {static_cast<std::int32_t>(first - 1), static_cast<std::int32_t>(last - first + 2)};
}

}  // namespace detail

/// What `segment_of` is given.
QUIRE_HOST_DEVICE inline const StoredSegment* segments_of(const ScheduleView& schedule) {
  return schedule.header->overview.num_prefixes > 0 ? schedule.segments : nullptr;
}

namespace detail {

/// The unit that holds a place on a line.
struct PlacedUnit {
  std::int64_t begin = 0;  ///< where it begins
  Cut cut;                 ///< its first tile
  Segment segment;
};

/// Outlined, as it is asked for twice: code that a GPU has not run yet is slow.
QUIRE_OUTLINED PlacedUnit unit_at(const Policy& policy, const core::ProblemShape& shape,
                                  const core::BatchArrays& batch, const ScheduleView& schedule,
                                  int line, std::int64_t cost) {
  const TilePolicy& tiles = policy.lines[line];
  const std::int64_t* const cost_before = schedule.lines[line].cost_before;
  PlacedUnit unit;
  unit.cut.segment = segment_at(cost_before, schedule.header->num_segments, cost);
  unit.begin = cost_before[unit.cut.segment];
  unit.segment = segment_of(shape, batch, segments_of(schedule), unit.cut.segment);
  const SegmentUnits units = units_of(tiles, shape, unit.segment.lengths);
  const UnitLine unit_line(tiles, shape, unit.segment, units);
  const std::int64_t head_unit_cost =
      quotient(cost_before[unit.cut.segment + 1] - unit.begin, units.head_units);
  unit.cut.head_unit = static_cast<std::int32_t>(quotient(cost - unit.begin, head_unit_cost));
  unit.begin += unit.cut.head_unit * head_unit_cost;
  unit.cut.q_tile = unit_line.q_tile_at(cost - unit.begin);
  unit.begin += unit_line.cost_before(unit.cut.q_tile);
  return unit;
}

}  // namespace detail

QUIRE_HOST_DEVICE inline std::int64_t whole_cut(const Policy& policy,
                                                const core::ProblemShape& shape,
                                                const core::BatchArrays& batch,
                                                const ScheduleView& schedule, int line,
                                                std::int32_t index) {
  const Header& header = *schedule.header;
  const std::int32_t num_ranges = header.overview.num_ranges[line];
  const std::int64_t total_cost = header.total_cost[line];
  if (index >= num_ranges) return total_cost;
  const std::int64_t cost = detail::EqualCuts(total_cost, num_ranges).at(index);
  return detail::unit_at(policy, shape, batch, schedule, line, cost).begin;
}

QUIRE_HOST_DEVICE inline bool is_too_long(const Header& header, int line, std::int64_t begin,
                                          std::int64_t end) {
  // A sixteenth more than the average.
  return (end - begin) * header.overview.num_ranges[line] * 16 > header.total_cost[line] * 17;
}

QUIRE_HOST_DEVICE inline PlacedCut place_cut(const Policy& policy, const core::ProblemShape& shape,
                                             const core::BatchArrays& batch,
                                             const ScheduleView& schedule, int line,
                                             std::int32_t index) {
  const Header& header = *schedule.header;
  const TilePolicy& tiles = policy.lines[line];
  const std::int64_t* const cost_before = schedule.lines[line].cost_before;
  const std::int64_t total_cost = header.total_cost[line];
  PlacedCut placed;
  Cut& cut = placed.cut;
  if (index >= header.overview.num_ranges[line]) {
    // After the last segment that has units: nobody walks over the others behind it.
    cut.segment = total_cost == 0
                      ? 0
                      : detail::segment_at(cost_before, header.num_segments, total_cost - 1) + 1;
    return placed;
  }
  const detail::EqualCuts cuts(total_cost, header.overview.num_ranges[line]);
  const std::int64_t cost = cuts.at(index);
  const detail::PlacedUnit unit = detail::unit_at(policy, shape, batch, schedule, line, cost);
  cut = unit.cut;
  placed.segment = unit.segment;
  const SegmentUnits units = units_of(tiles, shape, placed.segment.lengths);
  const detail::UnitLine unit_line(tiles, shape, placed.segment, units);
  const bool is_whole = (header.overview.whole_lines >> static_cast<unsigned>(line) & 1U) != 0;
  cut.kv_tile = unit_line.snap(cut.q_tile, cost - unit.begin, is_whole);
  if (cut.kv_tile == 0) return placed;
  if (cut.kv_tile < unit_line.kv_tiles(cut.q_tile)) {
    placed.split = detail::split_unit(cuts, unit_line, cut.q_tile, unit.begin);
    return placed;
  }
  const std::int32_t before = cut.segment;
  cut = detail::after_unit(units, cut);
  if (cut.segment == before) return placed;
  // Ranges start at units, so step over the segments that have none.
  if (cost_before[cut.segment] < total_cost) {
    cut.segment = detail::segment_at(cost_before, header.num_segments, cost_before[cut.segment]);
    placed.segment = segment_of(shape, batch, segments_of(schedule), cut.segment);
  }
  return placed;
}

}  // namespace quire::schedule
