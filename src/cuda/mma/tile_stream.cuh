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

/// The small units of a share, of which a stream of tiles holds two at a time.
class UnitWalk {
 public:
  __device__ UnitWalk(const AttendParams& params, std::int32_t share)
      : cursor_(params, share), next_(cursor_.next()) {}

  [[nodiscard]] __device__ const Unit& now() const { return now_; }
  [[nodiscard]] __device__ const Unit& next() const { return next_; }
  /// The unit after the next one becomes the next.
  __device__ void find_next() { next_ = cursor_.next(); }
  /// The next one becomes this one.
  __device__ void step() { now_ = next_; }

 private:
  UnitCursor<schedule::kSmallUnits> cursor_;
  Unit now_;
  Unit next_;
};

/// In which a unit's tiles come.
enum class Direction { kAscending, kDescending };

/// Where the tiles of `kKeys` keys begin of a unit whose first key is `kv_begin`, the first of a tile
/// mostly.
template <int kKeys>
__device__ constexpr std::int32_t first_tile_key(std::int32_t kv_begin) {
  constexpr int kStep = kKeys % kTileKeys == 0 ? kTileKeys : kTileKeys / 2;
  static_assert(kKeys % kStep == 0);
  return kv_begin / kStep * kStep;
}

/// The tiles of some units. The places of their keys are known for a stretch of runs at a time: 16
/// tiles, or one if keys are scattered.
/// @tparam kKeys   Of a tile.
/// @tparam Units   Where units come from, as from a `UnitWalk`.
/// @tparam kParts  Of neighbouring keys that each tile has, one of which the warp is asked for: runs
///   are those of that part.
/// @tparam kCaches  Of which offsets are asked for.
template <int kKeys, Direction kDirection, typename Units, int kParts = 1, int kCaches = 1>
class TileStream {
 public:
  using Caches = const core::Pages* [kCaches];

  __device__ TileStream(const AttendParams& params, const Caches& caches, std::int32_t element,
                        Units& units, int lane, bool keeps_offsets_of_runs, int part = 0)
      : params_(params),
        element_(element),
        run_keys_(params.shape.page_size % kRunKeys == 0 ? kRunKeys : 1),
        lane_(lane),
        keeps_offsets_(keeps_offsets_of_runs || run_keys_ == 1),
        part_(part),
        units_(units) {
#pragma unroll
    for (int i = 0; i < kCaches; ++i) caches_[i] = caches[i];
    begin_next_unit();
    begin_stretch();
  }

  /// The unit of the tile; without rows at the end of the range.
  [[nodiscard]] __device__ const Unit& unit() const { return units_.now(); }
  /// First key of the tile, kKeys after that of the one before it (`first_tile_key`).
  [[nodiscard]] __device__ std::int32_t key() const { return key_; }
  [[nodiscard]] __device__ bool is_first_of_unit() const {
    return kIsAscending ? key_ <= unit().kv_begin : key_ + kKeys >= unit().kv_end;
  }
  [[nodiscard]] __device__ bool is_last_of_unit() const {
    return kIsAscending ? key_ + kKeys >= unit().kv_end : key_ <= unit().kv_begin;
  }

  [[nodiscard]] __device__ bool is_last_of_stretch() const {
    return kIsAscending ? key_ + kKeys >= min(stretch_end(), unit().kv_end)
                        : key_ - kKeys < first_key_;
  }
  /// Tiles from this one on, the stretch's last one not counted: the unit sees all keys of them that come
  /// behind its first.
  [[nodiscard]] __device__ int tiles_before_last() const {
    static_assert(kIsAscending);
    return (min(stretch_end(), unit().kv_end) - key_ - 1) / kKeys;
  }
  /// To the next one, of these.
  __device__ void skip() { key_ += kKeys; }
  [[nodiscard]] __device__ bool has_looked_ahead() const { return looked_ahead_; }
  /// Asks for the page ids of the next stretch, once. Call it early, so that they are there in time.
  __device__ void look_ahead() {
    if (looked_ahead_) return;
    looked_ahead_ = true;
    if (kIsAscending ? stretch_end() < unit().kv_end : first_key_ > unit().kv_begin) {
      next_first_key_ = kIsAscending ? stretch_end() : first_key_ - stretch_keys();
      ask_for_pages();
    } else {
      units_.find_next();
      begin_next_unit();
    }
  }

  /// To the next tile. The next stretch must have been asked for. @return Whether one begins.
  __device__ bool advance() {
    if constexpr (kIsAscending) {
      key_ += kKeys;
      if (key_ < min(stretch_end(), unit().kv_end)) return false;
    } else {
      key_ -= kKeys;
      if (key_ >= first_key_) return false;
    }
    begin_stretch();
    return true;
  }

  [[nodiscard]] __device__ bool has_runs() const { return run_keys_ > 1; }
  /// Byte offsets of neighbouring runs, if they are kept, of which this lane's is one; the tile's run `run` is among
  /// them, that of lane `lane_of(run)`.
  /// @param cache  Which of the caches.
  [[nodiscard]] __device__ std::int64_t offset_near(int run, int cache = 0) const {
    const int near = own_run_near(run);
    std::int64_t offset = offsets_[cache][0];
#pragma unroll
    for (int i = 1; i < kRunsPerLane; ++i) offset = near >= i ? offsets_[cache][i] : offset;
    return offset;
  }
  static constexpr int kRunsPerLane = kKeys / kParts / kWarpSize;
  /// First key of this lane's run `i` of the stretch, and its page, if the unit sees any of its keys.
  [[nodiscard]] __device__ std::int32_t key_of_own_run(int i) const {
    return key_of_run(first_key_, i * kWarpSize + lane_);
  }
  [[nodiscard]] __device__ std::int32_t page_of_own_run(int i) const { return pages_[i]; }
  /// Which of the lane's runs is near the tile's run `run`.
  [[nodiscard]] __device__ int own_run_near(int run = 0) const {
    const int place = kTilesDivideLanes || !has_runs() ? first_run() + run : place_near(run);
    return static_cast<int>(static_cast<unsigned>(place) / kWarpSize);
  }

  /// Likewise their pages; of contiguous K and V, the request's first row.
  [[nodiscard]] __device__ std::int32_t page_near(int run) const {
    const int near = own_run_near(run);
    std::int32_t page = pages_[0];
#pragma unroll
    for (int i = 1; i < kRunsPerLane; ++i) page = near >= i ? pages_[i] : page;
    return page;
  }
  /// `offset_near`, made of the page when it is asked for: for those who seldom ask and have few
  /// registers.
  [[nodiscard]] __device__ std::int64_t find_offset_near(int run) const {
    const std::int32_t key = key_of_run(first_key_, place_near(run));
    const bool has_keys = key + run_keys_ > unit().kv_begin && key < unit().kv_end;
    return has_keys ? offset_of(*caches_[0], unit(), page_near(run), key) : 0;
  }
  /// Where a token lies: contiguous K and V are one page.
  struct TokenPlace {
    std::int64_t page;
    std::int64_t token;
  };
  /// Of the tile's key `key`, one of the 32 from `first` on. All lanes call it, each with its own.
  [[nodiscard]] __device__ TokenPlace place_of(int first, int key) const {
    const int keys_of_run = has_runs() ? kRunKeys : 1;
    const std::int32_t page =
        __shfl_sync(kAllLanes, page_near(first / keys_of_run), lane_of(key / keys_of_run));
    const std::int32_t position = key_ + key;
    if (params_.shape.page_size == kContiguousKv) {
      return {0, static_cast<std::int64_t>(page) + position};
    }
    return {page, params_.page_size.remainder(position, params_.page_size.quotient(position))};
  }
  [[nodiscard]] __device__ int lane_of(int run) const { return (first_run() + run) % kWarpSize; }

 private:
  static constexpr bool kIsAscending = kDirection == Direction::kAscending;
  static constexpr int kPartKeys = kKeys / kParts;
  static constexpr bool kTilesDivideLanes = kWarpSize % (kPartKeys / kRunKeys) == 0;

  /// Of the tile, counted from the stretch's.
  [[nodiscard]] __device__ int first_run() const {
    return run_keys_ > 1 ? (key_ - first_key_) / (kRunKeys * kParts) : 0;
  }
  /// Of this lane's run among those near the tile's run `run`, counted from the stretch's first.
  [[nodiscard]] __device__ int place_near(int run) const {
    if (kTilesDivideLanes || !has_runs()) return own_run_near(run) * kWarpSize + lane_;
    const int first = first_run();
    return first + static_cast<int>(static_cast<unsigned>(lane_ - first) % kWarpSize);
  }
  /// First key of a run of the stretch that begins at `first_key`.
  [[nodiscard]] __device__ std::int32_t key_of_run(std::int32_t first_key, std::int32_t run) const {
    if constexpr (kParts == 1) return first_key + run * run_keys_;
    const auto key = static_cast<unsigned>(run * run_keys_);  // counted in the part
    const unsigned in_tile = key / kPartKeys * kKeys + key % kPartKeys;
    return first_key + static_cast<std::int32_t>(in_tile) + part_ * kPartKeys;
  }
  __device__ std::int32_t stretch_keys() const { return kKeys * run_keys_; }
  __device__ std::int32_t stretch_end() const { return first_key_ + stretch_keys(); }

  __device__ void begin_stretch() {
    units_.step();
    first_key_ = next_first_key_;
    key_ = next_first_key_;
    if constexpr (!kIsAscending) {
      key_ += (min(stretch_end(), unit().kv_end) - key_ - 1) / kKeys * kKeys;
    }
    looked_ahead_ = false;
#pragma unroll
    for (int i = 0; i < kRunsPerLane; ++i) {
      if (keeps_offsets_) {
#pragma unroll
        for (int cache = 0; cache < kCaches; ++cache) {
          offsets_[cache][i] = offset_of_next(i, cache);
        }
      }
      pages_[i] = next_pages_[i];
    }
  }

  __device__ void begin_next_unit() {
    next_first_key_ = first_tile_key<kKeys>(units_.next().kv_begin);
    if constexpr (!kIsAscending) {
      const std::int32_t keys = max(1, units_.next().kv_end - next_first_key_);
      next_first_key_ += (keys - 1) / stretch_keys() * stretch_keys();
    }
    ask_for_pages();
  }

  /// First key of this lane's run `i` of the next stretch.
  __device__ std::int32_t key_of_next(int i) const {
    return key_of_run(next_first_key_, i * kWarpSize + lane_);
  }
  /// @return False for runs of which no key is seen: page ids may be missing there.
  __device__ bool next_has(std::int32_t key) const {
    return key + run_keys_ > units_.next().kv_begin && key < units_.next().kv_end;
  }

  __device__ void ask_for_pages() {
    if (params_.shape.page_size == kContiguousKv) {
      const std::int32_t first_row = __ldg(params_.batch.kv_indptr + units_.next().seq);
#pragma unroll
      for (std::int32_t& page : next_pages_) page = first_row;
      return;
    }
    const std::int32_t* ids = schedule::page_ids(params_.batch, units_.next().seq);
#pragma unroll
    for (int i = 0; i < kRunsPerLane; ++i) {
      const std::int32_t key = key_of_next(i);
      if (next_has(key)) next_pages_[i] = __ldg(ids + params_.page_size.quotient(key));
    }
  }

  /// In bytes, of this lane's run `i` of the next stretch.
  __device__ std::int64_t offset_of_next(int i, int cache) const {
    const std::int32_t key = key_of_next(i);
    return next_has(key) ? offset_of(*caches_[cache], units_.next(), next_pages_[i], key) : 0;
  }

  /// In bytes, of a key on page `page`; of contiguous K and V, of a request that begins at that row.
  __device__ std::int64_t offset_of(const core::Pages& cache, const Unit& unit, std::int32_t page,
                                    std::int32_t key) const {
    std::int64_t offset = unit.kv_head_begin * cache.head_stride;
    if (params_.shape.page_size == kContiguousKv) {
      offset += (static_cast<std::int64_t>(page) + key) * cache.token_stride;
    } else {
      const std::int32_t token = params_.page_size.remainder(key, params_.page_size.quotient(key));
      offset += page * cache.page_stride + token * cache.token_stride;
    }
    return offset * element_;
  }

  const AttendParams& params_;
  Caches caches_;
  const std::int32_t element_;  // bytes
  const std::int32_t run_keys_;
  const int lane_;
  const bool keeps_offsets_;
  const int part_;
  Units& units_;
  std::int32_t first_key_ = 0;  // of the stretch
  std::int32_t key_ = 0;
  std::int64_t offsets_[kCaches][kRunsPerLane] = {};  // of this lane's runs, and
  std::int32_t pages_[kRunsPerLane] = {};             // their pages
  bool looked_ahead_ = false;
  // Of the next stretch, with the page ids of this lane's runs asked for already.
  std::int32_t next_first_key_ = 0;
  std::int32_t next_pages_[kRunsPerLane] = {};
};

}  // namespace quire::cuda::mma
