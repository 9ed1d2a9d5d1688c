// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of K, V or q from device memory into a swizzled tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"

namespace quire::cuda::mma {

/// Rows [begin, end) are loaded, the others become zeros and nothing is read.
struct RowRange {
  int begin;
  int end;

  [[nodiscard]] __device__ RowRange from(int row) const { return {begin - row, end - row}; }
  [[nodiscard]] __device__ bool has(int row) const { return row >= begin && row < end; }
  [[nodiscard]] __device__ bool has_all(int rows) const { return begin <= 0 && end >= rows; }
};

/// Rows of half as many bytes, each at the begin of a row of `Layout`.
template <typename Layout>
struct FirstHalves : Layout {
  static constexpr int kRowBytes = Layout::kRowBytes / 2;
};

/// Loads 16 rows at a time into a tile. Loading warps are busy with it all the time: every
/// instruction per copy counts. A copy of the warp takes 32 chunks of 16 bytes; after `kPeriod`
/// copies every lane is in its column again, so that places are computed once.
/// @tparam Layout  Of the tile in shared memory.
/// @tparam kReuse  Of the rows.
template <typename Layout, Reuse kReuse = Reuse::kSome>
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

  /// Rows at equal strides, all of them.
  __device__ __forceinline__ void load_whole_run(std::uint32_t to, const std::byte* from,
                                                 std::int64_t stride) const {
    load_run<true>(to, from, stride, {0, kRunKeys});
  }

  /// Rows at equal strides.
  __device__ __forceinline__ void load_run(std::uint32_t to, const std::byte* from,
                                           std::int64_t stride, RowRange rows) const {
    if (rows.has_all(kRunKeys)) {
      load_whole_run(to, from, stride);
    } else {
      load_run<false>(to, from, stride, rows);
    }
  }

  /// Rows anywhere: row i at the offset that lane `first_lane` + i gives.
  __device__ __forceinline__ void load_scattered(std::uint32_t to, const std::byte* base,
                                                 std::int64_t offset, int first_lane,
                                                 RowRange rows) const {
#pragma unroll(kUnroll)
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kPeriod; ++i) {
        const int row = row_[i] + step * kPeriodRows;
        const std::int64_t from = __shfl_sync(kAllLanes, offset, first_lane + row);
        copy_async<kReuse>(to + place(i, step), base + column_[i] + from, rows.has(row));
      }
    }
  }

 private:
  static constexpr int kChunks = Layout::kRowBytes / 16;
  static constexpr int kPeriod = kWarpSize % kChunks == 0 ? 1 : 3;
  static constexpr int kPeriodRows = kPeriod * kWarpSize / kChunks;
  static constexpr int kSteps = kRunKeys / kPeriodRows;
  static constexpr int kUnroll = kSteps < 8 ? kSteps : 8;  // more addresses would be spilled
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
#pragma unroll(kWhole ? kUnroll : 1)
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kPeriod; ++i) {
        copy_async<kReuse>(to + place(i, step), at[i],
                           kWhole || rows.has(row_[i] + step * kPeriodRows));
        at[i] += kPeriodRows * stride;
      }
    }
  }

  int row_[kPeriod];
  int column_[kPeriod];
  std::uint32_t place_[kPeriod];
};

}  // namespace quire::cuda::mma
