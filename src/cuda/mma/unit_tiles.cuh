// SPDX-License-Identifier: Apache-2.0
/// @file
/// What computing warps do alike, however they divide a tile: they take queries, wait for keys and
/// make logits.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/visibility.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/products.cuh"
#include "cuda/mma/queries.cuh"
#include "cuda/mma/scaling.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::mma {

/// Named barriers of the computing warps; 0 is the whole block's.
enum NamedBarrier : int {
  kMaximaWritten = 1,   // filled by every warp's maxima of the tile, drained by online_softmax
  kWeightsWritten = 2,  // filled by every warp's weights of the tile, drained by accumulate
  kUnitEnd = 3,         // sums written; partial results written; last piece known
  // Of the two warps that have the same rows, where no other weights are shared:
  kLowRows = kMaximaWritten,    // filled by what each has of half of the keys, drained by the other
  kHighRows = kWeightsWritten,  // likewise
};

/// What outlives a unit.
template <typename C>
struct ConsumerState {
  const AttendParams& params;
  typename C::Shared& shared;
  int warp;
  int lane;
  int first_barrier = 0;  // of those that `NamedBarrier` counts
  RingPosition<C::kSlots> position;
  std::uint32_t query_parity = 0;

  /// The next unit; valid until the one after it is asked for.
  __device__ const Unit& next_unit() {
    barrier_wait(shared_address(&shared.fixed.queries_full), query_parity);
    const Unit& unit = shared.fixed.units[query_parity];
    query_parity ^= 1;
    return unit;
  }

  __device__ void wait_at(NamedBarrier barrier) const {
    named_barrier<kConsumers>(first_barrier + barrier);
  }

  /// Makes room for the queries of the next unit.
  __device__ void release_queries() {
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&shared.fixed.queries_empty));
  }
};

/// The tiles of one unit, or piece of one, as a computing warp sees them.
template <typename C, typename Division>
class UnitTiles {
 protected:
  using Element = typename C::Element;
  using P = Products<C, Division>;
  using Scores = typename P::Scores;
  static constexpr int kRowTiles = P::kRowTiles;
  static constexpr int kKeyTiles = P::kKeyTiles;

  __device__ UnitTiles(ConsumerState<C>& state, const Unit& unit)
      : state_(state),
        params_(state.params),
        shared_(state.shared),
        unit_(unit),
        visibility_(params_, unit),
        logits_(params_, unit.kv_head_begin),
        scaling_(params_),
        warp_(opaque(state.warp)),
        lane_(opaque(state.lane)),
        group_(lane_ / 4),
        quad_(lane_ % 4) {}

  [[nodiscard]] __device__ int first_row() const { return Division::first_row(warp_); }
  /// Of those of a tile that are scored.
  [[nodiscard]] __device__ int first_key() const { return Division::first_scored_key(warp_); }
  /// Row `half` (0 or 1) of row tile `tile` that this thread's fragments hold.
  [[nodiscard]] __device__ int row_of(int tile, int half) const {
    return first_row() + tile * 16 + half * 8 + group_;
  }

  // --- queries ---------------------------------------------------------------------------------

  __device__ void take_queries() {
    if constexpr (C::kIsNarrow) {
      QueryRewriter<C, kRowTiles>(shared_, warp_, lane_).run(params_, unit_);
      state_.wait_at(kUnitEnd);
      scaling_.take_rows(shared_.fixed.query_factors, logits_, lane_);
    }
    if constexpr (P::kQueriesInRegisters) {
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int step = 0; step < P::kQuerySteps; ++step) {
          load_query(queries_[tile][step], tile, step);
        }
      }
      release_queries();
    }
  }

  __device__ void load_query(std::uint32_t (&to)[4], int tile, int step) const {
    using QueryLayout = typename C::QueryLayout;
    const std::uint32_t row = QueryLayout::row(shared_address(shared_.fixed.queries),
                                               first_row() + tile * 16 + lane_ % 16);
    load_matrices(to, QueryLayout::chunk(QueryLayout::chunk(row, lane_ / 16), step * 2));
  }

  __device__ void release_queries() { state_.release_queries(); }

  // --- ring ------------------------------------------------------------------------------------

  __device__ std::uint32_t wait_for_slot() {
    barrier_wait(shared_address(&shared_.full[state_.position.slot]), state_.position.parity);
    return shared_address(shared_.ring[state_.position.slot]);
  }

  __device__ void release_slot() {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.empty[state_.position.slot]));
    state_.position.advance();
  }

  // --- the tile --------------------------------------------------------------------------------

  /// logits = Q · Kᵀ of the tile at `key`, in units of log 2; −inf where a query does not see a key.
  __device__ void score(Scores& logits, std::int32_t key) {
    multiply(logits);
    to_logits(logits, key + first_key());
  }

  /// scores = Q · Kᵀ over this warp's keys.
  __device__ void multiply(Scores& scores) {
    note(params_, Activity::kAwaitKeys);
    const std::uint32_t slot = wait_for_slot();
    note(params_, Activity::kScore);
#pragma unroll
    for (auto& tile : scores) {
#pragma unroll
      for (auto& fragment : tile) fragment[0] = fragment[1] = fragment[2] = fragment[3] = 0.0F;
    }
    P::score(scores, slot, first_key(), lane_, [&](std::uint32_t(&query)[4], int tile, int step) {
      if constexpr (P::kQueriesInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) query[i] = queries_[tile][step][i];
      } else {
        load_query(query, tile, step);
      }
    });
    if constexpr (C::kIsNarrow) {
      if (scaling_.is_per_token()) scaling_.take_tile(scores, slot, first_key(), lane_);
    }
    release_slot();
  }

  /// Products to logits.
  __device__ void to_logits(Scores& scores, std::int32_t first_key) {
    if constexpr (C::kIsNarrow) scaling_.scale_rows(scores);
    if (logits_.is_linear()) [[likely]] {
      if constexpr (!C::kIsNarrow) for_each(scores, [&](float& x) { x *= logits_.scale(); });
    } else {
      cap_and_alibi(scores, first_key);
    }
    if (visibility_.sees_all(first_key, first_key + Division::kScoredKeys)) [[likely]] {
      return;
    }
    const std::uint32_t seen = visible_elements(first_key);
    std::uint32_t bit = 1;
    for_each(scores, [&](float& x) {
      if ((seen & bit) == 0) x = kNoKey;
      bit <<= 1;
    });
  }

  /// Of a row of the fragments over this warp's keys; of 8 bits such that the largest weight is
  /// 2^`kWeightShift`.
  __device__ float max_of_row(const Scores& scores, int tile, int half) const {
    float max = max_of_thread(scores[tile], half);
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
    if constexpr (C::kIsNarrow) max -= Scaling<C, P>::kWeightShift;
    return max;
  }

  /// Calls `body(x)` for the thread's elements.
  template <typename Body>
  __device__ void for_each(Scores& scores, const Body& body) const {
#pragma unroll
    for (auto& tile : scores) {
#pragma unroll
      for (auto& fragment : tile) {
#pragma unroll
        for (float& x : fragment) body(x);
      }
    }
  }

  __device__ float max_of_thread(const float (&scores)[kKeyTiles][4], int half) const {
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

  /// Bit i: this thread's element i, in the order of `for_each`, is seen. Rare and rolled, so that
  /// it costs the common path no code.
  __device__ std::uint32_t visible_elements(std::int32_t first_key) const {
    std::uint32_t seen = 0;
#pragma unroll 1
    for (int i = 0; i < kRowTiles * kKeyTiles * 4; ++i) {
      const int row = row_of(i / (kKeyTiles * 4), i % 4 / 2);
      const std::int32_t key = first_key + i / 4 % kKeyTiles * 8 + quad_ * 2 + i % 2;
      const std::int32_t query = unit_.q_begin + params_.group_size.quotient(row);
      seen |= std::uint32_t{visibility_.sees(query, key)} << i;
    }
    return seen;
  }

  /// Soft cap and ALiBi.
  __device__ void cap_and_alibi(Scores& scores, std::int32_t first_key) const {
    for_each(scores, [&](float& x) { x = logits_.template capped<false>(x); });
    if (params_.tensors.alibi_slopes == nullptr) return;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int32_t row = max(0, min(row_of(tile, half), unit_.rows - 1));
        const std::int32_t query = params_.group_size.quotient(row);
        const float slope =
            __ldg(params_.tensors.alibi_slopes + unit_.kv_head_begin * params_.shape.group_size +
                  params_.group_size.remainder(row, query));
        const std::int32_t distance =
            visibility_.first_position() + query - (first_key + quad_ * 2);
#pragma unroll
        for (int i = 0; i < kKeyTiles * 2; ++i) {
          scores[tile][i / 2][half * 2 + i % 2] -=
              LogitTransform::alibi(slope, distance - i / 2 * 8 - i % 2);
        }
      }
    }
  }

  ConsumerState<C>& state_;
  const AttendParams& params_;
  typename C::Shared& shared_;
  const Unit& unit_;
  const Visibility visibility_;
  const LogitTransform logits_;
  Scaling<C, P> scaling_;  // of 8-bit K and V
  const int warp_;
  const int lane_;
  const int group_;
  const int quad_;

 private:
  std::uint32_t queries_[P::kQueriesInRegisters ? kRowTiles : 1][P::kQuerySteps][4];
};

}  // namespace quire::cuda::mma
