// SPDX-License-Identifier: Apache-2.0
/// @file
/// The block that makes a schedule: sums over its threads, and how it looks for prefixes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/schedule/arguments.cuh"

namespace quire::cuda::scheduler {

/// Sum of `value` over the lanes up to this one.
__device__ inline std::int64_t warp_inclusive_sum(std::int64_t value, int lane) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const std::int64_t below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

/// Sum of `value` over the block's threads up to this one; `total` is that over all of them.
__device__ inline std::int64_t block_inclusive_sum(std::int64_t value, std::int64_t& total) {
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
    constexpr int kAtOnce = 8;  // of a lane, on their way at the same time
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

}  // namespace quire::cuda::scheduler
