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

/// Keys that lie at equal strides, whatever page they are in, if the page size is a multiple of it
/// (contiguous K and V are one endless page). With other page sizes every key is a run of its own.
inline constexpr int kRunKeys = 16;

/// Runs of a stretch that a lane looks up.
inline constexpr int kRunsPerLane = kTileKeys / kWarpSize;

/// The range's keys, a stretch of 64 runs at a time: 16 tiles, or one if keys are scattered. The
/// page ids of the next stretch are on their way while this one is loaded.
class KeyStream {
 public:
  __device__ KeyStream(const AttendParams& params, const core::Pages& cache, std::int32_t element,
                       std::int32_t range, int lane)
      : params_(params),
        cache_(cache),
        element_(element),
        run_keys_(params.shape.page_size % kRunKeys == 0 ? kRunKeys : 1),
        lane_(lane),
        units_(params, range) {
    next_.unit = units_.first();
    begin_unit();
  }

  /// To the next stretch. @return False at the end of the range.
  __device__ bool advance() {
    unit_ = next_.unit;
    first_key_ = next_.first_key;
#pragma unroll
    for (int i = 0; i < kRunsPerLane; ++i) offsets_[i] = offset_of_next(i);
    if (unit_.rows == 0) return false;
    next_.first_key += kTileKeys * run_keys_;
    if (next_.first_key < unit_.kv_end) {
      ask_for_pages();
    } else {
      next_.unit = units_.next();
      begin_unit();
    }
    return true;
  }

  [[nodiscard]] __device__ const Unit& unit() const { return unit_; }
  /// First key of the stretch, a multiple of kTileKeys.
  [[nodiscard]] __device__ std::int32_t first_key() const { return first_key_; }
  /// End of the stretch or, before that, of the unit's keys.
  [[nodiscard]] __device__ std::int32_t end() const {
    return min(first_key_ + kTileKeys * run_keys_, unit_.kv_end);
  }
  [[nodiscard]] __device__ bool has_runs() const { return run_keys_ > 1; }
  /// Byte offset of this lane's run among 32 · `half` and the 31 behind it.
  [[nodiscard]] __device__ std::int64_t offset(int half) const {
    return half == 0 ? offsets_[0] : offsets_[1];
  }

 private:
  /// The next stretch, with the page ids of this lane's runs already asked for.
  struct Next {
    Unit unit;  // without rows: none
    std::int32_t first_key = 0;
    std::int32_t pages[kRunsPerLane] = {};
  };

  __device__ void begin_unit() {
    next_.first_key = next_.unit.kv_begin / kTileKeys * kTileKeys;
    ask_for_pages();
  }

  /// First key of this lane's run `i` of the next stretch.
  __device__ std::int32_t key_of_next(int i) const {
    return next_.first_key + (i * kWarpSize + lane_) * run_keys_;
  }
  /// @return False for runs of which no key is seen: page ids may be missing there.
  __device__ bool next_has(std::int32_t key) const {
    return key + run_keys_ > next_.unit.kv_begin && key < next_.unit.kv_end;
  }

  __device__ void ask_for_pages() {
    if (params_.shape.page_size == kContiguousKv) return;
    const std::int32_t* ids = schedule::page_ids(params_.batch, next_.unit.seq);
#pragma unroll
    for (int i = 0; i < kRunsPerLane; ++i) {
      const std::int32_t key = key_of_next(i);
      if (next_has(key)) next_.pages[i] = __ldg(ids + params_.page_size.quotient(key));
    }
  }

  /// In bytes, of this lane's run `i` of the next stretch.
  __device__ std::int64_t offset_of_next(int i) const {
    const std::int32_t key = key_of_next(i);
    if (!next_has(key)) return 0;
    std::int64_t offset = next_.unit.kv_head_begin * cache_.head_stride;
    if (params_.shape.page_size == kContiguousKv) {
      offset += (static_cast<std::int64_t>(params_.batch.kv_indptr[next_.unit.seq]) + key) *
                cache_.token_stride;
    } else {
      const std::int32_t token = params_.page_size.remainder(key, params_.page_size.quotient(key));
      offset += next_.pages[i] * cache_.page_stride + token * cache_.token_stride;
    }
    return offset * element_;
  }

  const AttendParams& params_;
  const core::Pages& cache_;
  const std::int32_t element_;  // bytes
  const std::int32_t run_keys_;
  const int lane_;
  UnitCursor units_;
  Next next_;
  Unit unit_;
  std::int32_t first_key_ = 0;
  std::int64_t offsets_[kRunsPerLane] = {};
};

/// Rows [begin, end) are loaded, the others become zeros and nothing is read.
struct RowRange {
  int begin;
  int end;

  [[nodiscard]] __device__ RowRange from(int row) const { return {begin - row, end - row}; }
  [[nodiscard]] __device__ bool has(int row) const { return row >= begin && row < end; }
  [[nodiscard]] __device__ bool has_all(int rows) const { return begin <= 0 && end >= rows; }
};

/// Loads 16 rows at a time into a tile. Loading warps are busy with it all the time: every
/// instruction per copy counts. A copy of the warp takes 32 chunks of 16 bytes; after `kPeriod`
/// copies every lane is in its column again, so that places are computed once.
template <int kRowBytes>
class RowLoader {
 public:
  __device__ explicit RowLoader(int lane) {
#pragma unroll
    for (int i = 0; i < kPeriod; ++i) {
      const auto chunk = static_cast<unsigned>(i * kWarpSize + lane);
      row_[i] = static_cast<int>(chunk / kChunks);
      column_[i] = static_cast<int>(chunk % kChunks) * 16;
      place_[i] = Layout::chunk(Layout::row(0, row_[i]), static_cast<int>(chunk % kChunks));
    }
  }

  /// Rows at equal strides.
  __device__ __forceinline__ void load_run(std::uint32_t to, const std::byte* from,
                                           std::int64_t stride, RowRange rows) const {
    if (rows.has_all(kRunKeys)) {
      load_run<true>(to, from, stride, rows);
    } else {
      load_run<false>(to, from, stride, rows);
    }
  }

  /// Rows anywhere: row i at the offset that lane `first_lane` + i gives.
  __device__ __forceinline__ void load_scattered(std::uint32_t to, const std::byte* base,
                                                 std::int64_t offset, int first_lane,
                                                 RowRange rows) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kPeriod; ++i) {
        const int row = row_[i] + step * kPeriodRows;
        const std::int64_t from = __shfl_sync(kAllLanes, offset, first_lane + row);
        copy_async(to + place(i, step), base + column_[i] + from, rows.has(row));
      }
    }
  }

 private:
  using Layout = Swizzle<kRowBytes>;
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kPeriod = kWarpSize % kChunks == 0 ? 1 : 3;
  static constexpr int kPeriodRows = kPeriod * kWarpSize / kChunks;
  static constexpr int kSteps = kRunKeys / kPeriodRows;
  static_assert(kPeriod * kWarpSize % kChunks == 0 && kRunKeys % kPeriodRows == 0);

  /// Of copy `i` of a period, from the first row on. Places of a period are swizzled like those of
  /// the first one, but for a number that is known at compile time.
  __device__ __forceinline__ std::uint32_t place(int i, int step) const {
    return Layout::later_row(place_[i], step * kPeriodRows);
  }

  template <bool kWhole>
  __device__ __forceinline__ void load_run(std::uint32_t to, const std::byte* from,
                                           std::int64_t stride, RowRange rows) const {
    const std::byte* at[kPeriod];
#pragma unroll
    for (int i = 0; i < kPeriod; ++i) at[i] = from + column_[i] + row_[i] * stride;
#pragma unroll(kWhole ? kSteps : 1)
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kPeriod; ++i) {
        copy_async(to + place(i, step), at[i], kWhole || rows.has(row_[i] + step * kPeriodRows));
        at[i] += kPeriodRows * stride;
      }
    }
  }

  int row_[kPeriod];
  int column_[kPeriod];
  std::uint32_t place_[kPeriod];
};

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
        lane_(lane),
        rows_(lane) {
    position_.slot = loads_keys ? 0 : 1;
  }

  __device__ void run(std::int32_t range) {
    KeyStream stream(params_, cache_, kElementBytes, range, lane_);
    while (stream.advance()) {
      const Unit& unit = stream.unit();
      std::int32_t key = stream.first_key();
      do {
        if (!unit.sees_nothing()) load(stream, key);
        const bool is_first = key <= unit.kv_begin;
        key += kTileKeys;
        if (loads_keys_) hand_over_if_due(unit, is_first, key >= unit.kv_end);
      } while (key < stream.end());
    }
    if (loads_keys_) hand_over(Unit{});  // without rows: the end
    wait_for_own_copies();
  }

 private:
  static constexpr int kHandedOver = -1;
  static constexpr int kElementBytes = sizeof(typename C::Element);

  /// The tile that begins at `key`.
  __device__ void load(const KeyStream& stream, std::int32_t key) {
    const auto* const base = static_cast<const std::byte*>(cache_.data);
    const std::int64_t stride = cache_.token_stride * kElementBytes;
    const RowRange rows{stream.unit().kv_begin - key, stream.unit().kv_end - key};
    const int first_run = (key - stream.first_key()) / kRunKeys;
    barrier_wait(shared_address(&shared_.empty[position_.slot]), position_.parity ^ 1);
    const std::uint32_t to = shared_address(shared_.ring[position_.slot]);
#pragma unroll 1
    for (int first = 0; first < kTileKeys; first += kRunKeys) {
      const std::uint32_t to_rows = to + static_cast<std::uint32_t>(first * kRowBytes);
      if (stream.has_runs()) {
        const int run = first_run + first / kRunKeys;
        const std::int64_t offset =
            __shfl_sync(kAllLanes, stream.offset(run / kWarpSize), run % kWarpSize);
        rows_.load_run(to_rows, base + offset, stride, rows.from(first));
      } else {
        rows_.load_scattered(to_rows, base, stream.offset(first / kWarpSize), first % kWarpSize,
                             rows.from(first));
      }
    }
    barrier_arrive_after_copies(shared_address(&shared_.full[position_.slot]));
    position_.advance(2);  // K and V take turns
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

  /// Lane i gives the place of row i.
  __device__ void load_queries(const Unit& unit) {
    static_assert(C::kTileRows <= kWarpSize);
    const core::Rows& q = params_.tensors.q;
    const RowTarget row = row_target(params_, unit, min(lane_, unit.rows - 1));
    const std::int64_t offset =
        (row.token * q.token_stride + row.head * q.head_stride) * kElementBytes;
    const std::uint32_t to = shared_address(shared_.fixed.queries);
    const RowLoader<C::kKeyBytes> rows(lane_);
#pragma unroll 1
    for (int first = 0; first < unit.rows; first += kRunKeys) {
      rows.load_scattered(to + static_cast<std::uint32_t>(first * C::kKeyBytes),
                          static_cast<const std::byte*>(q.data), offset, first,
                          {0, unit.rows - first});
    }
  }

  const AttendParams& params_;
  typename C::Shared& shared_;
  const core::Pages cache_;
  const bool loads_keys_;
  const int lane_;
  const RowLoader<kRowBytes> rows_;
  RingPosition<C::kSlots> position_;
  std::uint32_t query_parity_ = 0;
  int tiles_ahead_ = kHandedOver;  // of the current unit's queries
};

}  // namespace quire::cuda::mma
