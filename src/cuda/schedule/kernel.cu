// SPDX-License-Identifier: Apache-2.0
// schedule::build for lengths and tables that only the device knows: shared prefixes (or parts), a
// running sum over the segments for each line, then every cut on its own.
//
//   tables    ->  segments [num_segments]
//   segments  ->  cost_before [num_segments + 1], header  ->  cuts  ->  ranges [num_ranges]
//
// One block; a thread sums up neighbouring segments, so that any batch is one scan, and some threads
// place one cut each. Running costs are searched in shared memory, and so are prefixes, if they fit.
#include "cuda/schedule/kernel.hpp"

#include <algorithm>
#include <cstddef>

#include "cuda/common/ptx.cuh"

namespace quire::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kCutsAtOnce = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kSharedSegments = 2048;  // whose running costs fit in shared memory

// Requests whose first pages are compared there, and those whose prefixes are searched there, where
// a block can have so much.
constexpr int kNearTableSeqs = 2048;
constexpr int kNearPrefixSeqs = 1024;
constexpr std::size_t kMostNearBytes = std::max(schedule::prefix_table_bytes(kNearTableSeqs),
                                                schedule::prefix_scratch_bytes(kNearPrefixSeqs));

static_assert(kWarps <= kWarpSize, "the warps' sums are scanned by one warp");

struct Arguments {
  schedule::Policy policy;
  core::ProblemShape shape;
  core::BatchArrays batch;
  core::PrefixGroups groups;
  schedule::ScheduleView schedule;
  std::size_t near_bytes = 0;  // of shared memory, to search prefixes in
  const CheckRecord* check = nullptr;
};

/// Sum of `value` over the lanes up to this one.
__device__ std::int64_t warp_inclusive_sum(std::int64_t value, int lane) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const std::int64_t below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

/// Sum of `value` over the block's threads up to this one; `total` is that over all of them.
__device__ std::int64_t block_inclusive_sum(std::int64_t value, std::int64_t& total) {
  __shared__ std::int64_t
      warp_sums[kWarps];  // filled by each warp's last lane, then scanned by warp 0
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;

  value = warp_inclusive_sum(value, lane);
  __syncthreads();  // the sums of a call before have been read
  if (lane == kWarpSize - 1) warp_sums[warp] = value;
  __syncthreads();
  if (warp == 0) {
    const std::int64_t sum = warp_inclusive_sum(lane < kWarps ? warp_sums[lane] : 0, lane);
    if (lane < kWarps) warp_sums[lane] = sum;
  }
  __syncthreads();

  const std::int64_t before = warp == 0 ? 0 : warp_sums[warp - 1];
  total = warp_sums[kWarps - 1];
  return before + value;
}

/// The block, as a team that finds prefixes.
struct Block {
  [[nodiscard]] __device__ std::int32_t rank() const {
    return static_cast<std::int32_t>(threadIdx.x);
  }
  [[nodiscard]] __device__ std::int32_t size() const { return kThreads; }
  [[nodiscard]] __device__ std::int32_t warp() const { return rank() / kWarpSize; }
  [[nodiscard]] __device__ std::int32_t num_warps() const { return kWarps; }
  [[nodiscard]] __device__ bool is_first_of_warp() const { return rank() % kWarpSize == 0; }
  __device__ void sync() const { __syncthreads(); }
  [[nodiscard]] __device__ bool any(bool value) const {
    return __syncthreads_or(static_cast<int>(value)) != 0;
  }
  [[nodiscard]] __device__ std::int64_t sum_before(std::int64_t value, std::int64_t& total) const {
    return block_inclusive_sum(value, total) - value;
  }
  /// All lanes of a warp call it, with the same arguments.
  [[nodiscard]] __device__ std::int32_t matching_until(const std::int32_t* a, const std::int32_t* b,
                                                       std::int32_t begin, std::int32_t end) const {
    constexpr int kAtOnce = 4;  // of a lane, on their way at the same time
    const int lane = rank() % kWarpSize;
    QUIRE_ROLLED
    for (; begin < end; begin += kAtOnce * kWarpSize) {
      bool differs[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const std::int32_t at = min(begin + i * kWarpSize + lane, end - 1);
        differs[i] = __ldg(a + at) != __ldg(b + at);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const unsigned lanes = __ballot_sync(kAllLanes, differs[i]);
        if (lanes != 0)
          return min(end - 1, begin + i * kWarpSize + __ffs(static_cast<int>(lanes)) - 1);
      }
    }
    return end;
  }
  __device__ void lower_to(std::int32_t& to, std::int32_t value) const { atomicMin(&to, value); }
  __device__ void add(std::int32_t& to, std::int32_t value) const { atomicAdd(&to, value); }
  __device__ void add(std::int64_t& to, std::int64_t value) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(&to), static_cast<unsigned long long>(value));
  }
  __device__ void lower_to(std::uint64_t& to, std::uint64_t value) const {
    atomicMin(reinterpret_cast<unsigned long long*>(&to), static_cast<unsigned long long>(value));
  }
  [[nodiscard]] __device__ std::uint64_t exchange_if(std::uint64_t& place, std::uint64_t expected,
                                                     std::uint64_t value) const {
    return atomicCAS(reinterpret_cast<unsigned long long*>(&place),
                     static_cast<unsigned long long>(expected),
                     static_cast<unsigned long long>(value));
  }
};

struct Shared {
  schedule::Header header;
  std::int64_t cost_before[schedule::kLines][kSharedSegments + 1];
  std::int32_t num_units[schedule::kLines];
  schedule::PlacedCut cuts[kCutsAtOnce];  // some ranges' begins and ends
};

/// Segments; the header counts them.
__device__ void find_segments(const Arguments& arguments, std::int32_t num_seqs, Shared& shared) {
  extern __shared__ std::int64_t near_scratch[];
  if (threadIdx.x == 0) {
    shared.header = {};
    for (std::int32_t& units : shared.num_units) units = 0;
    shared.header.overview.num_queries = num_seqs > 0 ? arguments.batch.qo_indptr[num_seqs] : 0;
    shared.header.num_seqs = num_seqs;
    shared.header.num_segments = num_seqs;
  }
  __syncthreads();
  if (arguments.policy.prefixes.max_states == 0 || num_seqs == 0) return;
  if (schedule::has_fixed_parts(arguments.policy)) {
    schedule::make_fixed_parts(arguments.policy, arguments.shape, arguments.batch,
                               arguments.schedule, Block{}, shared.header);
    __syncthreads();
    return;
  }
  const std::size_t table_bytes = schedule::prefix_table_bytes(num_seqs);
  auto* const near = reinterpret_cast<std::byte*>(near_scratch);
  auto* const far = static_cast<std::byte*>(arguments.schedule.prefix_scratch);
  const bool all_fits = schedule::prefix_scratch_bytes(num_seqs) <= arguments.near_bytes;
  schedule::PrefixFinder(arguments.policy, arguments.shape, arguments.batch, arguments.groups,
                         arguments.schedule, table_bytes <= arguments.near_bytes ? near : far,
                         (all_fits ? near : far) + table_bytes, Block{})
      .run(shared.header);
  __syncthreads();
}

/// Running costs and header. A thread takes `share` segments behind one another.
/// @param known  Where costs are searched: in shared memory, if they fit.
__device__ void sum_up(const Arguments& arguments, const schedule::ScheduleView& known,
                       const schedule::StoredSegment* segments, Shared& shared) {
  const std::int32_t num_segments = shared.header.num_segments;
  const std::int32_t share = (num_segments + kThreads - 1) / kThreads;
  const std::int32_t first = static_cast<std::int32_t>(threadIdx.x) * share;
  const std::int32_t last = min(first + share, num_segments);
  const schedule::Policy& policy = arguments.policy;
  const bool has_large = policy.lines[schedule::kLargeUnits].num_ranges > 0;

  std::int64_t own[schedule::kLines] = {};  // of this thread's segments
  std::int32_t num_units[schedule::kLines] = {};
  QUIRE_ROLLED
  for (std::int32_t index = first; index < last; ++index) {
    const schedule::Segment segment =
        schedule::segment_of(arguments.shape, arguments.batch, segments, index);
    const schedule::Line line = schedule::line_of(policy, arguments.shape, segment.lengths);
    const schedule::TilePolicy& tiles = policy.lines[line];
    const schedule::SegmentUnits units =
        schedule::units_of(tiles, arguments.shape, segment.lengths);
    const std::int64_t cost = schedule::cost_of(tiles, arguments.shape, segment, units);
    num_units[line] += units.head_units * units.q_tiles;
    known.lines[schedule::kSmallUnits].cost_before[index] = own[schedule::kSmallUnits];
    if (has_large)
      known.lines[schedule::kLargeUnits].cost_before[index] = own[schedule::kLargeUnits];
    own[schedule::kSmallUnits] += line == schedule::kSmallUnits ? cost : 0;
    own[schedule::kLargeUnits] += line == schedule::kLargeUnits ? cost : 0;
  }
  for (int line = 0; line < schedule::kLines; ++line) {
    if (num_units[line] > 0) atomicAdd(&shared.num_units[line], num_units[line]);
  }
  // Most batches have no large units.
  const bool any_large = __syncthreads_or(static_cast<int>(own[schedule::kLargeUnits] > 0)) != 0;
  QUIRE_ROLLED
  for (int line = 0; line < (any_large ? schedule::kLines : 1); ++line) {
    std::int64_t* const costs = known.lines[line].cost_before;
    const std::int64_t value = line == schedule::kSmallUnits ? own[0] : own[1];
    std::int64_t total = 0;
    const std::int64_t before = block_inclusive_sum(value, total) - value;
    QUIRE_ROLLED
    for (std::int32_t index = first; index < last; ++index) costs[index] += before;
    if (threadIdx.x != 0) continue;
    costs[num_segments] = total;
    shared.header.total_cost[line] = total;
  }
  if (threadIdx.x == 0) {
    schedule::divide(policy, arguments.shape, shared.header.total_cost, shared.header.overview);
  }
}

/// Whether units of the lines are left whole; completes the header.
__device__ void find_whether_whole(const Arguments& arguments, const schedule::ScheduleView& known,
                                   Shared& shared) {
  const schedule::Overview& overview = shared.header.overview;
  std::uint32_t whole_lines = 0;
  QUIRE_ROLLED
  for (int line = 0; line < schedule::kLines; ++line) {
    const std::int32_t num_ranges = overview.num_ranges[line];
    auto* const cuts = reinterpret_cast<std::int64_t*>(shared.cuts);
    // With so few units some ranges are too long for sure.
    const bool are_few = shared.num_units[line] < num_ranges - num_ranges / 16;
    if (are_few || arguments.policy.fixed_part_keys > 0) continue;
    bool is_too_long = false;
    QUIRE_ROLLED
    for (auto first = 0; first < num_ranges; first += kCutsAtOnce - 1) {
      const std::int32_t index = first + static_cast<std::int32_t>(threadIdx.x);
      const bool has_cut = threadIdx.x < kCutsAtOnce && index <= num_ranges;
      if (has_cut) {
        cuts[threadIdx.x] = schedule::whole_cut(arguments.policy, arguments.shape, arguments.batch,
                                                known, line, index);
      }
      __syncthreads();
      if (has_cut && threadIdx.x + 1 < kCutsAtOnce && index < num_ranges) {
        is_too_long |=
            schedule::is_too_long(shared.header, line, cuts[threadIdx.x], cuts[threadIdx.x + 1]);
      }
      __syncthreads();  // cuts are made anew
    }
    if (__syncthreads_or(static_cast<int>(is_too_long)) == 0) {
      whole_lines |= 1U << static_cast<unsigned>(line);
    }
  }
  if (threadIdx.x == 0) {
    shared.header.overview.whole_lines = whole_lines;
    *arguments.schedule.header = shared.header;
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    schedule_kernel(const __grid_constant__ Arguments arguments) {
  __shared__ Shared shared;
  const bool refused = arguments.check != nullptr && arguments.check->what != 0;
  const std::int32_t num_seqs = refused ? 0 : arguments.batch.num_seqs;
  find_segments(arguments, num_seqs, shared);
  schedule::ScheduleView known = arguments.schedule;
  known.header = &shared.header;
  if (shared.header.num_segments <= kSharedSegments) {
    for (int line = 0; line < schedule::kLines; ++line) {
      known.lines[line].cost_before = shared.cost_before[line];
    }
  }
  const schedule::StoredSegment* const segments = schedule::segments_of(known);
  sum_up(arguments, known, segments, shared);
  __syncthreads();  // header and running costs are read by all
  find_whether_whole(arguments, known, shared);
  __syncthreads();

  // The cuts of one line, then those of the other.
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t num_small = arguments.policy.lines[schedule::kSmallUnits].num_ranges + 1;
  const std::int32_t num_large = arguments.policy.lines[schedule::kLargeUnits].num_ranges + 1;
  const std::int32_t num_cuts = num_small + (num_large > 1 ? num_large : 0);
  QUIRE_ROLLED
  for (std::int32_t first = 0; first < num_cuts; first += kCutsAtOnce - 1) {
    const std::int32_t cut = first + thread;
    const schedule::Line line = cut < num_small ? schedule::kSmallUnits : schedule::kLargeUnits;
    const std::int32_t index = cut < num_small ? cut : cut - num_small;
    const schedule::TilePolicy& tiles = arguments.policy.lines[line];
    if (thread < kCutsAtOnce && cut < num_cuts) {
      shared.cuts[thread] = schedule::place_cut(arguments.policy, arguments.shape, arguments.batch,
                                                known, line, index);
    }
    __syncthreads();  // a range ends where its neighbour begins
    if (thread < kCutsAtOnce - 1 && cut < num_cuts && index < tiles.num_ranges) {
      const schedule::LineView& to = arguments.schedule.lines[line];
      to.ranges[index] =
          schedule::make_range(tiles, arguments.shape, arguments.batch, shared.header, segments,
                               shared.cuts[thread], shared.cuts[thread + 1], index);
      QUIRE_ROLLED
      for (std::int32_t head = 0; head < tiles.heads_abreast; ++head) {
        to.arrivals[index * tiles.heads_abreast + head] = 0;
      }
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t launch_schedule(const schedule::Policy& policy, const core::ProblemShape& shape,
                            const core::BatchArrays& batch, const core::PrefixGroups& groups,
                            schedule::ScheduleView schedule, std::size_t near_bytes,
                            const CheckRecord* check, cudaStream_t stream) noexcept {
  if (!schedule::looks_for_prefixes(policy)) near_bytes = 0;
  schedule_kernel<<<1, kThreads, near_bytes, stream>>>(
      Arguments{policy, shape, batch, groups, schedule, near_bytes, check});
  return cudaGetLastError();
}

cudaError_t prepare_schedule(std::size_t shared_memory, std::size_t& near_bytes) noexcept {
  constexpr std::size_t kOwn = sizeof(Shared) + 1024;  // and what the block sums up with
  near_bytes = shared_memory > kOwn ? std::min(kMostNearBytes, shared_memory - kOwn) : 0;
  return cudaFuncSetAttribute(schedule_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(near_bytes));
}

}  // namespace quire::cuda
