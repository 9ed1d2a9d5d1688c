// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where the tiles of a block lie: its units, one behind another, and the pages of their keys.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "schedule/schedule.hpp"

namespace quire::cuda::mma {

/// The units of a share as a stream of tiles passes them, the same for all lanes of a warp: in
/// registers, or in shared memory where there are too few of them.
template <UnitSize kSize>
struct UnitWalk {
  UnitCursor<kSize> cursor;
  Unit now;
  Unit next;

  __device__ UnitWalk(const AttendParams& params, std::int32_t share)
      : cursor(params, share), next(cursor.first()) {}
};

/// The tiles of a share of the schedule, of which a warp loads a part each. The places of the part's
/// keys are known for a stretch of 64 runs at a time: 16 tiles of 64 keys, or one if keys are
/// scattered.
/// @tparam kKeys   Of a tile.
/// @tparam kParts  Of a tile, a warp each.
template <int kKeys, int kParts, UnitSize kSize>
class TileStream {
 public:
  static constexpr int kPartKeys = kKeys / kParts;

  __device__ TileStream(const AttendParams& params, const core::Pages& cache, std::int32_t element,
                        UnitWalk<kSize>& walk, int part, int lane)
      : params_(params),
        cache_(cache),
        element_(element),
        run_keys_(params.shape.page_size % kRunKeys == 0 ? kRunKeys : 1),
        part_(part),
        lane_(lane),
        walk_(walk) {
    begin_next_unit();
    begin_stretch();
  }

  /// The unit of the tile; without rows at the end of the range.
  [[nodiscard]] __device__ const Unit& unit() const { return walk_.now; }
  /// First key of the tile, a multiple of kTileKeys.
  [[nodiscard]] __device__ std::int32_t key() const { return key_; }
  [[nodiscard]] __device__ bool is_first_of_unit() const { return key_ <= unit().kv_begin; }
  [[nodiscard]] __device__ bool is_last_of_unit() const { return key_ + kKeys >= unit().kv_end; }

  /// Asks for the page ids of the next stretch, once. Call it early, so that they are there in time.
  __device__ void look_ahead() {
    if (looked_ahead_) return;
    looked_ahead_ = true;
    if (stretch_end() < unit().kv_end) {
      next_first_key_ = stretch_end();
      ask_for_pages();
    } else {
      __syncwarp();  // all lanes have read what is replaced
      walk_.next = walk_.cursor.next();
      begin_next_unit();
    }
  }

  /// To the next tile. The next stretch must have been asked for.
  __device__ void advance() {
    key_ += kKeys;
    if (key_ >= min(stretch_end(), unit().kv_end)) begin_stretch();
  }

  [[nodiscard]] __device__ bool has_runs() const { return run_keys_ > 1; }
  /// Byte offset of run `run` of the part. All lanes call it.
  [[nodiscard]] __device__ std::int64_t offset_of_run(int run) const {
    const int at = (key_ - first_key_) / kKeys * (kPartKeys / kRunKeys) + run;
    return __shfl_sync(kAllLanes, at < kWarpSize ? offsets_[0] : offsets_[1], at % kWarpSize);
  }
  /// Of keys that are runs of their own: byte offsets of 32 neighbouring ones, of which this lane's
  /// is one. The part's key `key` is among them.
  [[nodiscard]] __device__ std::int64_t offset_of_key(int key) const {
    const int at = (key_ - first_key_) / kKeys * kPartKeys + key;
    return at < kWarpSize ? offsets_[0] : offsets_[1];
  }

 private:
  static constexpr int kRunsPerLane = 2;  // of a stretch
  static constexpr int kRuns = kRunsPerLane * kWarpSize;
  static_assert(kPartKeys % kWarpSize == 0 && kRuns % kPartKeys == 0);

  __device__ std::int32_t stretch_end() const { return first_key_ + kParts * kRuns * run_keys_; }

  __device__ void begin_stretch() {
    __syncwarp();
    walk_.now = walk_.next;
    __syncwarp();
    first_key_ = next_first_key_;
    key_ = next_first_key_;
    looked_ahead_ = false;
#pragma unroll
    for (int i = 0; i < kRunsPerLane; ++i) offsets_[i] = offset_of_next(i);
  }

  __device__ void begin_next_unit() {
    __syncwarp();
    next_first_key_ = walk_.next.kv_begin / kTileKeys * kTileKeys;
    ask_for_pages();
  }

  /// First key of this lane's run `i` of the next stretch.
  __device__ std::int32_t key_of_next(int i) const {
    const std::int32_t key = (i * kWarpSize + lane_) * run_keys_;  // among the part's
    if constexpr (kParts == 1) return next_first_key_ + key;
    return next_first_key_ + key / kPartKeys * kKeys + part_ * kPartKeys + key % kPartKeys;
  }
  /// @return False for runs of which no key is seen: page ids may be missing there.
  __device__ bool next_has(std::int32_t key) const {
    return key + run_keys_ > walk_.next.kv_begin && key < walk_.next.kv_end;
  }

  __device__ void ask_for_pages() {
    if (params_.shape.page_size == kContiguousKv) return;
    const std::int32_t* ids = schedule::page_ids(params_.batch, walk_.next.seq);
#pragma unroll
    for (int i = 0; i < kRunsPerLane; ++i) {
      const std::int32_t key = key_of_next(i);
      if (next_has(key)) next_pages_[i] = __ldg(ids + params_.page_size.quotient(key));
    }
  }

  /// In bytes, of this lane's run `i` of the next stretch.
  __device__ std::int64_t offset_of_next(int i) const {
    const std::int32_t key = key_of_next(i);
    if (!next_has(key)) return 0;
    std::int64_t offset = walk_.next.kv_head_begin * cache_.head_stride;
    if (params_.shape.page_size == kContiguousKv) {
      offset += (static_cast<std::int64_t>(params_.batch.kv_indptr[walk_.next.seq]) + key) *
                cache_.token_stride;
    } else {
      const std::int32_t token = params_.page_size.remainder(key, params_.page_size.quotient(key));
      offset += next_pages_[i] * cache_.page_stride + token * cache_.token_stride;
    }
    return offset * element_;
  }

  const AttendParams& params_;
  const core::Pages& cache_;
  const std::int32_t element_;  // bytes
  const std::int32_t run_keys_;
  const int part_;
  const int lane_;
  UnitWalk<kSize>& walk_;
  std::int32_t first_key_ = 0;  // of the stretch
  std::int32_t key_ = 0;
  std::int64_t offsets_[kRunsPerLane] = {};
  bool looked_ahead_ = false;
  // Of the next stretch, with the page ids of this lane's runs asked for already.
  std::int32_t next_first_key_ = 0;
  std::int32_t next_pages_[kRunsPerLane] = {};
};

}  // namespace quire::cuda::mma
