// SPDX-License-Identifier: Apache-2.0
#include "quire/batch_builder.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "cache/failure.hpp"
#include "cache/page_table_state.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::PageTableState;

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMaxTable = std::numeric_limits<std::size_t>::max() / 16;  // entries

// One array of the block, in bytes.
struct Section {
  std::size_t offset = 0;
  std::size_t size = 0;
};

// Where the arrays are: the short ones first, the dense table, the largest, last.
struct Layout {
  Section qo_indptr;
  Section kv_len;
  Section kv_page_indptr;
  Section kv_last_page_len;
  Section positions;
  Section slot_mapping;
  Section kv_page_indices;
  Section page_table;
  std::size_t total = 0;
};

bool in_range(const BatchShape& shape) noexcept {
  return shape.num_seqs >= 0 && shape.num_seqs < kMaxInt32 && shape.total_q >= 0 &&
         shape.pages_per_seq >= BatchShape::kOmitted && shape.total_pages >= BatchShape::kOmitted;
}

// Every array begins and ends at a multiple of the alignment. Nothing if the size cannot be
// counted.
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

// The elements of a section, whose padding up to the next one is set to zero.
template <typename T>
std::span<T> elements(std::span<std::byte> staging, const Section& section) noexcept {
  std::byte* const end = staging.data() + section.offset + section.size;
  std::memset(end, 0, (kStagingAlignment - section.size % kStagingAlignment) % kStagingAlignment);
  return {reinterpret_cast<T*>(staging.data() + section.offset), section.size / sizeof(T)};
}

// The arrays while they are written.
struct Arrays {
  Arrays(std::span<std::byte> staging, const Layout& layout) noexcept
      : qo_indptr(elements<std::int32_t>(staging, layout.qo_indptr)),
        kv_len(elements<std::int32_t>(staging, layout.kv_len)),
        kv_page_indptr(elements<std::int32_t>(staging, layout.kv_page_indptr)),
        kv_last_page_len(elements<std::int32_t>(staging, layout.kv_last_page_len)),
        positions(elements<std::int32_t>(staging, layout.positions)),
        slot_mapping(elements<std::int64_t>(staging, layout.slot_mapping)),
        kv_page_indices(elements<PageId>(staging, layout.kv_page_indices)),
        page_table(elements<PageId>(staging, layout.page_table)) {}

  std::span<std::int32_t> qo_indptr;
  std::span<std::int32_t> kv_len;
  std::span<std::int32_t> kv_page_indptr;
  std::span<std::int32_t> kv_last_page_len;
  std::span<std::int32_t> positions;
  std::span<std::int64_t> slot_mapping;
  std::span<PageId> kv_page_indices;
  std::span<PageId> page_table;
};

// Positions and slots of the tokens [first, length) of a sequence, page by page.
void write_tokens(std::span<const PageId> pages, std::int32_t page_size, std::int32_t first,
                  std::int32_t length, std::int32_t* positions, std::int64_t* slots) noexcept {
  for (std::int32_t token = first; token < length;) {
    const std::int32_t offset = token % page_size;
    const std::int32_t run = std::min(page_size - offset, length - token);
    const std::int64_t slot =
        std::int64_t{pages[static_cast<std::size_t>(token / page_size)]} * page_size + offset;
    for (std::int32_t i = 0; i < run; ++i) {
      *positions++ = token + i;
      *slots++ = slot + i;
    }
    token += run;
  }
}

std::int32_t slot_of(const BatchEntry& entry) noexcept {
  return static_cast<std::int32_t>(entry.seq.slot);
}

// Writes the entries' rows, then the padding. The entries have been checked.
void write(std::span<const BatchEntry> entries, const PageTableState& table, std::size_t columns,
           bool csr, const Arrays& to) noexcept {
  const std::int32_t page_size = table.pool->spec.page_size;
  std::size_t tokens = 0;
  std::size_t num_pages = 0;
  for (std::size_t row = 0; row < to.kv_len.size(); ++row) {
    const bool padding = row >= entries.size();
    const std::span<const PageId> pages =
        padding ? std::span<const PageId>() : table.pages(slot_of(entries[row]));
    const std::int32_t length = padding ? 0 : table.at(slot_of(entries[row])).length;
    const std::int32_t in_last_page =
        length == 0 ? 0 : length - static_cast<std::int32_t>(pages.size() - 1) * page_size;
    const std::int32_t new_tokens = padding ? 0 : entries[row].new_tokens;
    to.qo_indptr[row] = static_cast<std::int32_t>(tokens);
    to.kv_len[row] = length;
    if (new_tokens == 1) {  // decodes, without a division
      to.positions[tokens] = length - 1;
      to.slot_mapping[tokens] = std::int64_t{pages.back()} * page_size + in_last_page - 1;
    } else {
      write_tokens(pages, page_size, length - new_tokens, length, to.positions.data() + tokens,
                   to.slot_mapping.data() + tokens);
    }
    tokens += static_cast<std::size_t>(new_tokens);
    if (csr) {
      to.kv_page_indptr[row] = static_cast<std::int32_t>(num_pages);
      to.kv_last_page_len[row] = in_last_page;
      std::ranges::copy(pages, to.kv_page_indices.begin() + static_cast<std::ptrdiff_t>(num_pages));
      num_pages += pages.size();
    }
    if (columns > 0) {
      const std::span<PageId> cells = to.page_table.subspan(row * columns, columns);
      std::ranges::fill(std::ranges::copy(pages, cells.begin()).out, cells.end(), kNoPage);
    }
  }
  to.qo_indptr.back() = static_cast<std::int32_t>(tokens);
  std::ranges::fill(to.positions.subspan(tokens), 0);
  std::ranges::fill(to.slot_mapping.subspan(tokens), std::int64_t{-1});
  if (csr) to.kv_page_indptr.back() = static_cast<std::int32_t>(num_pages);
  std::ranges::fill(to.kv_page_indices.subspan(num_pages), kNoPage);
}

Status too_large(const char* what, std::int64_t expected, std::int64_t got) noexcept {
  return failure(ErrorCode::kTooLong, "[batch_builder] {}: expected at most {}, got {}", what,
                 expected, got);
}

// The batch must fit the shape it is padded to.
Status check_fits(const BatchShape& need, const BatchShape& shape) noexcept {
  const auto fits = [](std::int32_t needed, std::int32_t given) {
    return given == BatchShape::kOmitted || needed <= given;
  };
  if (need.num_seqs > shape.num_seqs) {
    return too_large("num_seqs", shape.num_seqs, need.num_seqs);
  }
  if (need.total_q > shape.total_q) return too_large("total_q", shape.total_q, need.total_q);
  if (!fits(need.pages_per_seq, shape.pages_per_seq)) {
    return too_large("pages_per_seq", shape.pages_per_seq, need.pages_per_seq);
  }
  if (!fits(need.total_pages, shape.total_pages)) {
    return too_large("total_pages", shape.total_pages, need.total_pages);
  }
  return {};
}

// Where an array of the block is in a copy of the block.
const void* moved(const void* array, const std::byte* block, const void* base) noexcept {
  if (base == nullptr) return array;
  return static_cast<const std::byte*>(base) + (static_cast<const std::byte*>(array) - block);
}

}  // namespace

Batch StagedBatch::dense(const void* base, Device device) const noexcept {
  const auto at = [&](const void* array) { return moved(array, bytes.data(), base); };
  Batch batch;
  batch.qo_indptr = {at(qo_indptr.data()), DType::kInt32, {shape.num_seqs + 1}, device};
  batch.kv_len = {at(kv_len.data()), DType::kInt32, {shape.num_seqs}, device};
  if (shape.pages_per_seq != BatchShape::kOmitted) {
    batch.page_table = {
        at(page_table.data()), DType::kInt32, {shape.num_seqs, shape.pages_per_seq}, device};
  }
  return batch;
}

Batch StagedBatch::csr(const void* base, Device device) const noexcept {
  const auto at = [&](const void* array) { return moved(array, bytes.data(), base); };
  Batch batch;
  batch.qo_indptr = {at(qo_indptr.data()), DType::kInt32, {shape.num_seqs + 1}, device};
  batch.kv_len = {at(kv_len.data()), DType::kInt32, {shape.num_seqs}, device};
  if (shape.total_pages != BatchShape::kOmitted) {
    batch.kv_page_indptr = {at(kv_page_indptr.data()), DType::kInt32, {shape.num_seqs + 1}, device};
    batch.kv_page_indices = {
        at(kv_page_indices.data()), DType::kInt32, {shape.total_pages}, device};
  }
  return batch;
}

TensorView StagedBatch::slots(const void* base, Device device) const noexcept {
  return {moved(slot_mapping.data(), bytes.data(), base), DType::kInt64, {shape.total_q}, device};
}

BatchBuilder::BatchBuilder(const PageTable& table) try
    : table_(table.state_), last_use_(static_cast<std::size_t>(table.spec().max_seqs)) {
} catch (const std::bad_alloc&) {
  throw Error(ErrorCode::kOutOfMemory,
              "[batch_builder] table: expected memory for a mark of each sequence, got none");
}
BatchBuilder::BatchBuilder(BatchBuilder&&) noexcept = default;
BatchBuilder& BatchBuilder::operator=(BatchBuilder&&) noexcept = default;
BatchBuilder::~BatchBuilder() = default;

std::size_t BatchBuilder::staging_size(const BatchShape& shape) noexcept {
  const std::optional<Layout> layout = layout_of(shape);
  return layout ? layout->total : 0;
}

Status BatchBuilder::check_entry(const BatchEntry& entry, std::size_t index) noexcept {
  const PageTableState& table = *table_.state_;
  if (table.find(entry.seq) == PageTableState::kNoSlot) {
    return failure(ErrorCode::kBadHandle,
                   "[batch_builder] entries[{}]: expected a live sequence, got slot {} of "
                   "generation {}",
                   index, entry.seq.slot, entry.seq.generation);
  }
  const std::int32_t length = table.at(slot_of(entry)).length;
  if (std::exchange(last_use_[entry.seq.slot], num_calls_) == num_calls_) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batch_builder] entries[{}]: expected each sequence once, got slot {} again",
                   index, entry.seq.slot);
  }
  if (entry.new_tokens < 0 || entry.new_tokens > length) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batch_builder] entries[{}]: expected new_tokens in [0, {}], got {}", index,
                   length, entry.new_tokens);
  }
  if (!table.has_window(slot_of(entry), length - entry.new_tokens)) {
    return failure(
        ErrorCode::kInvalidArgument,
        "[batch_builder] entries[{}]: expected new tokens whose window is still there, got "
        "{} of {}, {} pages given back",
        index, entry.new_tokens, length, table.at(slot_of(entry)).holes);
  }
  const std::span<const PageId> pages = table.pages(slot_of(entry));
  std::size_t written_from = pages.size();
  if (entry.new_tokens == 1) {
    --written_from;
  } else if (entry.new_tokens > 1) {
    written_from =
        static_cast<std::size_t>((length - entry.new_tokens) / table.pool->spec.page_size);
  }
  for (const PageId page : pages.subspan(written_from)) {
    if (table.pool->page(page).refs == 1) continue;
    return failure(ErrorCode::kInvalidArgument,
                   "[batch_builder] entries[{}]: expected new tokens in pages of its own, got page "
                   "{} with {} references",
                   index, page, table.pool->page(page).refs);
  }
  return {};
}

Result<BatchShape> BatchBuilder::tight_shape(std::span<const BatchEntry> entries) noexcept {
  ++num_calls_;
  if (std::cmp_greater_equal(entries.size(), kMaxInt32)) {
    return too_large("entries", kMaxInt32 - 1, static_cast<std::int64_t>(entries.size()));
  }
  std::int64_t tokens = 0;
  std::int64_t num_pages = 0;
  BatchShape shape;
  shape.num_seqs = static_cast<std::int32_t>(entries.size());
  for (std::size_t index = 0; index < entries.size(); ++index) {
    Status status = check_entry(entries[index], index);
    if (!status.ok()) return status;
    const std::int32_t pages =
        table_.state_->pages_for(table_.state_->at(slot_of(entries[index])).length);
    tokens += entries[index].new_tokens;
    num_pages += pages;
    shape.pages_per_seq = std::max(shape.pages_per_seq, pages);
  }
  if (tokens > kMaxInt32) return too_large("new tokens", kMaxInt32, tokens);
  if (num_pages > kMaxInt32) return too_large("pages", kMaxInt32, num_pages);
  shape.total_q = static_cast<std::int32_t>(tokens);
  shape.total_pages = static_cast<std::int32_t>(num_pages);
  return shape;
}

Result<StagedBatch> BatchBuilder::build(std::span<const BatchEntry> entries,
                                        std::span<std::byte> staging) noexcept {
  const Result<BatchShape> need = tight_shape(entries);
  if (!need.ok()) return need.status();
  return stage(entries, *need, *need, staging);
}

Result<StagedBatch> BatchBuilder::build(std::span<const BatchEntry> entries,
                                        const BatchShape& shape,
                                        std::span<std::byte> staging) noexcept {
  const Result<BatchShape> need = tight_shape(entries);
  if (!need.ok()) return need.status();
  Status status = check_fits(*need, shape);
  if (!status.ok()) return status;
  return stage(entries, *need, shape, staging);
}

Result<StagedBatch> BatchBuilder::stage(std::span<const BatchEntry> entries, const BatchShape& need,
                                        const BatchShape& shape,
                                        std::span<std::byte> staging) const noexcept {
  const std::optional<Layout> layout = layout_of(shape);
  if (!layout) {
    return failure(
        ErrorCode::kInvalidArgument,
        "[batch_builder] shape: expected sizes of at least 0 (-1 omits a table), got {}, "
        "{}, {}, {}",
        shape.num_seqs, shape.total_q, shape.pages_per_seq, shape.total_pages);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(staging.data());
  if (staging.size() < layout->total || address % kStagingAlignment != 0) {
    return failure(ErrorCode::kWorkspaceTooSmall,
                   "[batch_builder] staging: expected {} bytes aligned to {}, got {} bytes at {} "
                   "beyond a multiple",
                   layout->total, kStagingAlignment, staging.size(), address % kStagingAlignment);
  }
  const Arrays arrays(staging, *layout);
  write(entries, *table_.state_, static_cast<std::size_t>(std::max(shape.pages_per_seq, 0)),
        shape.total_pages != BatchShape::kOmitted, arrays);

  StagedBatch batch;
  batch.shape = shape;
  batch.num_seqs = need.num_seqs;
  batch.num_tokens = need.total_q;
  for (const BatchEntry& entry : entries) {
    batch.max_q_len = std::max(batch.max_q_len, entry.new_tokens);
    batch.max_kv_len = std::max(batch.max_kv_len, table_.state_->at(slot_of(entry)).length);
  }
  batch.bytes = staging.first(layout->total);
  batch.qo_indptr = arrays.qo_indptr;
  batch.kv_len = arrays.kv_len;
  batch.kv_page_indptr = arrays.kv_page_indptr;
  batch.kv_last_page_len = arrays.kv_last_page_len;
  batch.positions = arrays.positions;
  batch.slot_mapping = arrays.slot_mapping;
  batch.kv_page_indices = arrays.kv_page_indices;
  batch.page_table = arrays.page_table;
  return batch;
}

}  // namespace v0
}  // namespace quire
