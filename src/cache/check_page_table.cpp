// SPDX-License-Identifier: Apache-2.0
// The invariants of a page table, recomputed from scratch.
#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "cache/failure.hpp"
#include "cache/page_table_state.hpp"
#include "quire/page_table.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::PagePoolState;
using internal::PageTableState;

constexpr std::int32_t kNobody = -1;

// What the sequences say about one page.
struct PageUse {
  std::int32_t entries = 0;
  std::int32_t last_slot = kNobody;
};

// Counts the entries of one sequence, whose pages must be pages in use and different ones.
Status count_entries(const PageTableState& table, std::int32_t slot,
                     std::vector<PageUse>& uses) noexcept {
  const std::int32_t length = table.at(slot).length;
  if (length < 0 || length > table.spec.max_tokens_per_seq ||
      table.pages_for(length) > table.row_size) {
    return failure(ErrorCode::kInternal,
                   "[page_table] check: the sequence in slot {} has length {}", slot, length);
  }
  const std::int32_t holes = table.at(slot).holes;
  if (holes < 0 || holes > table.unseen_pages(length)) {
    return failure(
        ErrorCode::kInternal,
        "[page_table] check: the sequence in slot {} of {} tokens has {} holes, of which "
        "{} are before its window",
        slot, length, holes, table.unseen_pages(length));
  }
  for (std::int32_t index = 0; index < holes; ++index) {
    if (table.row(slot)[index] == kNoPage) continue;
    return failure(ErrorCode::kInternal,
                   "[page_table] check: the sequence in slot {} has page {} in a hole", slot,
                   table.row(slot)[index]);
  }
  for (const PageId page : table.held_pages(slot)) {
    if (!table.pool->has(page)) {
      return failure(ErrorCode::kInternal,
                     "[page_table] check: the sequence in slot {} has page {} of a pool of {}",
                     slot, page, table.pool->spec.num_pages);
    }
    PageUse& use = uses[static_cast<std::size_t>(page)];
    if (use.last_slot == slot) {
      return failure(ErrorCode::kInternal,
                     "[page_table] check: the sequence in slot {} has page {} twice", slot, page);
    }
    use.last_slot = slot;
    ++use.entries;
  }
  return {};
}

// References are table entries plus those of callers and caches. Another table's pages are its own affair:
// tables never share pages.
Status compare_references(const PageTableState& table, const std::vector<PageUse>& uses) noexcept {
  for (PageId id = 0; id < table.pool->spec.num_pages; ++id) {
    const PagePoolState::Page& page = table.pool->page(id);
    const std::int32_t entries = uses[static_cast<std::size_t>(id)].entries;
    const bool may_be_anothers = entries == 0 && table.pool->num_tables > 1;
    if (may_be_anothers || page.table_refs() == entries) continue;
    return failure(
        ErrorCode::kInternal,
        "[page_table] check: page {} has {} references, {} of them the callers' and {} a "
        "prefix cache's, and {} table entries",
        id, page.refs, page.caller_refs, page.indexed ? 1 : 0, entries);
  }
  return {};
}

// Every slot is live, on the free list once, or retired.
Status check_slots(const PageTableState& table) noexcept {
  std::int32_t live = 0;
  std::int32_t retired = 0;
  for (const PageTableState::Sequence& sequence : table.sequences) {
    if (sequence.live) {
      ++live;
    } else if (sequence.generation == PageTableState::kRetired) {
      ++retired;
    }
  }
  std::int32_t listed = 0;
  for (std::int32_t slot = table.first_free_slot; slot != PageTableState::kNoSlot;
       slot = table.at(slot).next_free) {
    const bool in_range = slot >= 0 && slot < table.spec.max_seqs;
    if (!in_range || table.at(slot).live || listed == table.spec.max_seqs) {
      return failure(ErrorCode::kInternal, "[page_table] check: the free slots lead to slot {}",
                     slot);
    }
    ++listed;
  }
  if (live == table.num_live && live + listed + retired == table.spec.max_seqs) return {};
  return failure(
      ErrorCode::kInternal,
      "[page_table] check: {} slots are live (the counter says {}), {} free, {} retired, "
      "of {}",
      live, table.num_live, listed, retired, table.spec.max_seqs);
}

}  // namespace

Status PageTable::check() const noexcept {
  try {
    std::vector<PageUse> uses(state_->pool->pages.size());
    Status status = state_->pool->check();
    if (status.ok()) status = check_slots(*state_);
    for (std::int32_t slot = 0; status.ok() && slot < state_->spec.max_seqs; ++slot) {
      if (state_->at(slot).live) status = count_entries(*state_, slot, uses);
    }
    if (status.ok()) status = compare_references(*state_, uses);
    return status;
  } catch (const std::exception&) {
    return failure(ErrorCode::kOutOfMemory,
                   "[page_table] check: expected memory for a count of each page, got none");
  }
}

}  // namespace v0
}  // namespace quire
