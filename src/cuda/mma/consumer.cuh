// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warps on units that `OwnKeys` is not for (`Config::kHasQuarters`, `kHasStripes`): of up
/// to 16 rows over K and V of 16 bits, of more over 8 bits, and where o is wide. For each tile of 64 keys a warp scores 16 of them against all rows of the
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
#include "cuda/mma/column_results.cuh"
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
    return ColumnResults<C, kRowTiles>(state_, unit_, warp_, lane_, o_, max_, sum_, others_)
        .finish();
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

  __device__ void publish_maxima(const Scores& scores) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float max = this->max_of_row(scores, tile, half);
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

  OtherResults others_;
  typename P::Columns o_ = {};
  float max_[kRowTiles][2];
  float sum_[kRowTiles][2] = {};
};

}  // namespace quire::cuda::mma
