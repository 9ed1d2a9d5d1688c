// SPDX-License-Identifier: Apache-2.0
/// @file
/// A schedule made on the host. Include schedule.hpp instead.
#pragma once

#include <cstdint>

#include "schedule/cuts.hpp"
#include "schedule/units.hpp"
#include "schedule/workers.hpp"

namespace quire::schedule {
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

/// Cuts of a line on the host.
class HostCuts {
 public:
  HostCuts(const Policy& policy, const core::ProblemShape& shape, const core::BatchArrays& batch,
           const ScheduleView& schedule, int line)
      : line_{policy.lines[line],
              shape,
              batch,
              segments_of(schedule),
              schedule.header->num_segments,
              schedule.lines[line].cost_before,
              schedule.header->total_cost[line]},
        cuts_(line_.tiles, line_.total_cost, max_of(1, schedule.header->overview.num_ranges[line])),
        num_ranges_(schedule.header->overview.num_ranges[line]) {}

  /// Where range `index` starts if units are left whole; the line's end from `num_ranges` on.
  [[nodiscard]] std::int64_t begin_of_unit(std::int32_t index) const {
    return index >= num_ranges_ ? line_.total_cost : unit_of(index).begin;
  }
  /// The start of range `index`; from `num_ranges` on, the line's end.
  [[nodiscard]] PlacedCut place(std::int32_t index, bool is_whole) const {
    if (index >= num_ranges_) {
      return end_of_line(line_.total_cost,
                         segment_at(line_.cost_before, line_.num_segments, line_.total_cost - 1));
    }
    return place_cut(line_, cuts_, cuts_.at(index), unit_of(index), is_whole);
  }

 private:
  [[nodiscard]] PlacedUnit unit_of(std::int32_t index) const {
    const std::int64_t cost = cuts_.at(index);
    return unit_at(line_, segment_at(line_.cost_before, line_.num_segments, cost), cost);
  }

  CutLine<TilePolicy> line_;
  EqualCuts cuts_;
  std::int32_t num_ranges_;
};

/// Whether the line's units are left whole.
inline void find_whether_whole(const Policy& policy, const core::ProblemShape& shape,
                               const core::BatchArrays& batch, const ScheduleView& schedule,
                               int line) {
  Header& header = *schedule.header;
  const std::int32_t num_ranges = header.overview.num_ranges[line];
  bool is_whole = policy.fixed_part_keys == 0;
  if (is_whole && num_ranges > 0) {
    const HostCuts cuts(policy, shape, batch, schedule, line);
    const std::int32_t together = ranges_together(policy.lines[line], shape, header);
    std::int64_t begin = 0;
    for (std::int32_t index = 0; is_whole && index < num_ranges; index += together) {
      const std::int64_t end = cuts.begin_of_unit(index + together);
      is_whole = !is_too_long(header, line, together, begin, end);
      begin = end;
    }
  }
  if (is_whole) header.overview.whole_lines |= 1U << static_cast<unsigned>(line);
}

inline void cut_line(const Policy& policy, const core::ProblemShape& shape,
                     const core::BatchArrays& batch, const ScheduleView& schedule, int line) {
  const TilePolicy& tiles = policy.lines[line];
  const LineView& view = schedule.lines[line];
  const HostCuts cuts(policy, shape, batch, schedule, line);
  const bool is_whole =
      (schedule.header->overview.whole_lines >> static_cast<unsigned>(line) & 1U) != 0;
  PlacedCut begin = cuts.place(0, is_whole);
  for (std::int32_t index = 0; index < tiles.num_ranges; ++index) {
    const PlacedCut end = cuts.place(index + 1, is_whole);
    Range& range = view.ranges[index];
    range.overview = schedule.header->overview;
    range.rest = begin;
    range.end = end;
    take_first_item(tiles, shape, batch, segments_of(schedule), index, range);
    begin = end;
  }
  for (std::int32_t i = 0; i < tiles.num_ranges * tiles.heads_abreast; ++i) view.arrivals[i] = 0;
}

}  // namespace detail

inline void build(const Policy& policy, const core::ProblemShape& shape,
                  const core::BatchArrays& batch, ScheduleView schedule,
                  const core::PrefixGroups& groups) {
  Header& header = *schedule.header;
  header = Header{};
  header.num_seqs = batch.num_seqs;
  header.num_segments = batch.num_seqs;
  header.overview.num_queries = batch.num_seqs > 0 ? batch.qo_indptr[batch.num_seqs] : 0;
  header.digest = detail::digest_of(policy, shape, batch);
  if (looks_for_prefixes(policy)) {
    find_prefixes(policy, shape, batch, groups, schedule);
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

}  // namespace quire::schedule
