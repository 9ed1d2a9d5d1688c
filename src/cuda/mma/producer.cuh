// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loading warps, one for K and q, one for V: they walk the block's range ahead of the others,
/// look pages up and keep the ring full across units.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "schedule/schedule.hpp"

namespace quire::cuda::mma {

/// Keys that a lane looks up: two of a tile's 64.
inline constexpr int kRowsPerLane = kTileKeys / kWarpSize;

/// The next tile to load, with the page ids of this lane's keys already asked for.
struct TileToLoad {
  Unit unit;                   // without rows: none
  std::int32_t first_key = 0;  // a multiple of kTileKeys
  std::int32_t pages[kRowsPerLane] = {};

  __device__ bool is_first() const { return first_key <= unit.kv_begin; }
  __device__ bool is_last() const { return first_key + kTileKeys >= unit.kv_end; }
  __device__ bool has(std::int32_t key) const { return key >= unit.kv_begin && key < unit.kv_end; }
};

/// The tiles of a range, one behind another.
class TileStream {
 public:
  __device__ TileStream(const AttendParams& params, std::int32_t range, int lane)
      : params_(params), units_(params, range), lane_(lane) {
    tile_.unit = units_.first();
    begin_unit();
  }

  [[nodiscard]] __device__ const TileToLoad& tile() const { return tile_; }

  /// To the next tile of the unit; asks for its page ids.
  __device__ void advance() {
    tile_.first_key += kTileKeys;
    ask_for_pages();
  }
  /// To the first tile of the next unit.
  __device__ void advance_to_next_unit() {
    tile_.unit = units_.next();
    begin_unit();
  }

 private:
  __device__ void begin_unit() {
    tile_.first_key = tile_.unit.kv_begin / kTileKeys * kTileKeys;
    ask_for_pages();
  }

  __device__ void ask_for_pages() {
    if (params_.shape.page_size == kContiguousKv) return;
    const std::int32_t* ids = schedule::page_ids(params_.batch, tile_.unit.seq);
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const std::int32_t key = tile_.first_key + i * kWarpSize + lane_;
      if (tile_.has(key)) tile_.pages[i] = __ldg(ids + params_.page_size.quotient(key));
    }
  }

  const AttendParams& params_;
  UnitCursor units_;
  const int lane_;
  TileToLoad tile_;
};

/// Instead of the offset of a row: zeros, and nothing is read. A multiple of 16, as offsets are.
inline constexpr std::int64_t kNothing = -16;

/// Loads 32 rows of 16-byte chunks into a tile; each lane gives the byte offset of one, or
/// `kNothing`. A copy of the warp takes 32 chunks. Loading warps do nothing but this, and are busy
/// with it all the time: every instruction per copy counts.
template <int kRowBytes>
__device__ __forceinline__ void load_rows(std::uint32_t to, const void* base, std::int64_t offset,
                                          int first_row, int lane) {
  using Layout = Swizzle<kRowBytes>;
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kBatch = kChunks % 8 == 0 ? 8 : 4;  // offsets are fetched ahead of their use
  const auto* bytes = static_cast<const std::byte*>(base);
  if constexpr (kWarpSize % kChunks == 0) {
    // A copy takes whole rows, so that a lane stays in its column of chunks.
    constexpr int kRows = kWarpSize / kChunks;
    static_assert(kBatch * kRows % Layout::kChunks == 0, "batches are swizzled alike");
    const int row = static_cast<int>(static_cast<unsigned>(lane) / kChunks);
    const int chunk = static_cast<int>(static_cast<unsigned>(lane) % kChunks);
    const std::byte* column = bytes + chunk * 16;
    const std::uint32_t place = Layout::chunk(Layout::row(0, row), chunk);
    to += static_cast<std::uint32_t>(first_row * kRowBytes);
#pragma unroll 1
    for (int first = 0; first < kWarpSize; first += kBatch * kRows) {
      std::int64_t from[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        from[i] = __shfl_sync(kAllLanes, offset, first + i * kRows + row);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        copy_async(to + Layout::chunk(place, i * kRows % Layout::kChunks) + i * kRows * kRowBytes,
                   column + from[i], from[i] != kNothing);
      }
      to += kBatch * kRows * kRowBytes;
    }
  } else {
#pragma unroll 1
    for (int first = 0; first < kChunks; first += kBatch) {
      std::int64_t from[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        from[i] = __shfl_sync(kAllLanes, offset, ((first + i) * kWarpSize + lane) / kChunks);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = (first + i) * kWarpSize + lane;
        const int chunk = at % kChunks;
        copy_async(Layout::chunk(Layout::row(to, first_row + at / kChunks), chunk),
                   bytes + chunk * 16 + from[i], from[i] != kNothing);
      }
    }
  }
}

/// A loading warp. The one of K also hands each unit and its queries over: as soon as there is room
/// for them, and at the latest when the ring holds nothing but this unit, since the computing warps
/// wait for queries then.
template <typename C, int kRowBytes>
class Producer {
 public:
  __device__ Producer(const AttendParams& params, typename C::Shared& shared, bool loads_keys,
                      int lane)
      : params_(params),
        shared_(shared),
        cache_(loads_keys ? params.tensors.k : params.tensors.v),
        loads_keys_(loads_keys),
        lane_(lane) {
    position_.slot = loads_keys ? 0 : 1;
  }

  __device__ void run(std::int32_t range) {
    TileStream stream(params_, range, lane_);
    while (stream.tile().unit.rows > 0) {
      const TileToLoad& tile = stream.tile();
      const bool is_first = tile.is_first();
      const bool is_last = tile.is_last();
      const std::int64_t offsets[kRowsPerLane] = {offset_of(tile, 0), offset_of(tile, 1)};
      if (!is_last) stream.advance();  // the next page ids come while this tile waits for its slot
      if (!tile.unit.sees_nothing()) load(offsets);
      if (loads_keys_) hand_over_if_due(tile.unit, is_first, is_last);
      if (is_last) stream.advance_to_next_unit();
    }
    if (loads_keys_) hand_over(Unit{});  // without rows: the end
    wait_for_own_copies();
  }

 private:
  static constexpr int kHandedOver = -1;

  __device__ void load(const std::int64_t (&offsets)[kRowsPerLane]) {
    barrier_wait(shared_address(&shared_.empty[position_.slot]), position_.parity ^ 1);
    const std::uint32_t to = shared_address(shared_.ring[position_.slot]);
#pragma unroll 1
    for (int i = 0; i < kRowsPerLane; ++i) {
      load_rows<kRowBytes>(to, cache_.data, i == 0 ? offsets[0] : offsets[1], i * kWarpSize, lane_);
    }
    barrier_arrive_after_copies(shared_address(&shared_.full[position_.slot]));
    position_.advance(2);  // K and V take turns
  }

  /// In bytes, of this lane's key `i`.
  __device__ std::int64_t offset_of(const TileToLoad& tile, int i) const {
    const std::int32_t key = tile.first_key + i * kWarpSize + lane_;
    if (!tile.has(key)) return kNothing;
    std::int64_t offset = tile.unit.kv_head_begin * cache_.head_stride;
    if (params_.shape.page_size == kContiguousKv) {
      offset += (static_cast<std::int64_t>(params_.batch.kv_indptr[tile.unit.seq]) + key) *
                cache_.token_stride;
    } else {
      const std::int32_t token = params_.page_size.remainder(key, params_.page_size.quotient(key));
      offset += tile.pages[i] * cache_.page_stride + token * cache_.token_stride;
    }
    return offset * static_cast<std::int64_t>(sizeof(typename C::Element));
  }

  /// After the keys of a tile of `unit`.
  __device__ void hand_over_if_due(const Unit& unit, bool is_first, bool is_last) {
    if (is_first) tiles_ahead_ = 0;
    if (tiles_ahead_ == kHandedOver) return;
    ++tiles_ahead_;
    const bool may_wait = 2 * tiles_ahead_ < C::kSlots && !is_last;
    const std::uint32_t empty = shared_address(&shared_.fixed.queries_empty);
    if (may_wait && !__all_sync(kAllLanes, barrier_is_over(empty, query_parity_ ^ 1))) return;
    hand_over(unit);
  }

  __device__ void hand_over(const Unit& unit) {
    barrier_wait(shared_address(&shared_.fixed.queries_empty), query_parity_ ^ 1);
    if (!unit.sees_nothing()) load_queries(unit);
    const std::uint32_t full = shared_address(&shared_.fixed.queries_full);
    barrier_arrive_after_copies(full);
    if (lane_ == 0) {
      shared_.fixed.units[query_parity_] = unit;
      barrier_arrive(full);
    }
    query_parity_ ^= 1;
    tiles_ahead_ = kHandedOver;
  }

  __device__ void load_queries(const Unit& unit) {
    const core::Rows& q = params_.tensors.q;
    for (std::int32_t first = 0; first < unit.rows; first += kWarpSize) {
      std::int64_t offset = kNothing;
      if (first + lane_ < unit.rows) {
        const RowTarget row = row_target(params_, unit, first + lane_);
        offset = (row.token * q.token_stride + row.head * q.head_stride) *
                 static_cast<std::int64_t>(sizeof(typename C::Element));
      }
      load_rows<C::kKeyBytes>(shared_address(shared_.fixed.queries), q.data, offset, first, lane_);
    }
  }

  const AttendParams& params_;
  typename C::Shared& shared_;
  const core::Pages cache_;
  const bool loads_keys_;
  const int lane_;
  RingPosition<C::kSlots> position_;
  std::uint32_t query_parity_ = 0;
  int tiles_ahead_ = kHandedOver;  // of the current unit's queries
};

}  // namespace quire::cuda::mma
