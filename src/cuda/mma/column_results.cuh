// SPDX-License-Identifier: Apache-2.0
/// @file
/// What becomes of a unit's results where each computing warp has a quarter of the columns of o: they
/// go through shared memory, so that rows are written in whole chunks.
#pragma once

#include <cstdint>

#include "cuda/attend/merges.cuh"
#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit_end.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/products.cuh"
#include "cuda/mma/unit_tiles.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::mma {

/// The results of one unit, or piece of one, of at most 16 · kRowTiles rows.
template <typename C, int kRowTiles>
class ColumnResults {
 public:
  using P = Products<C, ByColumns<C, kRowTiles>>;
  using States = float[kRowTiles][2];
  /// Whether they can be joined with results of prefixes at once, if these are there.
  static constexpr bool kJoins = kRowTiles == 1;

  /// @param max  Of rows over all keys.
  /// @param sum  Of this thread's weights, relative to `max`, as `o` is.
  /// @param others  Asked about by warp 0, if they can be joined.
  __device__ ColumnResults(const ConsumerState<C>& state, const Unit& unit, int warp, int lane,
                           const typename P::Columns& o, const States& max, const States& sum,
                           OtherResults& others)
      : state_(state),
        params_(state.params),
        shared_(state.shared),
        unit_(unit),
        warp_(opaque(warp)),  // or the predicate of an earlier comparison is kept, and spilled
        lane_(lane),
        o_(o),
        max_(max),
        sum_(sum),
        others_(others) {}

  /// Stores final results, or partial ones. All computing warps call it.
  /// @return Whether results are final, or those of others are to be waited for.
  __device__ bool finish() const {
    note(params_, Activity::kStore, unit_.seq);
    publish_states();
    if (!kJoins || shared_.fixed.complete[0] == 0) {
      store_all_rows<false>();
      return unit_.num_pieces == 1 && !unit_.leaves_states();
    }
    if constexpr (kJoins) store_all_rows<true>();
    return true;
  }

 private:
  static constexpr int kColumns = C::kColumns;  // of a warp

  /// @tparam kJoined  With other results, to final ones.
  template <bool kJoined>
  __device__ __forceinline__ void store_all_rows() const {
#pragma unroll 1
    for (int first = 0; first < unit_.rows; first += 8) {
      stage(first / 8);
      store_rows<kJoined>(first, min(8, unit_.rows - first));
    }
  }

  /// Maxima and, from every warp, sums of the rows go to shared memory, and whether other results are
  /// there.
  __device__ void publish_states() const {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[tile][half];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        if (lane_ % 4 != 0) continue;
        const int row = tile * 16 + half * 8 + lane_ / 4;
        shared_.fixed.sums[row][warp_] = sum;
        if (warp_ == 0) shared_.fixed.final_maxima[row] = max_[tile][half];
      }
    }
    if (kJoins && warp_ == 0) {
      const bool are_there = others_.are_there();
      if (lane_ == 0) shared_.fixed.complete[0] = static_cast<std::uint32_t>(are_there);
    }
    state_.wait_at(kUnitEnd);
  }

  /// This warp's columns of half a row tile, [8, kColumns] in fp32, where the weights were.
  __device__ float* staged() const {
    static_assert(sizeof(shared_.fixed.weights) >= kConsumerWarps * 8 * kColumns * sizeof(float));
    return reinterpret_cast<float*>(shared_.fixed.weights) + warp_ * 8 * kColumns;
  }

  __device__ void stage(int half_tile) const {
    __syncwarp();
    float* to = staged() + lane_ / 4 * kColumns;
    P::for_columns(
        lane_, [&](int tile, int i) { return of_half_tile(half_tile, tile, i); },
        [&](int column, float first, float second) { store_pair(to + column, first, second); });
    __syncwarp();
  }

  /// An element of o by a number that only run time knows: registers cannot be indexed.
  __device__ float of_half_tile(int half_tile, int column, int i) const {
    float value = o_[0][column][i];
#pragma unroll
    for (int other = 1; other < 2 * kRowTiles; ++other) {
      if (half_tile == other) value = o_[other / 2][column][other % 2 * 2 + i];
    }
    return value;
  }

  /// Rows [first, first + count) of the unit from where they are staged.
  template <bool kJoined>
  __device__ __forceinline__ void store_rows(int first, int count) const {
    constexpr int kAtOnce = 4;  // columns of a lane
    constexpr int kLanesPerRow = kColumns / kAtOnce;
#pragma unroll 1
    for (int i = lane_; i < count * kLanesPerRow; i += kWarpSize) {
      const int row = first + i / kLanesPerRow;
      const int column = warp_ * kColumns + i % kLanesPerRow * kAtOnce;
      if (kConsumerWarps * kColumns > C::kHeadDimVo && column >= C::kHeadDimVo) continue;
      const float4 o = *reinterpret_cast<const float4*>(staged() + i * kAtOnce);
      const float4 sums = *reinterpret_cast<const float4*>(shared_.fixed.sums[row]);
      const float sum = (sums.x + sums.y) + (sums.z + sums.w);
      const float max = shared_.fixed.final_maxima[row];
      if constexpr (kJoined) {
        join_row(row, column, {o, make_float2(max, sum)});
        continue;
      }
      if (unit_.num_pieces > 1 || unit_.leaves_states()) {
        const std::int32_t to = partial_row<schedule::kSmallUnits>(params_, unit_, row);
        *reinterpret_cast<float4*>(params_.partials.o + to * C::kHeadDimVo + column) = o;
        if (column == 0) params_.partials.max_and_sum[to] = make_float2(max, sum);
        continue;
      }
      const RowTarget target = row_target(params_, unit_, row);
      const RowResult result = result_of(params_, target.head, max, sum);
      const float scaled[kAtOnce] = {o.x * result.o_scale, o.y * result.o_scale,
                                     o.z * result.o_scale, o.w * result.o_scale};
      store_o<typename C::Output>(params_, target, column, scaled);
      if (column == 0) store_lse(params_, target, result);
    }
  }

  /// Four columns of a row.
  __device__ void join_row(int row, int column, const OwnPart& own) const {
    using Rows = ListedRows<typename C::Output, true>;
    const std::int32_t query = params_.group_size.quotient(row);
    const Rows rows(params_, unit_.kv_head_begin, unit_.queries.first + query, own);
    RowMerge<Rows, 1, kJoinTogether, kJoinTogether> merge(
        params_, rows, params_.group_size.remainder(row, query), 1, column);
    merge.run();
    merge.store();
  }

  const ConsumerState<C>& state_;
  const AttendParams& params_;
  typename C::Shared& shared_;
  const Unit& unit_;
  const int warp_;
  const int lane_;
  const typename P::Columns& o_;
  const States& max_;
  const States& sum_;
  OtherResults& others_;
};

}  // namespace quire::cuda::mma
