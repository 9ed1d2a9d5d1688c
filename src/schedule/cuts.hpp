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
  template <typename Tiles>
  QUIRE_HOST_DEVICE EqualCuts(const Tiles& policy, std::int64_t total_cost, std::int32_t num_ranges)
      : num_ranges_(num_ranges),
        length_(policy.range_length(total_cost, num_ranges)),
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
template <typename Tiles>
QUIRE_HOST_DEVICE inline SplitUnit split_unit(const EqualCuts& cuts, const UnitLine<Tiles>& line,
                                              std::int32_t q_tile, std::int64_t unit_begin) {
  const std::int64_t unit_end = unit_begin + line.cost_of_unit(q_tile);
  const std::int32_t tiles = line.kv_tiles(q_tile);
  const auto is_inner = [&](std::int64_t index) {
    const std::int64_t cost = cuts.at(index);
    if (cost >= unit_end) return false;
    const std::int32_t at = line.snap(q_tile, cost - unit_begin);
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

/// What places cuts on a line.
template <typename Tiles>
struct CutLine {
  const Tiles& tiles;
  const core::ProblemShape& shape;
  const core::BatchArrays& batch;
  const StoredSegment* segments;  ///< as in `segment_of`
  std::int32_t num_segments;
  const std::int64_t* cost_before;
  std::int64_t total_cost;
};

/// The unit that holds a place on a line.
struct PlacedUnit {
  std::int64_t begin = 0;  ///< where it begins
  Cut cut;                 ///< its first tile
  Segment segment;
  SegmentUnits units;  ///< of the segment
};

/// @param segment  The one that holds the place.
/// @param cost     The place.
template <typename Tiles>
QUIRE_HOST_DEVICE inline PlacedUnit unit_at(const CutLine<Tiles>& line, std::int32_t segment,
                                            std::int64_t cost) {
  PlacedUnit unit;
  unit.cut.segment = segment;
  unit.begin = line.cost_before[segment];
  unit.segment = segment_of(line.shape, line.batch, line.segments, segment);
  unit.units = units_of(line.tiles, line.shape, unit.segment.lengths);
  const SegmentUnits& units = unit.units;
  if (units.head_units > 1) {
    const std::int64_t head_unit_cost =
        detail::quotient(line.cost_before[segment + 1] - unit.begin, units.head_units);
    unit.cut.head_unit =
        static_cast<std::int32_t>(detail::quotient(cost - unit.begin, head_unit_cost));
    unit.begin += unit.cut.head_unit * head_unit_cost;
  }
  if (units.q_tiles > 1) {
    const detail::UnitLine unit_line(line.tiles, line.shape, unit.segment, units);
    unit.cut.q_tile = unit_line.q_tile_at(cost - unit.begin);
    unit.begin += unit_line.cost_before(unit.cut.q_tile);
  }
  return unit;
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline std::int32_t ranges_together(const Tiles& policy,
                                                      const core::ProblemShape& shape,
                                                      const Header& header) {
  constexpr std::int64_t kFewRows = 16;  // of a request, in the mean
  const bool have_few =
      std::int64_t{header.overview.num_queries} * shape.group_size <= kFewRows * header.num_seqs;
  return have_few && policy.heads_abreast == 1 && header.overview.num_prefixes == 0
             ? policy.shares_at_once
             : 1;
}

QUIRE_HOST_DEVICE inline bool is_too_long(const Header& header, int line, std::int32_t ranges,
                                          std::int64_t begin, std::int64_t end) {
  // A sixteenth more than the average.
  return (end - begin) * header.overview.num_ranges[line] * 16 >
         header.total_cost[line] * 17 * ranges;
}

/// The start of a range, which is the end of the one before it.
/// @param cost      Where the range would start among equal ones.
/// @param unit      That holds `cost`.
/// @param is_whole  No unit is split.
template <typename Tiles>
QUIRE_HOST_DEVICE inline PlacedCut place_cut(const CutLine<Tiles>& line,
                                             const detail::EqualCuts& cuts, std::int64_t cost,
                                             const PlacedUnit& unit, bool is_whole) {
  PlacedCut placed;
  Cut& cut = placed.cut;
  cut = unit.cut;
  placed.segment = unit.segment;
  if (is_whole) return placed;
  const detail::UnitLine unit_line(line.tiles, line.shape, unit.segment, unit.units);
  cut.kv_tile = unit_line.snap(cut.q_tile, cost - unit.begin);
  if (cut.kv_tile == 0) return placed;
  if (cut.kv_tile < unit_line.kv_tiles(cut.q_tile)) {
    placed.split = detail::split_unit(cuts, unit_line, cut.q_tile, unit.begin);
    return placed;
  }
  const std::int32_t before = cut.segment;
  cut = detail::after_unit(unit.units, cut);
  if (cut.segment == before) return placed;
  // Ranges start at units, so step over the segments that have none.
  const std::int64_t* const cost_before = line.cost_before;
  if (cost_before[cut.segment] < line.total_cost) {
    cut.segment = detail::segment_at(cost_before, line.num_segments, cost_before[cut.segment]);
    placed.segment = segment_of(line.shape, line.batch, line.segments, cut.segment);
  }
  return placed;
}

/// The end of a line: after the last segment that has units, so that nobody walks over the others
/// behind it.
/// @param last  Segment that holds the last place; of no meaning if there is no unit.
QUIRE_HOST_DEVICE inline PlacedCut end_of_line(std::int64_t total_cost, std::int32_t last) {
  PlacedCut placed;
  placed.cut.segment = total_cost == 0 ? 0 : last + 1;
  return placed;
}

}  // namespace quire::schedule
