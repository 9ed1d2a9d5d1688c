// SPDX-License-Identifier: Apache-2.0
#include "cpu/check_batch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "core/prefix_groups.hpp"
#include "schedule/check.hpp"
#include "schedule/sequence.hpp"

namespace quire::cpu {
namespace {

/// Checks of one batch, request by request; each returns true if all is well and otherwise has
/// filled `status`.
class BatchChecks {
 public:
  BatchChecks(const CheckContext& context, const core::ProblemShape& shape,
              const BatchLimits& limits, const core::BatchArrays& batch)
      : context_(context), shape_(shape), limits_(limits), batch_(batch) {}

  Status run() {
    bool good = queries();
    for (std::int32_t seq = 0; good && seq < batch_.num_seqs; ++seq) {
      good = keys(seq) && tree_mask(seq) && full_mask(seq) && work(seq);
    }
    return status_;
  }

 private:
  /// An element of a tensor of the batch.
  struct Entry {
    CheckedItem item;
    std::string_view name;
    std::int32_t index;
    std::int64_t value;
  };

  static CheckRecord record_of(const Entry& entry) {
    const bool is_length =
        entry.item == CheckedItem::kKvLen || entry.item == CheckedItem::kKvLastPageLen;
    CheckRecord found;
    found.what = static_cast<std::int32_t>(entry.item);
    found.seq = is_length ? entry.index : std::max(0, entry.index - 1);  // offsets end a request
    found.position = entry.index;
    found.value = entry.value;
    return found;
  }

  /// @return Whether the value lies in [low, high]; `why` may say where the bounds come from.
  bool within(const Entry& entry, std::int64_t low, std::int64_t high, std::string_view why = {}) {
    if (entry.value >= low && entry.value <= high) return true;
    CheckRecord found = record_of(entry);
    found.bound = entry.value < low ? low : high;
    const std::string because = why.empty() ? std::string() : fmt::format(" ({})", why);
    const std::string range = low > high ? fmt::format("at least {}{}", low, because)
                                         : fmt::format("{}…{}{}", low, high, because);
    status_ = context_.refuse(found, fmt::format("{}[{}]: expected {}, got {}", entry.name,
                                                 entry.index, range, entry.value));
    return false;
  }

  /// What goes beyond `BatchLimits` has codes of its own: the batch is good, the limits are small.
  bool too_long(const Entry& entry, CheckedItem limit, std::int64_t value, std::int64_t bound) {
    CheckRecord found = record_of(entry);
    found.what = static_cast<std::int32_t>(limit);
    found.value = value;
    found.bound = bound;
    const std::string_view what =
        limit == CheckedItem::kMaxTotalQ ? "rows of q" : "keys of a request";
    status_ = context_.refuse(found,
                              fmt::format("{}[{}]: expected at most {} {} as BatchLimits says, "
                                          "got {}",
                                          entry.name, entry.index, bound, what, value),
                              ErrorCode::kTooLong);
    return false;
  }

  bool queries() {
    const std::int32_t* indptr = batch_.qo_indptr;
    if (!within({CheckedItem::kQoIndptr, "qo_indptr", 0, indptr[0]}, 0, 0)) return false;
    for (std::int32_t i = 1; i <= batch_.num_seqs; ++i) {
      const Entry entry{CheckedItem::kQoIndptr, "qo_indptr", i, indptr[i]};
      if (entry.value > limits_.max_total_q) {
        return too_long(entry, CheckedItem::kMaxTotalQ, entry.value, limits_.max_total_q);
      }
      if (!within(entry, indptr[i - 1], limits_.max_total_q)) return false;
    }
    return true;
  }

  [[nodiscard]] std::int64_t qo_len(std::int32_t seq) const {
    return batch_.qo_indptr[seq + 1] - batch_.qo_indptr[seq];
  }

  bool keys(std::int32_t seq) {
    if (batch_.kv_len != nullptr) {
      const Entry entry = kv_len_of(seq);
      if (!length(entry, entry.value) || !within(entry, 0, limits_.max_kv_len)) return false;
    }
    if (batch_.page_table != nullptr) return dense_table(seq);
    return batch_.kv_page_indptr != nullptr ? csr_table(seq) : contiguous(seq);
  }

  [[nodiscard]] Entry kv_len_of(std::int32_t seq) const {
    return {CheckedItem::kKvLen, "kv_len", seq, batch_.kv_len[seq]};
  }

  bool dense_table(std::int32_t seq) {
    const std::int64_t room = batch_.page_table_width * shape_.page_size;
    if (batch_.kv_len[seq] <= room || qo_len(seq) == 0) return true;
    return within(kv_len_of(seq), 0, room,
                  fmt::format("page_table has {} pages of {} tokens for each request",
                              batch_.page_table_width, shape_.page_size));
  }

  bool csr_table(std::int32_t seq) {
    const std::int32_t* indptr = batch_.kv_page_indptr;
    const auto entry = [&](std::int32_t index) {
      return Entry{CheckedItem::kKvPageIndptr, "kv_page_indptr", index, indptr[index]};
    };
    if (seq == 0 && !within(entry(0), 0, batch_.num_page_indices)) return false;
    if (!within(entry(seq + 1), indptr[seq], batch_.num_page_indices)) return false;
    const std::int64_t pages = indptr[seq + 1] - indptr[seq];
    if (batch_.kv_len != nullptr) {
      if (batch_.kv_len[seq] <= pages * shape_.page_size || qo_len(seq) == 0) return true;
      return within(
          kv_len_of(seq), 0, pages * shape_.page_size,
          fmt::format("kv_page_indptr gives it {} pages of {} tokens", pages, shape_.page_size));
    }
    if (pages == 0) return true;
    const std::int64_t last = batch_.kv_last_page_len[seq];
    if (!within({CheckedItem::kKvLastPageLen, "kv_last_page_len", seq, last}, 1,
                shape_.page_size)) {
      return false;
    }
    return length(entry(seq + 1), (pages - 1) * shape_.page_size + last);
  }

  bool contiguous(std::int32_t seq) {
    const std::int32_t* indptr = batch_.kv_indptr;
    const auto entry = [&](std::int32_t index) {
      return Entry{CheckedItem::kKvIndptr, "kv_indptr", index, indptr[index]};
    };
    constexpr std::int64_t kMaxRows = INT32_MAX;
    if (seq == 0 && !within(entry(0), 0, kMaxRows)) return false;
    if (!within(entry(seq + 1), indptr[seq], kMaxRows)) return false;
    const std::int64_t rows = static_cast<std::int64_t>(indptr[seq + 1]) - indptr[seq];
    if (batch_.kv_len == nullptr) return length(entry(seq + 1), rows);
    if (batch_.kv_len[seq] <= rows) return true;
    return within(kv_len_of(seq), 0, rows, fmt::format("kv_indptr gives it {} rows", rows));
  }

  /// The keys of a request, as an entry says or as follows from it.
  bool length(const Entry& entry, std::int64_t keys) {
    if (keys <= limits_.max_kv_len) return true;
    return too_long(entry, CheckedItem::kMaxKvLen, keys, limits_.max_kv_len);
  }

  bool tree_mask(std::int32_t seq) {
    if (shape_.mask != Mask::kTree || qo_len(seq) == 0) return true;
    constexpr std::int64_t kWordBits = 32;
    const std::int64_t words = (qo_len(seq) + kWordBits - 1) / kWordBits;
    const std::int32_t rows = batch_.qo_indptr[seq + 1];
    if (words <= batch_.tree_mask_words && rows <= batch_.tree_mask_rows) return true;
    CheckRecord found;
    found.what = static_cast<std::int32_t>(CheckedItem::kQoIndptr);
    found.seq = seq;
    found.position = seq + 1;
    found.value = rows;
    found.bound = std::min(batch_.tree_mask_rows, batch_.tree_mask_words * kWordBits);
    status_ = context_.refuse(
        found,
        fmt::format("tree_mask: expected uint32 [≥{}, ≥{}] for the {} new keys of request "
                    "{}, got uint32 [{}, {}]",
                    rows, words, qo_len(seq), seq, batch_.tree_mask_rows, batch_.tree_mask_words));
    return false;
  }

  bool full_mask(std::int32_t seq) {
    if (shape_.mask != Mask::kFull) return true;
    constexpr std::int64_t kByteBits = 8;
    const std::int64_t keys = schedule::lengths_of(shape_, batch_, seq).kv_len;
    const std::int64_t bytes = (qo_len(seq) * keys + kByteBits - 1) / kByteBits;
    const std::int64_t* indptr = batch_.full_mask_indptr;
    const auto entry = [&](std::int32_t index) {
      return Entry{CheckedItem::kFullMaskIndptr, "full_mask_indptr", index, indptr[index]};
    };
    if (seq == 0 && !within(entry(0), 0, batch_.full_mask_bytes)) return false;
    const std::int64_t end = indptr[seq] + bytes;
    if (indptr[seq + 1] >= end && indptr[seq + 1] <= batch_.full_mask_bytes) return true;
    return within(entry(seq + 1), end, batch_.full_mask_bytes,
                  fmt::format("request {} has {} × {} bits", seq, qo_len(seq), keys));
  }

  /// Sums of costs stay far from overflow.
  bool work(std::int32_t seq) {
    constexpr double kMostProducts = 1LL << 50;  // years of work
    const double keys = schedule::lengths_of(shape_, batch_, seq).kv_len;
    products_ += static_cast<double>(qo_len(seq)) * (keys + 1) * shape_.num_qo_heads;
    if (products_ <= kMostProducts) return true;
    status_ = {
        ErrorCode::kTooLong,
        fmt::format("[{}] batch: expected at most {} products of a query and a key, got more",
                    context_.operation, kMostProducts)};
    return false;
  }

  const CheckContext& context_;
  const core::ProblemShape& shape_;
  const BatchLimits& limits_;
  const core::BatchArrays& batch_;
  double products_ = 0;  // so far
  Status status_;
};

/// Sentence and record for rows that a tensor does not have.
Status too_few_rows(const CheckContext& context, CheckedItem item, std::int32_t seq,
                    std::string_view entry, std::string_view tensor, std::int64_t rows,
                    std::int64_t got) {
  CheckRecord found;
  found.what = static_cast<std::int32_t>(item);
  found.seq = seq;
  found.position = seq + 1;
  found.value = got;
  found.bound = rows;
  return context.refuse(found, fmt::format("{}[{}]: expected at most {} as {} has rows, got {}",
                                           entry, seq + 1, rows, tensor, got));
}

}  // namespace

Status CheckContext::refuse(const CheckRecord& found, const std::string& sentence,
                            ErrorCode code) const {
  if (record != nullptr && record->what == 0) *record = found;
  return {code, fmt::format("[{}] {}", operation, sentence)};
}

Status check_batch(const CheckContext& context, const core::ProblemShape& shape,
                   const BatchLimits& limits, const core::BatchArrays& batch) {
  return BatchChecks(context, shape, limits, batch).run();
}

Status check_groups(const CheckContext& context, const core::ProblemShape& shape,
                    const BatchLimits& limits, const core::BatchArrays& batch,
                    const core::PrefixGroups& groups) {
  for (std::int32_t seq = 0; groups.num_levels > 0 && seq < batch.num_seqs; ++seq) {
    const CheckRecord found = schedule::RequestChecks(shape, limits, batch, seq).prefixes(groups);
    if (found.what != 0) return context.refuse(found, core::describe_group_offence(found));
  }
  return {};
}

Status check_pages(const CheckContext& context, const core::ProblemShape& shape,
                   const core::BatchArrays& batch, std::int32_t seq, std::int32_t begin,
                   std::int32_t end, std::int64_t num_pages) {
  const std::int32_t* ids = schedule::page_ids(batch, seq);
  const std::int32_t last = (end - 1) / shape.page_size;
  for (std::int32_t page = begin / shape.page_size; page <= last; ++page) {
    if (ids[page] >= 0 && ids[page] < num_pages) continue;
    CheckRecord found;
    found.what = static_cast<std::int32_t>(CheckedItem::kPageId);
    found.seq = seq;
    found.position = page;
    found.value = ids[page];
    found.bound = num_pages;
    const std::string entry =
        batch.page_table != nullptr
            ? fmt::format("page_table[{}][{}]", seq, page)
            : fmt::format("kv_page_indices[{}]",
                          static_cast<std::int64_t>(batch.kv_page_indptr[seq]) + page);
    return context.refuse(found, fmt::format("{}: expected a page id in [0, {}), got {}", entry,
                                             num_pages, ids[page]));
  }
  return {};
}

Status check_rows(const CheckContext& context, const core::BatchArrays& batch,
                  std::string_view tensor, std::int64_t rows) {
  const std::int64_t got = batch.qo_indptr[batch.num_seqs];
  if (got <= rows) return {};
  return too_few_rows(context, CheckedItem::kQoIndptr, batch.num_seqs - 1, "qo_indptr", tensor,
                      rows, got);
}

Status check_layer(const CheckContext& context, const core::ProblemShape& shape,
                   const core::BatchArrays& batch, const core::LayerTensors& tensors) {
  Status status = check_rows(context, batch, "q", tensors.total_q);
  if (!status.ok()) return status;
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const schedule::Lengths lengths = schedule::lengths_of(shape, batch, seq);
    if (lengths.qo_len <= 0) continue;
    const schedule::KeyRange keys = schedule::visible_keys(shape, lengths, 0, lengths.qo_len);
    if (keys.begin >= keys.end) continue;
    if (shape.page_size != kContiguousKv) {
      status = check_pages(context, shape, batch, seq, keys.begin, keys.end, tensors.k.num_pages);
      if (!status.ok()) return status;
      continue;
    }
    const std::int64_t end = static_cast<std::int64_t>(batch.kv_indptr[seq]) + keys.end;
    if (end > tensors.k.num_tokens) {
      return too_few_rows(context, CheckedItem::kKvIndptr, seq, "kv_indptr", "k",
                          tensors.k.num_tokens, end);
    }
  }
  return {};
}

}  // namespace quire::cpu
