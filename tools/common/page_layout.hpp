// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quire/attention.hpp"

namespace quire::tool {

/// Requests [first, last_exclusive) begin with the same tokens, in the same pages.
struct SharedPrefix {
  std::int32_t first = 0;
  std::int32_t last_exclusive = 0;
  std::int32_t tokens = 0;
};

/// What a layout holds beyond its requests, to be left alone by whoever computes.
struct LayoutExtras {
  std::int32_t padding_rows = 0;   ///< Of q.
  std::int32_t stale_columns = 0;  ///< Of the page table, with ids that no cache has.
  bool unused_pages = false;       ///< A quarter of the cache belongs to nobody.
};

/// Lengths and shuffled page tables of a ragged batch, or contiguous keys, one request after another.
class PageLayout {
 public:
  /// @param qo_len, kv_len  Of each request; the same number of both.
  /// @param page_size       `kContiguousKv`: a page is a token, and all are in order.
  /// @param shared          Larger groups first.
  PageLayout(std::span<const std::int32_t> qo_len, std::span<const std::int32_t> kv_len,
             std::int32_t page_size, std::uint64_t seed, std::span<const SharedPrefix> shared = {},
             const LayoutExtras& extras = {});

  [[nodiscard]] std::int32_t num_seqs() const { return static_cast<std::int32_t>(kv_len_.size()); }
  [[nodiscard]] std::int32_t num_pages() const { return num_pages_; }
  /// @return Rows of q, padding included.
  [[nodiscard]] std::int32_t total_q() const { return qo_indptr_.back() + padding_rows_; }
  [[nodiscard]] std::int32_t first_row(std::size_t seq) const { return qo_indptr_[seq]; }
  /// @return Rows of the cache.
  [[nodiscard]] std::int64_t num_tokens() const { return std::int64_t{num_pages_} * page_size_; }
  [[nodiscard]] std::int32_t page_of(std::size_t seq, std::int32_t position) const {
    return table_[entry(seq, position / page_size_)];
  }
  [[nodiscard]] std::int32_t place_in_page(std::int32_t position) const {
    return position % page_size_;
  }
  /// @return The row of the cache where a token lies.
  [[nodiscard]] std::int64_t token_of(std::size_t seq, std::int32_t position) const {
    return std::int64_t{page_of(seq, position)} * page_size_ + place_in_page(position);
  }
  /// @return The limits that the batch just fits.
  [[nodiscard]] BatchLimits limits() const;
  /// @return Views of the layout, with the dense table or with `kv_indptr`.
  [[nodiscard]] Batch batch() const;
  /// @return Likewise, with the groups that share pages, as far as there are tables.
  [[nodiscard]] Batch named_batch() const;

 private:
  [[nodiscard]] std::size_t entry(std::size_t seq, std::int32_t index) const {
    return seq * static_cast<std::size_t>(width_) + static_cast<std::size_t>(index);
  }
  void share(const SharedPrefix& group);
  void name(const SharedPrefix& group);
  void fill();
  void shuffle(std::uint64_t seed);

  bool is_contiguous_;
  std::int32_t page_size_;
  std::int32_t padding_rows_;
  std::int32_t width_ = 1;
  std::int32_t num_pages_ = 0;
  std::vector<std::int32_t> qo_indptr_ = {0};
  std::vector<std::int32_t> kv_len_;
  std::vector<std::int32_t> kv_indptr_ = {0};
  std::vector<std::int32_t> table_;
  std::vector<std::int32_t> prefix_leaders_, prefix_pages_;  // [kMaxPrefixLevels, num_seqs]
};

}  // namespace quire::tool
