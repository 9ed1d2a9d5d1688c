// SPDX-License-Identifier: Apache-2.0
// schedule::build for lengths that only the device knows: a running sum over the requests, then
// every range's range on its own.
//
//   lengths [num_seqs]  ->  cost_before [num_seqs + 1], header  ->  ranges, arrivals [num_ranges]
//
// One block walks the requests kThreads at a time, so that a batch of up to 1,024 is one pass.
#include "cuda/schedule/kernel.hpp"

namespace quire::cuda {
namespace {

constexpr int kWarpSize = 32;
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;
constexpr unsigned kAllLanes = 0xffffffffU;

static_assert(kWarps == kWarpSize, "the warps' sums are scanned by one warp");

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
  if (warp == 0) warp_sums[lane] = warp_inclusive_sum(warp_sums[lane], lane);
  __syncthreads();

  const std::int64_t before = warp == 0 ? 0 : warp_sums[warp - 1];
  total = warp_sums[kWarps - 1];
  __syncthreads();  // the next pass writes warp_sums again
  return before + value;
}

__device__ std::int64_t cost_of_seq(const Arguments& arguments, std::int32_t seq) {
  if (seq >= arguments.batch.num_seqs) return 0;
  const schedule::SequenceUnits units =
      schedule::units_of(arguments.policy, arguments.shape,
                         schedule::lengths_of(arguments.shape, arguments.batch, seq));
  return schedule::cost_of(arguments.policy, arguments.shape, units);
}

__global__ void __launch_bounds__(kThreads)
    schedule_kernel(const __grid_constant__ Arguments arguments) {
  const schedule::ScheduleView schedule = arguments.schedule;
  const bool refused = arguments.check != nullptr && arguments.check->what != 0;
  const std::int32_t num_seqs = refused ? 0 : arguments.batch.num_seqs;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);

  std::int64_t cost = 0;  // of the passes so far
  for (std::int32_t first = 0; first < num_seqs; first += kThreads) {
    const std::int32_t seq = first + thread;
    std::int64_t pass_cost = 0;
    const std::int64_t upto = block_inclusive_sum(cost_of_seq(arguments, seq), pass_cost);
    if (seq < num_seqs) schedule.cost_before[seq + 1] = cost + upto;
    cost += pass_cost;
  }
  if (thread == 0) {
    schedule.cost_before[0] = 0;
    *schedule.header = {num_seqs, schedule::ranges_for(arguments.policy, arguments.shape, cost),
                        cost, 0};
  }
  __syncthreads();  // header and running costs are read by all
  for (std::int32_t range = thread; range < arguments.policy.num_ranges; range += kThreads) {
    schedule.ranges[range] =
        schedule::range_of(arguments.policy, arguments.shape, arguments.batch, schedule, range);
    schedule.arrivals[range] = 0;
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
