// SPDX-License-Identifier: Apache-2.0
/// @file
/// A piece of work as kernels see it: the schedule's item with what every role needs of its
/// request.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "schedule/schedule.hpp"

namespace quire::cuda {

/// Queries [q_begin, q_end) of a segment in the heads of one group against keys [kv_begin, kv_end).
/// Its rows are ordered by query, then head.
struct Unit : schedule::WorkItem {
  schedule::Lengths lengths;     // of the segment
  schedule::QueryPlace queries;  // of the first query
  std::int32_t rows = 0;

  [[nodiscard]] __device__ bool sees_nothing() const { return kv_begin >= kv_end; }
  /// Results wait to be joined with others, and rows of q stand in the list of queries.
  [[nodiscard]] __device__ bool leaves_states() const {
    return queries.state != schedule::QueryPlace::kFinal;
  }
  /// Results that are not final lie with those of other segments of its queries, not with a split
  /// unit's pieces.
  [[nodiscard]] __device__ bool lies_with_states() const {
    return num_pieces == 1 || first_range == kFixedParts;
  }
};

/// A row of q, o and lse.
struct RowTarget {
  std::int64_t token = 0;
  std::int32_t head = 0;
};

/// The units of a share of a line, one behind another: its head's part of each unit of a range.
template <schedule::Line kLine>
class UnitCursor {
 public:
  __device__ UnitCursor(const AttendParams& params, std::int32_t share)
      : params_(params),
        head_(share % heads_abreast()),
        range_(params.schedule.lines[kLine].ranges[share / heads_abreast()]),
        cursor_(params.policy.lines[kLine], params.shape, params.batch,
                range_.overview.num_prefixes > 0 ? params.schedule.segments : nullptr, range_,
                share / heads_abreast()) {}

  /// The next unit, the first one as it stands in the schedule; without rows at the end.
  __device__ Unit next() {
    schedule::WorkItem item;
    schedule::Lengths lengths;
    schedule::QueryPlace queries;  // of the segment's first query
    if (!cursor_.next(item, lengths, queries)) return {};
    queries.first += item.q_begin;
    if (queries.state != schedule::QueryPlace::kFinal) queries.state += item.q_begin;
    Unit unit{item, lengths, queries, (item.q_end - item.q_begin) * params_.shape.group_size};
    unit.kv_head_begin += head_;
    unit.kv_head_end = unit.kv_head_begin + 1;
    return unit;
  }

 private:
  [[nodiscard]] __device__ std::int32_t heads_abreast() const {
    return params_.policy.lines[kLine].heads_abreast;
  }

  const AttendParams& params_;
  const std::int32_t head_;  // of those that go abreast
  const schedule::Range& range_;
  schedule::WorkCursor cursor_;
};

/// Of q and o. @param row  Of the unit, or behind its last.
__device__ inline std::int32_t head_of(const AttendParams& params, const Unit& unit,
                                       std::int32_t row) {
  const std::int32_t of_group = params.group_size.remainder(row, params.group_size.quotient(row));
  return unit.kv_head_begin * params.shape.group_size + of_group;
}

/// Where a row of the unit is written, if results are final.
__device__ inline RowTarget row_target(const AttendParams& params, const Unit& unit,
                                       std::int32_t row) {
  const std::int32_t query = params.group_size.quotient(row);
  return {static_cast<std::int64_t>(unit.queries.first) + query,
          unit.kv_head_begin * params.shape.group_size + params.group_size.remainder(row, query)};
}

/// Where a row of the unit is read.
__device__ inline RowTarget row_of_q(const AttendParams& params, const Unit& unit,
                                     std::int32_t row) {
  RowTarget target = row_target(params, unit, row);
  if (unit.leaves_states()) target.token = params.schedule.listed[target.token].token;
  return target;
}

}  // namespace quire::cuda
