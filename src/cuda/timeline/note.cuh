// SPDX-License-Identifier: Apache-2.0
/// @file
/// How a warp notes what it does. Nothing at all in builds without `QUIRE_CUDA_TIMELINE`.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/timeline/events.hpp"

namespace quire::cuda::timeline {

#if QUIRE_CUDA_TIMELINE

__device__ inline std::uint64_t clock_now() {
  std::uint64_t clock;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(clock)::"memory");
  return clock;
}
__device__ inline Moment moment_now() {
  Moment now{clock_now(), 0};
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now.nanoseconds)::"memory");
  return now;
}

/// Events that each warp has noted; null in kernels that note nothing.
__device__ inline std::uint32_t* event_counts() {
  extern __shared__ std::byte timeline_memory[];
  std::uint32_t bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  if (bytes < kSharedBytes) return nullptr;
  return reinterpret_cast<std::uint32_t*>(timeline_memory + bytes - kSharedBytes);
}

/// From now on the warp does something else. One lane of it is enough.
__device__ inline void note(const AttendParams& params, Activity activity, std::int32_t of = 0) {
  if (params.timeline.blocks == nullptr || threadIdx.x % 32 != 0) return;
  if (event_counts() == nullptr) return;
  const std::uint32_t warp = threadIdx.x / 32;
  const std::uint32_t index = event_counts()[warp]++;
  BlockRecord& block = params.timeline.blocks[blockIdx.x];
  if (index < kMostEvents) block.events[warp][index] = {clock_now(), activity, of};
  if (activity != Activity::kDone) return;
  block.num_events[warp] = min(index + 1, kMostEvents);
  block.end = moment_now();
}

/// The first thing that a block does; a barrier of the whole block follows before anything is noted.
__device__ inline void begin_block(const AttendParams& params) {
  if (params.timeline.blocks == nullptr || threadIdx.x % 32 != 0) return;
  BlockRecord& block = params.timeline.blocks[blockIdx.x];
  event_counts()[threadIdx.x / 32] = 0;
  if (threadIdx.x == 0) {
    block.begin = moment_now();
    asm volatile("mov.u32 %0, %%smid;" : "=r"(block.multiprocessor));
    block.num_blocks = gridDim.x;
    for (auto& count : block.num_events) count = 0;
  }
  note(params, Activity::kStart);
}

#else

__device__ inline void note(const AttendParams&, Activity, std::int32_t = 0) {}
__device__ inline void begin_block(const AttendParams&) {}

#endif

}  // namespace quire::cuda::timeline

namespace quire::cuda {

using timeline::Activity;
using timeline::note;

}  // namespace quire::cuda
