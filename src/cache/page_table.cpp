// SPDX-License-Identifier: Apache-2.0
#include "quire/page_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "cache/failure.hpp"
#include "cache/page_table_state.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

PageTableState::PageTableState(std::shared_ptr<PagePoolState> pages_of,
                               const PageTableSpec& table_spec)
    : pool(std::move(pages_of)),
      spec(table_spec),
      row_size(spec.window_left < 0
                   ? std::min(pages_for(spec.max_tokens_per_seq), pool->spec.num_pages)
                   : pages_for(spec.max_tokens_per_seq)),
      sequences(static_cast<std::size_t>(spec.max_seqs)),
      entries(std::make_unique_for_overwrite<PageId[]>(static_cast<std::size_t>(spec.max_seqs) *
                                                       static_cast<std::size_t>(row_size))),
      row_edits(sequences.size()) {
  for (std::int32_t slot = 0; slot + 1 < spec.max_seqs; ++slot) at(slot).next_free = slot + 1;
  ++pool->num_tables;
}

PageTableState::~PageTableState() {
  for (std::int32_t slot = 0; slot < spec.max_seqs; ++slot) {
    if (at(slot).live) drop_pages(slot, 0);
  }
  --pool->num_tables;
}

SeqId PageTableState::take_slot(std::int32_t length) noexcept {
  const std::int32_t slot = first_free_slot;
  Sequence& sequence = at(slot);
  first_free_slot = sequence.next_free;
  sequence.next_free = kNoSlot;
  sequence.length = length;
  sequence.holes = 0;
  sequence.live = true;
  ++num_live;
  return {static_cast<std::uint32_t>(slot), sequence.generation};
}

// Gives back the pages from `keep` on, the last first: the head of a sequence is reused last.
void PageTableState::drop_pages(std::int32_t slot, std::int32_t keep) noexcept {
  const std::int32_t begin = std::max(keep, at(slot).holes);
  const std::int32_t end = pages_for(at(slot).length);
  if (begin < end) edit(slot, begin);
  for (std::int32_t index = end; index-- > begin;) pool->drop_ref(row(slot)[index]);
}

void PageTableState::free_slot(std::int32_t slot) noexcept {
  Sequence& sequence = at(slot);
  sequence.live = false;
  sequence.length = 0;
  --num_live;
  if (++sequence.generation == kRetired) return;
  sequence.next_free = first_free_slot;
  first_free_slot = slot;
}

}  // namespace internal

namespace {

using cache::failure;
using internal::PageTableState;

void require_positive(const char* field, std::int32_t value) {
  if (value >= 1) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("[page_table] {}: expected at least 1, got {}", field, value));
}

std::shared_ptr<PageTableState> make_state(std::shared_ptr<internal::PagePoolState> pool,
                                           const PageTableSpec& spec) {
  require_positive("max_seqs", spec.max_seqs);
  require_positive("max_tokens_per_seq", spec.max_tokens_per_seq);
  if (spec.window_left < -1) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[page_table] window_left: expected -1 (all) or more, got {}",
                            spec.window_left));
  }
  try {
    return std::make_shared<PageTableState>(std::move(pool), spec);
  } catch (const std::bad_alloc&) {  // bad_array_new_length included
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("[page_table] max_seqs, max_tokens_per_seq: expected memory for the "
                            "pages of {} sequences of {} tokens, got none",
                            spec.max_seqs, spec.max_tokens_per_seq));
  }
}

Status bad_handle(const char* call, SeqId seq) noexcept {
  return failure(ErrorCode::kBadHandle,
                 "[page_table] {}: expected a live sequence, got slot {} of generation {}", call,
                 seq.slot, seq.generation);
}

Status bad_length(const char* call, std::int32_t length, std::int32_t max) noexcept {
  return failure(ErrorCode::kInvalidArgument,
                 "[page_table] {}: expected a length in [0, {}], got {}", call, max, length);
}

// What a query at `length` sees must be there.
Status check_window(const char* call, const PageTableState& table, std::int32_t slot,
                    std::int32_t length) noexcept {
  if (table.has_window(slot, length)) return {};
  return failure(
      ErrorCode::kInvalidArgument,
      "[page_table] {}: expected a length of at least {}, whose window is still there, got "
      "{}",
      call, table.at(slot).holes * table.pool->spec.page_size + table.spec.window_left, length);
}

Status no_slot(const char* call, const PageTableState& table) noexcept {
  return failure(ErrorCode::kQueueFull,
                 "[page_table] {}: expected a free sequence slot, got {} of {} in use", call,
                 table.num_live, table.spec.max_seqs);
}

// Free pages that `n` more tokens take, a copy of the tail included.
std::int32_t growth(const PageTableState& table, std::int32_t slot, std::int32_t n) noexcept {
  if (n == 0) return 0;
  const std::int32_t length = table.at(slot).length;
  const std::int32_t added = table.pages_for(length + n) - table.pages_for(length);
  return added + (table.shared_tail(slot) != kNoPage ? 1 : 0);
}

Status check_path(std::span<const std::int32_t> path, std::int32_t num_drafts) noexcept {
  std::int32_t least = 0;
  for (const std::int32_t token : path) {
    if (token < least || token >= num_drafts) {
      return failure(
          ErrorCode::kInvalidArgument,
          "[page_table] accept_tree: expected a path of tokens in [{}, {}), each greater "
          "than the one before, got {}",
          least, num_drafts, token);
    }
    least = token + 1;
  }
  return {};
}

// How many tokens at the beginning of a path stay where they are.
std::int32_t unmoved(std::span<const std::int32_t> path) noexcept {
  std::int32_t count = 0;
  while (std::cmp_less(count, path.size()) && path[static_cast<std::size_t>(count)] == count) {
    ++count;
  }
  return count;
}

// Whether the pages that the tokens of a path move to are the sequence's alone.
Status check_targets(const PageTableState& table, std::int32_t slot, std::int32_t length,
                     std::span<const std::int32_t> path) noexcept {
  const std::int32_t page_size = table.pool->spec.page_size;
  const std::int32_t first = length + unmoved(path);
  const std::int32_t end = length + static_cast<std::int32_t>(path.size());
  if (first == end) return {};
  for (std::int32_t index = first / page_size; index <= (end - 1) / page_size; ++index) {
    const PageId page = table.row(slot)[index];
    if (table.pool->page(page).refs == 1) continue;
    return failure(ErrorCode::kInvalidArgument,
                   "[page_table] accept_tree: expected pages of the sequence alone to move tokens "
                   "to, got page {} with {} references",
                   page, table.pool->page(page).refs);
  }
  return {};
}

// As few ops as neighbours on the path allow, none of which reads what it writes. There is room.
void move_path(const PageId* row, std::int32_t page_size, std::int32_t length,
               std::span<const std::int32_t> path, std::vector<CopyOp>& copies) noexcept {
  std::size_t next = static_cast<std::size_t>(unmoved(path));
  while (next < path.size()) {
    const std::int32_t from = length + path[next];
    const std::int32_t to = length + static_cast<std::int32_t>(next);
    std::int32_t most = page_size - std::max(from % page_size, to % page_size);
    if (from / page_size == to / page_size) most = std::min(most, from - to);
    std::int32_t tokens = 1;
    ++next;
    for (; tokens < most && next < path.size() && length + path[next] == from + tokens; ++next) {
      ++tokens;
    }
    copies.push_back(
        {row[from / page_size], row[to / page_size], tokens, from % page_size, to % page_size});
  }
}

}  // namespace

PageTable::PageTable(PagePool& pool, const PageTableSpec& spec)
    : state_(make_state(pool.state_, spec)) {}
PageTable::PageTable(std::shared_ptr<PageTableState> state) noexcept : state_(std::move(state)) {}
PageTable::PageTable(PageTable&&) noexcept = default;
PageTable& PageTable::operator=(PageTable&&) noexcept = default;
PageTable::~PageTable() = default;

const PageTableSpec& PageTable::spec() const noexcept { return state_->spec; }
const PagePoolSpec& PageTable::pool_spec() const noexcept { return state_->pool->spec; }
std::int32_t PageTable::num_seqs() const noexcept { return state_->num_live; }
std::int32_t PageTable::num_free_pages() const noexcept { return state_->pool->num_free; }

Result<SeqId> PageTable::create() noexcept {
  if (state_->first_free_slot == PageTableState::kNoSlot) return no_slot("create", *state_);
  return state_->take_slot(0);
}

Result<SeqId> PageTable::fork(SeqId seq, std::int32_t length) noexcept {
  PageTableState& table = *state_;
  const std::int32_t parent = table.find(seq);
  if (parent == PageTableState::kNoSlot) return bad_handle("fork", seq);
  if (length < 0 || length > table.at(parent).length) {
    return bad_length("fork", length, table.at(parent).length);
  }
  if (Status status = check_window("fork", table, parent, length); !status.ok()) return status;
  if (table.first_free_slot == PageTableState::kNoSlot) return no_slot("fork", table);

  const SeqId child = table.take_slot(length);
  const auto slot = static_cast<std::int32_t>(child.slot);
  const std::span<const PageId> shared =
      table.pages(parent).first(static_cast<std::size_t>(table.pages_for(length)));
  std::ranges::copy(shared, table.row(slot));
  table.at(slot).holes = table.at(parent).holes;
  for (const PageId page : table.held_pages(slot)) table.pool->add_ref(page);
  return child;
}

Status PageTable::append(SeqId seq, std::int32_t n, std::vector<CopyOp>& copies) noexcept {
  PageTableState& table = *state_;
  const std::int32_t slot = table.find(seq);
  if (slot == PageTableState::kNoSlot) return bad_handle("append", seq);
  PageTableState::Sequence& sequence = table.at(slot);
  if (n < 0) {
    return failure(ErrorCode::kInvalidArgument,
                   "[page_table] append: expected n of at least 0, got {}", n);
  }
  if (n > table.spec.max_tokens_per_seq - sequence.length) {
    return failure(ErrorCode::kTooLong,
                   "[page_table] append: expected at most {} tokens in a sequence, got {} + {}",
                   table.spec.max_tokens_per_seq, sequence.length, n);
  }
  const std::int32_t needed = growth(table, slot, n);
  if (needed > table.pool->num_free) {
    return failure(ErrorCode::kOutOfPages, "[page_table] append: expected {} free pages, got {}",
                   needed, table.pool->num_free);
  }
  if (n == 0) return {};

  const PageId tail = table.shared_tail(slot);
  const std::int32_t page_size = table.pool->spec.page_size;
  if (tail != kNoPage) {
    try {  // the only step that can fail comes before the first change
      copies.push_back({tail, table.pool->next_free(), sequence.length % page_size});
    } catch (const std::exception&) {
      return failure(ErrorCode::kOutOfMemory,
                     "[page_table] append: expected memory for a copy plan of {} ops, got none",
                     copies.size() + 1);
    }
    const std::int32_t last = sequence.length / page_size;
    table.edit(slot, last);
    table.row(slot)[last] = table.pool->take();
    table.pool->drop_ref(tail);
  }
  const std::int32_t end = table.pages_for(sequence.length + n);
  for (std::int32_t index = table.pages_for(sequence.length); index < end; ++index) {
    table.row(slot)[index] = table.pool->take();
  }
  sequence.length += n;
  return {};
}

Status PageTable::truncate(SeqId seq, std::int32_t length) noexcept {
  const std::int32_t slot = state_->find(seq);
  if (slot == PageTableState::kNoSlot) return bad_handle("truncate", seq);
  PageTableState::Sequence& sequence = state_->at(slot);
  if (length < 0 || length > sequence.length) {
    return bad_length("truncate", length, sequence.length);
  }
  if (Status status = check_window("truncate", *state_, slot, length); !status.ok()) return status;
  state_->drop_pages(slot, state_->pages_for(length));
  sequence.length = length;
  return {};
}

Status PageTable::accept_tree(SeqId seq, std::int32_t length, std::span<const std::int32_t> path,
                              std::vector<CopyOp>& copies) noexcept {
  PageTableState& table = *state_;
  const std::int32_t slot = table.find(seq);
  if (slot == PageTableState::kNoSlot) return bad_handle("accept_tree", seq);
  PageTableState::Sequence& sequence = table.at(slot);
  if (length < 0 || length > sequence.length) {
    return bad_length("accept_tree", length, sequence.length);
  }
  Status status = check_window("accept_tree", table, slot, length);
  if (status.ok()) status = check_path(path, sequence.length - length);
  if (status.ok()) status = check_targets(table, slot, length, path);
  if (!status.ok()) return status;
  try {  // the only step that can fail comes before the first change
    const std::size_t size = copies.size() + path.size();
    if (copies.capacity() < size) copies.reserve(std::max(size, 2 * copies.capacity()));
  } catch (const std::exception&) {
    return failure(ErrorCode::kOutOfMemory,
                   "[page_table] accept_tree: expected memory for a copy plan of {} ops, got none",
                   copies.size() + path.size());
  }
  move_path(table.row(slot), table.pool->spec.page_size, length, path, copies);
  const std::int32_t kept = length + static_cast<std::int32_t>(path.size());
  table.drop_pages(slot, table.pages_for(kept));
  sequence.length = kept;
  return {};
}

Status PageTable::slide(SeqId seq, std::int32_t position) noexcept {
  PageTableState& table = *state_;
  const std::int32_t slot = table.find(seq);
  if (slot == PageTableState::kNoSlot) return bad_handle("slide", seq);
  PageTableState::Sequence& sequence = table.at(slot);
  if (position < 0 || position > sequence.length) {
    return failure(ErrorCode::kInvalidArgument,
                   "[page_table] slide: expected a position in [0, {}], got {}", sequence.length,
                   position);
  }
  const std::int32_t unseen = table.unseen_pages(position);
  for (; sequence.holes < unseen; ++sequence.holes) {
    table.pool->drop_ref(std::exchange(table.row(slot)[sequence.holes], kNoPage));
  }
  return {};
}

std::int32_t PageTable::num_holes(SeqId seq) const noexcept {
  const std::int32_t slot = state_->find(seq);
  return slot == PageTableState::kNoSlot ? -1 : state_->at(slot).holes;
}

Status PageTable::destroy(SeqId seq) noexcept {
  const std::int32_t slot = state_->find(seq);
  if (slot == PageTableState::kNoSlot) return bad_handle("destroy", seq);
  state_->drop_pages(slot, 0);
  state_->free_slot(slot);
  return {};
}

bool PageTable::contains(SeqId seq) const noexcept {
  return state_->find(seq) != PageTableState::kNoSlot;
}

std::int32_t PageTable::length(SeqId seq) const noexcept {
  const std::int32_t slot = state_->find(seq);
  return slot == PageTableState::kNoSlot ? -1 : state_->at(slot).length;
}

std::span<const PageId> PageTable::pages(SeqId seq) const noexcept {
  const std::int32_t slot = state_->find(seq);
  if (slot == PageTableState::kNoSlot) return {};
  return state_->pages(slot);
}

std::int64_t PageTable::slot(SeqId seq, std::int32_t position) const noexcept {
  const std::int32_t slot = state_->find(seq);
  if (slot == PageTableState::kNoSlot) return -1;
  if (position < 0 || position >= state_->at(slot).length) return -1;
  const std::int32_t page_size = state_->pool->spec.page_size;
  const std::int64_t page = state_->row(slot)[position / page_size];
  if (page == kNoPage) return -1;
  return page * page_size + position % page_size;
}

std::int32_t PageTable::pages_needed(SeqId seq, std::int32_t n) const noexcept {
  const std::int32_t slot = state_->find(seq);
  if (slot == PageTableState::kNoSlot || n < 0) return -1;
  if (n > state_->spec.max_tokens_per_seq - state_->at(slot).length) return -1;
  return growth(*state_, slot, n);
}

std::int32_t PageTable::room(SeqId seq, std::int64_t free_pages) const noexcept {
  const std::int32_t slot = state_->find(seq);
  if (slot == PageTableState::kNoSlot) return 0;
  const std::int32_t length = state_->at(slot).length;
  const std::int64_t copies = state_->shared_tail(slot) != kNoPage ? 1 : 0;
  if (free_pages < copies) return 0;
  const std::int64_t new_pages = std::min<std::int64_t>(free_pages - copies, state_->row_size);
  const std::int64_t pages =
      std::min<std::int64_t>(state_->pages_for(length) + new_pages, state_->row_size);
  const std::int64_t tokens =
      std::min<std::int64_t>(pages * state_->pool->spec.page_size, state_->spec.max_tokens_per_seq);
  return static_cast<std::int32_t>(tokens - length);
}

std::int32_t PageTable::reclaimable_pages(SeqId seq) const noexcept {
  const std::int32_t slot = state_->find(seq);
  if (slot == PageTableState::kNoSlot) return 0;
  const std::span<const PageId> held = state_->held_pages(slot);
  return static_cast<std::int32_t>(
      std::ranges::count_if(held, [&](PageId page) { return state_->pool->page(page).refs == 1; }));
}

std::int32_t PageTable::ref_count(PageId page) const noexcept {
  return state_->pool->has(page) ? state_->pool->page(page).refs : 0;
}

}  // namespace v0
}  // namespace quire
