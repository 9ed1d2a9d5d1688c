// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a `PageTable` holds: a row of page ids for each sequence slot.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "cache/page_pool_state.hpp"
#include "quire/page_table.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

struct PageTableState {
  static constexpr std::int32_t kNoSlot = -1;
  /// A slot whose generations wrap to it is never used again: no id becomes valid a second time.
  static constexpr std::uint32_t kRetired = 0;

  struct Sequence {
    std::uint32_t generation = 1;  ///< of the sequence, or of the next one in this slot
    std::int32_t length = 0;       ///< tokens
    std::int32_t holes = 0;        ///< pages at the beginning that were given back
    std::int32_t next_free = kNoSlot;
    bool live = false;

    friend bool operator==(const Sequence&, const Sequence&) = default;
  };

  /// Entries of a row that became others or went: all its changes but those of `append` behind its end and
  /// of `slide` (shown by the length and by `holes`). How many there were, and where the last of them
  /// began, so that who has a copy of the row finds what of it still holds: nothing, after more than
  /// `kRemembered`.
  struct Edits {
    static constexpr std::size_t kRemembered = 4;

    std::uint64_t count = 0;
    std::array<std::int32_t, kRemembered> first{};  ///< entry, by number of the edit
  };

  PageTableState(std::shared_ptr<PagePoolState> pages_of, const PageTableSpec& table_spec);
  PageTableState(const PageTableState&) = delete;
  PageTableState& operator=(const PageTableState&) = delete;
  ~PageTableState();

  /// @return Pages that hold `tokens` tokens.
  [[nodiscard]] std::int32_t pages_for(std::int32_t tokens) const noexcept {
    const std::int32_t page_size = pool->spec.page_size;
    return tokens / page_size + (tokens % page_size != 0 ? 1 : 0);
  }
  [[nodiscard]] Sequence& at(std::int32_t slot) noexcept {
    return sequences[static_cast<std::size_t>(slot)];
  }
  [[nodiscard]] const Sequence& at(std::int32_t slot) const noexcept {
    return sequences[static_cast<std::size_t>(slot)];
  }
  /// @return The slot of a live sequence, else `kNoSlot`.
  [[nodiscard]] std::int32_t find(SeqId seq) const noexcept {
    if (seq.slot >= sequences.size()) return kNoSlot;
    const Sequence& sequence = sequences[seq.slot];
    const bool valid = sequence.live && sequence.generation == seq.generation;
    return valid ? static_cast<std::int32_t>(seq.slot) : kNoSlot;
  }
  /// @return The row of a slot: room for as many pages as a sequence can have.
  [[nodiscard]] PageId* row(std::int32_t slot) const noexcept {
    return entries.get() + static_cast<std::size_t>(slot) * static_cast<std::size_t>(row_size);
  }
  /// @return Pages before the first one that a query at `position` sees.
  [[nodiscard]] std::int32_t unseen_pages(std::int32_t position) const noexcept {
    if (spec.window_left < 0) return 0;
    return std::max(position - spec.window_left, 0) / pool->spec.page_size;
  }
  /// @return True if all that a query at `position` sees is there.
  [[nodiscard]] bool has_window(std::int32_t slot, std::int32_t position) const noexcept {
    return unseen_pages(position) >= at(slot).holes;
  }
  /// @return The pages of the sequence in a slot that are there.
  [[nodiscard]] std::span<const PageId> held_pages(std::int32_t slot) const noexcept {
    return pages(slot).subspan(static_cast<std::size_t>(at(slot).holes));
  }
  /// @return The pages of the sequence in a slot, holes included.
  [[nodiscard]] std::span<const PageId> pages(std::int32_t slot) const noexcept {
    return {row(slot), static_cast<std::size_t>(pages_for(at(slot).length))};
  }
  /// @return The partial last page if others refer to it too, else `kNoPage`: writing to it needs a
  ///   copy first.
  [[nodiscard]] PageId shared_tail(std::int32_t slot) const noexcept {
    const std::int32_t length = at(slot).length;
    if (length % pool->spec.page_size == 0) return kNoPage;
    const PageId tail = row(slot)[length / pool->spec.page_size];
    return pool->page(tail).refs > 1 ? tail : kNoPage;
  }

  /// Entries of a row from `first` on are about to be others.
  void edit(std::int32_t slot, std::int32_t first) noexcept {
    Edits& edits = row_edits[static_cast<std::size_t>(slot)];
    edits.first[edits.count++ % Edits::kRemembered] = first;
  }
  [[nodiscard]] std::uint64_t num_edits(std::int32_t slot) const noexcept {
    return row_edits[static_cast<std::size_t>(slot)].count;
  }
  /// @return How many of the entries that the row had after `count` edits, from the first on, are what they
  ///   were, new holes excepted: at least so many, and no bound if there were no more edits.
  [[nodiscard]] std::int32_t unedited_since(std::int32_t slot, std::uint64_t count) const noexcept {
    const Edits& edits = row_edits[static_cast<std::size_t>(slot)];
    if (edits.count - count > Edits::kRemembered) return 0;
    std::int32_t first = std::numeric_limits<std::int32_t>::max();
    for (; count < edits.count; ++count) {
      first = std::min(first, edits.first[count % Edits::kRemembered]);
    }
    return first;
  }

  /// Changes of state that cannot fail; callers have checked that they are allowed.
  SeqId take_slot(std::int32_t length) noexcept;
  void drop_pages(std::int32_t slot, std::int32_t keep) noexcept;
  void free_slot(std::int32_t slot) noexcept;

  std::shared_ptr<PagePoolState> pool;
  PageTableSpec spec;
  std::int32_t row_size;  ///< entries of the longest sequence; without holes no page is in it twice
  std::vector<Sequence> sequences;
  std::unique_ptr<PageId[]> entries;  ///< [max_seqs, row_size], uninitialised beyond the lengths
  std::vector<Edits> row_edits;       ///< by slot
  std::int32_t first_free_slot = 0;
  std::int32_t num_live = 0;
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
