// SPDX-License-Identifier: Apache-2.0
/// @file
/// Cuts and ranges of both lines, from running costs. A warp makes ranges behind one another in
/// shared memory, a lane each; then all warps write them out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/schedule/arguments.cuh"
#include "cuda/schedule/block.cuh"

namespace quire::cuda::scheduler {

struct Shared {
  schedule::Header header;
  std::int64_t warp_costs[schedule::kLines][kWarps];  // of the segments that a warp takes
  std::uint32_t long_lines;  // bit i: a range of whole units would be too long
  // First a table of first pages, then ranges on their way to global memory.
  alignas(16) std::int32_t words[kCutWarps * kWarpRanges * kRangeWords];
};
static_assert(sizeof(Shared::words) >= sizeof(std::int32_t) << kMostTableBits);
static_assert(sizeof(Shared::words) >= sizeof(Arguments));
static_assert(sizeof(Arguments) % sizeof(std::int32_t) == 0);
static_assert(kWarpRanges * kRangeWords % 2 == 0, "ranges are copied two words at a time");

/// What lines are made of.
struct Segments {
  const core::BatchArrays& batch;
  const schedule::StoredSegment* stored = nullptr;  ///< as in `schedule::segment_of`
  std::int64_t* small_costs;
  std::int64_t* large_costs;
};

/// The ranges that a warp of the block makes in a pass.
struct WarpRanges {
  int line = 0;
  std::int32_t first = 0;
  std::int32_t count = 0;  ///< of the line's ranges from `first` on that there are; ≤ 0: none

  __device__ WarpRanges(const Arguments& arguments, std::int32_t chunk) {
    if (chunk >= arguments.small_chunks) {
      line = schedule::kLargeUnits;
      chunk -= arguments.small_chunks;
    }
    first = chunk * kWarpRanges;
    count = min(kWarpRanges, arguments.tiles[line].num_ranges - first);
  }
};

/// `schedule::detail::segment_at`, with three probes on their way at a time.
__device__ inline std::int32_t segment_at(const std::int64_t* cost_before,
                                          std::int32_t num_segments, std::int64_t cost) {
  std::int32_t low = 0;
  std::int32_t length = num_segments;  // of the part where it is, from `low` on
  QUIRE_ROLLED
  while (length > 1) {
    const std::int32_t quarter = (length + 3) / 4;
    const std::int32_t last = low + length - 1;
    const std::int32_t a = min(low + quarter, last);
    const std::int32_t b = min(low + 2 * quarter, last);
    const std::int32_t c = min(low + 3 * quarter, last);
    const std::int64_t at_a = cost_before[a];
    const std::int64_t at_b = cost_before[b];
    const std::int64_t at_c = cost_before[c];
    const std::int32_t end = last + 1;
    std::int32_t next = min(low + quarter, end);
    if (at_a <= cost) {
      low = a;
      next = min(a + quarter, end);
    }
    if (at_b <= cost) {
      low = b;
      next = min(b + quarter, end);
    }
    if (at_c <= cost) {
      low = c;
      next = end;
    }
    length = next - low;
  }
  return low;
}

/// Cuts of a warp's ranges of a line, left in them.
/// @param is_whole  They are made at units' begins. @return Whether a range would be too long then.
template <int line>
__device__ bool place_cuts(const Arguments& arguments, const Segments& segments,
                           const WarpRanges& ranges, bool is_whole, schedule::Range* range,
                           const schedule::Header& header) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t total_cost = header.total_cost[line];
  schedule::PlacedCut placed;
  std::int64_t begin = total_cost;
  if (total_cost > 0) {
    const schedule::CutLine<PreparedTiles> cut_line{
        arguments.tiles[line],
        arguments.shape,
        segments.batch,
        segments.stored,
        header.num_segments,
        line == schedule::kSmallUnits ? segments.small_costs : segments.large_costs,
        total_cost};
    const schedule::detail::EqualCuts cuts(cut_line.tiles, total_cost,
                                           header.overview.num_ranges[line]);
    const std::int32_t index = ranges.first + lane;
    const bool is_inner = index < header.overview.num_ranges[line];
    const std::int64_t cost = is_inner ? cuts.at(index) : total_cost - 1;
    const std::int32_t segment = segment_at(cut_line.cost_before, header.num_segments, cost);
    if (is_inner) {
      const schedule::PlacedUnit unit = schedule::unit_at(cut_line, segment, cost);
      begin = unit.begin;
      placed = schedule::place_cut(cut_line, cuts, cost, unit, is_whole);
    } else {
      placed = schedule::end_of_line(total_cost, segment);
    }
  }
  if (lane < ranges.count) range[lane].rest = placed;
  if (lane > 0 && lane <= ranges.count) range[lane - 1].end = placed;
  const std::int32_t together =
      schedule::ranges_together(arguments.tiles[line], arguments.shape, header);
  const std::int64_t end = __shfl_down_sync(kAllLanes, begin, static_cast<unsigned>(together));
  return lane % together == 0 && lane < kWarpRanges &&
         schedule::is_too_long(header, line, together, begin, end);
}

/// Ranges of a pass to global memory.
__device__ inline void write_ranges(const Arguments& arguments, std::int32_t pass,
                                    const std::int32_t* words) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int log_warps = arguments.log_copied;
  const int of_warp = warp & ((1 << log_warps) - 1);
  const WarpRanges ranges(arguments, pass * kCutWarps + of_warp);
  if (ranges.count <= 0) return;
  const schedule::LineView& line = arguments.schedule.lines[ranges.line];
  const int first = (warp >> log_warps) * kWarpSize + lane;
  const int step = kThreads >> log_warps;
  const auto* const from =
      reinterpret_cast<const std::int64_t*>(words + of_warp * kWarpRanges * kRangeWords);
  auto* const to = reinterpret_cast<std::int64_t*>(line.ranges + ranges.first);
  const int num_pairs = ranges.count * kRangeWords / 2;
  constexpr int kAtOnce = 4;
#pragma unroll kAtOnce
  for (int i = first; i < num_pairs; i += step) to[i] = from[i];
  if (ranges.count % 2 != 0 && first == 0) {
    const int last = ranges.count * kRangeWords - 1;
    reinterpret_cast<std::int32_t*>(to)[last] = reinterpret_cast<const std::int32_t*>(from)[last];
  }
}

/// By warps that make no ranges, if there are such.
__device__ inline void zero_arrivals(const Arguments& arguments) {
  const std::int32_t first = arguments.num_chunks < kWarps ? arguments.num_chunks * kWarpSize : 0;
  QUIRE_ROLLED
  for (int line = 0; line < schedule::kLines; ++line) {
    const schedule::TilePolicy& tiles = arguments.tiles[line];
    const std::int32_t count = tiles.num_ranges * tiles.heads_abreast;
    QUIRE_ROLLED
    for (auto i = static_cast<std::int32_t>(threadIdx.x) - first; i < count;
         i += kThreads - first) {
      arguments.schedule.lines[line].arrivals[i] = 0;
    }
  }
}

/// All ranges: in a first step cuts are made at units' begins, which shows whether units can be
/// left whole; in a second they are made inside units where they cannot, and ranges are completed.
__device__ inline void cut_lines(const Arguments& arguments, const Segments& segments,
                                 Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int32_t num_passes = arguments.num_passes;
  schedule::Range* const made =
      reinterpret_cast<schedule::Range*>(shared.words) + warp * kWarpRanges;
  std::uint32_t whole_lines = ~0U;  // for now
  if (warp >= arguments.num_chunks || arguments.num_chunks >= kWarps) zero_arrivals(arguments);
  QUIRE_ROLLED
  for (std::int32_t step = 0; step < 2 * num_passes; ++step) {
    const bool completes = step >= num_passes;
    const std::int32_t pass = completes ? step - num_passes : step;
    if (step == num_passes) {
      __syncthreads();  // `long_lines` is complete
      whole_lines = arguments.lines_to_leave_whole & ~shared.long_lines;
      constexpr int kHeaderWords = sizeof(schedule::Header) / sizeof(std::int32_t);
      constexpr int kWholeWord =
          offsetof(schedule::Header, overview.whole_lines) / sizeof(std::int32_t);
      if (warp == kWarps - 1 && lane < kHeaderWords) {
        reinterpret_cast<std::uint32_t*>(arguments.schedule.header)[lane] =
            lane == kWholeWord ? whole_lines
                               : reinterpret_cast<const std::uint32_t*>(&shared.header)[lane];
      }
    }
    const WarpRanges ranges(arguments, pass * kCutWarps + warp);
    if (warp < kCutWarps && ranges.count > 0) {
      const std::uint32_t bit = 1U << static_cast<unsigned>(ranges.line);
      const bool is_whole = (whole_lines & bit) != 0;
      if (!completes || num_passes > 1 || !is_whole) {
        const bool is_too_long =
            ranges.line == schedule::kSmallUnits
                ? place_cuts<0>(arguments, segments, ranges, is_whole, made, shared.header)
                : place_cuts<1>(arguments, segments, ranges, is_whole, made, shared.header);
        if (!completes && is_too_long) atomicOr(&shared.long_lines, bit);
        __syncwarp();
      }
      if (completes && lane < ranges.count) {
        schedule::Range& range = made[lane];
        range.overview = shared.header.overview;
        range.overview.whole_lines = whole_lines;
        const auto take_first_item = [&](const PreparedTiles& tiles) {
          schedule::take_first_item(tiles, arguments.shape, segments.batch, segments.stored,
                                    ranges.first + lane, range);
        };
        if (ranges.line == schedule::kSmallUnits) {
          take_first_item(arguments.tiles[schedule::kSmallUnits]);
        } else {
          take_first_item(arguments.tiles[schedule::kLargeUnits]);
        }
      }
    }
    if (!completes) continue;
    __syncthreads();  // ranges are in shared memory
    write_ranges(arguments, pass, shared.words);
    if (num_passes > 1) __syncthreads();  // ranges are made anew
  }
}

}  // namespace quire::cuda::scheduler
