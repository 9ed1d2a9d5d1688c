// SPDX-License-Identifier: Apache-2.0
/// @file
/// V of 8 bits that large units cannot multiply as it is cached: a warp copies tiles as they are into
/// shared memory, from where several warps transpose or widen them into the ring.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/attend/params.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/row_widener.cuh"
#include "cuda/sm90/transposing.cuh"
#include "cuda/sm90/units.cuh"

namespace quire::cuda::sm90 {

/// One of the warps that widen: it has a part of the keys of every tile. K's warp and V's, which have
/// boxes to issue besides, have a quarter, that of queries has half.
template <typename C>
class ValueWidener {
 public:
  __device__ ValueWidener(typename C::Large& shared, LoadingWarp warp, int lane)
      : shared_(shared),
        lane_(lane),
        first_key_(warp * kKeysAtOnce),
        end_key_(warp == kQueryWarp ? C::kTileKeys : first_key_ + kKeysAtOnce),
        widener_(lane) {
    static_assert(kKeyWarp == 0 && kValueWarp == 1 && kQueryWarp == 2);
    static_assert(4 * kKeysAtOnce == C::kTileKeys);
  }

  /// The next tile. It is handed over while codes of the one behind it are on their way, or at once if
  /// that is not there yet: what has been written would have to be waited for.
  __device__ __forceinline__ void run() {
    const std::uint32_t full = shared_address(&shared_.fixed.staged.full[staged_.slot]);
    // The memory is that of the tile so many before.
    const auto last = slot_.before(2 * C::kValueTiles);
    const std::uint32_t empty = shared_address(&shared_.empty[last.slot]);
    if (!__all_sync(kAllLanes,
                    barrier_is_over(full, staged_.parity) && barrier_is_over(empty, last.parity))) {
      hand_over();
      barrier_wait(full, staged_.parity);
      barrier_wait(empty, last.parity);
    }
    const std::uint32_t from = shared_address(shared_.besides.staged[staged_.slot]);
    const std::uint32_t to = shared_.slot(slot_.slot);
#pragma unroll 1
    for (int key = first_key_; key < end_key_; key += kKeysAtOnce) {
      typename Widener::Codes codes;
      widener_.read(codes, from + From::below(key));
      if (key == first_key_) hand_over();
      widener_.write(to + To::below(key), codes);
    }
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.fixed.staged.empty[staged_.slot]));
    staged_.advance();
    slot_.advance(2);
    has_slot_ = true;
  }

  /// What has been written last is there for products. Comes before anything is waited for that the
  /// computing warps must do.
  __device__ __forceinline__ void hand_over() {
    if (!has_slot_) return;
    has_slot_ = false;
    show_to_products();
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.full[slot_.before(2).slot]));
  }

 private:
  using From = typename C::StagedLayout;
  using To = typename C::ValueLayout;
  static constexpr int kKeysAtOnce = 32;
  using Widener = RowWidener<typename C::Kv, From, To, kKeysAtOnce>;

  typename C::Large& shared_;
  const int lane_;
  const int first_key_;
  const int end_key_;
  const Widener widener_;
  mma::RingPosition<C::kStagedTiles> staged_;
  mma::RingPosition<C::kSlots> slot_{1, 0};
  bool has_slot_ = false;  // the one before is not handed over
};

/// What warps do to tiles of V beside loading.
template <typename C>
using ValuesBeside = std::conditional_t<C::kSplitsQueries, ValueWidener<C>, ValueTransposer<C>>;

/// The warp that loads queries; of each unit it has its part of all tiles of V then.
template <typename C>
__device__ __forceinline__ void load_queries_beside_values(const AttendParams& params,
                                                           const TileMaps& maps,
                                                           typename C::Large& shared, int lane) {
  UnitReader<C> units(shared.fixed, lane);
  QueryLoader<C> queries(params, maps, shared.fixed, lane);
  ValuesBeside<C> values(shared, kQueryWarp, lane);
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
      values.hand_over();
    }
    units.find_next();
  }
  wait_for_own_copies();
}

/// A warp of the loading warpgroup. Neither of those that stage V finds units: that takes as long as
/// many tiles.
template <typename C>
__device__ __forceinline__ void load_staging_values(const AttendParams& params,
                                                    const TileMaps& maps, typename C::Large& shared,
                                                    int warp, int lane) {
  // What K's warp and V's are told looks different each time: known addresses would be spilled.
  const bool is_key_warp = opaque(warp) == kKeyWarp;
  if (warp == kKeyWarp) {
    TileLoader<C, typename C::KeyLayout> keys(params, maps, shared, is_key_warp, lane);
    if constexpr (C::kSplitsQueries) {
      keys.run(ValueWidener<C>(shared, kKeyWarp, lane));
    } else {
      keys.run();
    }
  } else if (warp == kValueWarp) {
    TileLoader<C, typename C::StagedLayout, StagedSlots<C>>(params, maps, shared, is_key_warp, lane)
        .run(ValuesBeside<C>(shared, kValueWarp, lane));
  } else {
    load_queries_beside_values<C>(params, maps, shared, lane);
  }
}

}  // namespace quire::cuda::sm90
