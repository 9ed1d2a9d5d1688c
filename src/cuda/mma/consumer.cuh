// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warps. For each tile of 64 keys a warp scores 16 of them against all rows of the
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

/// One unit, or piece of one, of at most 16 · kRowTiles rows.
template <typename C, int kRowTiles>
class UnitAttention {
 public:
  __device__ UnitAttention(ConsumerState<C>& state, const Unit& unit)
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
        quad_(lane_ % 4) {
#pragma unroll
    for (auto& tile : max_) tile[0] = tile[1] = kNoKey;
  }

  /// @return Whether results are final, or those of others are to be waited for.
  __device__ bool run() {
    if (kJoins && warp_ == 0) others_.ask(params_, unit_, lane_);
    take_queries();
    for (std::int32_t key = unit_.kv_begin / kTileKeys * kTileKeys; key < unit_.kv_end;
         key += kTileKeys) {
      Scores scores;
      score(scores);
      to_logits(scores, key + warp_ * kWarpKeys);
      online_softmax(scores);
      accumulate();
    }
    if constexpr (!P::kQueriesInRegisters) release_queries();
    return finish();
  }

 private:
  using Element = typename C::Element;
  using P = Products<C, kRowTiles>;
  using Scores = typename P::Scores;
  using WeightSwizzle = Swizzle<C::kWeightBytes>;
  static constexpr int kKeyTiles = P::kKeyTiles;
  static constexpr int kColumns = C::kColumns;    // of o, per warp
  static constexpr bool kJoins = kRowTiles == 1;  // with results of prefixes, if they are there

  /// Row `half` (0 or 1) of row tile `tile` that this thread's fragments hold.
  __device__ int row_of(int tile, int half) const { return tile * 16 + half * 8 + group_; }

  // --- queries ---------------------------------------------------------------------------------

  __device__ void take_queries() {
    if constexpr (C::kIsNarrow) {
      QueryRewriter<C, kRowTiles>(shared_, warp_, lane_)
          .run(params_.shape.q_dtype == DType::kBFloat16);
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
    const std::uint32_t row =
        QueryLayout::row(shared_address(shared_.fixed.queries), tile * 16 + lane_ % 16);
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

  /// scores = Q · Kᵀ over this warp's keys.
  __device__ void score(Scores& scores) {
    note(params_, Activity::kAwaitKeys);
    const std::uint32_t slot = wait_for_slot();
    note(params_, Activity::kScore);
#pragma unroll
    for (auto& tile : scores) {
#pragma unroll
      for (auto& fragment : tile) fragment[0] = fragment[1] = fragment[2] = fragment[3] = 0.0F;
    }
    P::score(scores, slot, warp_, lane_, [&](std::uint32_t(&query)[4], int tile, int step) {
      if constexpr (P::kQueriesInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) query[i] = queries_[tile][step][i];
      } else {
        load_query(query, tile, step);
      }
    });
    if constexpr (C::kIsNarrow) {
      if (scaling_.is_per_token()) scaling_.take_tile(scores, slot, warp_, lane_);
    }
    release_slot();
  }

  /// Products to logits in units of log 2; −inf where a query does not see a key.
  __device__ void to_logits(Scores& scores, std::int32_t first_key) {
    if constexpr (C::kIsNarrow) scaling_.scale_rows(scores);
    if (logits_.is_linear()) [[likely]] {
      if constexpr (!C::kIsNarrow) for_each(scores, [&](float& x) { x *= logits_.scale(); });
    } else {
      cap_and_alibi(scores, first_key);
    }
    if (visibility_.sees_all(first_key, first_key + kWarpKeys)) [[likely]] {
      return;
    }
    const std::uint32_t seen = visible_elements(first_key);
    std::uint32_t bit = 1;
    for_each(scores, [&](float& x) {
      if ((seen & bit) == 0) x = kNoKey;
      bit <<= 1;
    });
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
        if constexpr (C::kIsNarrow) max -= Scaling<C, kRowTiles>::kWeightShift;
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
    const std::uint32_t slot = wait_for_slot();
    note(params_, Activity::kAccumulate);
    P::accumulate(o_, slot, shared_address(shared_.fixed.weights), warp_, lane_);
    release_slot();
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

  ConsumerState<C>& state_;
  const AttendParams& params_;
  typename C::Shared& shared_;
  const Unit& unit_;
  OtherResults others_;
  const Visibility visibility_;
  const LogitTransform logits_;
  Scaling<C, kRowTiles> scaling_;  // of 8-bit K and V
  const int warp_;
  const int lane_;
  const int group_;
  const int quad_;
  std::uint32_t queries_[P::kQueriesInRegisters ? kRowTiles : 1][P::kQuerySteps][4];
  typename P::Columns o_ = {};
  float max_[kRowTiles][2];
  float sum_[kRowTiles][2] = {};
};

}  // namespace quire::cuda::mma
