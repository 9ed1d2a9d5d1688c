// SPDX-License-Identifier: Apache-2.0
// schedule::build for lengths and tables that only the device knows: shared prefixes (or parts), a
// running sum over the segments for each line, then every cut on its own.
//
//   lengths, first pages  ->  does anybody share?  ->  segments [num_segments]
//   segments  ->  cost_before [num_segments + 1], header  ->  cuts  ->  ranges [num_ranges]
//
// One block. What it needs of global memory it asks for at once and keeps in shared memory, if that
// is large enough. What takes time is one chain of instructions that depend on each other, about
// ten clocks each, whether caches are cold or not: hence short ones, few barriers, and divisors
// prepared by the host.
#include "cuda/schedule/kernel.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "cuda/common/ptx.cuh"
#include "cuda/schedule/arguments.cuh"
#include "cuda/schedule/block.cuh"
#include "cuda/schedule/cut_lines.cuh"
#include "cuda/schedule/near_lengths.cuh"

namespace quire::cuda {
namespace scheduler {
namespace {

/// What makes segments of anything but requests, called and not inlined, as most batches do not
/// need it.
/// @param arguments  In shared memory.
template <bool kIsNear>
__device__ __noinline__ void find_prefixes(const Arguments& arguments, schedule::Header& header) {
  const core::BatchArrays batch = batch_of<kIsNear>(arguments);
  const std::uint32_t scratch_at = arguments.near.scratch_at;
  const std::size_t near_bytes = arguments.near.bytes - scratch_at;
  const std::size_t table_bytes = schedule::prefix_table_bytes(batch.num_seqs);
  std::byte* const near = near_memory + scratch_at;
  auto* const far = static_cast<std::byte*>(arguments.schedule.prefix_scratch);
  const bool all_fits = schedule::prefix_scratch_bytes(batch.num_seqs) <= near_bytes;
  schedule::PrefixFinder(arguments.policy, arguments.shape, batch, arguments.groups,
                         arguments.schedule, table_bytes <= near_bytes ? near : far,
                         (all_fits ? near : far) + table_bytes, Block{})
      .run(header);
  __syncthreads();
}
template <bool kIsNear>
__device__ __noinline__ void divide_keys(const Arguments& arguments, schedule::Header& header) {
  schedule::make_fixed_parts(arguments.policy, arguments.shape, batch_of<kIsNear>(arguments),
                             arguments.schedule, Block{}, header);
  __syncthreads();
}

/// Copies the arguments to where functions that are not inlined find them fast. @param to Shared
/// memory.
__device__ const Arguments& to_shared(const Arguments& arguments, std::int32_t* to) {
  constexpr int kWords = sizeof(Arguments) / sizeof(std::int32_t);
  __syncthreads();  // what was there has been read
  QUIRE_ROLLED
  for (auto i = static_cast<int>(threadIdx.x); i < kWords; i += kThreads) {
    to[i] = reinterpret_cast<const std::int32_t*>(&arguments)[i];
  }
  __syncthreads();
  return *reinterpret_cast<const Arguments*>(to);
}

/// A thread's sums over segments.
struct Sums {
  std::int64_t small = 0;
  std::int64_t large = 0;
};

/// Segments behind one another that a thread takes; if there are many, an odd number, for the banks
/// of shared memory.
__device__ std::int32_t share_of(std::int32_t num_segments) {
  const std::int32_t share = (num_segments + kThreads - 1) / kThreads;
  constexpr std::int32_t kSmall = 4;
  return share >= kSmall ? share | 1 : share;
}

/// The segments that a thread takes.
struct Share {
  std::int32_t first;
  std::int32_t last;

  __device__ explicit Share(std::int32_t num_segments) {
    const std::int32_t share = share_of(num_segments);
    first = static_cast<std::int32_t>(threadIdx.x) * share;
    last = min(first + share, num_segments);
  }
};

__device__ bool has_large_units(const Arguments& arguments, schedule::Lengths lengths) {
  return schedule::line_of(arguments.tiles[schedule::kLargeUnits], arguments.shape, lengths) ==
         schedule::kLargeUnits;
}
template <int kLine>
__device__ std::int64_t cost_on(const Arguments& arguments, const schedule::Segment& segment) {
  const PreparedTiles& tiles = arguments.tiles[kLine];
  return schedule::cost_of(tiles, arguments.shape, segment,
                           schedule::units_of(tiles, arguments.shape, segment.lengths));
}

/// Running costs of small units, from the first segment of each thread on.
/// @return Sums over all before it in its warp.
__device__ Sums sum_up(const Arguments& arguments, const Segments& segments, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Share share(shared.header.num_segments);
  Sums own;
  QUIRE_ROLLED
  for (std::int32_t index = share.first; index < share.last; ++index) {
    const schedule::Segment segment =
        schedule::segment_of(arguments.shape, segments.batch, segments.stored, index);
    segments.small_costs[index] = own.small;
    if (has_large_units(arguments, segment.lengths)) {
      own.large += cost_on<schedule::kLargeUnits>(arguments, segment);
    } else {
      own.small += cost_on<schedule::kSmallUnits>(arguments, segment);
    }
  }
  Sums until = {warp_inclusive_sum(own.small, lane), 0};
  if (__any_sync(kAllLanes, own.large != 0)) until.large = warp_inclusive_sum(own.large, lane);
  if (lane == kWarpSize - 1) {
    shared.warp_costs[schedule::kSmallUnits][warp] = until.small;
    shared.warp_costs[schedule::kLargeUnits][warp] = until.large;
  }
  return {until.small - own.small, until.large - own.large};
}

/// Sum over the warps before a thread's; the line's cost is noted. All lanes get the same.
__device__ std::int64_t sum_of_warps(int line, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t own = lane < kWarps ? shared.warp_costs[line][lane] : 0;
  const std::int64_t sum = warp_inclusive_sum(own, lane);
  if (warp == kWarps - 1 && lane == kWarpSize - 1) shared.header.total_cost[line] = sum;
  return __shfl_sync(kAllLanes, sum - own, warp);
}

/// Running costs of all, and all of the header but `whole_lines`.
/// @param of_warp  What `sum_up` says.
__device__ void join_sums(const Arguments& arguments, const Segments& segments, const Sums& of_warp,
                          Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int32_t num_segments = shared.header.num_segments;
  const Share share(num_segments);
  const std::int64_t small = sum_of_warps(schedule::kSmallUnits, shared) + of_warp.small;
  QUIRE_ROLLED
  for (std::int32_t index = share.first; index < share.last; ++index) {
    segments.small_costs[index] += small;
  }
  const bool any_large =
      __any_sync(kAllLanes, lane < kWarps && shared.warp_costs[schedule::kLargeUnits][lane] != 0);
  if (any_large) {
    std::int64_t large = sum_of_warps(schedule::kLargeUnits, shared) + of_warp.large;
    QUIRE_ROLLED
    for (std::int32_t index = share.first; index < share.last; ++index) {
      const schedule::Segment segment =
          schedule::segment_of(arguments.shape, segments.batch, segments.stored, index);
      segments.large_costs[index] = large;
      if (has_large_units(arguments, segment.lengths)) {
        large += cost_on<schedule::kLargeUnits>(arguments, segment);
      }
    }
  }
  // The last warp has the fewest segments.
  if (static_cast<int>(threadIdx.x) / kWarpSize != kWarps - 1) return;
  __syncwarp();  // total costs are there
  if (lane != 0) return;
  segments.small_costs[num_segments] = shared.header.total_cost[schedule::kSmallUnits];
  if (any_large) {
    segments.large_costs[num_segments] = shared.header.total_cost[schedule::kLargeUnits];
  }
  schedule::divide(arguments.policy, arguments.least_cost, shared.header.total_cost,
                   shared.header.overview);
}

/// @tparam kIsNear  Lengths are brought near.
template <bool kIsNear>
__global__ void __launch_bounds__(kThreads, 1)
    schedule_kernel(const __grid_constant__ Arguments arguments) {
  alignas(Shared) __shared__ std::byte memory[sizeof(Shared)];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if constexpr (kIsNear) ask_for_lengths(arguments);
  if (arguments.searches) clear_table(arguments.table_bits, shared.words);
  const bool refused = arguments.check != nullptr && arguments.check->what != 0;
  const std::int32_t num_seqs = refused ? 0 : arguments.batch.num_seqs;
  if (threadIdx.x == 0) {
    shared.header = {};
    shared.header.num_seqs = num_seqs;
    shared.header.num_segments = num_seqs;
    shared.long_lines = 0;
  }
  const core::BatchArrays batch = batch_of<kIsNear>(arguments);
  if constexpr (kIsNear) wait_for_own_copies();
  __syncthreads();
  if constexpr (kIsNear) {
    if (arguments.batch.kv_len == nullptr) count_keys(arguments, num_seqs);
  }
  if (threadIdx.x == 0 && num_seqs > 0) {
    shared.header.overview.num_queries = batch.qo_indptr[num_seqs];
  }
  const auto costs_of = [&](int line) {
    return arguments.near.costs_at[line] != NearLayout::kFar
               ? reinterpret_cast<std::int64_t*>(near_memory + arguments.near.costs_at[line])
               : arguments.schedule.lines[line].cost_before;
  };
  Segments segments{batch, nullptr, costs_of(0), costs_of(1)};
  const auto take_stored = [&] {
    segments.stored =
        shared.header.overview.num_prefixes > 0 ? arguments.schedule.segments : nullptr;
  };
  if (arguments.divides_keys && num_seqs > 0) {
    divide_keys<kIsNear>(to_shared(arguments, shared.words), shared.header);
    take_stored();
  }
  bool may_share = arguments.searches && num_seqs > 0 &&
                   first_pages_meet(arguments, batch, num_seqs, shared.words);
  __syncwarp();  // lanes that find a slot at once do not run ahead
  Sums of_warp;
  QUIRE_ROLLED
  while (true) {
    of_warp = sum_up(arguments, segments, shared);
    if (__syncthreads_or(static_cast<int>(may_share)) == 0) break;
    find_prefixes<kIsNear>(to_shared(arguments, shared.words), shared.header);
    take_stored();
    may_share = false;
  }
  join_sums(arguments, segments, of_warp, shared);
  __syncthreads();  // header and running costs are read by all
  cut_lines(arguments, segments, shared);
}

}  // namespace
}  // namespace scheduler

cudaError_t launch_schedule(const schedule::Policy& policy, const core::ProblemShape& shape,
                            const core::BatchArrays& batch, const core::PrefixGroups& groups,
                            schedule::ScheduleView schedule, std::size_t near_bytes,
                            const CheckRecord* check, cudaStream_t stream) noexcept {
  using namespace scheduler;
  Arguments arguments;
  const std::int32_t num_seqs = batch.num_seqs;
  arguments.searches = schedule::looks_for_prefixes(policy) && num_seqs >= 2 &&
                       num_seqs <= policy.prefixes.most_seqs;
  const int slots = kSlotsOfSeq * std::min(num_seqs, kTableSeqs);
  arguments.table_bits =
      std::min(kMostTableBits, static_cast<int>(std::bit_width(static_cast<unsigned>(slots))));
  arguments.divides_keys = schedule::has_fixed_parts(policy);
  arguments.near = NearLayout(policy, batch, arguments.searches, near_bytes);
  std::int32_t num_chunks = 0;
  for (int line = 0; line < schedule::kLines; ++line) {
    const schedule::TilePolicy& tiles = policy.lines[line];
    arguments.tiles[line] = PreparedTiles(tiles, shape);
    arguments.least_cost[line] = schedule::least_range_cost(tiles, shape);
    num_chunks += (tiles.num_ranges + kWarpRanges - 1) / kWarpRanges;
    if (line == schedule::kSmallUnits) arguments.small_chunks = num_chunks;
    if (policy.fixed_part_keys == 0) {
      arguments.lines_to_leave_whole |= 1U << static_cast<unsigned>(line);
    }
  }
  arguments.num_chunks = num_chunks;
  arguments.num_passes = (num_chunks + kCutWarps - 1) / kCutWarps;
  arguments.shape = shape;
  arguments.batch = batch;
  arguments.schedule = schedule;
  arguments.check = check;
  arguments.policy = policy;
  arguments.groups = groups;
  arguments.log_copied =
      std::countr_zero(std::bit_ceil(static_cast<unsigned>(std::clamp(num_chunks, 1, kCutWarps))));
  const bool is_near = arguments.near.kv_at != NearLayout::kFar;
  const auto kernel = is_near ? schedule_kernel<true> : schedule_kernel<false>;
  kernel<<<1, kThreads, arguments.near.bytes, stream>>>(arguments);
  return cudaGetLastError();
}

cudaError_t prepare_schedule(std::size_t shared_memory, std::size_t& near_bytes) noexcept {
  using namespace scheduler;
  constexpr std::size_t kOwn = sizeof(Shared) + 1024;  // and what the block sums up with
  near_bytes = shared_memory > kOwn ? std::min(kMostNearBytes, shared_memory - kOwn) : 0;
  for (const auto kernel : {schedule_kernel<true>, schedule_kernel<false>}) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(near_bytes));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace quire::cuda
