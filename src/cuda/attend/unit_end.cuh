// SPDX-License-Identifier: Apache-2.0
/// @file
/// What follows when a unit, or a piece of one, has left results that are not final: they are counted,
/// and whoever leaves the last ones joins them.
#pragma once

#include <cstdint>

#include "cuda/attend/merges.cuh"
#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda {

/// Counts a finished piece. One thread calls it, between two barriers of all that wrote the piece
/// and may read the others'. @return True for the last piece; the counter is 0 again then.
template <schedule::Line kLine>
__device__ inline bool arrive_last(const AttendParams& params, const Unit& unit) {
  const std::int32_t heads = params.policy.lines[kLine].heads_abreast;
  std::uint32_t* const counter =
      params.schedule.lines[kLine].arrivals + unit.first_range * heads + unit.kv_head_begin % heads;
  const std::uint32_t before = add_release(counter, 1U);
  if (before + 1 < static_cast<std::uint32_t>(unit.num_pieces)) return false;
  *counter = 0;
  fence_device();
  return true;
}

/// What a unit that is there adds to the counters of its queries, however many pieces it falls into:
/// the first piece brings what the others leave of it. So a counter is full when all pieces of all
/// levels are there, and those who count need not know how many there are.
inline constexpr std::uint32_t kWholeUnit = 1U << 16U;

/// Counts a result of a listed query for the unit's kv head, and says where it lies.
/// @param rows    Of the query.
/// @param levels  How many levels have results of it, however many pieces each of them has.
/// @return True for the last result; the counter is 0 again then.
__device__ inline bool arrive_last_of_query(const AttendParams& params, const Unit& unit,
                                            std::int32_t listed, const PieceRows& rows,
                                            std::uint32_t levels) {
  std::uint32_t* const counter =
      params.schedule.listed_arrivals + listed * params.shape.num_kv_heads + unit.kv_head_begin;
  if (unit.piece == 0) {
    params.partials
        .pieces[index_of_pieces(params, listed, unit.queries.level, unit.kv_head_begin)] = rows;
  }
  const std::uint32_t part =
      unit.piece == 0 ? kWholeUnit - static_cast<std::uint32_t>(unit.num_pieces - 1) : 1U;
  const std::uint32_t before = add_release(counter, part);
  if (before + part != levels * kWholeUnit) return false;
  *counter = 0;
  fence_device();
  return true;
}

/// Whether all results of some listed queries but those of their own keys are there, which one unit
/// has that is not split. (A unit of a prefix may be the last one, too: it is joined from memory, where
/// the own keys' results are.) A warp asks early and looks later.
class OtherResults {
 public:
  /// @param lane  Each lane asks for one query; there are 32 at most.
  __device__ void ask(const AttendParams& params, const Unit& unit, int lane) {
    can_join_ =
        unit.leaves_states() && unit.num_pieces == 1 && unit.queries.level == schedule::kOwnLevel;
    if (!can_join_ || lane >= unit.q_end - unit.q_begin) return;
    const std::int32_t listed = unit.queries.first + lane;
    counter_ =
        params.schedule.listed_arrivals + listed * params.shape.num_kv_heads + unit.kv_head_begin;
    count_ = load_relaxed(counter_);
    levels_ = params.schedule.listed[listed].levels;
  }
  /// If they are, the counters are 0 again. All lanes call it.
  [[nodiscard]] __device__ bool are_there() {
    if (!can_join_) return false;
    const auto others = static_cast<std::uint32_t>(__popc(levels_) - 1);
    if (!__all_sync(kAllLanes, counter_ == nullptr || count_ == others * kWholeUnit)) return false;
    if (counter_ != nullptr) *counter_ = 0;
    fence_device();
    return true;
  }

 private:
  bool can_join_ = false;
  std::uint32_t* counter_ = nullptr;
  std::uint32_t count_ = 0;
  std::uint32_t levels_ = 0;
};

/// What follows when a unit, or a piece of one, has left results that are to be joined with those of
/// shared prefixes: whoever leaves the last result of a query joins them.
/// @param complete  In shared memory: a bit for each of the unit's queries, of which each word's are a
///   warp's.
template <schedule::Line kLine, typename Element, int kWords, typename Barrier>
__device__ inline void finish_listed(const AttendParams& params, const Unit& unit,
                                     std::uint32_t (&complete)[kWords], int thread, int threads,
                                     const Barrier& wait) {
  const std::int32_t queries = unit.q_end - unit.q_begin;
  std::uint32_t levels = 0;  // of the thread's query, asked for before it is needed
  if (thread < queries) {
    levels = static_cast<std::uint32_t>(
        __popc(params.schedule.listed[unit.queries.first + thread].levels));
  }
  wait();
  if (thread < kWords * kWarpSize) {
    bool is_complete = false;
    if (thread < queries) {
      PieceRows rows = rows_of_pieces<kLine>(params, unit);
      const std::int32_t skipped = thread * row_stride_of_queries(params, unit);
      rows.base += skipped;
      is_complete = arrive_last_of_query(params, unit, unit.queries.first + thread, rows, levels);
    }
    const unsigned of_warp = __ballot_sync(kAllLanes, is_complete);
    if (thread % kWarpSize == 0) complete[thread / kWarpSize] = of_warp;
  }
  wait();
  note(params, Activity::kMerge, unit.seq);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t warps = threads / kWarpSize;
  if (queries == 1) {
    if (complete[0] == 0) return;
    const ListedRows<Element> rows(params, unit.kv_head_begin, unit.queries.first);
    merge_rows<1, 16, kJoinTogether>(params, rows, warp, warps);
    return;
  }
#pragma unroll 1
  for (std::int32_t query = warp; query < queries; query += warps) {
    if ((complete[query / kWarpSize] >> static_cast<unsigned>(query % kWarpSize) & 1U) == 0)
      continue;
    const ListedRows<Element> rows(params, unit.kv_head_begin, unit.queries.first + query);
    merge_rows<2, kJoinTogether>(params, rows, 0, 1);
  }
}

/// What follows when a unit, or a piece of one, has left results that are not final: whoever is the
/// last one joins them. `threads` threads call it.
/// @param complete  In shared memory.
/// @param wait      A barrier of these threads.
template <schedule::Line kLine, typename Element, int kWords, typename Barrier>
__device__ inline void finish_partial(const AttendParams& params, const Unit& unit,
                                      std::uint32_t (&complete)[kWords], int thread, int threads,
                                      const Barrier& wait) {
  if (unit.leaves_states()) {
    note(params, Activity::kCount, unit.seq);
    finish_listed<kLine, Element>(params, unit, complete, thread, threads, wait);
    return;
  }
  note(params, Activity::kCount, unit.seq);
  wait();
  if (thread == 0) complete[0] = static_cast<std::uint32_t>(arrive_last<kLine>(params, unit));
  wait();
  if (complete[0] == 0) return;
  note(params, Activity::kMerge, unit.seq);
  merge_pieces<Element>(params, unit, rows_of_pieces<kLine>(params, unit), thread, threads);
}

}  // namespace quire::cuda
