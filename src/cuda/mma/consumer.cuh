// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warps on units of up to 16 rows, and of more if o is too wide for `QuarterAttention`
/// or K and V have 8 bits. For each tile of 64 keys a warp scores 16 of them against all rows of the
/// unit, the warps agree on the rows' maxima and share their weights, and each accumulates all keys
/// into its quarter of the columns of o:
///
///   S [rows, 16 of 64]  = Q [rows, D] · K [64, D]ᵀ       score
///   P [rows, 64]        = 2^(S − max)                    online_softmax (through shared memory)
///   O [rows, ¼ of Dv]  += P · V [64, Dv]                 accumulate
///
/// So K and V are read from shared memory once, and a warp needs a quarter of the registers for o.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit_end.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/unit_tiles.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::mma {

/// One unit, or piece of one, of at most 16 · kRowTiles_ rows.
template <typename C, int kRowTiles_>
class UnitAttention : UnitTiles<C, ByColumns<C, kRowTiles_>> {
 public:
  __device__ UnitAttention(ConsumerState<C>& state, const Unit& unit) : Tiles(state, unit) {
#pragma unroll
    for (auto& tile : max_) tile[0] = tile[1] = kNoKey;
  }

  /// @return Whether results are final, or those of others are to be waited for.
  __device__ bool run() {
    if (kJoins && warp_ == 0) others_.ask(params_, unit_, lane_);
    this->take_queries();
    for (std::int32_t key = unit_.kv_begin / kTileKeys * kTileKeys; key < unit_.kv_end;
         key += kTileKeys) {
      Scores scores;
      this->score(scores, key);
      online_softmax(scores);
      accumulate();
    }
    if constexpr (!P::kQueriesInRegisters) state_.release_queries();
    return finish();
  }

 private:
  using Tiles = UnitTiles<C, ByColumns<C, kRowTiles_>>;
  using Tiles::group_;
  using Tiles::kKeyTiles;
  using Tiles::kRowTiles;
  using Tiles::lane_;
  using Tiles::params_;
  using Tiles::quad_;
  using Tiles::row_of;
  using Tiles::scaling_;
  using Tiles::shared_;
  using Tiles::state_;
  using Tiles::unit_;
  using Tiles::warp_;
  using typename Tiles::Element;
  using typename Tiles::P;
  using typename Tiles::Scores;
  using WeightSwizzle = Swizzle<C::kWeightBytes>;
  static constexpr int kColumns = C::kColumns;    // of o, per warp
  static constexpr bool kJoins = kRowTiles == 1;  // with results of prefixes, if they are there

  /// Logits to weights in shared memory; maxima, sums and o follow.
  __device__ void online_softmax(Scores& scores) {
    publish_maxima(scores);
    note(params_, Activity::kShareMaxima);
    state_.wait_at(kMaximaWritten);
    note(params_, Activity::kScore);
    raise_maxima();
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float base = max_[tile][half] == kNoKey ? 0.0F : max_[tile][half];
        const std::uint32_t weights =
            WeightSwizzle::row(shared_address(shared_.fixed.weights), row_of(tile, half));
#pragma unroll
        for (int keys = 0; keys < kKeyTiles; ++keys) {
          float first = exp2_fast(scores[tile][keys][2 * half] - base);
          float second = exp2_fast(scores[tile][keys][2 * half + 1] - base);
          sum_[tile][half] += first + second;
          if constexpr (C::kIsNarrow) {
            if (scaling_.is_per_token()) {
              first *= scaling_.of_values(keys).x;
              second *= scaling_.of_values(keys).y;
            }
          }
          store_shared(WeightSwizzle::chunk(weights, warp_ * kKeyTiles + keys) + quad_ * 4,
                       pack<Element>(first, second));
        }
      }
    }
    note(params_, Activity::kShareWeights);
    state_.wait_at(kWeightsWritten);
  }

  /// Of half a row tile.
  __device__ float max_of_keys(const float (&scores)[kKeyTiles][4], int half) const {
    float max = kNoKey;
    if constexpr (C::kIsNarrow) {
      if (scaling_.is_per_token()) {
#pragma unroll
        for (int keys = 0; keys < kKeyTiles; ++keys) {
          const float2 raise = scaling_.raise_of(keys);
          max = fmaxf(
              max, fmaxf(scores[keys][2 * half] + raise.x, scores[keys][2 * half + 1] + raise.y));
        }
        return max;
      }
    }
#pragma unroll
    for (int keys = 0; keys < kKeyTiles; ++keys) {
      max = fmaxf(max, fmaxf(scores[keys][2 * half], scores[keys][2 * half + 1]));
    }
    return max;
  }

  __device__ void publish_maxima(const Scores& scores) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float max = max_of_keys(scores[tile], half);
        max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
        max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
        if constexpr (C::kIsNarrow) max -= Scaling<C, P>::kWeightShift;
        if (quad_ == 0) shared_.fixed.maxima[row_of(tile, half)][warp_] = max;
      }
    }
  }

  /// Takes the tile's maxima in and scales sums and o down to them.
  __device__ void raise_maxima() {
    float factor[kRowTiles][2];
    bool raised = false;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 of_warps =
            *reinterpret_cast<const float4*>(shared_.fixed.maxima[row_of(tile, half)]);
        const float max = fmaxf(
            max_[tile][half], fmaxf(fmaxf(of_warps.x, of_warps.y), fmaxf(of_warps.z, of_warps.w)));
        factor[tile][half] = max == kNoKey ? 1.0F : exp2_fast(max_[tile][half] - max);
        raised = raised || max > max_[tile][half];
        max_[tile][half] = max;
      }
    }
    if (!__any_sync(kAllLanes, raised)) return;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      sum_[tile][0] *= factor[tile][0];
      sum_[tile][1] *= factor[tile][1];
#pragma unroll
      for (auto& fragment : o_[tile]) {
        fragment[0] *= factor[tile][0];
        fragment[1] *= factor[tile][0];
        fragment[2] *= factor[tile][1];
        fragment[3] *= factor[tile][1];
      }
    }
  }

  /// o += P · V over all keys of the tile, this warp's columns.
  __device__ void accumulate() {
    note(params_, Activity::kAwaitValues);
    const std::uint32_t slot = this->wait_for_slot();
    note(params_, Activity::kAccumulate);
    const std::uint32_t weights = WeightSwizzle::chunk(
        WeightSwizzle::row(shared_address(shared_.fixed.weights), lane_ % 16), lane_ / 16);
    P::accumulate(o_, slot, 0, warp_ * kColumns, lane_, [&](typename P::Weights& p, int step) {
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        load_matrices(p[tile],
                      WeightSwizzle::chunk(weights, step * 2) + tile * 16 * C::kWeightBytes);
      }
    });
    this->release_slot();
  }

  // --- the end ---------------------------------------------------------------------------------

  /// Final results, or partial ones.
  __device__ bool finish() {
    note(params_, Activity::kStore, unit_.seq);
    publish_states();
    if (!kJoins || shared_.fixed.complete[0] == 0) {
      store_all_rows<false>();
      return unit_.num_pieces == 1 && !unit_.leaves_states();
    }
    if constexpr (kJoins) store_all_rows<true>();
    return true;
  }

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
  __device__ void publish_states() {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[tile][half];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        if (quad_ != 0) continue;
        const int row = row_of(tile, half);
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
    float* to = staged() + group_ * kColumns;
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

  OtherResults others_;
  typename P::Columns o_ = {};
  float max_[kRowTiles][2];
  float sum_[kRowTiles][2] = {};
};

}  // namespace quire::cuda::mma
