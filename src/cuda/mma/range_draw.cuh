// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which range a block goes on with when its own is done: multiprocessors are not equally fast, so
/// the short ranges at the end of the line are drawn. Results do not depend on who draws what.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/common/ptx.cuh"

namespace quire::cuda::mma {

/// What the warp that draws tells the other loading warp.
struct DrawnRange {
  std::int32_t range_and_head;
  std::uint64_t full;   // filled by the lane that draws
  std::uint64_t empty;  // drained by a lane of the other warp
};

/// One of the two loading warps' view of the ranges that the block draws.
class RangeDraw {
 public:
  static constexpr std::int32_t kNone = -1;

  /// @param draws  Or is told what the other warp draws.
  __device__ RangeDraw(const AttendParams& params, DrawnRange& drawn, bool draws, int lane)
      : params_(params), drawn_(drawn), draws_(draws), lane_(lane) {}

  /// @return The next range and head, in both warps the same; `kNone` once, at the end.
  __device__ std::int32_t next() {
    const std::uint32_t full = shared_address(&drawn_.full);
    const std::uint32_t empty = shared_address(&drawn_.empty);
    std::int32_t range_and_head = kNone;
    if (draws_) {
      range_and_head = draw();
      barrier_wait(empty, parity_ ^ 1);
      if (lane_ == 0) {
        drawn_.range_and_head = range_and_head;
        barrier_arrive(full);
      }
    } else {
      barrier_wait(full, parity_);
      range_and_head = drawn_.range_and_head;
      __syncwarp();
      if (lane_ == 0) barrier_arrive(empty);
    }
    parity_ ^= 1;
    return range_and_head;
  }

 private:
  __device__ std::int32_t draw() const {
    schedule::Header& header = *params_.schedule.header;
    const std::int32_t heads = params_.policy.heads_abreast;
    const std::int32_t num_short = (header.cuts.num_ranges - header.cuts.num_long) * heads;
    if (num_short == 0) return kNone;
    std::uint32_t ticket = 0;
    if (lane_ == 0) ticket = atomicAdd(&header.drawn, 1U);
    ticket = __shfl_sync(kAllLanes, ticket, 0);
    if (ticket < static_cast<std::uint32_t>(num_short)) {
      return header.cuts.num_long * heads + static_cast<std::int32_t>(ticket);
    }
    if (lane_ == 0) leave(header);
    return kNone;
  }

  /// The last block to leave makes the counter ready for the next run.
  static __device__ void leave(schedule::Header& header) {
    const std::uint32_t last = gridDim.x - 1;
    if (atomicInc(&header.done, last) == last) header.drawn = 0;
  }

  const AttendParams& params_;
  DrawnRange& drawn_;
  const bool draws_;
  const int lane_;
  std::uint32_t parity_ = 0;
};

}  // namespace quire::cuda::mma
