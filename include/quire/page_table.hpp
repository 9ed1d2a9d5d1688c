// SPDX-License-Identifier: Apache-2.0
/// @file
/// `PageTable`: which pages hold the tokens of each sequence, with sharing and copy-on-write. It
/// makes no device calls: the copies that it needs leave as `CopyOp`s.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "quire/copies.hpp"
#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/page_pool.hpp"

namespace quire {
inline namespace v0 {

/// A sequence of a `PageTable`. A plain value; once the sequence is destroyed it is never valid
/// again, though the slot is reused. A default-constructed one is never valid.
struct SeqId {
  std::uint32_t slot = 0;        ///< 0…max_seqs − 1, unique among the live sequences.
  std::uint32_t generation = 0;  ///< Tells the successive users of a slot apart; 0 is nobody.

  /// Equal in every field.
  friend bool operator==(const SeqId&, const SeqId&) = default;
};

/// How many sequences a table holds, and how long they may be.
struct PageTableSpec {
  std::int32_t max_seqs = 256;               ///< ≥ 1.
  std::int32_t max_tokens_per_seq = 131072;  ///< ≥ 1.
  /// Of the layers whose pages these are, as in `AttentionSpec`: a query sees so many keys before its own;
  /// −1: all of them. With a window `slide` gives pages back.
  std::int32_t window_left = -1;

  /// Equal in every field.
  friend bool operator==(const PageTableSpec&, const PageTableSpec&) = default;
};

namespace internal {
struct PageTableState;
}

/// Sequences over the pages of a pool. A sequence of `length` tokens has exactly
/// ⌈length / page_size⌉ pages; token t is in slot pages[t / page_size] · page_size + t % page_size.
/// Forks share pages, the partial one included; whoever first writes to a shared page gets a copy.
///
/// With a window, `slide` gives back the pages that no query sees any more: a sequence then begins with
/// holes, entries that are `kNoPage`, and has a page for each token behind them. Attention with that window
/// reads no entry of a hole. A model with layers of several kinds has a table for each kind, on a pool of
/// its own.
///
/// Every mutating call is all-or-nothing: on failure, also for lack of memory, nothing has changed.
/// All memory is taken at construction (max_seqs rows of page ids, which the system backs with
/// memory as they are used). One owner: calls must not overlap in time, nor with the pool's.
/// Movable, not copyable; a moved-from table may only be destroyed or assigned to.
class QUIRE_API PageTable {
 public:
  /// A table without sequences. It keeps the pool's pages alive: the `PagePool` object may be moved
  /// or destroyed before it. Several tables may use one pool.
  /// @throws Error `kInvalidArgument` (the spec is out of range), `kOutOfMemory`.
  PageTable(PagePool& pool, const PageTableSpec& spec);
  PageTable(PageTable&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  PageTable& operator=(PageTable&&) noexcept;  ///< Likewise.
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;
  ~PageTable();  ///< Gives the pages of all sequences back.

  /// @return The spec that it was made with. O(1).
  [[nodiscard]] const PageTableSpec& spec() const noexcept;
  /// @return The spec of its pool. O(1).
  [[nodiscard]] const PagePoolSpec& pool_spec() const noexcept;
  /// @return Live sequences. O(1).
  [[nodiscard]] std::int32_t num_seqs() const noexcept;
  /// @return Free pages of the pool. O(1).
  [[nodiscard]] std::int32_t num_free_pages() const noexcept;

  /// Makes an empty sequence. O(1).
  /// @return `kQueueFull` if there are `max_seqs` already.
  [[nodiscard]] Result<SeqId> create() noexcept;

  /// Makes a sequence of the first `length` tokens of `seq`, sharing all their pages. Nothing is
  /// copied until one of the two writes to the page that they share in part. O(pages).
  /// @param seq     Its first `length` tokens must have been written, or be written before any copy
  ///                of a later `append` is executed.
  /// @param length  0…length(seq).
  /// @return `kBadHandle`, `kInvalidArgument` (length), `kQueueFull`.
  [[nodiscard]] Result<SeqId> fork(SeqId seq, std::int32_t length) noexcept;

  /// Makes room for `n` more tokens at the end. If the last page is partial and shared, the
  /// sequence gets a page of its own in its place and one `CopyOp` is appended to `copies`. The
  /// pages of the new tokens are the sequence's alone. O(new pages).
  /// @return `kBadHandle`, `kInvalidArgument` (n < 0), `kTooLong`, `kOutOfPages`, `kOutOfMemory`
  ///   (`copies` could not grow).
  Status append(SeqId seq, std::int32_t n, std::vector<CopyOp>& copies) noexcept;

  /// Forgets the tokens from `length` on and gives back the pages that held nothing else. O(pages
  /// given back). Costs no page and no copy, even inside a shared page.
  /// @param length  0…length(seq).
  /// @return `kBadHandle`, `kInvalidArgument` (length).
  /// With a window: `length` must be one whose window `slide` has left, or `kInvalidArgument`; so it is of
  /// `fork` and `accept_tree`.
  Status truncate(SeqId seq, std::int32_t length) noexcept;

  /// Says that no query before `position` will come any more, and gives back the pages whose tokens none
  /// behind it sees: those before position − window_left. Does nothing without a window. O(pages given
  /// back).
  /// @param position  0…length(seq): the first token that is still to be computed, or may be again.
  /// @return `kBadHandle`, `kInvalidArgument` (position).
  Status slide(SeqId seq, std::int32_t position) noexcept;

  /// Keeps, of the tokens from `length` on, those on an accepted path of a token tree; they move up in
  /// order, and the rest is forgotten as by `truncate`. The last step of tree speculation: the drafts
  /// were appended in any order in which parents come before children, and computed with
  /// `Mask::kTree`. O(path + pages given back).
  /// @param length  0…length(seq): the tokens before the tree.
  /// @param path    Which tokens to keep: 0 is the one at `length`, each greater than the one before.
  /// @param copies  Receives what moves, to be executed before anything is written behind the path.
  /// @return `kBadHandle`, `kInvalidArgument` (length, path, or a token would move onto a page that is
  ///   shared: one that was published, say), `kOutOfMemory` (`copies` could not grow).
  Status accept_tree(SeqId seq, std::int32_t length, std::span<const std::int32_t> path,
                     std::vector<CopyOp>& copies) noexcept;

  /// Ends a sequence: its pages lose a reference, its id is never valid again. O(pages).
  /// @return `kBadHandle`, also on the second call.
  Status destroy(SeqId seq) noexcept;

  /// @return True if the sequence is live. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept;
  /// @return Tokens of a live sequence, else −1. O(1).
  [[nodiscard]] std::int32_t length(SeqId seq) const noexcept;
  /// @return The pages in the order of the tokens, holes first; empty if the sequence is not live. Valid until
  ///   the sequence is destroyed, its contents until it next changes (`Batcher::finish` may put the prefix
  ///   cache's pages of the same tokens into a row; steps that are enqueued may go on with the old ids). O(1).
  [[nodiscard]] std::span<const PageId> pages(SeqId seq) const noexcept;
  /// @return Entries at the beginning that are holes, −1 if the sequence is not live. O(1).
  [[nodiscard]] std::int32_t num_holes(SeqId seq) const noexcept;
  /// @return page · page_size + offset of the token at `position`, or −1 if the sequence is not live, has
  ///   no such token, or has given its page back. O(1).
  [[nodiscard]] std::int64_t slot(SeqId seq, std::int32_t position) const noexcept;

  /// @return Free pages that `append(seq, n)` would take, its copy-on-write included; −1 if the
  ///   sequence is not live, n < 0 or the sequence would become too long. O(1).
  [[nodiscard]] std::int32_t pages_needed(SeqId seq, std::int32_t n) const noexcept;
  /// @return The most tokens that `append` could add if `free_pages` pages were free; 0 if the
  ///   sequence is not live. O(1).
  [[nodiscard]] std::int32_t room(SeqId seq, std::int64_t free_pages) const noexcept;
  /// @return Pages that `destroy` would give back to the pool: those nobody shares. O(pages).
  [[nodiscard]] std::int32_t reclaimable_pages(SeqId seq) const noexcept;
  /// @return References to one of the pool's pages; 0 if it is free or unknown. O(1).
  [[nodiscard]] std::int32_t ref_count(PageId page) const noexcept;

  /// Recomputes what must always hold, the pool's invariants included: references equal table
  /// entries plus those of callers and prefix caches; page counts fit the lengths; holes are where no query sees them; no page twice in a sequence; free
  /// slots are listed once. O(num_pages + entries). Allocates.
  /// @return `kInternal` with the first violation, `kOutOfMemory`.
  [[nodiscard]] Status check() const noexcept;

 private:
  friend struct internal::TestAccess;
  friend class BatchBuilder;
  friend class Batcher;
  friend class PrefixCache;
  explicit PageTable(std::shared_ptr<internal::PageTableState> state) noexcept;

  std::shared_ptr<internal::PageTableState> state_;  // shared with builders and batchers on it
};

}  // namespace v0
}  // namespace quire
