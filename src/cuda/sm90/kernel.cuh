// SPDX-License-Identifier: Apache-2.0
/// @file
/// Attention on Hopper, for units of any size.
///
///   q [total_q, num_qo_heads, D], K and V pages  ->  o [total_q, num_qo_heads, Dv], lse
///
/// A block fills a multiprocessor and takes two shares of the line of small units (at most 32 rows)
/// and up to two of the line of large units (at most 128 rows, 192 of heads of 64). The small ones are
/// computed by the mma kernel's code, which each half of the block runs for itself, the large ones by
/// the whole block with wgmma: a warpgroup loads (`UnitFinder`, `QueryLoader`, `TileLoader`; 8-bit
/// codes: `WideningLoader`, or `ValueWidener` besides), two or three compute (`UnitAttention`). Where
/// there are both, some blocks take the ones and some the others, or all take both (`phases_of`), so
/// that memory and tensor cores are busy at the same time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit_end.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/kernel.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/staged_values.cuh"
#include "cuda/sm90/units.cuh"
#include "cuda/sm90/widening.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::sm90 {

/// One thread calls it.
template <typename C>
__device__ void init_barriers(typename C::Large& shared) {
  constexpr int kConsumerWarps = C::kConsumers / kWarpSize;
  for (int slot = 0; slot < C::kSlots; ++slot) {
    barrier_init(shared_address(&shared.full[slot]), C::arrivals_of_slot(slot));
    barrier_init(shared_address(&shared.empty[slot]), kConsumerWarps);
  }
  for (int unit = 0; unit < C::kUnits; ++unit) {
    barrier_init(shared_address(&shared.fixed.units_full[unit]), 1);
    barrier_init(shared_address(&shared.fixed.units_empty[unit]),
                 C::kLoadersOfUnits + kConsumerWarps);
  }
  for (int buffer = 0; buffer < C::kQueryBuffers; ++buffer) {
    barrier_init(shared_address(&shared.fixed.queries_full[buffer]), C::kLoaderArrivals);
    barrier_init(shared_address(&shared.fixed.queries_empty[buffer]), kConsumerWarps);
  }
  if constexpr (C::kKeepsKeys) {
    for (auto& full : shared.fixed.staged.full) barrier_init(shared_address(&full), kWarpSize);
    for (auto& empty : shared.fixed.staged.empty) {
      barrier_init(shared_address(&empty), C::kStagingWarps);
    }
  }
  for (auto& of_warpgroup : shared.fixed.exceeds) of_warpgroup[0] = of_warpgroup[1] = 0;
}

/// Frees the memory of barriers that nobody uses any more. One thread calls it.
template <typename C>
__device__ void end_barriers(typename C::Large& shared) {
  for (int slot = 0; slot < C::kSlots; ++slot) {
    barrier_end(shared_address(&shared.full[slot]));
    barrier_end(shared_address(&shared.empty[slot]));
  }
  for (int unit = 0; unit < C::kUnits; ++unit) {
    barrier_end(shared_address(&shared.fixed.units_full[unit]));
    barrier_end(shared_address(&shared.fixed.units_empty[unit]));
  }
  for (int buffer = 0; buffer < C::kQueryBuffers; ++buffer) {
    barrier_end(shared_address(&shared.fixed.queries_full[buffer]));
    barrier_end(shared_address(&shared.fixed.queries_empty[buffer]));
  }
  if constexpr (C::kKeepsKeys) {
    for (auto& full : shared.fixed.staged.full) barrier_end(shared_address(&full));
    for (auto& empty : shared.fixed.staged.empty) barrier_end(shared_address(&empty));
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

/// Whether the warpgroup loads, or computes small units.
__device__ __forceinline__ bool is_of_halves() {
  return __shfl_sync(kAllLanes, thread_of_block() / kWarpgroupSize, 0) <= kHalves;
}

/// A warp of the loading warpgroup: two for each half.
template <typename C>
__device__ __forceinline__ void load_small_units(const AttendParams& params, const TileMaps& maps,
                                                 typename C::Shared& shared) {
  const int half = warp_of_warpgroup() / 2;
  const std::int32_t worker = static_cast<std::int32_t>(blockIdx.x) - shared.overview.large_workers;
  const auto make_boxes = [&](bool of_keys, auto layout) {
    if constexpr (C::kHasSmallBoxes) {
      return RunBoxes<decltype(layout), mma::kTileKeys, true, false>(params, maps, of_keys, lane());
    } else {
      return mma::NoBoxes();
    }
  };
  mma::load_units<typename C::Small>(params, shared.halves[half], make_boxes,
                                     worker * kHalves + half, warp_of_warpgroup() % 2 == 0, lane());
}

/// A warp of the loading warpgroup.
template <typename C>
__device__ __forceinline__ void load_large_units(const AttendParams& params, const TileMaps& maps,
                                                 const schedule::Overview& overview,
                                                 typename C::Large& shared) {
  using KeyLayout = typename C::KeyLayout;
  using ValueLayout = typename C::ValueLayout;
  const int warp = warp_of_warpgroup();
  if constexpr (C::kWidens) {
    WideningLoader<C>(params, shared, warp, lane()).run(maps, overview);
  } else if (warp == kUnitWarp) {
    find_units<C>(params, maps, overview, shared.fixed, lane());
  } else if constexpr (C::kKeepsKeys) {
    load_and_widen_values<C>(params, maps, shared, warp, lane());
  } else if (warp == kQueryWarp) {
    QueryLoader<C>(params, maps, shared.fixed, lane()).run();
  } else if constexpr (std::is_same_v<KeyLayout, ValueLayout>) {
    TileLoader<C, KeyLayout>(params, maps, shared, warp == kKeyWarp, lane()).run();
  } else if (warp == kKeyWarp) {
    TileLoader<C, KeyLayout>(params, maps, shared, true, lane()).run();
  } else {
    TileLoader<C, ValueLayout>(params, maps, shared, false, lane()).run();
  }
}

/// One unit after another.
template <typename C>
__device__ __forceinline__ void attend_units(ConsumerState<C>& state) {
  if (state.is_last_warpgroup()) state.pass_turn();  // the first one is the first's
  float scores[ConsumerState<C>::kScores];
#pragma unroll 1
  for (bool is_first = true;; is_first = false) {
    // With one buffer the next queries cannot come before this one's o, which lies there, has left.
    if (C::kQueryBuffers == 1 && !is_first) state.release_last_unit();
    note(state.params, Activity::kAwaitUnit);
    state.begin_unit(scores);
    note(state.params, Activity::kEdgeTile);
    const LargeUnit& unit = state.unit_at(state.place);
    const RowEnds ends(state, unit);
    if (C::kQueryBuffers > 1 && !is_first) state.release_last_unit();
    if (unit.is_plain) {
      state.wait_for_scores(scores);
      UnitAttention<C, true> attention(state, unit, ends);
      attention.run(scores);
      attention.finish();
    } else {
      state.wait_for_scores(scores);
      if (unit.rows == 0) return;
      if (unit.sees_nothing()) {
        store_empty_unit<typename C::Output>(state.params, unit, state.thread(), C::kConsumers);
        state.place.advance();
        continue;
      }
      UnitAttention<C, false> attention(state, unit, ends);
      attention.run(scores);
      attention.finish();
    }
    if (unit.num_pieces > 1 || unit.leaves_states()) {
      finish_partial<schedule::kLargeUnits, typename C::Output>(
          state.params, unit, state.shared.fixed.complete, state.thread(), C::kConsumers,
          [] { named_barrier<C::kConsumers>(kUnitEnd); });
    }
    state.place.advance();
  }
}

/// The kinds of units that the block takes, in their order.
///
/// If all blocks take both, half of them begin with the one and half with the other, so that memory
/// and tensor cores are busy at the same time. But results of shared prefixes and of parts are
/// joined by those who come last: better by many with a small unit each than by a few with a large
/// one.
__device__ __forceinline__ Phases phases_of(const schedule::Overview& overview) {
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  const bool takes_all = overview.large_workers == 0;
  const bool takes_large = takes_all || block < overview.large_workers;
  const bool takes_small = takes_all || !takes_large;
  const Phases small =
      takes_small && overview.num_ranges[schedule::kSmallUnits] > 0 ? kSmallPhase : kEnd;
  const Phases large =
      takes_large && overview.num_ranges[schedule::kLargeUnits] > 0 ? kLargePhase : kEnd;
  const bool is_large_first = overview.num_prefixes > 0 || block % 2 == 1;
  if (small == kEnd || (large != kEnd && is_large_first)) return large | small << kPhaseBits;
  return small | large << kPhaseBits;
}

/// Brings the page ids near with which the shares of small units from `share` on begin. A warp calls
/// it.
__device__ __forceinline__ void look_ahead_for_pages(const AttendParams& params,
                                                     std::int32_t share) {
  constexpr int kLines = 3;  // of a stretch of keys, as it may begin anywhere in a line
  const int half = lane() / kLines;
  if (half >= kHalves || params.shape.page_size == kContiguousKv) return;
  const std::int32_t heads = params.policy.lines[schedule::kSmallUnits].heads_abreast;
  const schedule::WorkItem& first =
      params.schedule.lines[schedule::kSmallUnits].ranges[(share + half) / heads].first;
  if (first.kv_begin >= first.kv_end) return;
  const std::int32_t begin = params.page_size.quotient(first.kv_begin);
  const std::int32_t end = params.page_size.quotient(first.kv_end - 1);
  const std::int32_t page = begin + lane() % kLines * (128 / static_cast<int>(sizeof(page)));
  prefetch(schedule::page_ids(params.batch, first.seq) + min(page, end));
}

/// Says what the block does, and brings the ranges of its small units near meanwhile (if all blocks
/// take both kinds). One warp calls it.
template <typename C>
__device__ __forceinline__ void look_ahead(const AttendParams& params, typename C::Shared& shared) {
  const schedule::LineView& small = params.schedule.lines[schedule::kSmallUnits];
  const std::int32_t heads = params.policy.lines[schedule::kSmallUnits].heads_abreast;
  const auto share = static_cast<std::int32_t>(blockIdx.x) * kHalves;
  constexpr int kLines = (sizeof(schedule::Range) + 127) / 128 + 1;
  if (lane() < kHalves * kLines) {
    const schedule::Range* const range = small.ranges + (share + lane() % kHalves) / heads;
    prefetch(reinterpret_cast<const std::byte*>(range) + lane() / kHalves * 128);
  }
  // By all lanes, since they would wait for the one.
  const schedule::Overview overview = small.ranges[share / heads].overview;
  const Phases phases = phases_of(overview);
  if (lane() == 0) {
    shared.overview = overview;
    shared.phases = phases;
  }
}

/// From what all warps of a warpgroup have to what they need.
template <int kFrom, int kTo>
__device__ __forceinline__ void change_registers() {
  if constexpr (kTo > kFrom) {
    take_registers<kTo>();
  } else {
    give_registers<kTo>();
  }
}

/// All small units of the block's shares. Their barriers are there.
template <typename C>
__device__ __forceinline__ void attend_small_units(const AttendParams& params, const TileMaps& maps,
                                                   typename C::Shared& shared) {
  constexpr int kLaunched = C::kLaunchedRegisters;
  const int half = thread_of_block() / kWarpgroupSize - 1;
  if (is_loading_warpgroup()) {
    change_registers<kLaunched, C::kSmallRegisters.loader>();
    load_small_units<C>(params, maps, shared);
  } else if (C::kComputingWarpgroups == kHalves || is_of_halves()) {
    take_registers<C::kSmallRegisters.consumer>();
    mma::ConsumerState<typename C::Small> state{params, shared.halves[half], warp_of_warpgroup(),
                                                lane(), half * 3};
    mma::attend_units(state);
  } else {
    give_registers<kIdleRegisters>();
  }
}

/// All large units of the block's shares.
template <typename C>
__device__ __forceinline__ void attend_large_units(const AttendParams& params, const TileMaps& maps,
                                                   typename C::Shared& shared) {
  if (thread_of_block() == 0) init_barriers<C>(shared.large);
  order_before_boxes();
  __syncthreads();
  if (is_loading_warpgroup()) {
    give_registers<C::kLargeRegisters.loader>();
    load_large_units<C>(params, maps, shared.overview, shared.large);
  } else {
    take_registers<C::kLargeRegisters.consumer>();
    const int warpgroup = thread_of_block() / kWarpgroupSize - 1;
    ConsumerState<C> state{
        params, maps, shared.large, C::kWidens || maps.has_kv, warpgroup, warp_of_warpgroup(),
        lane()};
    attend_units(state);
  }
}

/// What the block has not done yet, with what it is doing. Asked for anew every time, so that no
/// register holds it.
template <typename Shared>
__device__ __forceinline__ Phases phases_left(const Shared& shared) {
  return *const_cast<const volatile Phases*>(&shared.phases);
}
__device__ __forceinline__ Phases first_of(Phases phases) { return phases % (1U << kPhaseBits); }
__device__ __forceinline__ bool is_last(Phases phases) { return phases < (1U << kPhaseBits); }

/// From large units to small ones.
template <typename C>
__device__ __forceinline__ void return_registers() {
  constexpr int kLarge = C::kLargeRegisters.consumer;
  if (is_loading_warpgroup()) {
    take_registers<C::kSmallRegisters.loader>();
  } else if (C::kComputingWarpgroups == kHalves || is_of_halves()) {
    change_registers<kLarge, C::kSmallRegisters.consumer>();
  } else {
    give_registers<kIdleRegisters>();
  }
}
/// From small units on the way to large ones, where computing warps take some then.
template <typename C>
__device__ __forceinline__ void leave_registers() {
  if constexpr (C::kSmallRegisters.consumer > C::kLargeRegisters.consumer) {
    if (!is_loading_warpgroup() && is_of_halves()) give_registers<C::kLaunchedRegisters>();
  }
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    attend_kernel(const __grid_constant__ AttendParams params,
                  const __grid_constant__ TileMaps maps) {
  extern __shared__ __align__(1024) std::byte memory[];
  auto& shared = *reinterpret_cast<typename C::Shared*>(memory);
  if (params.check != nullptr && params.check->what != 0) return;
  timeline::begin_block(params);
  // The barriers of small units, which most blocks have first, are made beside.
  const int warp = warp_of_warpgroup();
  if (is_loading_warpgroup()) {
    if (warp == 0) look_ahead<C>(params, shared);
    if (warp == 1) look_ahead_for_pages(params, static_cast<std::int32_t>(blockIdx.x) * kHalves);
    if (warp == 2 && lane() < kHalves) {
      mma::init_barriers<typename C::Small>(shared.halves[lane()]);
      order_before_boxes();
    }
    if (warp == 3 && lane() == 0 && maps.has_kv) {
      prefetch_map(maps.keys.map);
      prefetch_map(maps.values.map);
    }
  }
  __syncthreads();
  if (first_of(phases_left(shared)) != kSmallPhase) {
    if (thread_of_block() < kHalves) {
      mma::end_barriers<typename C::Small>(shared.halves[thread_of_block()]);
    }
    __syncthreads();
  }
  // Small units stand first: decode is faster by 2 to 5 µs than with their code behind the other
  // (notebook of prefill).
#pragma unroll 1
  while (true) {
    if (first_of(phases_left(shared)) == kSmallPhase) {
      attend_small_units<C>(params, maps, shared);
      if (is_last(phases_left(shared))) break;
      leave_registers<C>();
      __syncthreads();
      if (thread_of_block() == 0) shared.phases >>= kPhaseBits;
      if (thread_of_block() < kHalves) {
        mma::end_barriers<typename C::Small>(shared.halves[thread_of_block()]);
      }
      __syncthreads();
    }
    if (phases_left(shared) == kEnd) break;
    attend_large_units<C>(params, maps, shared);
    if (is_last(phases_left(shared))) break;
    __syncthreads();
    if (thread_of_block() == 0) {
      shared.phases >>= kPhaseBits;
      end_barriers<C>(shared.large);
#pragma unroll 1
      for (auto& half : shared.halves) mma::init_barriers<typename C::Small>(half);
      order_before_boxes();
    }
    return_registers<C>();
    __syncthreads();
  }
  if (!is_loading_warpgroup()) {
    store_padding<typename C::Output>(params, shared.overview.num_queries, C::kConsumers);
  }
  note(params, Activity::kDone);
}

/// The kernel as the host launches it.
template <typename C>
AttendKernel describe_kernel() {
  AttendKernel kernel;
  kernel.function = reinterpret_cast<const void*>(&attend_kernel<C>);
  kernel.threads = C::kThreads;
  kernel.shared_bytes = sizeof(typename C::Shared);
  kernel.blocks_per_multiprocessor = 1;
  kernel.compute_capability = 90;
  kernel.shares_per_block = kSharesPerBlock;
  kernel.tile_rows = C::Small::kTileRows;
  kernel.large_tile_rows = C::kTileRows;
  kernel.large_tile_keys = C::kTileKeys;
  kernel.tile_keys = mma::kTileKeys;
  kernel.takes_tile_maps = true;
  return kernel;
}

}  // namespace quire::cuda::sm90
