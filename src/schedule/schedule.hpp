// SPDX-License-Identifier: Apache-2.0
/// @file
/// How a ragged batch is cut into equal work.
///
/// A **segment** is a request with its keys. Where requests share a prefix and it pays, the prefix is
/// a segment of its own, with the queries of all of them (`prefixes.hpp`), and theirs have the rest; or
/// the keys of one request are several segments (`fixed_parts.hpp`).
/// A **unit** is a tile of a segment's queries for one kv head (or, for requests with few rows, for
/// all of them; or for several heads that go abreast) against all its keys that the tile can see, in
/// tiles of `keys_per_tile` keys. Segments of few rows have small units and those of many rows have
/// large ones, if a kernel wants that: two kinds that it computes in different ways.
///
/// All units of one kind, one after another, form a **line** whose length is their cost. Each line is
/// cut into `num_ranges` **ranges** of equal cost; a cut inside a unit splits its keys (**split KV**)
/// and its pieces are merged by whoever finishes last, always in the order of the keys. If ranges of
/// whole units are hardly longer than equal ones, units are left whole: nothing is merged, and those
/// who attend to the same keys do so at the same time, out of one cache. Where heads go
/// abreast, a range is walked once for each of them, by somebody else: a range in one of these heads is
/// a **share**.
///
/// Shares are taken by **workers**. If a batch has units of both kinds and shared prefixes or fixed
/// parts, some workers take large ones only and all others small ones only, so many of each that both
/// are done at the same time: nobody has to begin twice. If that would take longer, and in batches
/// without them, all take their part of both.
///
/// The schedule is the ranges, made from the running cost of the segments (which a device keeps to
/// itself if it fits there). Where a cut lies,
/// into how many pieces a unit falls and where a piece leaves its partial result all follow from
/// the running cost by arithmetic, so that ranges are found independently of each other, by one
/// thread or by a thousand, and walked without asking anybody: the same functions run
/// in CPU threads and in kernels. After the stream-K decomposition (Osama et al., 2023).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.hpp"
#include "schedule/host_device.hpp"
#include "schedule/sequence.hpp"

namespace quire::schedule {

/// When a shared prefix becomes a segment, and what that costs, in the unit of all lines.
struct PrefixPolicy {
  /// Results that can wait to be joined at the same time, of all queries; 0: nothing is joined.
  std::int32_t max_states = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t most_rows = 0;  ///< of a request for one kv head; those with more gain nothing
  std::int32_t queries_per_cost = 1;  ///< whose results for a kv head cost `cost_of_queries`
  std::int64_t least_gain = 0;        ///< of all shared prefixes together, for each kv head
  std::int32_t most_seqs = 2048;      ///< requests of a batch that is searched
  std::int32_t cost_of_queries = 1;   ///< to be split from the prefix, to be left and to be joined
};

/// How a kernel wants a line cut, and what it costs. Costs have one free unit, the same for all lines,
/// and are those of one of the heads that go abreast.
struct TilePolicy {
  std::int32_t over_rows = 0;           ///< segments of more rows for one kv head than these,
  std::int32_t up_to_rows = INT32_MAX;  ///< and of so many at most, have their units on this line
  std::int32_t keys_per_tile = 64;
  std::int32_t tile_rows = 128;  ///< rows (token × head of the group) of a one-head unit
  std::int32_t all_heads_rows =
      0;                        ///< requests with ≤ so many rows over all heads: one unit; 0: none
  std::int32_t num_ranges = 1;  ///< ranges at most; 0: there is no such line
  std::int32_t heads_abreast =
      1;  ///< kv heads of a unit, a divisor of all: a range is walked once for each, by another
  std::int32_t min_split_tiles = 2;  ///< no piece of a split unit is shorter
  std::int32_t cost_of_unit = 8;     ///< start and end of a unit, ≥ 1
  std::int32_t cost_of_tile = 6;     ///< reading one kv head's tile
  std::int32_t cost_of_row = 1;      ///< one row against one tile
  std::int64_t min_range_cost = 1;   ///< below it, fewer ranges
  std::int32_t ranges_in_turn =
      1;  ///< that a worker takes one after another if there is much to do
  std::int32_t shares_at_once = 1;        ///< that a worker takes at the same time
  std::int32_t most_workers = INT32_MAX;  ///< with more of them nothing goes faster

  // What units ask for most. Who asks often has a type with the same members that knows it sooner:
  // below, `Tiles` is this type or such a one.

  /// Whether segments of so many queries are too large for a line before this one.
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_over(std::int32_t queries,
                                               const core::ProblemShape& shape) const {
    return static_cast<std::int64_t>(queries) * shape.group_size > over_rows;
  }
  /// Whether they are too large for this one.
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_beyond(std::int32_t queries,
                                                 const core::ProblemShape& shape) const {
    return static_cast<std::int64_t>(queries) * shape.group_size > up_to_rows;
  }
  /// Whether all heads of so many queries are one unit.
  [[nodiscard]] QUIRE_HOST_DEVICE bool takes_all_heads(std::int32_t queries,
                                                       const core::ProblemShape& shape) const {
    return static_cast<std::int64_t>(queries) * shape.num_qo_heads <= all_heads_rows;
  }
  /// Full tiles of so many keys.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t key_tiles(std::int32_t keys) const {
    return keys / keys_per_tile;
  }
  /// Queries of a one-head unit.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t tokens_per_tile(
      const core::ProblemShape& shape) const {
    const std::int32_t tokens = tile_rows / shape.group_size;
    return tokens > 1 ? tokens : 1;
  }
  /// One-head units that so many queries fill.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t query_tiles(std::int32_t queries,
                                                           const core::ProblemShape& shape) const {
    return queries / tokens_per_tile(shape);
  }
  /// Of `num_ranges` equal ones.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int64_t range_length(std::int64_t total_cost,
                                                            std::int32_t ranges) const {
    return total_cost / ranges;
  }
  /// Units of one head, or of those that go abreast, until all kv heads are done.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t head_turns(const core::ProblemShape& shape) const {
    return shape.num_kv_heads / heads_abreast;
  }
};

/// The lines of a schedule.
enum Line : int { kSmallUnits = 0, kLargeUnits = 1 };
inline constexpr int kLines = 2;

/// How a batch is cut. There is always a line of small units.
struct Policy {
  TilePolicy lines[kLines];
  PrefixPolicy prefixes;
  /// > 0: keys of a part. Requests' keys are divided as `fixed_parts_of` says, and no prefixes are looked
  /// for. With units that are never split (`min_split_tiles`), a request's result does not depend on the
  /// batch.
  std::int32_t fixed_part_keys = 0;
  std::int32_t workers = 0;         ///< 0: each takes its part of all lines
  std::int64_t cost_of_change = 0;  ///< from one line to the other

  /// With small units only.
  explicit Policy(const TilePolicy& small = {}) {
    lines[kSmallUnits] = small;
    lines[kLargeUnits].num_ranges = 0;
  }
};

/// What whoever works on a schedule asks for first.
struct Overview {
  std::int32_t num_ranges[kLines] = {};  ///< in use; 0 for a line without units
  std::int32_t large_workers = 0;        ///< the first ones, that take large units only, and all
                                         ///< others small ones; 0: all take both
  std::int32_t num_prefixes = 0;         ///< segments that are shared prefixes, or parts of a
                                         ///< request's keys: the first ones
  std::int32_t num_queries = 0;          ///< of all requests: rows of q from here on are padding
  std::uint32_t whole_lines = 0;         ///< bit i: no unit of line i is split
};

/// What `schedule()` writes and everything else reads.
struct Header {
  Overview overview;
  std::int32_t num_seqs = 0;
  std::int32_t num_segments = 0;
  std::int32_t num_listed = 0;  ///< queries that have several results, of prefixes or of parts
  std::uint32_t levels = 0;     ///< bit i: there are prefixes of level i
  std::int64_t total_cost[kLines] = {};
  std::uint64_t digest = 0;  ///< of lengths and policy, see `describes`; 0 where a device made it
  std::uint64_t unused = 0;
};

/// A place on a line: before tile `kv_tile` of a unit.
struct Cut {
  std::int32_t segment = 0;
  std::int32_t head_unit = 0;
  std::int32_t q_tile = 0;
  std::int32_t kv_tile = 0;  ///< counted from the unit's first tile
};

/// A unit whose keys are split among several ranges.
struct SplitUnit {
  std::int32_t first_range = 0;  ///< the one that begins it; names its arrival counter
  std::int32_t num_pieces = 1;
};

/// Where a range starts and, if that is inside a unit, how the unit is split.
struct PlacedCut {
  Cut cut;
  SplitUnit split;  ///< if cut.kv_tile > 0
  Segment segment;  ///< cut.segment, unless it is the end of the batch
};

/// A piece of work: queries [q_begin, q_end) of a segment against keys [kv_begin, kv_end).
struct WorkItem {
  static constexpr std::int32_t kFixedParts = -1;

  std::int32_t seq = 0;  ///< whose keys they are
  std::int32_t kv_head_begin = 0;
  std::int32_t kv_head_end = 0;
  std::int32_t q_begin = 0;  ///< within the segment
  std::int32_t q_end = 0;
  std::int32_t kv_begin = 0;  ///< within the request; kv_begin ≥ kv_end: no key is visible
  std::int32_t kv_end = 0;
  std::int32_t piece = 0;       ///< of the split unit, in the order of the keys
  std::int32_t num_pieces = 1;  ///< 1: not split
  std::int32_t first_range =
      0;  ///< of the split unit, names its arrival counter; or `kFixedParts`:
          ///< the pieces are the request's parts, results lie with states
};

/// An equal part of a line. Only the units at its two ends can be split. The first item is stored
/// as it is, so that whoever walks the range begins without computing anything.
struct Range {
  Overview overview;         ///< of the schedule, so that nobody has to look elsewhere
  WorkItem first;            ///< without queries: the range is empty
  Lengths first_lengths;     ///< of its segment
  QueryPlace first_queries;  ///< of its segment
  PlacedCut rest;            ///< where the second item starts
  PlacedCut end;
};

/// A segment of a schedule with prefixes or parts.
struct StoredSegment {
  Segment segment;
  QueryPlace queries;
};

/// A query that has several results: one of each shared prefix and one of its own keys, or one of each
/// fixed part. Whoever leaves the last of them joins them.
struct ListedQuery {
  std::int32_t token = 0;    ///< row of q
  std::uint32_t levels = 0;  ///< bit i: there is a result of the prefix of level i, and of its own
};

/// Of prefixes; and the level of a request's own keys, all its parts.
inline constexpr std::int32_t kPrefixLevels = kMaxPrefixLevels;
inline constexpr std::int32_t kOwnLevel = kPrefixLevels;

/// Parts of a request's keys at most; and results of it that wait to be joined, of all its queries.
inline constexpr std::int32_t kMostFixedParts = 64;

/// A line in the schedule's workspace.
struct LineView {
  std::int64_t* cost_before = nullptr;  // [max segments + 1]: running cost of the segments
  Range* ranges = nullptr;              // [num_ranges]; those not in use are empty
  std::uint32_t* arrivals = nullptr;    // [num_ranges, heads_abreast]: pieces done of a split unit;
                                        // 0 between runs
};

/// The schedule in its workspace.
struct ScheduleView {
  Header* header = nullptr;
  LineView lines[kLines];
  // If the policy has prefixes.
  StoredSegment* segments = nullptr;         // [max segments]; unused if there are no prefixes
  ListedQuery* listed = nullptr;             // [max_states / 2]
  std::uint32_t* listed_arrivals = nullptr;  // [max_states / 2, num_kv_heads]: results left of a
                                             // query; 0 between runs
  void* prefix_scratch = nullptr;            // of `find_prefixes`, if they are looked for
};

/// Whether requests that share a prefix are looked for.
QUIRE_HOST_DEVICE inline bool looks_for_prefixes(const Policy& policy) {
  return policy.prefixes.max_states > 0 && policy.fixed_part_keys == 0;
}

/// Whether requests' keys are divided into fixed parts.
QUIRE_HOST_DEVICE inline bool has_fixed_parts(const Policy& policy) {
  return policy.prefixes.max_states > 0 && policy.fixed_part_keys > 0;
}

/// Queries that can be listed: each has two results at least.
QUIRE_HOST_DEVICE inline std::int32_t max_listed(const Policy& policy) {
  return policy.prefixes.max_states / 2;
}

/// Bytes of `ScheduleView::prefix_scratch`.
QUIRE_HOST_DEVICE constexpr std::size_t prefix_scratch_bytes(std::int32_t max_num_seqs);

/// Finds shared prefixes that pay, and fills the parts of the schedule that say so: segments, listed
/// queries and the header's counts. O(num_seqs · (pages + log² num_seqs)), without the pages if groups
/// are given.
inline void find_prefixes(const Policy& policy, const core::ProblemShape& shape,
                          const core::BatchArrays& batch, const core::PrefixGroups& groups,
                          ScheduleView schedule);

/// Divides the keys of requests at fixed places (`fixed_parts.hpp`), and fills the same parts of the
/// schedule. O(num_seqs).
inline void make_fixed_parts(const Policy& policy, const core::ProblemShape& shape,
                             const core::BatchArrays& batch, ScheduleView schedule);

/// Bytes that a `ScheduleView` needs.
QUIRE_HOST_DEVICE inline std::size_t schedule_bytes(const Policy& policy,
                                                    std::int32_t max_num_seqs);
/// Lays a `ScheduleView` out in a workspace of `schedule_bytes`.
QUIRE_HOST_DEVICE inline ScheduleView view_of(const Policy& policy, std::int32_t max_num_seqs,
                                              void* workspace);

/// Segment `index`. @param segments  Those of a schedule with prefixes, else null.
QUIRE_HOST_DEVICE inline Segment segment_of(const core::ProblemShape& shape,
                                            const core::BatchArrays& batch,
                                            const StoredSegment* segments, std::int32_t index) {
  return segments != nullptr ? segments[index].segment : whole_segment(shape, batch, index);
}
/// Of its first query.
QUIRE_HOST_DEVICE inline QueryPlace queries_of(const core::BatchArrays& batch,
                                               const StoredSegment* segments, std::int32_t index) {
  return segments != nullptr ? segments[index].queries : QueryPlace{batch.qo_indptr[index]};
}

/// A segment's units: `head_units` × `q_tiles`.
struct SegmentUnits {
  std::int32_t head_units = 0;       ///< num_kv_heads / kv_heads
  std::int32_t kv_heads = 0;         ///< of a unit
  std::int32_t q_tiles = 0;          ///< per head unit
  std::int32_t tokens_per_tile = 0;  ///< queries of a tile; the last may have fewer
};

/// Where piece `piece` of a unit that `first_range` begins leaves its partial result: one of
/// 2 · num_ranges slots of the line.
QUIRE_HOST_DEVICE constexpr std::int32_t partial_slot(std::int32_t first_range,
                                                      std::int32_t piece) {
  return piece == 0 ? 2 * first_range + 1 : 2 * (first_range + piece);
}

/// Rows (token × qo head) that a partial result of a line can have at most.
QUIRE_HOST_DEVICE inline std::int32_t max_item_rows(const TilePolicy& policy,
                                                    const core::ProblemShape& shape);

/// The line on which a segment's units are.
QUIRE_HOST_DEVICE inline Line line_of(const Policy& policy, const core::ProblemShape& shape,
                                      Lengths lengths);

/// How a segment is cut into units of a line; none if its units are on another.
template <typename Tiles>
QUIRE_HOST_DEVICE inline SegmentUnits units_of(const Tiles& policy, const core::ProblemShape& shape,
                                               Lengths lengths);

/// How the lines are divided among workers: `Overview::num_ranges` and `large_workers`.
/// @param total_cost  Of each line.
QUIRE_HOST_DEVICE inline void divide(const Policy& policy, const core::ProblemShape& shape,
                                     const std::int64_t (&total_cost)[kLines], Overview& overview);
/// @param least_cost  `least_range_cost` of each line.
QUIRE_HOST_DEVICE inline void divide(const Policy& policy, const std::int64_t (&least_cost)[kLines],
                                     const std::int64_t (&total_cost)[kLines], Overview& overview);
/// Of a range of a line that has more than one.
QUIRE_HOST_DEVICE inline std::int64_t least_range_cost(const TilePolicy& policy,
                                                       const core::ProblemShape& shape);

/// Cost of all units of a segment. O(log kv_len).
template <typename Tiles>
QUIRE_HOST_DEVICE inline std::int64_t cost_of(const Tiles& policy, const core::ProblemShape& shape,
                                              const Segment& segment, const SegmentUnits& units);

/// Ranges behind one another that count together where it is asked whether units can be left whole:
/// those that a worker takes at the same time, if heads do not go abreast and units have few rows. Who
/// reads them does not matter then, since memory is what is waited for.
template <typename Tiles>
QUIRE_HOST_DEVICE inline std::int32_t ranges_together(const Tiles& policy,
                                                      const core::ProblemShape& shape,
                                                      const Header& header);
/// Whether units cannot be left whole, since some ranges between the begins of two units are much
/// longer than others.
/// @param ranges  From `begin` to `end`.
QUIRE_HOST_DEVICE inline bool is_too_long(const Header& header, int line, std::int32_t ranges,
                                          std::int64_t begin, std::int64_t end);

/// Completes a range of which `overview` and `end` are known, and of which `rest` is where it
/// starts: takes its first item off.
/// @param segments  As in `segment_of`.
template <typename Tiles>
QUIRE_HOST_DEVICE inline void take_first_item(const Tiles& policy, const core::ProblemShape& shape,
                                              const core::BatchArrays& batch,
                                              const StoredSegment* segments, std::int32_t index,
                                              Range& range);

/// Fills the schedule on the host. O(num_seqs), and what `find_prefixes` needs.
/// @param groups  Shared prefixes that the caller knows; without levels they are looked for.
inline void build(const Policy& policy, const core::ProblemShape& shape,
                  const core::BatchArrays& batch, ScheduleView schedule,
                  const core::PrefixGroups& groups = {});

/// @return False if the workspace does not hold the schedule that `build` makes of this batch, e.g.
/// since its lengths were changed. O(num_seqs).
inline bool describes(ScheduleView schedule, const Policy& policy, const core::ProblemShape& shape,
                      const core::BatchArrays& batch);

/// Walks a range, piece by piece.
template <typename Tiles>
class RangeCursor {
 public:
  /// @param policy    Of the line.
  /// @param index     Of the range.
  /// @param segments  As in `segment_of`.
  QUIRE_HOST_DEVICE RangeCursor(const Tiles& policy, const core::ProblemShape& shape,
                                const core::BatchArrays& batch, const StoredSegment* segments,
                                const Range& range, std::int32_t index);
  QUIRE_HOST_DEVICE RangeCursor(const Policy& policy, const core::ProblemShape& shape,
                                const core::BatchArrays& batch, const ScheduleView& schedule,
                                int line, std::int32_t index);
  /// @param lengths  Of the item's segment.
  /// @param queries  Of its first query.
  /// @return False when the range is done.
  QUIRE_HOST_DEVICE bool next(WorkItem& item, Lengths& lengths, QueryPlace& queries);
  QUIRE_HOST_DEVICE bool next(WorkItem& item);

 private:
  template <typename Any>
  friend QUIRE_HOST_DEVICE inline void take_first_item(const Any&, const core::ProblemShape&,
                                                       const core::BatchArrays&,
                                                       const StoredSegment*, std::int32_t, Range&);
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_in_last_unit() const;
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_at_end() const;
  QUIRE_HOST_DEVICE void ask_for_segment();
  QUIRE_HOST_DEVICE bool next_of_rest(WorkItem& item, Lengths& lengths, QueryPlace& queries);

  const Tiles& policy_;
  const core::ProblemShape& shape_;
  const core::BatchArrays& batch_;
  const StoredSegment* const segments_;
  const Range& range_;
  std::int32_t index_;
  std::int32_t items_ = 0;  // found so far, up to 2
  PlacedCut at_;            // where the next item is, or segments without units before it
  QueryPlace queries_;      // of its segment
};
using WorkCursor = RangeCursor<TilePolicy>;

}  // namespace quire::schedule

// The bodies: inline, because kernels need them.
#include "schedule/build.hpp"        // IWYU pragma: export
#include "schedule/cursor.hpp"       // IWYU pragma: export
#include "schedule/cuts.hpp"         // IWYU pragma: export
#include "schedule/fixed_parts.hpp"  // IWYU pragma: export
#include "schedule/prefixes.hpp"     // IWYU pragma: export
#include "schedule/units.hpp"        // IWYU pragma: export
#include "schedule/workers.hpp"      // IWYU pragma: export
#include "schedule/workspace.hpp"    // IWYU pragma: export
