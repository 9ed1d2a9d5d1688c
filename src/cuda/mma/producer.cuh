// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loading warp: walks the block's range ahead of the others, looks pages up and keeps the ring
/// full across units.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "schedule/schedule.hpp"

namespace quire::cuda::mma {

/// Keys (or rows of q) that a lane looks up: two of a tile's 64.
inline constexpr int kRowsPerLane = kTileKeys / kWarpSize;

/// The next tile to load, with the page ids of this lane's keys already asked for.
struct TileToLoad {
  schedule::WorkItem item;
  std::int32_t first_key = 0;  // a multiple of kTileKeys
  std::int32_t pages[kRowsPerLane] = {};
  bool valid = false;

  __device__ bool is_first() const { return first_key <= item.kv_begin; }
  __device__ bool is_last() const { return first_key + kTileKeys >= item.kv_end; }
  __device__ bool has(std::int32_t key) const { return key >= item.kv_begin && key < item.kv_end; }
};

/// The tiles of a range, one behind another.
class TileStream {
 public:
  __device__ TileStream(const AttendParams& params, std::int32_t range, int lane)
      : params_(params),
        cursor_(params.policy, params.shape, params.batch, params.schedule, range),
        lane_(lane) {
    next_item();
  }

  /// @return The tile after the last one; the page ids of the one after it are on their way.
  __device__ TileToLoad next() {
    const TileToLoad tile = upcoming_;
    if (!tile.valid) return tile;
    if (tile.is_last()) {
      next_item();
    } else {
      upcoming_.first_key += kTileKeys;
      ask_for_pages();
    }
    return tile;
  }

 private:
  __device__ void next_item() {
    upcoming_.valid = cursor_.next(upcoming_.item);
    if (!upcoming_.valid) return;
    upcoming_.first_key = upcoming_.item.kv_begin / kTileKeys * kTileKeys;
    ask_for_pages();
  }

  __device__ void ask_for_pages() {
    if (params_.shape.page_size == kContiguousKv) return;
    const std::int32_t* ids = schedule::page_ids(params_.batch, upcoming_.item.seq);
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const std::int32_t key = upcoming_.first_key + i * kWarpSize + lane_;
      if (upcoming_.has(key)) upcoming_.pages[i] = __ldg(ids + key / params_.shape.page_size);
    }
  }

  const AttendParams& params_;
  schedule::WorkCursor cursor_;
  int lane_;
  TileToLoad upcoming_;
};

template <typename C>
class Producer {
 public:
  __device__ Producer(const AttendParams& params, typename C::Shared& shared, int lane)
      : params_(params), shared_(shared), lane_(lane) {}

  __device__ void run(std::int32_t range) {
    TileStream stream(params_, range, lane_);
    for (TileToLoad tile = stream.next(); tile.valid; tile = stream.next()) {
      if (tile.is_first()) loads_ahead_ = 0;
      const bool sees_nothing = tile.item.kv_begin >= tile.item.kv_end;
      if (!sees_nothing) load_tile(tile);
      if (tile.is_last() && loads_ahead_ >= 0) begin_unit(unit_of(params_, tile.item));
    }
    begin_unit(Unit{});  // without rows: the end
    wait_for_own_copies();
  }

 private:
  static constexpr std::int64_t kNothing = -1;
  static constexpr int kBegun = -1;

  /// Rows [0, 32) or [32, 64) of a tile; each lane gives the byte offset of one row, or `kNothing`.
  template <int kRowBytes>
  __device__ void load_rows(std::uint32_t to, const void* base, std::int64_t offset,
                            int first_row) {
    constexpr int kChunks = kRowBytes / 16;
    const auto* bytes = static_cast<const std::byte*>(base);
#pragma unroll 4
    for (int i = 0; i < kChunks; ++i) {
      const int at = i * kWarpSize + lane_;
      const int row = at / kChunks;
      const int chunk = at % kChunks;
      const std::int64_t from = __shfl_sync(kAllLanes, offset, row);
      const bool valid = from != kNothing;
      copy_async(Swizzle<kRowBytes>::chunk(Swizzle<kRowBytes>::row(to, first_row + row), chunk),
                 bytes + (valid ? from + chunk * 16 : 0), valid);
    }
  }

  /// K and V of a tile. The unit's queries are loaded as soon as there is room for them, and at the
  /// latest when the ring holds nothing but this unit: the others wait for queries then.
  __device__ void load_tile(const TileToLoad& tile) {
    begin_unit_if_possible(tile);
    load_kv<C::kKeyBytes>(tile, params_.tensors.k);
    begin_unit_if_possible(tile);
    load_kv<C::kValueBytes>(tile, params_.tensors.v);
  }

  template <int kRowBytes>
  __device__ void load_kv(const TileToLoad& tile, const core::Pages& cache) {
    barrier_wait(shared_address(&shared_.empty[position_.slot]), position_.parity ^ 1);
    const std::uint32_t to = shared_address(shared_.ring[position_.slot]);
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      load_rows<kRowBytes>(to, cache.data, offset_of(tile, i, cache), i * kWarpSize);
    }
    barrier_arrive_after_copies(shared_address(&shared_.full[position_.slot]));
    position_.advance();
  }

  /// In bytes, of this lane's key `i`.
  __device__ std::int64_t offset_of(const TileToLoad& tile, int i, const core::Pages& cache) const {
    const std::int32_t key = tile.first_key + i * kWarpSize + lane_;
    if (!tile.has(key)) return kNothing;
    std::int64_t offset = tile.item.kv_head_begin * cache.head_stride;
    if (params_.shape.page_size == kContiguousKv) {
      const std::int64_t row = static_cast<std::int64_t>(params_.batch.kv_indptr[tile.item.seq]);
      offset += (row + key) * cache.token_stride;
    } else {
      offset +=
          tile.pages[i] * cache.page_stride + key % params_.shape.page_size * cache.token_stride;
    }
    return offset * static_cast<std::int64_t>(sizeof(typename C::Element));
  }

  __device__ void begin_unit_if_possible(const TileToLoad& tile) {
    if (loads_ahead_ < 0) return;
    const std::uint32_t empty = shared_address(&shared_.fixed.queries_empty);
    if (loads_ahead_ < C::kSlots && !barrier_is_over(empty, query_parity_ ^ 1)) {
      ++loads_ahead_;
      return;
    }
    begin_unit(unit_of(params_, tile.item));
  }

  /// Hands a unit and its queries over.
  __device__ void begin_unit(const Unit& unit) {
    barrier_wait(shared_address(&shared_.fixed.queries_empty), query_parity_ ^ 1);
    if (!unit.sees_nothing()) load_queries(unit);
    const std::uint32_t full = shared_address(&shared_.fixed.queries_full);
    barrier_arrive_after_copies(full);
    if (lane_ == 0) {
      shared_.fixed.units[query_parity_] = unit;
      barrier_arrive(full);
    }
    query_parity_ ^= 1;
    loads_ahead_ = kBegun;
  }

  __device__ void load_queries(const Unit& unit) {
    for (std::int32_t first = 0; first < unit.rows; first += kWarpSize) {
      std::int64_t offset = kNothing;
      if (first + lane_ < unit.rows) {
        const RowTarget row = row_target(params_, unit, first + lane_);
        offset = (row.token * params_.tensors.q.token_stride +
                  row.head * params_.tensors.q.head_stride) *
                 static_cast<std::int64_t>(sizeof(typename C::Element));
      }
      load_rows<C::kKeyBytes>(shared_address(shared_.fixed.queries), params_.tensors.q.data, offset,
                              first);
    }
  }

  const AttendParams& params_;
  typename C::Shared& shared_;
  int lane_;
  RingPosition<C::kSlots> position_;
  std::uint32_t query_parity_ = 0;
  int loads_ahead_ = kBegun;  // of the current unit, before its queries
};

}  // namespace quire::cuda::mma
