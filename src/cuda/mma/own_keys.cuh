// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warps where each has keys of every tile to itself, and all columns of o:
///
///   S [16, keys]   = Q [16, D] · K [keys, D]ᵀ     score
///   P [16, keys]   = 2^(S − max)                  online_softmax (in registers)
///   O [16, Dv]    += P · V [keys, Dv]             accumulate
///
/// Weights never go through shared memory, and no warp waits for another before the unit ends. Then
/// those that have the same rows join what their keys gave.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/unit_tiles.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::mma {

/// One unit, or piece of one, of at most 16 rows a warp.
/// @tparam kParts  Of the keys of a tile, 2 or 4.
template <typename C, int kParts>
class OwnKeys : protected UnitTiles<C, ByKeys<C, kParts>> {
 protected:
  using Tiles = UnitTiles<C, ByKeys<C, kParts>>;
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

  __device__ OwnKeys(ConsumerState<C>& state, const Unit& unit) : Tiles(state, unit) {}

  __device__ void attend_tiles() {
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
  }

  /// Takes `max` as the rows' maxima, which are not lower.
  __device__ void scale_to(const float (&max)[2]) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float distance = max_[half] - (max[half] == kNoKey ? 0.0F : max[half]);
      factor[half] = exp2_fast(distance);
      if constexpr (C::kHasTokenScales) {
        // Maxima count scales of V, sums do not: one that is large may be far below.
        const float half_way = exp2_fast(0.5F * distance);
        sum_[half] = sum_[half] * half_way * half_way;
      } else {
        sum_[half] *= factor[half];
      }
      max_[half] = max[half];
    }
    scale(factor);
  }

  /// Of the columns of o that the warp has, the first 2 · kKept tiles, gives one half to the warp
  /// `other`, which gives the other one: the sums are the first `kKept` tiles then.
  /// @param keeps_first  Of the halves; the other warp keeps the second.
  /// @param wait         Until both are here.
  template <int kKept, typename Wait>
  __device__ __forceinline__ void exchange_halves(int other, bool keeps_first, const Wait& wait) {
    constexpr int kAtOnce = kKept < 2 ? kKept : 2;  // tiles that are staged
    static_assert(kKept % kAtOnce == 0);
    static_assert(kConsumerWarps * kAtOnce * kWarpSize * sizeof(float4) <= C::kWeightsBytes);
    auto* const staged = reinterpret_cast<float4*>(shared_.fixed.weights) + lane_;
    const auto place_of = [](int warp, int tile) { return (warp * kAtOnce + tile) * kWarpSize; };
#pragma unroll
    for (int first = 0; first < kKept; first += kAtOnce) {
#pragma unroll
      for (int i = first; i < first + kAtOnce; ++i) {
        const auto given = [&](int element) {
          return keeps_first ? o_[0][kKept + i][element] : o_[0][i][element];
        };
        staged[place_of(warp_, i - first)] = make_float4(given(0), given(1), given(2), given(3));
      }
      wait();
#pragma unroll
      for (int i = first; i < first + kAtOnce; ++i) {
        const float4 theirs = staged[place_of(other, i - first)];
        const float sums[4] = {theirs.x, theirs.y, theirs.z, theirs.w};
#pragma unroll
        for (int element = 0; element < 4; ++element) {
          const float own = keeps_first ? o_[0][i][element] : o_[0][kKept + i][element];
          o_[0][i][element] = own + sums[element];
        }
      }
      wait();
    }
  }

  typename P::Columns o_ = {};
  float max_[2] = {kNoKey, kNoKey};
  float sum_[2] = {};

 private:
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
    if constexpr (C::kIsNarrow) {
      if (scaling_.is_per_token()) scaling_.scale_weights(scores);
    }
  }

  /// Takes the tile's maxima in and scales sums and o down to them.
  __device__ void raise_maxima(const Scores& scores) {
    float factor[2];
    bool raised = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float max = fmaxf(max_[half], this->max_of_row(scores, 0, half));
      factor[half] = max == kNoKey ? 1.0F : exp2_fast(max_[half] - max);
      raised = raised || max > max_[half];
      max_[half] = max;
    }
    if (!__any_sync(kAllLanes, raised)) return;
    sum_[0] *= factor[0];
    sum_[1] *= factor[1];
    scale(factor);
  }

  __device__ void scale(const float (&factor)[2]) {
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
      for (int i = 0; i < 4; ++i) {
        p[0][i] = packed[0][i];
        if (P::kKeySteps > 1 && step > 0) p[0][i] = packed[P::kKeySteps - 1][i];
      }
    });
    this->release_slot();
  }
  static_assert(P::kKeySteps <= 2);
};

}  // namespace quire::cuda::mma
