// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loading warps of large units that multiply K of 8 bits as it is: boxes bring K to the ring, and V to
/// another place in shared memory, from where three warps widen it into the ring.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/row_widener.cuh"
#include "cuda/sm90/units.cuh"

namespace quire::cuda::sm90 {

/// One of the warps that widen: it has a part of the keys of every tile, that of V, which waits for room
/// twice, the smallest.
template <typename C>
class ValueWidener {
 public:
  __device__ ValueWidener(typename C::Large& shared, LoadingWarp warp, int lane)
      : shared_(shared),
        lane_(lane),
        first_key_(warp == kKeyWarp     ? 0
                   : warp == kValueWarp ? 3 * kStepKeys
                                        : 5 * kStepKeys),
        has_all_steps_(warp != kValueWarp),
        widener_(lane) {
    static_assert(C::kTileKeys == (3 * kMostSteps - 1) * kStepKeys);
  }

  /// The next tile. Its codes wait in registers until there is room: the ring has few tiles of V, and
  /// what is done from there on is what the computing warps wait for.
  __device__ __forceinline__ void run() {
    barrier_wait(shared_address(&shared_.fixed.staged.full[staged_.slot]), staged_.parity);
    const std::uint32_t from =
        shared_address(shared_.besides.staged[staged_.slot]) + From::below(first_key_);
    typename Widener::Codes codes[kMostSteps];
#pragma unroll
    for (int step = 0; step < kMostSteps; ++step) {
      if (has(step)) widener_.read(codes[step], from + From::below(step * kStepKeys));
    }
    arrive(shared_.fixed.staged.empty[staged_.slot]);
    const auto last = slot_.before(2 * C::kValueTiles);  // in the same memory
    barrier_wait(shared_address(&shared_.empty[last.slot]), last.parity);
    const std::uint32_t to = shared_.slot(slot_.slot) + To::below(first_key_);
#pragma unroll
    for (int step = 0; step < kMostSteps; ++step) {
      if (has(step)) widener_.write(to + To::below(step * kStepKeys), codes[step]);
    }
    show_to_products();
    arrive(shared_.full[slot_.slot]);
    staged_.advance();
    slot_.advance(2);
  }

 private:
  using From = typename C::StagedLayout;
  using To = typename C::ValueLayout;
  static constexpr int kStepKeys = 16;
  static constexpr int kMostSteps = 3;
  using Widener = RowWidener<typename C::Kv, From, To, kStepKeys>;

  __device__ bool has(int step) const { return step < kMostSteps - 1 || has_all_steps_; }
  __device__ void arrive(std::uint64_t& barrier) const {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&barrier));
  }

  typename C::Large& shared_;
  const int lane_;
  const int first_key_;
  const bool has_all_steps_;
  const Widener widener_;
  mma::RingPosition<C::kStagedTiles> staged_;
  mma::RingPosition<C::kSlots> slot_{1, 0};
};

/// The warp that loads queries; of each unit it has its part of all tiles of V then.
template <typename C>
__device__ __forceinline__ void load_queries_and_widen(const AttendParams& params,
                                                       const TileMaps& maps,
                                                       typename C::Large& shared, int lane) {
  UnitReader<C> units(shared.fixed, lane);
  QueryLoader<C> queries(params, maps, shared.fixed, lane);
  ValueWidener<C> values(shared, kQueryWarp, lane);
#pragma unroll 1
  while (true) {
    units.step();
    const LargeUnit& unit = units.now();
    queries.load(unit);
    if (unit.rows == 0) break;
    if (!unit.sees_nothing()) {
#pragma unroll 1
      for (std::int32_t key = unit.last_key; key >= unit.first_key; key -= C::kTileKeys) {
        values.run();
      }
    }
    units.find_next();
  }
  wait_for_own_copies();
}

/// A warp of the loading warpgroup, but that which finds units: that takes as long as many tiles, so it
/// widens nothing.
template <typename C>
__device__ __forceinline__ void load_and_widen_values(const AttendParams& params,
                                                      const TileMaps& maps,
                                                      typename C::Large& shared, int warp,
                                                      int lane) {
  // What K's warp and V's are told looks different each time: known addresses would be spilled.
  const bool is_key_warp = opaque(warp) == kKeyWarp;
  if (warp == kKeyWarp) {
    TileLoader<C, typename C::KeyLayout>(params, maps, shared, is_key_warp, lane)
        .run(ValueWidener<C>(shared, kKeyWarp, lane));
  } else if (warp == kValueWarp) {
    TileLoader<C, typename C::StagedLayout, StagedSlots<C>>(params, maps, shared, is_key_warp, lane)
        .run(ValueWidener<C>(shared, kValueWarp, lane));
  } else {
    load_queries_and_widen<C>(params, maps, shared, lane);
  }
}

}  // namespace quire::cuda::sm90
