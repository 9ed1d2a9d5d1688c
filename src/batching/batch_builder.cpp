// SPDX-License-Identifier: Apache-2.0
#include "quire/batch_builder.hpp"

#include <algorithm>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "batching/batch_builder_state.hpp"
#include "batching/staging_layout.hpp"
#include "cache/failure.hpp"

namespace quire {
inline namespace v0 {
namespace {

using batching::Arrays;
using batching::Layout;
using cache::failure;
using internal::BatchBuilderState;
using internal::PageTableState;

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

std::int32_t slot_of(const BatchEntry& entry) noexcept {
  return static_cast<std::int32_t>(entry.seq.slot);
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

std::unique_ptr<BatchBuilderState> make_state(std::shared_ptr<PageTableState> table) {
  try {
    return std::make_unique<BatchBuilderState>(std::move(table));
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                "[batch_builder] table: expected memory for a row of each sequence, got none");
  }
}

// Checks an entry, and looks at the sequence for the row that it becomes.
Status check_entry(BatchBuilderState& state, const BatchEntry& entry, std::size_t index) noexcept {
  const PageTableState& table = *state.table;
  if (table.find(entry.seq) == PageTableState::kNoSlot) {
    return failure(ErrorCode::kBadHandle,
                   "[batch_builder] entries[{}]: expected a live sequence, got slot {} of "
                   "generation {}",
                   index, entry.seq.slot, entry.seq.generation);
  }
  const std::int32_t length = table.at(slot_of(entry)).length;
  if (std::exchange(state.last_use[entry.seq.slot], state.num_calls) == state.num_calls) {
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
  state.next[index] = {.seq = entry.seq,
                       .edits = table.num_edits(slot_of(entry)),
                       .pages = static_cast<std::int32_t>(pages.size()),
                       .holes = table.at(slot_of(entry)).holes};
  state.max_q_len = std::max(state.max_q_len, entry.new_tokens);
  state.max_kv_len = std::max(state.max_kv_len, length);
  return {};
}

// The shape that the entries need.
Result<BatchShape> look_at(BatchBuilderState& state, std::span<const BatchEntry> entries) noexcept {
  ++state.num_calls;
  state.max_q_len = 0;
  state.max_kv_len = 0;
  if (std::cmp_greater_equal(entries.size(), kMaxInt32)) {
    return too_large("entries", kMaxInt32 - 1, static_cast<std::int64_t>(entries.size()));
  }
  std::int64_t tokens = 0;
  std::int64_t num_pages = 0;
  BatchShape shape;
  shape.num_seqs = static_cast<std::int32_t>(entries.size());
  for (std::size_t index = 0; index < entries.size(); ++index) {
    Status status = check_entry(state, entries[index], index);
    if (!status.ok()) return status;
    const std::int32_t pages = state.next[index].pages;
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

// What the block holds before the call.
enum class Block : std::uint8_t { kUnknown, kAsLeft };

// Writes the entries that `look_at` has seen.
Result<StagedBatch> stage(BatchBuilderState& state, std::span<const BatchEntry> entries,
                          const BatchShape& need, const BatchShape& shape,
                          std::span<std::byte> staging, Block block) noexcept {
  if (Status status = check_fits(need, shape); !status.ok()) return status;
  const std::optional<Layout> layout = batching::layout_of(shape);
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
  if (block == Block::kUnknown || state.block != staging.data() || state.shape != shape) {
    state.take(staging.data(), shape);
  }
  const Arrays arrays(staging, *layout);
  state.write(entries, arrays);

  StagedBatch batch;
  batch.shape = shape;
  batch.num_seqs = need.num_seqs;
  batch.num_tokens = need.total_q;
  batch.max_q_len = state.max_q_len;
  batch.max_kv_len = state.max_kv_len;
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

}  // namespace

BatchBuilder::BatchBuilder(const PageTable& table) : state_(make_state(table.state_)) {}
BatchBuilder::BatchBuilder(BatchBuilder&&) noexcept = default;
BatchBuilder& BatchBuilder::operator=(BatchBuilder&&) noexcept = default;
BatchBuilder::~BatchBuilder() = default;

std::size_t BatchBuilder::staging_size(const BatchShape& shape) noexcept {
  const std::optional<Layout> layout = batching::layout_of(shape);
  return layout ? layout->total : 0;
}

Result<BatchShape> BatchBuilder::tight_shape(std::span<const BatchEntry> entries) noexcept {
  return look_at(*state_, entries);
}

Result<StagedBatch> BatchBuilder::build(std::span<const BatchEntry> entries,
                                        std::span<std::byte> staging) noexcept {
  const Result<BatchShape> need = look_at(*state_, entries);
  if (!need.ok()) return need.status();
  return stage(*state_, entries, *need, *need, staging, Block::kUnknown);
}

Result<StagedBatch> BatchBuilder::build(std::span<const BatchEntry> entries,
                                        const BatchShape& shape,
                                        std::span<std::byte> staging) noexcept {
  const Result<BatchShape> need = look_at(*state_, entries);
  if (!need.ok()) return need.status();
  return stage(*state_, entries, *need, shape, staging, Block::kUnknown);
}

Result<StagedBatch> BatchBuilder::update(std::span<const BatchEntry> entries,
                                         const BatchShape& shape,
                                         std::span<std::byte> staging) noexcept {
  const Result<BatchShape> need = look_at(*state_, entries);
  if (!need.ok()) return need.status();
  return stage(*state_, entries, *need, shape, staging, Block::kAsLeft);
}

Status BatchBuilder::find_prefixes(std::span<const BatchEntry> entries,
                                   std::span<std::int32_t> leaders,
                                   std::span<std::int32_t> pages) noexcept {
  const Result<BatchShape> need = look_at(*state_, entries);
  if (!need.ok()) return need.status();
  if (leaders.size() != pages.size() || leaders.size() % kMaxPrefixLevels != 0) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batch_builder] leaders, pages: expected [{}, num_seqs] of both, got {} and {}",
                   kMaxPrefixLevels, leaders.size(), pages.size());
  }
  const std::size_t num_seqs = leaders.size() / kMaxPrefixLevels;
  if (entries.size() > num_seqs) {
    return too_large("num_seqs", static_cast<std::int64_t>(num_seqs), need->num_seqs);
  }
  state_->find_prefixes(entries, leaders, pages);
  return {};
}

}  // namespace v0
}  // namespace quire
