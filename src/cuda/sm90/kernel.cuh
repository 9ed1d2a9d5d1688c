// SPDX-License-Identifier: Apache-2.0
/// @file
/// Attention on Hopper, for units of any size.
///
///   q [total_q, num_qo_heads, D], K and V pages  ->  o [total_q, num_qo_heads, Dv], lse
///
/// A block fills a multiprocessor and takes two shares of the schedule. Small units (at most 32
/// rows) of both are computed at the same time by the portable kernel's code, which each half of the
/// block runs for itself; then the whole block computes the large ones (at most 128 rows), one after
/// another, with wgmma: a warpgroup loads (`Producer`), two compute (`UnitAttention`).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/kernel.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/units.cuh"

namespace quire::cuda::sm90 {

/// One thread calls it.
template <typename C>
__device__ void init_barriers(typename C::Large& shared) {
  constexpr int kConsumerWarps = kConsumers / kWarpSize;
  for (int slot = 0; slot < C::kSlots; ++slot) {
    barrier_init(shared_address(&shared.full[slot]), kWarpSize);
    barrier_init(shared_address(&shared.empty[slot]), kConsumerWarps);
  }
  for (int unit = 0; unit < C::kUnits; ++unit) {
    barrier_init(shared_address(&shared.fixed.units_full[unit]), 1);
    barrier_init(shared_address(&shared.fixed.units_empty[unit]), kUnitWarp + kConsumerWarps);
  }
  for (int buffer = 0; buffer < C::kQueryBuffers; ++buffer) {
    barrier_init(shared_address(&shared.fixed.queries_full[buffer]), kWarpSize);
    barrier_init(shared_address(&shared.fixed.queries_empty[buffer]), kConsumerWarps);
  }
}

/// A warp of the loading warpgroup.
template <typename C>
__device__ __forceinline__ void load_large_units(const AttendParams& params, const TileMaps& maps,
                                                 typename C::Large& shared,
                                                 std::int32_t first_share, int warp, int lane) {
  using KeyLayout = typename C::KeyLayout;
  using ValueLayout = typename C::ValueLayout;
  if (warp == kUnitWarp) {
    UnitFinder<C>(params, shared.fixed, lane).run(first_share);
  } else if (warp == kQueryWarp) {
    QueryLoader<C>(params, shared.fixed, lane).run();
  } else if constexpr (std::is_same_v<KeyLayout, ValueLayout>) {
    TileLoader<C, KeyLayout>(params, maps, shared, warp == kKeyWarp, lane).run();
  } else if (warp == kKeyWarp) {
    TileLoader<C, KeyLayout>(params, maps, shared, true, lane).run();
  } else {
    TileLoader<C, ValueLayout>(params, maps, shared, false, lane).run();
  }
}

/// Counts a piece of a split unit, and merges all of them if it was the last.
template <typename C>
__device__ void finish_piece(const ConsumerState<C>& state, const Unit& unit) {
  named_barrier<kConsumers>(kUnitEnd);
  if (state.thread() == 0) state.shared.fixed.is_last = arrive_last(state.params, unit);
  named_barrier<kConsumers>(kUnitEnd);
  if (state.shared.fixed.is_last) {
    merge_pieces<typename C::Element>(state.params, unit, state.thread(), kConsumers);
  }
}

template <typename C>
__device__ __forceinline__ void attend_large_units(ConsumerState<C>& state) {
  if (state.warpgroup == 1) state.pass_turn();  // the first one is the other's
#pragma unroll 1
  while (true) {
    const Unit& unit = state.next_unit();
    if (unit.rows == 0) return;
    if (unit.sees_nothing()) {
      store_empty_unit<typename C::Element>(state.params, unit, state.thread(), kConsumers);
      state.release_queries();
      state.release_unit();
      continue;
    }
    UnitAttention<C>(state, unit).run();
    if (unit.num_pieces > 1) finish_piece(state, unit);
    state.release_unit();
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, 1)
    attend_kernel(const __grid_constant__ AttendParams params,
                  const __grid_constant__ TileMaps maps) {
  extern __shared__ __align__(1024) std::byte memory[];
  auto& shared = *reinterpret_cast<typename C::Shared*>(memory);
  if (params.check != nullptr && params.check->what != 0) return;
  const int warpgroup = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarpgroupSize, 0);
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarpSize % 4, 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int32_t first_share = static_cast<std::int32_t>(blockIdx.x) * kHalves;

  if (threadIdx.x < kHalves) mma::init_barriers<typename C::Small>(shared.halves[threadIdx.x]);
  __syncthreads();
  if (warpgroup == 0) {
    const int half = warp / 2;
    mma::load_units<typename C::Small>(params, shared.halves[half], first_share + half,
                                       warp % 2 == 0, lane);
  } else {
    const int half = warpgroup - 1;
    mma::ConsumerState<typename C::Small> state{params, shared.halves[half], warp, lane, half * 3};
    mma::attend_units(state);
    if (half == 0) store_padding<typename C::Element>(params, kWarpgroupSize);
  }
  if (params.schedule.header->has_large_units == 0) return;
  __syncthreads();  // shared memory is free
  if (threadIdx.x == 0) init_barriers<C>(shared.large);
  __syncthreads();
  if (warpgroup == 0) {
    give_registers<kLoaderRegisters>();
    load_large_units<C>(params, maps, shared.large, first_share, warp, lane);
  } else {
    take_registers<kConsumerRegisters>();
    ConsumerState<C> state{params, shared.large, maps.are_valid, warpgroup - 1, warp, lane};
    attend_large_units(state);
  }
}

/// The kernel as the host launches it.
template <typename C>
AttendKernel describe_kernel() {
  AttendKernel kernel;
  kernel.function = reinterpret_cast<const void*>(&attend_kernel<C>);
  kernel.threads = kThreads;
  kernel.shared_bytes = sizeof(typename C::Shared);
  kernel.blocks_per_multiprocessor = 1;
  kernel.compute_capability = 90;
  kernel.shares_per_block = kHalves;
  kernel.tile_rows = C::Small::kTileRows;
  kernel.large_tile_rows = C::kTileRows;
  kernel.tile_keys = mma::kTileKeys;
  kernel.takes_tile_maps = true;
  return kernel;
}

}  // namespace quire::cuda::sm90
