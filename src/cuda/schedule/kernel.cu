// SPDX-License-Identifier: Apache-2.0
// schedule::build for lengths that only the device knows: a running sum over the requests, then
// every cut on its own.
//
//   lengths [num_seqs]  ->  cost_before [num_seqs + 1], header  ->  cuts  ->  ranges [num_ranges]
//
// One block; a thread sums up neighbouring requests, so that any batch is one scan, and some threads
// place one cut each. Running costs are searched in shared memory, if they fit.
#include "cuda/schedule/kernel.hpp"

#include "cuda/common/ptx.cuh"

namespace quire::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kCutsAtOnce = 512;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kSharedSeqs = 2048;  // requests whose running costs fit in shared memory

static_assert(kWarps <= kWarpSize, "the warps' sums are scanned by one warp");

struct Arguments {
  schedule::TilePolicy policy;
  core::ProblemShape shape;
  core::BatchArrays batch;
  schedule::ScheduleView schedule;
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

struct HasUnits {
  bool small;
  bool large;
};

struct Shared {
  schedule::Header header;
  HasUnits has_units[kWarps];  // filled by each warp, drained by thread 0 behind the block's sum
  std::int64_t cost_before[kSharedSeqs + 1];
  schedule::PlacedCut cuts[kCutsAtOnce];  // some ranges' begins and ends
};

__device__ schedule::SequenceUnits units_of(const Arguments& arguments, std::int32_t seq) {
  return schedule::units_of(arguments.policy, arguments.shape,
                            schedule::lengths_of(arguments.shape, arguments.batch, seq));
}

/// Running costs and header. A thread takes `share` requests behind one another.
__device__ void sum_up(const Arguments& arguments, const schedule::ScheduleView& schedule,
                       std::int32_t num_seqs, Shared& shared) {
  const std::int32_t share = (num_seqs + kThreads - 1) / kThreads;
  const std::int32_t first = static_cast<std::int32_t>(threadIdx.x) * share;
  const std::int32_t last = min(first + share, num_seqs);
  const bool fits = num_seqs <= kSharedSeqs;

  std::int64_t* const costs = fits ? shared.cost_before : schedule.cost_before;
  std::int64_t own = 0;  // of this thread's requests
  bool has_small = false;
  bool has_large = false;
  QUIRE_ROLLED
  for (std::int32_t seq = first; seq < last; ++seq) {
    costs[seq] = own;
    const schedule::SequenceUnits units = units_of(arguments, seq);
    own += schedule::cost_of(arguments.policy, arguments.shape, units);
    has_small = has_small || (units.q_tiles > 0 && !units.are_large);
    has_large = has_large || (units.q_tiles > 0 && units.are_large);
  }
  const bool warp_has_small = __any_sync(kAllLanes, has_small) != 0;
  const bool warp_has_large = __any_sync(kAllLanes, has_large) != 0;
  if (threadIdx.x % kWarpSize == 0) {
    shared.has_units[threadIdx.x / kWarpSize] = {warp_has_small, warp_has_large};
  }
  std::int64_t total = 0;
  const std::int64_t before = block_inclusive_sum(own, total) - own;
  QUIRE_ROLLED
  for (std::int32_t seq = first; seq < last; ++seq) {
    costs[seq] += before;
    if (fits) schedule.cost_before[seq] = costs[seq];
  }
  if (threadIdx.x != 0) return;
  HasUnits any{false, false};
  for (const HasUnits& of_warp : shared.has_units) {
    any.small = any.small || of_warp.small;
    any.large = any.large || of_warp.large;
  }
  schedule.cost_before[num_seqs] = total;
  if (fits) shared.cost_before[num_seqs] = total;
  shared.header = {num_seqs,
                   schedule::ranges_for(arguments.policy, arguments.shape, total),
                   total,
                   0,
                   static_cast<std::int32_t>(any.small),
                   static_cast<std::int32_t>(any.large)};
  *schedule.header = shared.header;
}

__global__ void __launch_bounds__(kThreads, 1)
    schedule_kernel(const __grid_constant__ Arguments arguments) {
  __shared__ Shared shared;
  const bool refused = arguments.check != nullptr && arguments.check->what != 0;
  const std::int32_t num_seqs = refused ? 0 : arguments.batch.num_seqs;
  sum_up(arguments, arguments.schedule, num_seqs, shared);
  __syncthreads();  // header and running costs are read by all

  schedule::ScheduleView known = arguments.schedule;
  known.header = &shared.header;
  if (num_seqs <= kSharedSeqs) known.cost_before = shared.cost_before;
  const std::int32_t num_ranges = arguments.policy.num_ranges;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  QUIRE_ROLLED
  for (std::int32_t first = 0; first < num_ranges; first += kCutsAtOnce - 1) {
    const std::int32_t index = first + thread;
    if (thread < kCutsAtOnce && index <= num_ranges) {
      shared.cuts[thread] =
          schedule::place_cut(arguments.policy, arguments.shape, arguments.batch, known, index);
    }
    __syncthreads();  // a range ends where its neighbour begins
    if (index < num_ranges && thread < kCutsAtOnce - 1) {
      arguments.schedule.ranges[index] =
          schedule::make_range(arguments.policy, arguments.shape, arguments.batch, shared.header,
                               shared.cuts[thread], shared.cuts[thread + 1], index);
      const std::int32_t heads = arguments.policy.heads_abreast;
      QUIRE_ROLLED
      for (std::int32_t head = 0; head < heads; ++head) {
        arguments.schedule.arrivals[index * heads + head] = 0;
      }
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t launch_schedule(const schedule::TilePolicy& policy, const core::ProblemShape& shape,
                            const core::BatchArrays& batch, schedule::ScheduleView schedule,
                            const CheckRecord* check, cudaStream_t stream) noexcept {
  schedule_kernel<<<1, kThreads, 0, stream>>>(Arguments{policy, shape, batch, schedule, check});
  return cudaGetLastError();
}

cudaError_t prepare_schedule() noexcept {
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, schedule_kernel);
}

}  // namespace quire::cuda
