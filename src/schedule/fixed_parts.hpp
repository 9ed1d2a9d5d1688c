// SPDX-License-Identifier: Apache-2.0
/// @file
/// Results that do not depend on the batch: no unit is ever split, and where that would leave much of
/// the machine idle, a request's keys are divided at places that depend on the request alone. A part
/// is a segment of its own; the results of all parts, [parts, queries] states, are joined in the order of
/// the keys. Include schedule.hpp instead.
#pragma once

#include <cstdint>

#include "schedule/schedule.hpp"
#include "schedule/team.hpp"

namespace quire::schedule {

/// How a request's keys are divided.
struct FixedParts {
  std::int32_t count = 1;
  std::int32_t keys = 0;  ///< of each part but the last, which has the rest
};

QUIRE_HOST_DEVICE inline FixedParts fixed_parts_of(const Policy& policy,
                                                   const core::ProblemShape& shape,
                                                   Lengths lengths) {
  FixedParts parts;
  if (lengths.qo_len <= 0 || line_of(policy, shape, lengths) != kSmallUnits) return parts;
  const std::int32_t most = kMostFixedParts / lengths.qo_len;
  if (most < 2) return parts;
  const std::int32_t tile = policy.lines[kSmallUnits].keys_per_tile;
  const std::int32_t full = policy.fixed_part_keys;
  const std::int32_t wanted = detail::max_of(full / 2, detail::min_of(full, lengths.kv_len / 2));
  const std::int32_t least = detail::max_of(wanted, lengths.kv_len / most);
  parts.keys = (least + tile - 1) / tile * tile;
  // The last part holds all keys that not every query sees, and besides them at least half as many as
  // another part.
  const std::int32_t seen_by_all = lengths.kv_len - lengths.qo_len - parts.keys / 2;
  if (seen_by_all > 0) parts.count += detail::min_of(most - 1, seen_by_all / parts.keys);
  return parts;
}

/// Writes the parts as segments, and the queries whose results are joined. All threads of a team run
/// it.
/// @param header  Its counts are written; the team sees them.
/// @tparam Team   Like `SingleThread`.
template <typename Team>
QUIRE_HOST_DEVICE inline void make_fixed_parts(const Policy& policy,
                                               const core::ProblemShape& shape,
                                               const core::BatchArrays& batch,
                                               const ScheduleView& schedule, const Team& team,
                                               Header& header) {
  const std::int32_t share = (batch.num_seqs + team.size() - 1) / team.size();
  const std::int32_t first = detail::min_of(team.rank() * share, batch.num_seqs);
  const std::int32_t last = detail::min_of(first + share, batch.num_seqs);
  std::int64_t segments = 0;  // beyond one for each of this thread's requests
  std::int64_t listed = 0;
  std::int64_t states = 0;
  QUIRE_ROLLED
  for (std::int32_t seq = first; seq < last; ++seq) {
    const Lengths lengths = lengths_of(shape, batch, seq);
    const FixedParts parts = fixed_parts_of(policy, shape, lengths);
    if (parts.count == 1) continue;
    segments += parts.count - 1;
    listed += lengths.qo_len;
    states += parts.count * lengths.qo_len;
  }
  std::int64_t num_parts = 0;
  std::int64_t num_listed = 0;
  std::int64_t num_states = 0;
  auto at_segment = static_cast<std::int32_t>(team.sum_before(segments, num_parts));
  auto at_listed = static_cast<std::int32_t>(team.sum_before(listed, num_listed));
  auto at_state = static_cast<std::int32_t>(team.sum_before(states, num_states));
  if (num_parts == 0) return;

  const auto num_first_parts = static_cast<std::int32_t>(num_parts);
  QUIRE_ROLLED
  for (std::int32_t seq = first; seq < last; ++seq) {
    const std::int32_t token = batch.qo_indptr[seq];
    StoredSegment last_part{whole_segment(shape, batch, seq), {token}};
    const std::int32_t queries = last_part.segment.lengths.qo_len;
    const FixedParts parts = fixed_parts_of(policy, shape, last_part.segment.lengths);
    if (parts.count > 1) {
      last_part.segment.key_begin = (parts.count - 1) * parts.keys;
      last_part.queries = {at_listed, at_state, kOwnLevel, parts.count - 1, parts.count};
      at_state += parts.count * queries;
      QUIRE_ROLLED
      for (std::int32_t part = 0; part < parts.count - 1; ++part) {
        StoredSegment& stored = schedule.segments[at_segment++];
        stored = last_part;
        stored.queries.part = part;
        stored.segment.key_begin = part * parts.keys;
        stored.segment.key_end = stored.segment.key_begin + parts.keys;
        stored.segment.lengths.kv_len = stored.segment.key_end + queries;
      }
      QUIRE_ROLLED
      for (std::int32_t query = 0; query < queries; ++query) {
        schedule.listed[at_listed++] = {token + query, 1U << static_cast<unsigned>(kOwnLevel)};
      }
    }
    schedule.segments[num_first_parts + seq] = last_part;
  }
  if (team.rank() == 0) {
    header.num_listed = static_cast<std::int32_t>(num_listed);
    header.overview.num_prefixes = num_first_parts;
    header.num_segments = num_first_parts + batch.num_seqs;
  }
  team.sync();
  QUIRE_ROLLED
  for (std::int32_t i = team.rank(); i < header.num_listed * policy.prefixes.num_kv_heads;
       i += team.size()) {
    schedule.listed_arrivals[i] = 0;
  }
}

inline void make_fixed_parts(const Policy& policy, const core::ProblemShape& shape,
                             const core::BatchArrays& batch, ScheduleView schedule) {
  make_fixed_parts(policy, shape, batch, schedule, SingleThread{}, *schedule.header);
}

}  // namespace quire::schedule
