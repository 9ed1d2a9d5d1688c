// SPDX-License-Identifier: Apache-2.0
/// @file
/// One request of a ragged batch: its lengths, where its keys lie, which keys its queries may see.
/// Host and device code: validation, the schedule and the kernels all ask here.
#pragma once

#include <cstdint>

#include "core/problem.hpp"
#include "schedule/host_device.hpp"

namespace quire::schedule {

/// Lengths of a request, in tokens.
struct Lengths {
  std::int32_t qo_len = 0;
  std::int32_t kv_len = 0;  ///< the new keys included

  /// Position of query i; may be negative if kv_len < qo_len.
  QUIRE_HOST_DEVICE constexpr std::int32_t position(std::int32_t query) const {
    return kv_len - qo_len + query;
  }
};

/// Keys [begin, end) of a request.
struct KeyRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

/// Some keys, with the queries that attend to them: a request with all of its keys, with what shared
/// prefixes leave of them, or with a fixed part of them; or a shared prefix with the queries of all who
/// share it.
struct Segment {
  Lengths lengths;             ///< of keys that all queries see: such that these come behind them
  std::int32_t seq = 0;        ///< whose pages these are; of a shared prefix: of one who shares it
  std::int32_t key_begin = 0;  ///< keys before are other segments'
  std::int32_t key_end = INT32_MAX;  ///< and so are those from here on

  /// Every query sees every key.
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_seen_by_all() const { return key_end < lengths.kv_len; }
};

/// Where queries behind one another, of which this is the first, are found and leave their results.
struct QueryPlace {
  static constexpr std::int32_t kFinal = -1;

  std::int32_t first = 0;       ///< row of q; of queries that leave states: place among the listed
  std::int32_t state = kFinal;  ///< of its result; kFinal: o and lse
  std::int32_t level = 0;       ///< of the shared prefix that states are of, or `kOwnLevel`
  std::int32_t part = 0;        ///< which of the request's fixed parts the keys are
  std::int32_t num_parts = 1;
};

/// A run of keys that lie at equal strides: `tokens` keys from token `token` of page `page`.
struct KeyRun {
  std::int64_t page = 0;
  std::int64_t token = 0;
  std::int32_t tokens = 0;
};

QUIRE_HOST_DEVICE inline Lengths lengths_of(const core::ProblemShape& shape,
                                            const core::BatchArrays& batch, std::int32_t seq) {
  Lengths lengths;
  lengths.qo_len = batch.qo_indptr[seq + 1] - batch.qo_indptr[seq];
  if (batch.kv_len != nullptr) {
    lengths.kv_len = batch.kv_len[seq];
  } else if (batch.kv_page_indptr != nullptr) {
    const std::int32_t pages = batch.kv_page_indptr[seq + 1] - batch.kv_page_indptr[seq];
    lengths.kv_len = pages > 0 ? (pages - 1) * shape.page_size + batch.kv_last_page_len[seq] : 0;
  } else {
    lengths.kv_len = batch.kv_indptr[seq + 1] - batch.kv_indptr[seq];
  }
  return lengths;
}

/// A request with all of its keys.
QUIRE_HOST_DEVICE inline Segment whole_segment(const core::ProblemShape& shape,
                                               const core::BatchArrays& batch, std::int32_t seq) {
  Segment segment;
  segment.lengths = lengths_of(shape, batch, seq);
  segment.seq = seq;
  return segment;
}

/// The page ids of a request; only entries that its keys need may be read.
QUIRE_HOST_DEVICE inline const std::int32_t* page_ids(const core::BatchArrays& batch,
                                                      std::int32_t seq) {
  return batch.page_table != nullptr
             ? batch.page_table + static_cast<std::int64_t>(seq) * batch.page_table_stride
             : batch.kv_page_indices + batch.kv_page_indptr[seq];
}

/// The longest run of equally strided keys that starts at key `key` and ends at or before `end`.
QUIRE_HOST_DEVICE inline KeyRun key_run(const core::ProblemShape& shape,
                                        const core::BatchArrays& batch, std::int32_t seq,
                                        std::int32_t key, std::int32_t end) {
  if (shape.page_size == kContiguousKv) {
    return {0, static_cast<std::int64_t>(batch.kv_indptr[seq]) + key, end - key};
  }
  const std::int32_t offset = key % shape.page_size;
  const std::int32_t left = shape.page_size - offset;
  return {page_ids(batch, seq)[key / shape.page_size], offset, left < end - key ? left : end - key};
}

/// The smallest range that holds every key that queries [first, last) of a request may see. Tree
/// and full masks take keys away from it, never add any.
QUIRE_HOST_DEVICE inline KeyRange visible_keys(const core::ProblemShape& shape, Lengths lengths,
                                               std::int32_t first, std::int32_t last) {
  KeyRange range{0, lengths.kv_len};
  if (shape.mask == Mask::kCausal) {
    const std::int32_t end = lengths.position(last - 1) + 1;
    range.end = end < 0 ? 0 : end;
  }
  if (shape.window_left >= 0) {
    const std::int32_t position = lengths.position(first);
    range.begin = position > shape.window_left ? position - shape.window_left : 0;
  }
  return range;
}

/// Of these keys, those of a segment.
QUIRE_HOST_DEVICE inline KeyRange visible_keys(const core::ProblemShape& shape,
                                               const Segment& segment, std::int32_t first,
                                               std::int32_t last) {
  KeyRange range = visible_keys(shape, segment.lengths, first, last);
  if (range.begin < segment.key_begin) range.begin = segment.key_begin;
  if (range.end > segment.key_end) range.end = segment.key_end;
  return range;
}

}  // namespace quire::schedule
