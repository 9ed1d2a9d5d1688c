// SPDX-License-Identifier: Apache-2.0
/// @file
/// Bodies of schedule.hpp: inline, because kernels need them. Include schedule.hpp instead.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schedule/schedule.hpp"

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

/// The units of one segment, with the running sums that place cuts among them.
class UnitLine {
 public:
  QUIRE_HOST_DEVICE UnitLine(const TilePolicy& policy, const core::ProblemShape& shape,
                             const Segment& segment, const SegmentUnits& units)
      : policy_(policy), shape_(shape), segment_(segment), units_(units) {}

  QUIRE_HOST_DEVICE std::int32_t queries_in_tile(std::int32_t q_tile) const {
    const std::int32_t begin = q_tile * units_.tokens_per_tile;
    return min_of(units_.tokens_per_tile, segment_.lengths.qo_len - begin);
  }

  QUIRE_HOST_DEVICE KeyRange keys(std::int32_t q_tile) const {
    const std::int32_t begin = q_tile * units_.tokens_per_tile;
    return visible_keys(shape_, segment_, begin, begin + queries_in_tile(q_tile));
  }

  /// Key tiles of a unit; 0 if its queries see nothing.
  QUIRE_HOST_DEVICE std::int32_t kv_tiles(std::int32_t q_tile) const {
    const KeyRange range = keys(q_tile);
    if (range.begin >= range.end) return 0;
    return (range.end - 1) / policy_.keys_per_tile + 1 - range.begin / policy_.keys_per_tile;
  }

  QUIRE_HOST_DEVICE std::int64_t cost_of_kv_tile(std::int32_t q_tile) const {
    const std::int64_t kv_heads = units_.kv_heads / policy_.heads_abreast;
    const std::int64_t rows = queries_in_tile(q_tile) * kv_heads * shape_.group_size;
    return kv_heads * policy_.cost_of_tile + rows * policy_.cost_of_row;
  }

  QUIRE_HOST_DEVICE std::int64_t cost_of_unit(std::int32_t q_tile) const {
    return policy_.cost_of_unit + kv_tiles(q_tile) * cost_of_kv_tile(q_tile);
  }

  /// Cost of the units before `q_tile` of one head unit. O(log) by closed form: all of them are
  /// full.
  QUIRE_HOST_DEVICE std::int64_t cost_before(std::int32_t q_tile) const {
    if (q_tile == 0) return 0;
    return static_cast<std::int64_t>(q_tile) * policy_.cost_of_unit +
           full_kv_tiles_before(q_tile) * cost_of_kv_tile(0);
  }

  /// Cost of all units of one head unit.
  QUIRE_HOST_DEVICE std::int64_t cost() const {
    const std::int32_t last = units_.q_tiles - 1;
    return cost_before(last) + cost_of_unit(last);
  }

  /// The unit that holds offset `cost` of a head unit.
  QUIRE_HOST_DEVICE std::int32_t q_tile_at(std::int64_t cost) const {
    std::int32_t low = 0;
    std::int32_t high = units_.q_tiles;  // cost_before(low) ≤ cost < cost_before(high)
    QUIRE_ROLLED
    while (high - low > 1) {
      const std::int32_t middle = low + (high - low) / 2;
      if (cost_before(middle) <= cost) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }

  /// Where a cut at `cost` from the unit's start falls: a tile in [0, kv_tiles], 0 and kv_tiles
  /// being the unit's ends. Pieces shorter than `min_split_tiles` are not made.
  /// @param is_whole  None are.
  QUIRE_HOST_DEVICE std::int32_t snap(std::int32_t q_tile, std::int64_t cost, bool is_whole) const {
    const std::int64_t tiles = kv_tiles(q_tile);
    if (is_whole || cost <= policy_.cost_of_unit) return 0;
    const std::int64_t at = quotient(cost - policy_.cost_of_unit, cost_of_kv_tile(q_tile));
    if (at < policy_.min_split_tiles) return 0;
    if (tiles - at < policy_.min_split_tiles) return static_cast<std::int32_t>(tiles);
    return static_cast<std::int32_t>(at);
  }

 private:
  QUIRE_HOST_DEVICE std::int64_t full_kv_tiles_before(std::int32_t q_tile) const {
    if (segment_.is_seen_by_all()) return static_cast<std::int64_t>(q_tile) * kv_tiles(0);
    const std::int64_t step = units_.tokens_per_tile;
    const std::int64_t tile = policy_.keys_per_tile;
    const std::int64_t base = segment_.lengths.position(0);
    std::int64_t ends = q_tile * ceil_div(segment_.lengths.kv_len, tile);
    if (shape_.mask == Mask::kCausal) {
      ends = clamped_floor_sum(q_tile, tile, step, base + step + tile - 1);
    }
    std::int64_t begins = q_tile * (segment_.key_begin / tile);  // if there is no window
    if (shape_.window_left >= 0) {
      begins = clamped_floor_sum(q_tile, tile, step, base - shape_.window_left);
    }
    return ends - begins;
  }

  const TilePolicy& policy_;
  const core::ProblemShape& shape_;
  const Segment& segment_;
  const SegmentUnits& units_;
};

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

/// With prefixes, of which each is shared by more requests or prefixes than one; or with parts.
QUIRE_HOST_DEVICE inline std::int32_t max_segments(const Policy& policy,
                                                   std::int32_t max_num_seqs) {
  if (policy.prefixes.max_states == 0) return max_num_seqs;
  return (looks_for_prefixes(policy) ? 2 : kMostFixedParts) * max_num_seqs;
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
  const std::int32_t num_segments = max_segments(policy, max_num_seqs);
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

QUIRE_HOST_DEVICE inline std::int32_t tokens_per_tile(std::int32_t tile_rows,
                                                      const core::ProblemShape& shape) {
  return detail::max_of(1, tile_rows / shape.group_size);
}

QUIRE_HOST_DEVICE inline std::int32_t max_item_rows(const TilePolicy& policy,
                                                    const core::ProblemShape& shape) {
  if (policy.num_ranges == 0) return 0;
  return detail::max_of(policy.all_heads_rows,
                        tokens_per_tile(policy.tile_rows, shape) * shape.group_size);
}

/// No tile of any unit of the line costs more.
QUIRE_HOST_DEVICE inline std::int64_t max_cost_of_kv_tile(const TilePolicy& policy,
                                                          const core::ProblemShape& shape) {
  const std::int64_t kv_heads = policy.all_heads_rows > 0 ? shape.num_kv_heads : 1;
  return kv_heads * policy.cost_of_tile +
         static_cast<std::int64_t>(max_item_rows(policy, shape)) * policy.cost_of_row;
}

QUIRE_HOST_DEVICE inline Line line_of(const Policy& policy, const core::ProblemShape& shape,
                                      Lengths lengths) {
  const TilePolicy& large = policy.lines[kLargeUnits];
  const bool is_large =
      large.num_ranges > 0 &&
      static_cast<std::int64_t>(lengths.qo_len) * shape.group_size > large.over_rows;
  return is_large ? kLargeUnits : kSmallUnits;
}

QUIRE_HOST_DEVICE inline SegmentUnits units_of(const TilePolicy& policy,
                                               const core::ProblemShape& shape, Lengths lengths) {
  SegmentUnits units;
  const std::int64_t rows = static_cast<std::int64_t>(lengths.qo_len) * shape.group_size;
  if (rows <= policy.over_rows || rows > policy.up_to_rows) return units;
  const bool all_heads =
      static_cast<std::int64_t>(lengths.qo_len) * shape.num_qo_heads <= policy.all_heads_rows;
  units.kv_heads = all_heads ? shape.num_kv_heads : policy.heads_abreast;
  units.head_units = shape.num_kv_heads / units.kv_heads;
  units.tokens_per_tile = all_heads ? lengths.qo_len : tokens_per_tile(policy.tile_rows, shape);
  units.q_tiles = (lengths.qo_len - 1) / units.tokens_per_tile + 1;
  return units;
}

QUIRE_HOST_DEVICE inline std::int64_t cost_of(const TilePolicy& policy,
                                              const core::ProblemShape& shape,
                                              const Segment& segment, const SegmentUnits& units) {
  if (units.q_tiles == 0) return 0;
  return units.head_units * detail::UnitLine(policy, shape, segment, units).cost();
}

/// Ranges in use for a line of `total_cost`: as many as pay, and never so many that two cuts could
/// fall into one tile.
/// @param workers  That take shares of the line; 0: `num_ranges` says how many ranges there can be.
QUIRE_HOST_DEVICE inline std::int32_t ranges_for(const TilePolicy& policy,
                                                 const core::ProblemShape& shape,
                                                 std::int64_t total_cost, std::int32_t workers) {
  if (total_cost == 0) return 0;
  const std::int64_t least =
      detail::max_of(policy.min_range_cost, max_cost_of_kv_tile(policy, shape));
  const std::int64_t that_pay = detail::quotient(total_cost, least);
  const std::int32_t in_turn =
      workers == 0
          ? policy.num_ranges
          : detail::min_of(policy.num_ranges, workers * policy.shares_at_once *
                                                  policy.ranges_in_turn / policy.heads_abreast);
  const bool is_much = that_pay >= std::int64_t{2} * policy.ranges_in_turn * in_turn;
  const std::int32_t most = is_much ? in_turn : detail::max_of(1, in_turn / policy.ranges_in_turn);
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

QUIRE_HOST_DEVICE inline void divide(const Policy& policy, const core::ProblemShape& shape,
                                     const std::int64_t (&total_cost)[kLines], Overview& overview) {
  const bool has_both = total_cost[kSmallUnits] > 0 && total_cost[kLargeUnits] > 0;
  overview.large_workers = has_both && policy.workers > 0 && overview.num_prefixes > 0
                               ? find_large_workers(policy, total_cost)
                               : 0;
  const std::int32_t large = overview.large_workers;
  QUIRE_ROLLED
  for (int line = 0; line < kLines; ++line) {
    const std::int32_t workers = line == kLargeUnits || large == 0 ? large : policy.workers - large;
    overview.num_ranges[line] = ranges_for(policy.lines[line], shape, total_cost[line], workers);
  }
}

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

namespace detail {

/// A hash of all that a schedule without shared prefixes depends on, one number after another (FNV-1a over
/// words).
inline std::uint64_t digest_of(const Policy& policy, const core::ProblemShape& shape,
                               const core::BatchArrays& batch) {
  std::uint64_t digest = 0xcbf2'9ce4'8422'2325U;
  const auto add = [&](std::int64_t value) {
    constexpr std::uint64_t kPrime = 0x100'0000'01b3U;
    digest = (digest ^ static_cast<std::uint64_t>(value)) * kPrime;
    digest ^= digest >> 32;
  };
  for (const TilePolicy& line : policy.lines) {
    for (const std::int64_t value :
         {std::int64_t{line.over_rows}, std::int64_t{line.up_to_rows},
          std::int64_t{line.keys_per_tile}, std::int64_t{line.tile_rows},
          std::int64_t{line.all_heads_rows}, std::int64_t{line.num_ranges},
          std::int64_t{line.heads_abreast}, std::int64_t{line.min_split_tiles},
          std::int64_t{line.cost_of_unit}, std::int64_t{line.cost_of_tile},
          std::int64_t{line.cost_of_row}, line.min_range_cost, std::int64_t{line.ranges_in_turn},
          std::int64_t{line.shares_at_once}, std::int64_t{line.most_workers}}) {
      add(value);
    }
  }
  add(policy.workers);
  add(policy.cost_of_change);
  add(policy.fixed_part_keys);
  add(policy.prefixes.max_states);
  for (const std::int64_t value :
       {std::int64_t{shape.num_kv_heads}, std::int64_t{shape.group_size},
        static_cast<std::int64_t>(shape.mask), std::int64_t{shape.window_left}}) {
    add(value);
  }
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const Lengths lengths = lengths_of(shape, batch, seq);
    add(lengths.qo_len);
    add(lengths.kv_len);
  }
  return digest;
}

}  // namespace detail

namespace detail {

/// Running costs of a line.
inline void measure_line(const Policy& policy, const core::ProblemShape& shape,
                         const core::BatchArrays& batch, const ScheduleView& schedule, int line) {
  const TilePolicy& tiles = policy.lines[line];
  Header& header = *schedule.header;
  std::int64_t* const cost_before = schedule.lines[line].cost_before;
  std::int64_t cost = 0;
  for (std::int32_t index = 0; index < header.num_segments; ++index) {
    cost_before[index] = cost;
    const Segment segment = segment_of(shape, batch, segments_of(schedule), index);
    cost += cost_of(tiles, shape, segment, units_of(tiles, shape, segment.lengths));
  }
  cost_before[header.num_segments] = cost;
  header.total_cost[line] = cost;
}

/// Whether the line's units are left whole.
inline void find_whether_whole(const Policy& policy, const core::ProblemShape& shape,
                               const core::BatchArrays& batch, const ScheduleView& schedule,
                               int line) {
  Header& header = *schedule.header;
  bool is_whole = policy.fixed_part_keys == 0;
  std::int64_t begin = 0;
  for (std::int32_t index = 0; is_whole && index < header.overview.num_ranges[line]; ++index) {
    const std::int64_t end = whole_cut(policy, shape, batch, schedule, line, index + 1);
    is_whole = !is_too_long(header, line, begin, end);
    begin = end;
  }
  if (is_whole) header.overview.whole_lines |= 1U << static_cast<unsigned>(line);
}

inline void cut_line(const Policy& policy, const core::ProblemShape& shape,
                     const core::BatchArrays& batch, const ScheduleView& schedule, int line) {
  const TilePolicy& tiles = policy.lines[line];
  const LineView& view = schedule.lines[line];
  PlacedCut begin = place_cut(policy, shape, batch, schedule, line, 0);
  for (std::int32_t index = 0; index < tiles.num_ranges; ++index) {
    const PlacedCut end = place_cut(policy, shape, batch, schedule, line, index + 1);
    view.ranges[index] =
        make_range(tiles, shape, batch, *schedule.header, segments_of(schedule), begin, end, index);
    begin = end;
  }
  for (std::int32_t i = 0; i < tiles.num_ranges * tiles.heads_abreast; ++i) view.arrivals[i] = 0;
}

}  // namespace detail

inline void build(const Policy& policy, const core::ProblemShape& shape,
                  const core::BatchArrays& batch, ScheduleView schedule) {
  Header& header = *schedule.header;
  header = Header{};
  header.num_seqs = batch.num_seqs;
  header.num_segments = batch.num_seqs;
  header.overview.num_queries = batch.num_seqs > 0 ? batch.qo_indptr[batch.num_seqs] : 0;
  header.digest = detail::digest_of(policy, shape, batch);
  if (looks_for_prefixes(policy)) {
    find_prefixes(policy, shape, batch, schedule);
  } else if (has_fixed_parts(policy)) {
    make_fixed_parts(policy, shape, batch, schedule);
  }
  const bool has_large = policy.lines[kLargeUnits].num_ranges > 0;
  const int num_lines = has_large ? kLines : 1;
  for (int line = 0; line < num_lines; ++line) {
    detail::measure_line(policy, shape, batch, schedule, line);
  }
  divide(policy, shape, header.total_cost, header.overview);
  for (int line = 0; line < kLines; ++line) {
    detail::find_whether_whole(policy, shape, batch, schedule, line);
  }
  for (int line = 0; line < num_lines; ++line) {
    detail::cut_line(policy, shape, batch, schedule, line);
  }
}

inline bool describes(ScheduleView schedule, const Policy& policy, const core::ProblemShape& shape,
                      const core::BatchArrays& batch) {
  return schedule.header->num_seqs == batch.num_seqs &&
         schedule.header->digest == detail::digest_of(policy, shape, batch);
}

QUIRE_HOST_DEVICE inline WorkCursor::WorkCursor(const TilePolicy& policy,
                                                const core::ProblemShape& shape,
                                                const core::BatchArrays& batch,
                                                const StoredSegment* segments, const Range& range,
                                                std::int32_t index)
    : policy_(policy),
      shape_(shape),
      batch_(batch),
      segments_(segments),
      range_(range),
      index_(index) {}

QUIRE_HOST_DEVICE inline WorkCursor::WorkCursor(const Policy& policy,
                                                const core::ProblemShape& shape,
                                                const core::BatchArrays& batch,
                                                const ScheduleView& schedule, int line,
                                                std::int32_t index)
    : WorkCursor(policy.lines[line], shape, batch, segments_of(schedule),
                 schedule.lines[line].ranges[index], index) {}

QUIRE_HOST_DEVICE inline bool WorkCursor::next(WorkItem& item) {
  Lengths lengths;
  QueryPlace queries;
  return next(item, lengths, queries);
}

QUIRE_HOST_DEVICE inline bool WorkCursor::next(WorkItem& item, Lengths& lengths,
                                               QueryPlace& queries) {
  if (items_ == 0) {
    items_ = 1;
    item = range_.first;
    lengths = range_.first_lengths;
    queries = range_.first_queries;
    return item.q_end > item.q_begin;
  }
  if (items_ == 1) {  // not before: nothing delays the first item
    items_ = 2;
    at_ = range_.rest;
    if (!is_at_end()) queries_ = queries_of(batch_, segments_, at_.cut.segment);
  }
  return next_of_rest(item, lengths, queries);
}

QUIRE_HOST_DEVICE inline bool WorkCursor::is_in_last_unit() const {
  const Cut& at = at_.cut;
  const Cut& end = range_.end.cut;
  return at.segment == end.segment && at.head_unit == end.head_unit && at.q_tile == end.q_tile;
}
QUIRE_HOST_DEVICE inline bool WorkCursor::is_at_end() const {
  return is_in_last_unit() && at_.cut.kv_tile >= range_.end.cut.kv_tile;
}

QUIRE_HOST_DEVICE inline void WorkCursor::ask_for_segment() {
  if (is_at_end()) return;
  const std::int32_t index = at_.cut.segment;
  at_.segment = index == range_.end.cut.segment ? range_.end.segment
                                                : segment_of(shape_, batch_, segments_, index);
  queries_ = queries_of(batch_, segments_, index);
}

QUIRE_HOST_DEVICE inline bool WorkCursor::next_of_rest(WorkItem& item, Lengths& lengths,
                                                       QueryPlace& queries) {
  const Cut end = range_.end.cut;
  SegmentUnits units;
  QUIRE_ROLLED
  while (true) {
    if (is_at_end()) return false;
    units = units_of(policy_, shape_, at_.segment.lengths);
    if (units.q_tiles > 0) break;
    ++at_.cut.segment;
    ask_for_segment();
  }
  const Cut at = at_.cut;
  const bool in_last_unit = is_in_last_unit();

  const detail::UnitLine line(policy_, shape_, at_.segment, units);
  const KeyRange keys = line.keys(at.q_tile);
  const std::int32_t first_tile = keys.begin / policy_.keys_per_tile;
  const auto key_at = [&](std::int32_t tile) {
    return static_cast<std::int64_t>(first_tile + tile) * policy_.keys_per_tile;
  };
  item.seq = at_.segment.seq;
  item.kv_head_begin = at.head_unit * units.kv_heads;
  item.kv_head_end = item.kv_head_begin + units.kv_heads;
  item.q_begin = at.q_tile * units.tokens_per_tile;
  item.q_end = item.q_begin + line.queries_in_tile(at.q_tile);
  item.kv_begin = at.kv_tile == 0 ? keys.begin : static_cast<std::int32_t>(key_at(at.kv_tile));
  item.kv_end = in_last_unit ? static_cast<std::int32_t>(key_at(end.kv_tile)) : keys.end;
  const SplitUnit split = at.kv_tile > 0 ? at_.split
                          : in_last_unit ? range_.end.split
                                         : SplitUnit{index_, 1};
  item.piece = index_ - split.first_range;
  item.num_pieces = split.num_pieces;
  item.first_range = split.first_range;
  lengths = at_.segment.lengths;
  queries = queries_;
  if (queries.num_parts > 1) {  // a fixed part is a piece whose place the request knows
    item.piece = queries.part;
    item.num_pieces = queries.num_parts;
    item.first_range = WorkItem::kFixedParts;
  }

  // The next item is asked for: what it needs may take its time.
  if (in_last_unit) {
    at_ = range_.end;
    return true;
  }
  at_.cut = detail::after_unit(units, at);
  if (at_.cut.segment != at.segment) ask_for_segment();
  return true;
}

QUIRE_HOST_DEVICE inline Range make_range(const TilePolicy& policy, const core::ProblemShape& shape,
                                          const core::BatchArrays& batch, const Header& header,
                                          const StoredSegment* segments, const PlacedCut& begin,
                                          const PlacedCut& end, std::int32_t index) {
  Range range;
  range.overview = header.overview;
  range.rest = begin;
  range.end = end;
  WorkCursor cursor(policy, shape, batch, segments, range, index);
  cursor.at_ = begin;
  if (cursor.is_at_end()) return range;
  cursor.queries_ = queries_of(batch, segments, begin.cut.segment);
  WorkItem first;
  if (!cursor.next_of_rest(first, range.first_lengths, range.first_queries)) return range;
  range.first = first;
  range.rest = cursor.at_;
  return range;
}

}  // namespace quire::schedule
