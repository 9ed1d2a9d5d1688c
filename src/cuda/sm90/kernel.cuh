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

// Asked for anew wherever they are needed, so that no register holds them meanwhile.
__device__ __forceinline__ int thread_of_block() { return opaque(static_cast<int>(threadIdx.x)); }
__device__ __forceinline__ int lane() { return thread_of_block() % kWarpSize; }
/// The same for the whole warp, as the compiler sees, too.
__device__ __forceinline__ int warp_of_warpgroup() {
  return __shfl_sync(kAllLanes, thread_of_block() / kWarpSize % 4, 0);
}
__device__ __forceinline__ bool is_loading_warpgroup() {
  return __shfl_sync(kAllLanes, thread_of_block() / kWarpgroupSize, 0) == 0;
}

/// A warp of the loading warpgroup: two for each half.
template <typename C>
__device__ __forceinline__ void load_small_units(const AttendParams& params,
                                                 typename C::Shared& shared) {
  const int half = warp_of_warpgroup() / 2;
  mma::load_units<typename C::Small>(params, shared.halves[half], share_of(half),
                                     warp_of_warpgroup() % 2 == 0, lane());
}

/// @return Whether the half's share has large units. Near for those who have read the range before.
__device__ __forceinline__ bool has_large_units_in(const AttendParams& params, int half) {
  return params.schedule.ranges[share_of(half) / params.policy.heads_abreast].has_large_units != 0;
}

/// A warp of the loading warpgroup.
template <typename C>
__device__ __forceinline__ void load_large_units(const AttendParams& params, const TileMaps& maps,
                                                 typename C::Large& shared) {
  using KeyLayout = typename C::KeyLayout;
  using ValueLayout = typename C::ValueLayout;
  const int warp = warp_of_warpgroup();
  if (warp == kUnitWarp) {
    UnitFinder<C>(params, shared.fixed, lane()).run();
  } else if (warp == kQueryWarp) {
    QueryLoader<C>(params, shared.fixed, lane()).run();
  } else if constexpr (std::is_same_v<KeyLayout, ValueLayout>) {
    TileLoader<C, KeyLayout>(params, maps, shared, warp == kKeyWarp, lane()).run();
  } else if (warp == kKeyWarp) {
    TileLoader<C, KeyLayout>(params, maps, shared, true, lane()).run();
  } else {
    TileLoader<C, ValueLayout>(params, maps, shared, false, lane()).run();
  }
}

/// One unit after another. The first scores of each are made while the results of the one before are
/// written.
template <typename C>
__device__ __forceinline__ void attend_large_units(ConsumerState<C>& state) {
  if (state.warpgroup == 1) state.pass_turn();  // the first one is the other's
  float scores[ConsumerState<C>::kScores];
  Results<C> results;
  auto before = state.place;  // of the unit before
#pragma unroll 1
  for (bool is_first = true;; is_first = false) {
    state.begin_unit(scores);
    if (results.are_there) {
      results.store(state, state.unit_at(before), state.query_rows(before));
    }
    results = {};
    state.wait_for_scores(scores);
    if (!is_first) state.release_unit(before);
    const Unit& unit = state.unit_at(state.place);
    if (unit.rows == 0) return;
    if (unit.sees_nothing()) {
      store_empty_unit<typename C::Element>(state.params, unit, state.thread(), kConsumers);
    } else {
      UnitAttention<C> attention(state, unit);
      attention.run(scores);
      attention.finish(results);
      if (unit.num_pieces > 1 || unit.leaves_states()) {
        finish_partial<typename C::Element>(state.params, unit, state.shared.fixed.is_last,
                                            state.thread(), kConsumers,
                                            [] { named_barrier<kConsumers>(kUnitEnd); });
      }
    }
    before = state.place;
    state.place.advance();
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, 1)
    attend_kernel(const __grid_constant__ AttendParams params,
                  const __grid_constant__ TileMaps maps) {
  extern __shared__ __align__(1024) std::byte memory[];
  auto& shared = *reinterpret_cast<typename C::Shared*>(memory);
  if (params.check != nullptr && params.check->what != 0) return;
  if (threadIdx.x < kHalves) mma::init_barriers<typename C::Small>(shared.halves[threadIdx.x]);
  __syncthreads();
  const int half = static_cast<int>(threadIdx.x) / kWarpgroupSize - 1;
  bool has_large_units = false;  // the loading warps have read it
  if (is_loading_warpgroup()) {
    give_registers<kForSmallUnits.loader>();
    load_small_units<C>(params, shared);
    has_large_units = has_large_units_in(params, warp_of_warpgroup() / 2);
  } else {
    take_registers<kForSmallUnits.consumer>();
    mma::ConsumerState<typename C::Small> state{params, shared.halves[half], warp_of_warpgroup(),
                                                lane(), half * 3};
    mma::attend_units(state);
    if (half == 0) store_padding<typename C::Element>(params, kWarpgroupSize);
  }
  // When all are here, shared memory is free but for the barriers.
  if (__syncthreads_or(static_cast<int>(has_large_units)) == 0) return;
  if (threadIdx.x == 0) {
    for (auto& each : shared.halves) mma::end_barriers<typename C::Small>(each);
    init_barriers<C>(shared.large);
  }
  order_before_boxes();
  __syncthreads();
  if (is_loading_warpgroup()) {
    give_registers<kForLargeUnits.loader>();
    load_large_units<C>(params, maps, shared.large);
  } else {
    take_registers<kForLargeUnits.consumer>();
    ConsumerState<C> state{params, shared.large, maps.are_valid, half, warp_of_warpgroup(), lane()};
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
