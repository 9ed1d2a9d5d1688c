// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warps on units of 17 to 32 rows, where registers hold all columns of o: of each tile
/// a warp has half of the rows and half of the keys to itself.
///
///   S [16 of 32, 32 of 64]  = Q [16, D] · K [32, D]ᵀ     score
///   P [16, 32]              = 2^(S − max)                online_softmax (in registers)
///   O [16, Dv]             += P · V [32, Dv]             accumulate
///
/// K and V are read from shared memory twice, but weights never go there, q (of up to 128 components)
/// only once, and no warp waits for another before the unit ends. Then the two that have the same rows
/// join what their keys gave.
#pragma once

#include <cstdint>

#include "cuda/attend/merges.cuh"
#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/unit_tiles.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::mma {

/// One unit, or piece of one, of at most 32 rows.
template <typename C>
class QuarterAttention : UnitTiles<C, ByQuarters<C>> {
 public:
  __device__ QuarterAttention(ConsumerState<C>& state, const Unit& unit) : Tiles(state, unit) {}

  /// @return Whether results are final, or those of others are to be waited for.
  __device__ bool run() {
    this->take_queries();
    for (std::int32_t key = unit_.kv_begin / kTileKeys * kTileKeys; key < unit_.kv_end;
         key += kTileKeys) {
      Scores scores;
      this->score(scores, key);
      online_softmax(scores);
      accumulate(scores);
    }
    if constexpr (!P::kQueriesInRegisters) state_.release_queries();
    note(params_, Activity::kStore, unit_.seq);
    join_keys();
    if (unit_.num_pieces > 1 || unit_.leaves_states()) {
      store_partial();
      return false;
    }
    store_final();
    return true;
  }

 private:
  using Tiles = UnitTiles<C, ByQuarters<C>>;
  using Tiles::lane_;
  using Tiles::params_;
  using Tiles::quad_;
  using Tiles::row_of;
  using Tiles::shared_;
  using Tiles::state_;
  using Tiles::unit_;
  using Tiles::warp_;
  using typename Tiles::Element;
  using typename Tiles::P;
  using typename Tiles::Scores;
  static constexpr int kJoinedTiles = P::kColumnTiles / 2;  // of a warp in the end
  static constexpr int kJoinedAtOnce = 2;                   // that are staged
  static_assert(P::kColumnTiles % 2 == 0 && kJoinedTiles % kJoinedAtOnce == 0);
  static_assert(kConsumerWarps * kJoinedAtOnce * kWarpSize * sizeof(float4) <= C::kWeightsBytes);

  // --- the tile --------------------------------------------------------------------------------

  /// Logits to weights; maxima, sums and o follow.
  __device__ void online_softmax(Scores& scores) {
    raise_maxima(scores);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float base = max_[half] == kNoKey ? 0.0F : max_[half];
#pragma unroll
      for (auto& fragment : scores[0]) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          fragment[i] = exp2_fast(fragment[i] - base);
          sum_[half] += fragment[i];
        }
      }
    }
  }

  /// Takes the tile's maxima in and scales sums and o down to them.
  __device__ void raise_maxima(const Scores& scores) {
    float factor[2];
    bool raised = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max = max_[half];
#pragma unroll
      for (const auto& fragment : scores[0]) {
        max = fmaxf(max, fmaxf(fragment[2 * half], fragment[2 * half + 1]));
      }
      max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
      max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
      factor[half] = max == kNoKey ? 1.0F : exp2_fast(max_[half] - max);
      raised = raised || max > max_[half];
      max_[half] = max;
    }
    if (!__any_sync(kAllLanes, raised)) return;
    scale(factor);
  }

  __device__ void scale(const float (&factor)[2]) {
    sum_[0] *= factor[0];
    sum_[1] *= factor[1];
#pragma unroll
    for (auto& fragment : o_[0]) {
      fragment[0] *= factor[0];
      fragment[1] *= factor[0];
      fragment[2] *= factor[1];
      fragment[3] *= factor[1];
    }
  }

  /// o += P · V over the warp's keys.
  __device__ void accumulate(const Scores& weights) {
    static_assert(P::kKeySteps == 2);
    std::uint32_t packed[P::kKeySteps][4];
#pragma unroll
    for (int step = 0; step < P::kKeySteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto& fragment = weights[0][2 * step + i / 2];
        packed[step][i] = pack<Element>(fragment[i % 2 * 2], fragment[i % 2 * 2 + 1]);
      }
    }
    note(params_, Activity::kAwaitValues);
    const std::uint32_t slot = this->wait_for_slot();
    note(params_, Activity::kAccumulate);
    P::accumulate(o_, slot, this->first_key(), 0, lane_, [&](typename P::Weights& p, int step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[0][i] = step == 0 ? packed[0][i] : packed[1][i];
    });
    this->release_slot();
  }

  // --- the end ---------------------------------------------------------------------------------

  /// Which half of the keys the warp has, and which half of the columns of o in the end.
  __device__ int half_of_pair() const { return warp_ % 2; }

  /// Waits for the warp with the same rows.
  __device__ void wait_for_pair() const {
    if (warp_ < 2) {
      named_barrier<2 * kWarpSize>(state_.first_barrier + kLowRows);
    } else {
      named_barrier<2 * kWarpSize>(state_.first_barrier + kHighRows);
    }
  }

  /// Joins the results of both halves of the keys: each of the two warps gets half of the columns, of
  /// which it has the first `kJoinedTiles` tiles then.
  __device__ void join_keys() {
    state_.wait_at(kUnitEnd);  // nobody reads what the unit before left in shared memory
    join_states();
    auto* const staged = reinterpret_cast<float4*>(shared_.fixed.weights) + lane_;
    const bool is_low = half_of_pair() == 0;
#pragma unroll
    for (int first = 0; first < kJoinedTiles; first += kJoinedAtOnce) {
#pragma unroll
      for (int i = first; i < first + kJoinedAtOnce; ++i) {
        const auto given = [&](int element) {
          return is_low ? o_[0][kJoinedTiles + i][element] : o_[0][i][element];
        };
        staged[place_of(warp_, i - first)] = make_float4(given(0), given(1), given(2), given(3));
      }
      wait_for_pair();
#pragma unroll
      for (int i = first; i < first + kJoinedAtOnce; ++i) {
        const float4 other = staged[place_of(warp_ ^ 1, i - first)];
        const float others[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
        for (int element = 0; element < 4; ++element) {
          const float own = is_low ? o_[0][i][element] : o_[0][kJoinedTiles + i][element];
          o_[0][i][element] = own + others[element];
        }
      }
      wait_for_pair();
    }
  }

  /// Where a warp stages a tile of columns, a fragment for each lane.
  static __device__ int place_of(int warp, int tile) {
    return (warp * kJoinedAtOnce + tile) * kWarpSize;
  }

  /// Maxima and sums of the rows over all keys; o relative to them.
  __device__ void join_states() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum_[half] += __shfl_xor_sync(kAllLanes, sum_[half], 1);
      sum_[half] += __shfl_xor_sync(kAllLanes, sum_[half], 2);
      if (quad_ != 0) continue;
      shared_.fixed.maxima[row_of(0, half)][half_of_pair()] = max_[half];
      shared_.fixed.sums[row_of(0, half)][half_of_pair()] = sum_[half];
    }
    wait_for_pair();
    float factor[2];
    float other_sum[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float other_max = shared_.fixed.maxima[row_of(0, half)][half_of_pair() ^ 1];
      const float max = fmaxf(max_[half], other_max);
      const float base = max == kNoKey ? 0.0F : max;
      factor[half] = exp2_fast(max_[half] - base);
      other_sum[half] = __fmul_rn(shared_.fixed.sums[row_of(0, half)][half_of_pair() ^ 1],
                                  exp2_fast(other_max - base));
      max_[half] = max;
    }
    scale(factor);
    // Not contracted: both warps get the same bits.
    sum_[0] = __fadd_rn(sum_[0], other_sum[0]);
    sum_[1] = __fadd_rn(sum_[1], other_sum[1]);
  }

  /// Of the warp's columns of o in the end, the first that this thread holds.
  __device__ int first_column() const { return half_of_pair() * kJoinedTiles * 8 + quad_ * 2; }

  __device__ void store_final() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(0, half) >= unit_.rows) continue;
      const RowTarget target = row_target(params_, unit_, row_of(0, half));
      const RowResult result = result_of(params_, target.head, max_[half], sum_[half]);
      if (first_column() == 0) store_lse(params_, target, result);
#pragma unroll
      for (int i = 0; i < kJoinedTiles; ++i) {
        const float pair[2] = {o_[0][i][2 * half] * result.o_scale,
                               o_[0][i][2 * half + 1] * result.o_scale};
        store_o<typename C::Output>(params_, target, first_column() + i * 8, pair);
      }
    }
  }

  __device__ void store_partial() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(0, half) >= unit_.rows) continue;
      const std::int32_t to = partial_row<schedule::kSmallUnits>(params_, unit_, row_of(0, half));
      if (first_column() == 0) {
        params_.partials.max_and_sum[to] = make_float2(max_[half], sum_[half]);
      }
      float* const o = params_.partials.o + to * C::kHeadDimVo + first_column();
#pragma unroll
      for (int i = 0; i < kJoinedTiles; ++i) {
        store_pair(o + i * 8, o_[0][i][2 * half], o_[0][i][2 * half + 1]);
      }
    }
  }

  typename P::Columns o_ = {};
  float max_[2] = {kNoKey, kNoKey};
  float sum_[2] = {};
};

}  // namespace quire::cuda::mma
