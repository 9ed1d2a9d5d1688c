// SPDX-License-Identifier: Apache-2.0
#include "batching/staging_layout.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace quire::batching {
namespace {

constexpr std::int32_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMaxTable = std::numeric_limits<std::size_t>::max() / 16;  // entries

bool in_range(const BatchShape& shape) noexcept {
  return shape.num_seqs >= 0 && shape.num_seqs < kMaxInt32 && shape.total_q >= 0 &&
         shape.pages_per_seq >= BatchShape::kOmitted && shape.total_pages >= BatchShape::kOmitted;
}

// The elements of a section, whose padding up to the next one is set to zero.
template <typename T>
std::span<T> elements(std::span<std::byte> staging, const Section& section) noexcept {
  std::byte* const end = staging.data() + section.offset + section.size;
  std::memset(end, 0, (kStagingAlignment - section.size % kStagingAlignment) % kStagingAlignment);
  return {reinterpret_cast<T*>(staging.data() + section.offset), section.size / sizeof(T)};
}

}  // namespace

std::optional<Layout> layout_of(const BatchShape& shape) noexcept {
  if (!in_range(shape)) return std::nullopt;
  const auto seqs = static_cast<std::size_t>(shape.num_seqs);
  const auto tokens = static_cast<std::size_t>(shape.total_q);
  const auto columns = static_cast<std::size_t>(std::max(shape.pages_per_seq, 0));
  const auto pages = static_cast<std::size_t>(std::max(shape.total_pages, 0));
  if (columns > 0 && seqs > kMaxTable / columns) return std::nullopt;

  Layout layout;
  const auto place = [&layout](std::size_t count, std::size_t element) {
    const Section section{layout.total, count * element};
    const std::size_t blocks = (section.size + kStagingAlignment - 1) / kStagingAlignment;
    layout.total += blocks * kStagingAlignment;
    return section;
  };
  const bool csr = shape.total_pages != BatchShape::kOmitted;
  layout.qo_indptr = place(seqs + 1, sizeof(std::int32_t));
  layout.kv_len = place(seqs, sizeof(std::int32_t));
  layout.kv_page_indptr = place(csr ? seqs + 1 : 0, sizeof(std::int32_t));
  layout.kv_last_page_len = place(csr ? seqs : 0, sizeof(std::int32_t));
  layout.positions = place(tokens, sizeof(std::int32_t));
  layout.slot_mapping = place(tokens, sizeof(std::int64_t));
  layout.kv_page_indices = place(pages, sizeof(PageId));
  layout.page_table = place(seqs * columns, sizeof(PageId));
  return layout;
}

Arrays::Arrays(std::span<std::byte> staging, const Layout& layout) noexcept
    : qo_indptr(elements<std::int32_t>(staging, layout.qo_indptr)),
      kv_len(elements<std::int32_t>(staging, layout.kv_len)),
      kv_page_indptr(elements<std::int32_t>(staging, layout.kv_page_indptr)),
      kv_last_page_len(elements<std::int32_t>(staging, layout.kv_last_page_len)),
      positions(elements<std::int32_t>(staging, layout.positions)),
      slot_mapping(elements<std::int64_t>(staging, layout.slot_mapping)),
      kv_page_indices(elements<PageId>(staging, layout.kv_page_indices)),
      page_table(elements<PageId>(staging, layout.page_table)) {}

}  // namespace quire::batching
