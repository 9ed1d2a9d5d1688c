// SPDX-License-Identifier: Apache-2.0
/// @file
/// How a range is walked, item by item. Include schedule.hpp instead.
#pragma once

#include <cstdint>

#include "schedule/cuts.hpp"
#include "schedule/units.hpp"

namespace quire::schedule {
template <typename Tiles>
QUIRE_HOST_DEVICE inline RangeCursor<Tiles>::RangeCursor(const Tiles& policy,
                                                         const core::ProblemShape& shape,
                                                         const core::BatchArrays& batch,
                                                         const StoredSegment* segments,
                                                         const Range& range, std::int32_t index)
    : policy_(policy),
      shape_(shape),
      batch_(batch),
      segments_(segments),
      range_(range),
      index_(index) {}

template <typename Tiles>
QUIRE_HOST_DEVICE inline RangeCursor<Tiles>::RangeCursor(const Policy& policy,
                                                         const core::ProblemShape& shape,
                                                         const core::BatchArrays& batch,
                                                         const ScheduleView& schedule, int line,
                                                         std::int32_t index)
    : RangeCursor(policy.lines[line], shape, batch, segments_of(schedule),
                  schedule.lines[line].ranges[index], index) {}

template <typename Tiles>
QUIRE_HOST_DEVICE inline bool RangeCursor<Tiles>::next(WorkItem& item) {
  Lengths lengths;
  QueryPlace queries;
  return next(item, lengths, queries);
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline bool RangeCursor<Tiles>::next(WorkItem& item, Lengths& lengths,
                                                       QueryPlace& queries) {
  if (items_ == 0) {
    items_ = 1;
    item = range_.first;
    lengths = range_.first_lengths;
    queries = range_.first_queries;
    return item.q_end > item.q_begin;
  }
  if (items_ == 1) {  // not before: nothing delays the first item
    items_ = 2;
    at_ = range_.rest;
    if (!is_at_end()) queries_ = queries_of(batch_, segments_, at_.cut.segment);
  }
  return next_of_rest(item, lengths, queries);
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline bool RangeCursor<Tiles>::is_in_last_unit() const {
  const Cut& at = at_.cut;
  const Cut& end = range_.end.cut;
  return at.segment == end.segment && at.head_unit == end.head_unit && at.q_tile == end.q_tile;
}
template <typename Tiles>
QUIRE_HOST_DEVICE inline bool RangeCursor<Tiles>::is_at_end() const {
  return is_in_last_unit() && at_.cut.kv_tile >= range_.end.cut.kv_tile;
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline void RangeCursor<Tiles>::ask_for_segment() {
  if (is_at_end()) return;
  const std::int32_t index = at_.cut.segment;
  at_.segment = index == range_.end.cut.segment ? range_.end.segment
                                                : segment_of(shape_, batch_, segments_, index);
  queries_ = queries_of(batch_, segments_, index);
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline bool RangeCursor<Tiles>::next_of_rest(WorkItem& item, Lengths& lengths,
                                                               QueryPlace& queries) {
  const Cut end = range_.end.cut;
  SegmentUnits units;
  QUIRE_ROLLED
  while (true) {
    if (is_at_end()) return false;
    units = units_of(policy_, shape_, at_.segment.lengths);
    if (units.q_tiles > 0) break;
    ++at_.cut.segment;
    ask_for_segment();
  }
  const Cut at = at_.cut;
  const bool in_last_unit = is_in_last_unit();

  const detail::UnitLine line(policy_, shape_, at_.segment, units);
  const KeyRange keys = line.keys(at.q_tile);
  const std::int32_t first_tile = policy_.key_tiles(keys.begin);
  const auto key_at = [&](std::int32_t tile) {
    return static_cast<std::int64_t>(first_tile + tile) * policy_.keys_per_tile;
  };
  item.seq = at_.segment.seq;
  item.kv_head_begin = at.head_unit * units.kv_heads;
  item.kv_head_end = item.kv_head_begin + units.kv_heads;
  item.q_begin = at.q_tile * units.tokens_per_tile;
  item.q_end = item.q_begin + line.queries_in_tile(at.q_tile);
  item.kv_begin = at.kv_tile == 0 ? keys.begin : static_cast<std::int32_t>(key_at(at.kv_tile));
  item.kv_end = in_last_unit ? static_cast<std::int32_t>(key_at(end.kv_tile)) : keys.end;
  const SplitUnit split = at.kv_tile > 0 ? at_.split
                          : in_last_unit ? range_.end.split
                                         : SplitUnit{index_, 1};
  item.piece = index_ - split.first_range;
  item.num_pieces = split.num_pieces;
  item.first_range = split.first_range;
  lengths = at_.segment.lengths;
  queries = queries_;
  if (queries.num_parts > 1) {  // a fixed part is a piece whose place the request knows
    item.piece = queries.part;
    item.num_pieces = queries.num_parts;
    item.first_range = WorkItem::kFixedParts;
  }

  // The next item is asked for: what it needs may take its time.
  if (in_last_unit) {
    at_ = range_.end;
    return true;
  }
  at_.cut = detail::after_unit(units, at);
  if (at_.cut.segment != at.segment) ask_for_segment();
  return true;
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline void take_first_item(const Tiles& policy, const core::ProblemShape& shape,
                                              const core::BatchArrays& batch,
                                              const StoredSegment* segments, std::int32_t index,
                                              Range& range) {
  RangeCursor<Tiles> cursor(policy, shape, batch, segments, range, index);
  cursor.at_ = range.rest;
  WorkItem first;
  Lengths lengths;
  QueryPlace queries;
  if (!cursor.is_at_end()) {
    cursor.queries_ = queries_of(batch, segments, range.rest.cut.segment);
    if (cursor.next_of_rest(first, lengths, queries)) range.rest = cursor.at_;
  }
  range.first = first;
  range.first_lengths = lengths;
  range.first_queries = queries;
}

}  // namespace quire::schedule
