// SPDX-License-Identifier: Apache-2.0
#include "common/page_layout.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/random.hpp"

namespace quire::tool {
namespace {

constexpr std::int32_t kStalePage = 1 << 30;  // an id that no cache has

std::int32_t divide_up(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

}  // namespace

PageLayout::PageLayout(std::span<const std::int32_t> qo_len, std::span<const std::int32_t> kv_len,
                       std::int32_t page_size, std::uint64_t seed,
                       std::span<const SharedPrefix> shared, const LayoutExtras& extras)
    : is_contiguous_(page_size == kContiguousKv),
      page_size_(is_contiguous_ ? 1 : page_size),
      padding_rows_(extras.padding_rows),
      kv_len_(kv_len.begin(), kv_len.end()) {
  for (const std::int32_t queries : qo_len) qo_indptr_.push_back(qo_indptr_.back() + queries);
  for (const std::int32_t keys : kv_len) {
    kv_indptr_.push_back(kv_indptr_.back() + keys);
    width_ = std::max(width_, divide_up(keys, page_size_));
  }
  width_ += extras.stale_columns;
  table_.assign(kv_len_.size() * static_cast<std::size_t>(width_), kStalePage);
  prefix_leaders_.assign(kMaxPrefixLevels * kv_len_.size(), -1);
  prefix_pages_.assign(prefix_leaders_.size(), 0);
  for (const SharedPrefix& group : shared) {
    share(group);
    name(group);
  }
  fill();
  if (extras.unused_pages) num_pages_ += num_pages_ / 3 + 1;
  if (!is_contiguous_) shuffle(seed);
}

void PageLayout::share(const SharedPrefix& group) {
  for (std::int32_t i = 0; i < group.tokens / page_size_; ++i) {
    std::int32_t& page = table_[entry(static_cast<std::size_t>(group.first), i)];
    // Within a larger group's prefix, what that one shares stays.
    if (page == kStalePage) page = num_pages_++;
    for (std::int32_t seq = group.first; seq < group.last_exclusive; ++seq) {
      table_[entry(static_cast<std::size_t>(seq), i)] = page;
    }
  }
}

void PageLayout::name(const SharedPrefix& group) {
  for (std::int32_t seq = group.first; seq < group.last_exclusive; ++seq) {
    auto at = static_cast<std::size_t>(seq);
    while (at < prefix_leaders_.size() && prefix_leaders_[at] >= 0) at += kv_len_.size();
    if (at >= prefix_leaders_.size()) continue;
    prefix_leaders_[at] = group.first;
    prefix_pages_[at] = group.tokens / page_size_;
  }
}

void PageLayout::fill() {
  for (std::size_t seq = 0; seq < kv_len_.size(); ++seq) {
    for (std::int32_t i = 0; i < divide_up(kv_len_[seq], page_size_); ++i) {
      std::int32_t& page = table_[entry(seq, i)];
      if (page == kStalePage) page = num_pages_++;
    }
  }
}

void PageLayout::shuffle(std::uint64_t seed) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(num_pages_));
  std::iota(ids.begin(), ids.end(), 0);
  Random random(seed);
  for (std::int32_t i = num_pages_ - 1; i > 0; --i) {
    std::swap(ids[static_cast<std::size_t>(i)],
              ids[static_cast<std::size_t>(random.between(0, i))]);
  }
  for (std::int32_t& page : table_) {
    if (page != kStalePage) page = ids[static_cast<std::size_t>(page)];
  }
}

BatchLimits PageLayout::limits() const {
  BatchLimits limits;
  limits.max_num_seqs = std::max(1, num_seqs());
  limits.max_total_q = std::max(1, total_q());
  limits.max_kv_len = 1;
  for (const std::int32_t keys : kv_len_) limits.max_kv_len = std::max(limits.max_kv_len, keys);
  return limits;
}

Batch PageLayout::batch() const {
  Batch batch;
  batch.qo_indptr = {qo_indptr_.data(), DType::kInt32, {num_seqs() + 1}};
  if (is_contiguous_) {
    batch.kv_indptr = {kv_indptr_.data(), DType::kInt32, {num_seqs() + 1}};
    return batch;
  }
  batch.kv_len = {kv_len_.data(), DType::kInt32, {num_seqs()}};
  batch.page_table = {table_.data(), DType::kInt32, {num_seqs(), width_}};
  return batch;
}

Batch PageLayout::named_batch() const {
  Batch batch = this->batch();
  if (is_contiguous_) return batch;
  batch.prefix_leaders = {prefix_leaders_.data(), DType::kInt32, {kMaxPrefixLevels, num_seqs()}};
  batch.prefix_pages = {prefix_pages_.data(), DType::kInt32, {kMaxPrefixLevels, num_seqs()}};
  return batch;
}

}  // namespace quire::tool
