// SPDX-License-Identifier: Apache-2.0
#include "cpu/check_prefixes.hpp"

#include <algorithm>
#include <cstdint>

namespace quire::cpu {
namespace {

/// The request of a row of q.
std::int32_t seq_of(const core::BatchArrays& batch, std::int32_t token) {
  const std::int32_t* const end = batch.qo_indptr + batch.num_seqs + 1;
  return static_cast<std::int32_t>(std::upper_bound(batch.qo_indptr, end, token) -
                                   batch.qo_indptr) -
         1;
}

bool shares_prefix(const core::ProblemShape& shape, const core::BatchArrays& batch,
                   const schedule::ScheduleView& schedule, const schedule::StoredSegment& prefix) {
  const schedule::Segment& segment = prefix.segment;
  const std::int32_t begin = segment.key_begin / shape.page_size;
  const std::int32_t end = segment.key_end / shape.page_size;
  const std::int32_t* const pages = schedule::page_ids(batch, segment.seq);
  for (std::int32_t query = 0; query < segment.lengths.qo_len;) {
    const std::int32_t token = schedule.listed[prefix.queries.first + query].token;
    const std::int32_t seq = seq_of(batch, token);
    const std::int32_t* const own = schedule::page_ids(batch, seq);
    if (!std::equal(pages + begin, pages + end, own + begin)) return false;
    query += batch.qo_indptr[seq + 1] - token;
  }
  return true;
}

}  // namespace

bool shares_prefixes(const core::ProblemShape& shape, const core::BatchArrays& batch,
                     const schedule::ScheduleView& schedule) {
  const std::int32_t count = schedule.header->overview.num_prefixes;
  return std::all_of(schedule.segments, schedule.segments + count,
                     [&](const schedule::StoredSegment& prefix) {
                       return shares_prefix(shape, batch, schedule, prefix);
                     });
}

}  // namespace quire::cpu
