// SPDX-License-Identifier: Apache-2.0
/// @file
/// Attention on tensor cores for any number of rows, from sm_80 on.
///
///   q [total_q, num_qo_heads, D], K and V pages  ->  o [total_q, num_qo_heads, Dv], lse
///
/// A block takes one share of the schedule: units of at most 32 rows (the queries of a tile times
/// the heads of a group, packed) against their keys, 64 at a time. Two warps look pages up and
/// load (`Producer`), four compute (`UnitAttention`, `QuarterAttention`, `StripeAttention`); between them lies a ring of
/// half tiles, K and V in turn, that stays full across units. Split units are merged by the block
/// that finishes last.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit_end.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/consumer.cuh"
#include "cuda/mma/producer.cuh"
#include "cuda/mma/quarters.cuh"
#include "cuda/mma/stripes.cuh"
#include "cuda/timeline/note.cuh"
#include "schedule/schedule.hpp"

namespace quire::cuda::mma {

/// One thread calls it.
template <typename C>
__device__ void init_barriers(typename C::Shared& shared) {
  for (int slot = 0; slot < C::kSlots; ++slot) {
    barrier_init(shared_address(&shared.full[slot]), kWarpSize);
    barrier_init(shared_address(&shared.empty[slot]), kConsumerWarps);
  }
  barrier_init(shared_address(&shared.fixed.queries_full), kWarpSize + 1);
  barrier_init(shared_address(&shared.fixed.queries_empty), kConsumerWarps);
}

/// Frees the memory of barriers that nobody uses any more. One thread calls it.
template <typename C>
__device__ void end_barriers(typename C::Shared& shared) {
  for (int slot = 0; slot < C::kSlots; ++slot) {
    barrier_end(shared_address(&shared.full[slot]));
    barrier_end(shared_address(&shared.empty[slot]));
  }
  barrier_end(shared_address(&shared.fixed.queries_full));
  barrier_end(shared_address(&shared.fixed.queries_empty));
}

template <typename C>
__device__ void attend_unit(ConsumerState<C>& state, const Unit& unit) {
  if (unit.sees_nothing()) {
    store_empty_unit<typename C::Output>(state.params, unit, state.warp * kWarpSize + state.lane,
                                         kConsumers);
    state.release_queries();
    return;
  }
  using ManyRows = std::conditional_t<C::kHasQuarters, QuarterAttention<C>, UnitAttention<C, 2>>;
  using FewRows = std::conditional_t<C::kHasStripes, StripeAttention<C>, UnitAttention<C, 1>>;
  const bool are_final = unit.rows <= 16 ? FewRows(state, unit).run() : ManyRows(state, unit).run();
  if (!are_final) {
    finish_partial<schedule::kSmallUnits, typename C::Output>(
        state.params, unit, state.shared.fixed.complete, state.warp * kWarpSize + state.lane,
        kConsumers, [&] { state.wait_at(kUnitEnd); });
  }
}

/// All units of the block's ranges.
template <typename C>
__device__ __forceinline__ void attend_units(ConsumerState<C>& state) {
#pragma unroll 1
  while (true) {
    note(state.params, Activity::kAwaitUnit);
    const Unit& unit = state.next_unit();
    if (unit.rows == 0) return;
    attend_unit(state, unit);
  }
}

/// A loading warp.
/// @param make_boxes  (loads_keys, layout): `NoBoxes` or the like, for tiles of that layout.
template <typename C, typename MakeBoxes>
__device__ __forceinline__ void load_units(const AttendParams& params, typename C::Shared& shared,
                                           const MakeBoxes& make_boxes, std::int32_t share,
                                           bool loads_keys, int lane) {
  const auto load = [&](auto layout, bool keys) {
    const auto boxes = make_boxes(keys, layout);
    using Boxes = std::remove_const_t<decltype(boxes)>;
    Producer<C, decltype(layout), Boxes>(params, shared, boxes, keys, lane).run(share);
  };
  if constexpr (std::is_same_v<typename C::KeyLayout, typename C::ValueLayout>) {
    load(typename C::KeyLayout{}, loads_keys);
  } else if (loads_keys) {
    load(typename C::KeyLayout{}, true);
  } else {
    load(typename C::ValueLayout{}, false);
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, sizeof(typename C::Shared) <= kHalf ? 2 : 1)
    attend_kernel(const __grid_constant__ AttendParams params) {
  extern __shared__ __align__(1024) std::byte memory[];
  auto& shared = *reinterpret_cast<typename C::Shared*>(memory);
  if (params.check != nullptr && params.check->what != 0) return;
  timeline::begin_block(params);
  if (threadIdx.x == 0) init_barriers<C>(shared);
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (warp >= kConsumerWarps) {
    load_units<C>(
        params, shared, [](bool, auto) { return NoBoxes(); }, static_cast<std::int32_t>(blockIdx.x),
        warp == kConsumerWarps, lane);
    note(params, Activity::kDone);
    return;
  }
  ConsumerState<C> state{params, shared, warp, lane};
  attend_units(state);
  store_padding<typename C::Output>(params, params.schedule.header->overview.num_queries,
                                    kConsumers);
  note(params, Activity::kDone);
}

/// The kernel as the host launches it.
template <typename C>
AttendKernel describe_kernel() {
  AttendKernel kernel;
  kernel.function = reinterpret_cast<const void*>(&attend_kernel<C>);
  kernel.threads = kThreads;
  kernel.shared_bytes = sizeof(typename C::Shared) + timeline::kSharedBytes;
  kernel.blocks_per_multiprocessor = sizeof(typename C::Shared) <= kHalf ? 2 : 1;
  kernel.tile_rows = C::kTileRows;
  kernel.tile_keys = kTileKeys;
  return kernel;
}

}  // namespace quire::cuda::mma
