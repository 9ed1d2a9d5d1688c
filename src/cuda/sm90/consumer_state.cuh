// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a thread of the computing warpgroups knows beyond a unit: barriers, the ring, turns.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/attend/visibility.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/instructions.cuh"
#include "cuda/sm90/query_splitter.cuh"

namespace quire::cuda::sm90 {

/// Named barriers of large units; those of the mma kernel come first, for each half.
inline constexpr int kMostComputingWarpgroups = 3;
enum NamedBarrier : int {
  kUnitEnd = 1 + kHalves * 3,  // partial results written; last piece known
  kTurn = kUnitEnd + 1,  // and the next: passed by a warpgroup, waited at by the one behind it
  kFit = kTurn + kMostComputingWarpgroups,  // and the next: a warpgroup agrees on what to do
};
static_assert(kFit + kMostComputingWarpgroups <= 16, "as many as there are");

/// Where a unit and its queries lie.
template <typename C>
struct UnitPlace {
  mma::RingPosition<C::kUnits> unit;
  mma::RingPosition<C::kQueryBuffers> queries;

  __device__ void advance() {
    unit.advance();
    queries.advance();
  }
  [[nodiscard]] __device__ UnitPlace before() const { return {unit.before(), queries.before()}; }
};

/// What outlives a unit.
template <typename C>
struct ConsumerState {
  static constexpr int kScores = C::kTileKeys / 2;  // of a thread

  const AttendParams& params;
  const TileMaps& maps;
  typename C::Large& shared;
  bool has_boxes;  // whole tiles come in boxes
  int warpgroup;
  int warp;  // of the warpgroup
  int lane;
  mma::RingPosition<C::kSlots> position{};  // of the keys that are scored next
  UnitPlace<C> place{};                     // of the unit that is attended

  [[nodiscard]] __device__ int thread() const {
    return warpgroup * kWarpgroupSize + warp * kWarpSize + lane;
  }

  [[nodiscard]] __device__ const LargeUnit& unit_at(UnitPlace<C> at) const {
    return shared.fixed.units[at.unit.slot];
  }
  /// The unit before the one at `place`: its rows of o, which lie where its queries were, may still
  /// be on their way.
  __device__ void release_last_unit() const {
    wait_for_boxes_read();
    const UnitPlace<C> last = place.before();
    release(shared.fixed.queries_empty[last.queries.slot]);
    release(shared.fixed.units_empty[last.unit.slot]);
  }

  __device__ void release(std::uint64_t& empty) const {
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&empty));
  }

  /// @param has_rows  Some of the tile may have been copied row by row, not in boxes.
  __device__ void wait_for_slot(mma::RingPosition<C::kSlots> at, bool has_rows) const {
    barrier_wait(shared_address(&shared.full[at.slot]), at.parity);
    if (has_rows && !C::kWidens) show_to_products();  // who widens K does it
  }
  __device__ void release_slot(mma::RingPosition<C::kSlots> at) { release(shared.empty[at.slot]); }

  // The warpgroups take turns at issuing products.
  __device__ void wait_for_turn() const { named_barrier<2 * kWarpgroupSize>(kTurn + warpgroup); }
  __device__ void pass_turn() const {
    const int next = is_last_warpgroup() ? 0 : warpgroup + 1;
    pass_barrier<2 * kWarpgroupSize>(kTurn + next);
  }
  [[nodiscard]] __device__ bool is_last_warpgroup() const {
    return warpgroup == C::kComputingWarpgroups - 1;
  }

  /// Products are made by all warps of a warpgroup or by none.
  __device__ bool any_in_warpgroup(bool value) const {
    return any_at_barrier<kWarpgroupSize>(kFit + warpgroup, value);
  }

  __device__ void meet_warpgroup() const { named_barrier<kWarpgroupSize>(kFit + warpgroup); }

  /// Whether weights of any row of this warpgroup do not fit, of an even or an odd tile: those of
  /// the next tile may be known to some before all have asked for those of this one.
  [[nodiscard]] __device__ volatile std::uint32_t& exceeds(int tile) const {
    return *const_cast<volatile std::uint32_t*>(&shared.fixed.exceeds[warpgroup][tile & 1]);
  }

  /// Begins scores = Q · Kᵀ for this warpgroup's rows of the unit and the tile at `position`.
  __device__ __forceinline__ void score(float (&scores)[kScores]) const {
    const auto rows = Operand<typename C::QueryLayout>::at(
        static_cast<std::uint32_t>(opaque(static_cast<int>(query_rows(place)))));
    const auto tile = Operand<typename C::KeyLayout>::at(slot_address(position));
    hold(scores);
    begin_products();
#pragma unroll
    for (int step = 0; step < C::QueryLayout::kRowBytes / kProductBytes; ++step) {
      const int bytes = step % 4 * kProductBytes;
      const int panel = step / 4;
      if constexpr (C::kKeepsKeys) {
        // Small terms first, if there are: sums are cut off below the largest one.
        const int terms = C::QueryLayout::kPanels - 1 - panel;
        multiply_shared<core::Float8E4M3, C::kTileKeys, typename C::Kv>(
            scores, rows.after(bytes + terms * C::QueryLayout::kPanelBytes), tile.after(bytes),
            step > 0);
      } else {
        multiply_shared<typename C::Element, C::kTileKeys>(
            scores, rows.after(bytes + panel * C::QueryLayout::kPanelBytes),
            tile.after(bytes + panel * C::KeyLayout::kPanelBytes), step > 0);
      }
    }
    commit_products();
  }
  /// This warp's rows of the queries become the sums of two rows of codes.
  __device__ __forceinline__ void split_queries() const {
    QuerySplitter<C>::run(query_rows(place), warp * 16, lane, params.shape.q_dtype,
                          shared_factors() + warpgroup * kProductRows);
  }
  [[nodiscard]] __device__ __nv_bfloat16* shared_factors() const {
    return shared.fixed.query_factors[place.queries.slot];
  }
  /// Waits for the queries, before which the unit has come, and begins the scores of its first
  /// tile: of whatever memory holds if it has none, since products must not depend on a condition.
  __device__ __forceinline__ void begin_unit(float (&scores)[kScores]) const {
    barrier_wait(shared_address(&shared.fixed.queries_full[place.queries.slot]),
                 place.queries.parity);
    const Unit& unit = unit_at(place);
    const bool has_tiles = unit.rows > 0 && !unit.sees_nothing();
    if constexpr (C::kSplitsQueries) {
      if (has_tiles) split_queries();
    }
    show_to_products();
    if constexpr (C::kSplitsQueries) meet_warpgroup();
    if (has_tiles) {
      wait_for_slot(position, true);
      wait_for_turn();
    }
    score(scores);
    if (has_tiles) pass_turn();
  }
  __device__ __forceinline__ void wait_for_scores(float (&scores)[kScores]) const {
    wait_for_products<0>();
    hold(scores);
  }

  /// What products with a row of the unit's q are to be multiplied by, if K and V have 8 bits.
  [[nodiscard]] __device__ float query_factor(const Unit& unit, int row) const {
    float factor = 1.0F;
    if constexpr (C::kWidens || C::kSplitsQueries) {
      factor = __bfloat162float(shared_factors()[row]);
    }
    if constexpr (C::kHasCodedQueries || C::kWidensQueries) {
      factor *= query_scale(params, head_of(params, unit, row));
    }
    return factor;
  }

  [[nodiscard]] __device__ std::uint32_t slot_address(mma::RingPosition<C::kSlots> at) const {
    return shared.slot(at.slot);
  }
  /// Address of this warpgroup's rows of q.
  [[nodiscard]] __device__ std::uint32_t query_rows(UnitPlace<C> at) const {
    return shared_address(shared.fixed.queries[at.queries.slot]) +
           C::QueryLayout::below(warpgroup * kProductRows);
  }
};

/// Rows of a thread's fragments: two of them, or halves, 8 rows apart.
template <typename C>
__device__ __forceinline__ int row_of_thread(const ConsumerState<C>& state, int half) {
  return opaque(state.warpgroup) * kProductRows + opaque(state.warp) * 16 +
         opaque(static_cast<int>(threadIdx.x)) % kWarpSize / 4 + half * 8;
}

/// Where the keys end that the thread's rows see, in view of their unit and causal order.
struct RowEnds {
  std::int32_t of_half[2];

  template <typename C>
  __device__ __forceinline__ RowEnds(const ConsumerState<C>& state, const Unit& unit) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t query = state.params.group_size.quotient(row_of_thread(state, half));
      const std::int32_t position = unit.lengths.position(unit.q_begin + query);
      const bool is_causal = state.params.shape.mask == Mask::kCausal;
      of_half[half] = is_causal ? min(unit.kv_end, position + 1) : unit.kv_end;
    }
  }
};

}  // namespace quire::cuda::sm90
