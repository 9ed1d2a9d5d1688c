// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loading warps of large units, two for K and two for V and q: each loads half of every tile.
#pragma once

#include <cstdint>
#include <new>

#include "cuda/attend/params.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/row_loader.cuh"
#include "cuda/mma/tile_stream.cuh"
#include "cuda/sm90/config.cuh"

namespace quire::cuda::sm90 {

/// @tparam Layout  Of a tile of K or of V.
template <typename C, typename Layout>
class Producer {
 public:
  /// @param part  Of a tile, and of the queries.
  __device__ Producer(const AttendParams& params, typename C::Large& shared, bool loads_keys,
                      int part, int lane)
      : params_(params),
        shared_(shared),
        cache_(loads_keys ? params.tensors.k : params.tensors.v),
        loads_keys_(loads_keys),
        part_(part),
        lane_(lane),
        rows_(lane) {
    position_.slot = loads_keys ? 0 : 1;
  }

  /// All large units of a share.
  __device__ void run(std::int32_t share) {
    auto& walk = *new (shared_.walks[threadIdx.x / kWarpSize]) Walk(params_, share);
    Tiles tiles(params_, cache_, kElementBytes, walk, part_, lane_);
#pragma unroll 1
    while (tiles.unit().rows > 0) {
      if (!loads_keys_ && tiles.is_first_of_unit()) hand_over(tiles.unit());
      tiles.look_ahead();
      if (!tiles.unit().sees_nothing()) load(tiles);
      tiles.advance();
    }
  }

  __device__ void finish() {
    if (!loads_keys_) hand_over(Unit{});
    wait_for_own_copies();
  }

 private:
  using Walk = mma::UnitWalk<UnitSize::kLarge>;
  using Tiles = mma::TileStream<C::kTileKeys, kLoadingParts, UnitSize::kLarge>;
  static constexpr int kElementBytes = sizeof(typename C::Element);

  __device__ void load(const Tiles& tiles) {
    const auto* const base = static_cast<const std::byte*>(cache_.data);
    const std::int64_t stride = cache_.token_stride * kElementBytes;
    const std::int32_t first_key = tiles.key() + part_ * Tiles::kPartKeys;
    const mma::RowRange rows{tiles.unit().kv_begin - first_key, tiles.unit().kv_end - first_key};
    barrier_wait(shared_address(&shared_.empty[position_.slot]), position_.parity ^ 1);
    const std::uint32_t to =
        shared_address(shared_.ring[position_.slot]) + part_ * Tiles::kPartKeys * Layout::kRowStride;
#pragma unroll 1
    for (int first = 0; first < Tiles::kPartKeys; first += mma::kRunKeys) {
      const std::uint32_t to_rows = to + static_cast<std::uint32_t>(first * Layout::kRowStride);
      if (tiles.has_runs()) {
        rows_.load_run(to_rows, base + tiles.offset_of_run(first / mma::kRunKeys), stride,
                       rows.from(first));
      } else {
        rows_.load_scattered(to_rows, base, tiles.offset_of_key(first), first % kWarpSize,
                             rows.from(first));
      }
    }
    barrier_arrive_after_copies(shared_address(&shared_.full[position_.slot]));
    position_.advance(2);  // K and V take turns
  }

  /// The unit and its queries, of which this warp loads its part.
  __device__ void hand_over(const Unit& unit) {
    barrier_wait(shared_address(&shared_.fixed.queries_empty[queries_.slot]), queries_.parity ^ 1);
    if (!unit.sees_nothing()) load_queries(unit);
    const std::uint32_t full = shared_address(&shared_.fixed.queries_full[queries_.slot]);
    barrier_arrive_after_copies(full);
    if (part_ == 0 && lane_ == 0) {
      shared_.fixed.units[unit_.slot] = unit;
      barrier_arrive(full);
    }
    queries_.advance();
    unit_.advance();
  }

  __device__ void load_queries(const Unit& unit) {
    constexpr int kPartRows = C::kTileRows / kLoadingParts;
    const core::Rows& q = params_.tensors.q;
    const std::uint32_t to = shared_address(shared_.fixed.queries[queries_.slot]);
    const mma::RowLoader<typename C::QueryLayout> rows(lane_);
#pragma unroll 1
    for (int first = part_ * kPartRows; first < (part_ + 1) * kPartRows; first += mma::kRunKeys) {
      const RowTarget row = row_target(params_, unit, min(first + lane_ % mma::kRunKeys, unit.rows - 1));
      const std::int64_t offset =
          (row.token * q.token_stride + row.head * q.head_stride) * kElementBytes;
      rows.load_scattered(to + static_cast<std::uint32_t>(first * C::QueryLayout::kRowStride),
                          static_cast<const std::byte*>(q.data), offset, 0, {0, unit.rows - first});
    }
  }

  const AttendParams& params_;
  typename C::Large& shared_;
  const core::Pages& cache_;
  const bool loads_keys_;
  const int part_;
  const int lane_;
  const mma::RowLoader<Layout> rows_;
  mma::RingPosition<C::kSlots> position_;
  mma::RingPosition<C::kQueryBuffers> queries_;
  mma::RingPosition<C::kQueryBuffers + 1> unit_;
};

}  // namespace quire::cuda::sm90
