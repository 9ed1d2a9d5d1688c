// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a device can say about a batch whose values the host does not see: the first offence of a
/// request, as a record. Host and device code.
#pragma once

#include <cstdint>

#include "core/problem.hpp"
#include "schedule/arithmetic.hpp"
#include "schedule/host_device.hpp"
#include "schedule/sequence.hpp"

namespace quire::schedule {

/// Checks the lengths, offsets, pages and groups of one request at a time. Reads nothing that an earlier
/// check of the same request has not allowed; entry `seq + 1` of an indptr belongs to request
/// `seq`, entry 0 to the first.
class RequestChecks {
 public:
  QUIRE_HOST_DEVICE RequestChecks(const core::ProblemShape& shape, const BatchLimits& limits,
                                  const core::BatchArrays& batch, std::int32_t seq)
      : shape_(shape), limits_(limits), batch_(batch), seq_(seq) {}

  /// @return The first offence in lengths and offsets; `what` = 0 if there is none.
  QUIRE_HOST_DEVICE CheckRecord lengths() {
    queries() && keys() && tree_mask() && full_mask();
    return found_;
  }

  /// @return Whether q has fewer rows than the last request's offset says.
  QUIRE_HOST_DEVICE CheckRecord rows(std::int64_t rows_of_q) {
    within(CheckedItem::kQoIndptr, seq_ + 1, batch_.qo_indptr[seq_ + 1], 0, rows_of_q);
    return found_;
  }

  /// @param num_pages   Of the cache.
  /// @param num_tokens  Contiguous: rows of K and V.
  /// @return The first key that a query sees and the cache does not have.
  QUIRE_HOST_DEVICE CheckRecord pages(std::int64_t num_pages, std::int64_t num_tokens) {
    const Lengths lengths = lengths_of(shape_, batch_, seq_);
    if (lengths.qo_len <= 0) return found_;
    const KeyRange keys = visible_keys(shape_, lengths, 0, lengths.qo_len);
    if (keys.begin >= keys.end) return found_;
    if (shape_.page_size == kContiguousKv) {
      within(CheckedItem::kKvIndptr, seq_ + 1,
             static_cast<std::int64_t>(batch_.kv_indptr[seq_]) + keys.end, 0, num_tokens);
      return found_;
    }
    return page_ids_of(keys.begin, keys.end, num_pages);
  }

  /// The pages of keys [begin, end).
  QUIRE_HOST_DEVICE CheckRecord page_ids_of(std::int32_t begin, std::int32_t end,
                                            std::int64_t num_pages) {
    const std::int32_t* ids = page_ids(batch_, seq_);
    for (std::int32_t page = begin / shape_.page_size; page <= (end - 1) / shape_.page_size;
         ++page) {
      if (ids[page] >= 0 && ids[page] < num_pages) continue;
      refuse(CheckedItem::kPageId, page, ids[page], num_pages);
      break;
    }
    return found_;
  }

  /// @param groups  Of a batch whose lengths have been checked, of all requests.
  /// @return The first offence in what they say of the request. A leader is compared with those of the
  ///   levels above it by its own check.
  QUIRE_HOST_DEVICE CheckRecord prefixes(const core::PrefixGroups& groups) {
    std::int32_t pages_before = 0;
    std::int32_t num_leaders = batch_.num_seqs;  // of whom one may be named; none below no group
    for (std::int32_t level = 0; level < groups.num_levels; ++level) {
      const std::int32_t* const leaders = groups.leaders + level * groups.leaders_stride;
      const std::int32_t* const pages = groups.pages + level * groups.pages_stride;
      const std::int32_t leader = leaders[seq_];
      if (leader < -1 || leader >= num_leaders) {
        refuse(CheckedItem::kPrefixLeader, level, leader, num_leaders);
        break;
      }
      if (leader < 0) {
        num_leaders = 0;
        continue;
      }
      if (!same_groups(groups, level, leader) ||
          !within(CheckedItem::kPrefixPages, level, pages[seq_], pages_before + 1,
                  detail::min_of(num_pages_of(seq_), num_pages_of(leader))) ||
          !within(CheckedItem::kPrefixPages, level, pages[seq_], pages[leader], pages[leader]) ||
          !same_pages(leader, pages_before, pages[seq_])) {
        break;
      }
      pages_before = pages[seq_];
    }
    return found_;
  }

 private:
  QUIRE_HOST_DEVICE bool refuse(CheckedItem item, std::int64_t position, std::int64_t value,
                                std::int64_t bound) {
    found_.what = static_cast<std::int32_t>(item);
    found_.seq = seq_;
    found_.position = position;
    found_.value = value;
    found_.bound = bound;
    return false;
  }

  QUIRE_HOST_DEVICE bool within(CheckedItem item, std::int64_t position, std::int64_t value,
                                std::int64_t low, std::int64_t high) {
    if (value >= low && value <= high) return true;
    return refuse(item, position, value, value < low ? low : high);
  }

  /// Up to a level, the leader of the request is in the same groups.
  QUIRE_HOST_DEVICE bool same_groups(const core::PrefixGroups& groups, std::int32_t last_level,
                                     std::int32_t leader) {
    for (std::int32_t level = 0; level <= last_level; ++level) {
      const std::int32_t* const leaders = groups.leaders + level * groups.leaders_stride;
      if (leaders[leader] == leaders[seq_]) continue;
      return refuse(CheckedItem::kPrefixTree, level, leaders[leader], leaders[seq_]);
    }
    return true;
  }

  /// Entries of a request's table that its keys need.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int64_t num_pages_of(std::int32_t seq) const {
    const std::int64_t keys = lengths_of(shape_, batch_, seq).kv_len;
    const std::int64_t room =
        batch_.page_table != nullptr
            ? batch_.page_table_width
            : std::int64_t{batch_.kv_page_indptr[seq + 1]} - batch_.kv_page_indptr[seq];
    return detail::min_of(detail::ceil_div(keys, shape_.page_size), room);
  }

  /// Pages [begin, end) of the request are those of another.
  QUIRE_HOST_DEVICE bool same_pages(std::int32_t other, std::int32_t begin, std::int32_t end) {
    const std::int32_t* const own = page_ids(batch_, seq_);
    const std::int32_t* const others = page_ids(batch_, other);
    for (std::int32_t page = begin; page < end; ++page) {
      if (own[page] != others[page]) {
        return refuse(CheckedItem::kPrefixPageId, page, own[page], others[page]);
      }
    }
    return true;
  }

  /// A length within `BatchLimits`.
  QUIRE_HOST_DEVICE bool at_most(CheckedItem limit, std::int64_t position, std::int64_t value,
                                 std::int64_t high) {
    return value <= high || refuse(limit, position, value, high);
  }

  /// Entry `seq + 1` does not decrease and stays within `high`; entry 0 within [0, first_high].
  QUIRE_HOST_DEVICE bool indptr(CheckedItem item, const std::int32_t* values,
                                std::int64_t first_high, std::int64_t high) {
    if (seq_ == 0 && !within(item, 0, values[0], 0, first_high)) return false;
    return within(item, seq_ + 1, values[seq_ + 1], values[seq_], high);
  }

  QUIRE_HOST_DEVICE bool queries() {
    return indptr(CheckedItem::kQoIndptr, batch_.qo_indptr, 0, INT32_MAX) &&
           at_most(CheckedItem::kMaxTotalQ, seq_ + 1, batch_.qo_indptr[seq_ + 1],
                   limits_.max_total_q);
  }

  [[nodiscard]] QUIRE_HOST_DEVICE std::int64_t qo_len() const {
    return static_cast<std::int64_t>(batch_.qo_indptr[seq_ + 1]) - batch_.qo_indptr[seq_];
  }

  QUIRE_HOST_DEVICE bool keys() {
    if (batch_.kv_len != nullptr) {
      const std::int32_t length = batch_.kv_len[seq_];
      if (!within(CheckedItem::kKvLen, seq_, length, 0, INT32_MAX) ||
          !at_most(CheckedItem::kMaxKvLen, seq_, length, limits_.max_kv_len)) {
        return false;
      }
    }
    if (batch_.page_table != nullptr) return room(batch_.page_table_width * shape_.page_size);
    return batch_.kv_page_indptr != nullptr ? csr_table() : contiguous();
  }

  /// A request with queries has no more keys than there is room for.
  QUIRE_HOST_DEVICE bool room(std::int64_t tokens) {
    return qo_len() == 0 || within(CheckedItem::kKvLen, seq_, batch_.kv_len[seq_], 0, tokens);
  }

  QUIRE_HOST_DEVICE bool csr_table() {
    const std::int32_t* values = batch_.kv_page_indptr;
    if (!indptr(CheckedItem::kKvPageIndptr, values, batch_.num_page_indices,
                batch_.num_page_indices)) {
      return false;
    }
    const std::int64_t pages = static_cast<std::int64_t>(values[seq_ + 1]) - values[seq_];
    if (batch_.kv_len != nullptr) return room(pages * shape_.page_size);
    if (pages == 0) return true;
    const std::int64_t last = batch_.kv_last_page_len[seq_];
    return within(CheckedItem::kKvLastPageLen, seq_, last, 1, shape_.page_size) &&
           at_most(CheckedItem::kMaxKvLen, seq_ + 1, (pages - 1) * shape_.page_size + last,
                   limits_.max_kv_len);
  }

  QUIRE_HOST_DEVICE bool contiguous() {
    const std::int32_t* values = batch_.kv_indptr;
    if (!indptr(CheckedItem::kKvIndptr, values, INT32_MAX, INT32_MAX)) return false;
    const std::int64_t rows = static_cast<std::int64_t>(values[seq_ + 1]) - values[seq_];
    if (batch_.kv_len != nullptr) return room(rows);
    return at_most(CheckedItem::kMaxKvLen, seq_ + 1, rows, limits_.max_kv_len);
  }

  QUIRE_HOST_DEVICE bool tree_mask() {
    if (shape_.mask != Mask::kTree || qo_len() == 0) return true;
    constexpr std::int64_t kWordBits = 32;
    const std::int32_t rows = batch_.qo_indptr[seq_ + 1];
    if (rows > batch_.tree_mask_rows) {
      return refuse(CheckedItem::kQoIndptr, seq_ + 1, rows, batch_.tree_mask_rows);
    }
    return qo_len() <= batch_.tree_mask_words * kWordBits ||
           refuse(CheckedItem::kQoIndptr, seq_ + 1, rows,
                  batch_.qo_indptr[seq_] + batch_.tree_mask_words * kWordBits);
  }

  QUIRE_HOST_DEVICE bool full_mask() {
    if (batch_.full_mask_indptr == nullptr) return true;
    constexpr std::int64_t kByteBits = 8;
    const std::int64_t* values = batch_.full_mask_indptr;
    const std::int64_t bits = qo_len() * lengths_of(shape_, batch_, seq_).kv_len;
    if (seq_ == 0 &&
        !within(CheckedItem::kFullMaskIndptr, 0, values[0], 0, batch_.full_mask_bytes)) {
      return false;
    }
    return within(CheckedItem::kFullMaskIndptr, seq_ + 1, values[seq_ + 1],
                  values[seq_] + (bits + kByteBits - 1) / kByteBits, batch_.full_mask_bytes);
  }

  const core::ProblemShape& shape_;
  const BatchLimits& limits_;
  const core::BatchArrays& batch_;
  const std::int32_t seq_;
  CheckRecord found_;
};

}  // namespace quire::schedule
