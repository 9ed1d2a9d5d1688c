// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the warps of a block hear of its large units: one warp finds them and puts them into a short
/// queue in shared memory, from which the others read them, each at its own pace.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"

namespace quire::cuda::sm90 {

/// Share `i` of a block. Its shares are neighbours, which are other heads' of one range: blocks that
/// take their shares one after another read half of the heads at a time, which stay in the
/// second-level cache.
__device__ __forceinline__ std::int32_t share_of(int i) {
  return static_cast<std::int32_t>(blockIdx.x) * kHalves + i;
}

/// Puts the large units of a block's shares into the queue, and one without rows behind them.
template <typename C>
class UnitFinder {
 public:
  __device__ UnitFinder(const AttendParams& params, typename C::Fixed& shared, int lane)
      : params_(params), shared_(shared), lane_(lane) {}

  __device__ void run() {
#pragma unroll 1
    for (int i = 0; i < kHalves; ++i) {
      UnitCursor<UnitSize::kLarge> cursor(params_, share_of(i));
      Unit unit = cursor.first();
#pragma unroll 1
      while (unit.rows > 0) {
        put(unit);
        unit = cursor.next();
      }
    }
    put(Unit{});
  }

 private:
  __device__ __forceinline__ void put(const Unit& unit) {
    barrier_wait(shared_address(&shared_.units_empty[at_.slot]), at_.parity ^ 1);
    if (lane_ == 0) {
      shared_.units[at_.slot] = unit;
      barrier_arrive(shared_address(&shared_.units_full[at_.slot]));
    }
    __syncwarp();
    at_.advance();
  }

  const AttendParams& params_;
  typename C::Fixed& shared_;
  const int lane_;
  mma::RingPosition<C::kUnits> at_;
};

/// A warp's view of the queue: a unit and the next one, like `mma::UnitWalk`.
template <typename C>
class UnitReader {
 public:
  __device__ UnitReader(typename C::Fixed& shared, int lane) : shared_(shared), lane_(lane) {
    wait_for_next();
  }

  [[nodiscard]] __device__ const Unit& now() const { return shared_.units[now_.slot]; }
  [[nodiscard]] __device__ const Unit& next() const { return shared_.units[next_.slot]; }
  __device__ void find_next() {
    next_.advance();
    wait_for_next();
  }
  __device__ void step() {
    if (now_.slot != next_.slot) release();
    now_ = next_;
  }

 private:
  __device__ void wait_for_next() const {
    barrier_wait(shared_address(&shared_.units_full[next_.slot]), next_.parity);
  }
  __device__ void release() const {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.units_empty[now_.slot]));
  }

  typename C::Fixed& shared_;
  const int lane_;
  mma::RingPosition<C::kUnits> now_;
  mma::RingPosition<C::kUnits> next_;
};

}  // namespace quire::cuda::sm90
