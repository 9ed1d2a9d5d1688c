// SPDX-License-Identifier: Apache-2.0
/// @file
/// `PrefixCache`: which pages of a pool hold the keys and values of which tokens, so that a prompt
/// that begins like an earlier one need not be computed again. It makes no device calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/page_pool.hpp"
#include "quire/page_table.hpp"

namespace quire {
inline namespace v0 {

/// How a cache finds prefixes.
struct PrefixCacheSpec {
  /// The least tokens of a page that are worth a copy of it: a match ends inside a page, or with a
  /// page that was published in part, only if it takes that many from it. At least 1; more than
  /// page_size − 1: only whole pages are matched.
  std::int32_t min_partial_tokens = 1;
  /// Of the index. Results do not depend on it; a secret one keeps strangers from making lookups
  /// slow on purpose.
  std::uint64_t hash_seed = 0;

  /// Equal in every field.
  friend bool operator==(const PrefixCacheSpec&, const PrefixCacheSpec&) = default;
};

/// How much a published page is wanted, and for how long.
struct Retention {
  static constexpr std::int32_t kMaxPriority = 100;  ///< The highest.
  static constexpr std::int64_t kForever = 0;        ///< As `time_to_live`.

  /// 0…kMaxPriority. Pages of a lower one are evicted before all pages of a higher one.
  std::int32_t priority = 35;
  /// How long after its last use a page keeps its priority, in the unit of `set_time`; after that it
  /// is evicted before all that live. `kForever` or more than 0.
  std::int64_t time_to_live = kForever;

  /// Equal in every field.
  friend bool operator==(const Retention&, const Retention&) = default;
};

/// A page came into the index or left it.
struct PrefixEvent {
  /// What happened.
  enum class Kind : std::int32_t { kStored = 0, kRemoved = 1 };

  Kind kind = Kind::kStored;               ///< What happened.
  std::uint64_t name_space = 0;            ///< Whose page it is.
  PageId page = kNoPage;                   ///< The page.
  PageId parent = kNoPage;                 ///< The page before it; `kNoPage` of a first page.
  std::span<const std::int32_t> tokens{};  ///< Of this page; valid during the call.
};

/// Hears of every change of the index, say to tell a router.
class QUIRE_API PrefixListener {
 public:
  PrefixListener() = default;
  PrefixListener(const PrefixListener&) = delete;
  PrefixListener& operator=(const PrefixListener&) = delete;
  virtual ~PrefixListener();

  /// Called once for each page, parents before their children when pages are stored and after them
  /// when they are removed. May ask the cache, not change it: `publish`, `evict` and the like fail.
  virtual void on_event(const PrefixEvent& event) noexcept = 0;
};

/// Counters since construction, and the present state.
struct PrefixCacheStats {
  std::int64_t lookups = 0;       ///< Calls of `match`.
  std::int64_t asked_tokens = 0;  ///< Tokens of all lookups.
  std::int64_t hit_tokens = 0;    ///< Those of them that were found.
  std::int64_t stored = 0;        ///< Pages that came into the index.
  std::int64_t evicted = 0;       ///< Pages that `evict` and `evict_expired` gave back.
  std::int64_t erased = 0;        ///< Pages that `erase` took out of the index.
  std::int32_t pages = 0;         ///< Pages in the index.
  std::int32_t leases = 0;        ///< Live leases that hold a page.
};

/// A page of a restored index: what page `saved` held when the snapshot was made belongs into
/// page `page`.
struct RestoredPage {
  PageId saved = kNoPage;   ///< Its id in the snapshot.
  PageId page = kNoPage;    ///< Its id now.
  std::int32_t tokens = 0;  ///< Tokens on it.

  /// Equal in every field.
  friend bool operator==(const RestoredPage&, const RestoredPage&) = default;
};

namespace internal {
struct PrefixCacheState;
}

/// What `match` found. While it lives its pages stay in the index and keep their contents, whatever
/// is evicted or erased. It may outlive the cache, whose pages then go back to the pool with the
/// last lease. Movable, not copyable. Used under the same rule as its cache: no calls that overlap.
class QUIRE_API PrefixLease {
 public:
  PrefixLease() noexcept;                          ///< Holds nothing.
  PrefixLease(PrefixLease&&) noexcept;             ///< The moved-from one holds nothing.
  PrefixLease& operator=(PrefixLease&&) noexcept;  ///< Likewise; lets go of what it held.
  PrefixLease(const PrefixLease&) = delete;
  PrefixLease& operator=(const PrefixLease&) = delete;
  ~PrefixLease();  ///< Lets its pages go. O(1).

  /// @return Tokens that were found, from the first on; 0 if it holds nothing. O(1).
  [[nodiscard]] std::int32_t num_tokens() const noexcept { return num_tokens_; }
  /// @return Pages that hold them; the last may be partial, or hold other tokens after these. O(1).
  [[nodiscard]] std::int32_t num_pages() const noexcept;
  /// Writes the first pages of the match, in the order of the tokens. O(num_pages).
  /// @param pages  Filled up to `num_pages()`; what is beyond is left alone.
  void copy_pages(std::span<PageId> pages) const noexcept;
  /// Lets the pages go now. O(1).
  void release() noexcept;

 private:
  friend class PrefixCache;

  std::shared_ptr<internal::PrefixCacheState> state_;
  PageId page_ = kNoPage;  // the last one; the others are its ancestors
  std::int32_t num_tokens_ = 0;
};

/// A radix tree over runs of page_size tokens, one page a node. A page is found by its place in the
/// tree and by its tokens, which are compared one by one: no hash is trusted, no namespace sees
/// another's pages.
///
///     lease = match(name_space, prompt)      which pages are there already? They are pinned now
///     seq   = adopt(lease, table)            a sequence that begins with them
///     …     append, compute, write
///     publish(name_space, table, seq, tokens, …)   now others find them too
///     evict(n)                               when the pool runs dry
///
/// The index holds one reference to each of its pages. Only leaves leave it, those first that are
/// wanted least: expired ones, then by priority, then the least recently used. The pages of one call
/// are used from the last to the first, so that the head of a prefix outlives its tail. A page that
/// a lease, a sequence or the caller holds is never evicted. Nothing is evicted but by `evict` and
/// `evict_expired`.
///
/// All memory is taken at construction: about 130 + 4 · page_size bytes a page of the pool. Every
/// call is all-or-nothing, deterministic, and allocates nothing but its error text, unless it says
/// otherwise. Several caches may use one pool; a page is in one of them at most. One owner: calls
/// must not overlap in time, nor with the pool's. Movable, not copyable; a moved-from cache may only
/// be destroyed or assigned to.
class QUIRE_API PrefixCache {
 public:
  /// An empty index over the pages of `pool`, whose state it keeps alive. O(num_pages).
  /// @throws Error `kInvalidArgument` (the spec is out of range), `kOutOfMemory`.
  explicit PrefixCache(PagePool& pool, const PrefixCacheSpec& spec = {});
  PrefixCache(PrefixCache&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  PrefixCache& operator=(PrefixCache&&) noexcept;  ///< Likewise.
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;
  ~PrefixCache();  ///< Gives all pages back, once no lease lives any more.

  /// @return The spec that it was made with. O(1).
  [[nodiscard]] const PrefixCacheSpec& spec() const noexcept;
  /// @return Counters and the present state. O(1).
  [[nodiscard]] PrefixCacheStats stats() const noexcept;
  /// @return Free pages of the pool: those that `restore` may take. O(1).
  [[nodiscard]] std::int32_t num_free_pages() const noexcept;

  /// Finds the longest beginning of `tokens` that is in the index, counts as a use of its pages and
  /// pins them. An engine that needs the logits of the last token asks without it.
  /// O(tokens + log(pages in the index)).
  /// @param name_space  Whose pages may be found. The trusted front end chooses it: two tenants that
  ///                    share one can tell by the time it takes what the other has asked.
  /// @param tokens      At most 2³¹ − 1 of them count.
  /// @return A lease that holds nothing if nothing was found, or if a listener asks.
  [[nodiscard]] PrefixLease match(std::uint64_t name_space,
                                  std::span<const std::int32_t> tokens) noexcept;

  /// As `match`, but neither pins nor counts as a use.
  /// @return Tokens that would be found.
  [[nodiscard]] std::int32_t match_length(std::uint64_t name_space,
                                          std::span<const std::int32_t> tokens) const noexcept;

  /// Makes a sequence that begins with the tokens of a lease and shares their pages. If the last
  /// page is partial or holds other tokens too, the sequence's first `append` copies it. The lease
  /// is not needed afterwards. O(pages).
  /// @param table  On the same pool.
  /// @return `kBadHandle` (a table of another pool, a lease of another cache or an empty one),
  ///   `kTooLong` (for the table), `kQueueFull`.
  [[nodiscard]] Result<SeqId> adopt(const PrefixLease& lease, PageTable& table) const noexcept;

  /// Makes the pages of `tokens` known. Where the index has a page with the same tokens in the same
  /// place already, that one stays and the new one is not needed. A partial last page is published
  /// too, unless a page of the index begins with its tokens. Either way it counts as a use of every
  /// page of the prefix; of two retentions of a page the higher priority and the longer time count.
  /// O(tokens + new pages · log(pages in the index)).
  /// @param tokens  Of the pages, from the beginning of the sequence on. They must have been written,
  ///                or be written before anything that is ordered after this call reads them.
  /// @param pages   ⌈tokens / page_size⌉ of them, in use. The index takes a reference of its own to
  ///                those that it stores; nobody may write to their first tokens any more.
  /// @return Pages stored. `kInvalidArgument` (number of pages, retention, a page twice or one that
  ///   is in an index already for other tokens, a call by a listener), `kBadHandle` (a page that is
  ///   free or unknown).
  [[nodiscard]] Result<std::int32_t> publish(std::uint64_t name_space,
                                             std::span<const std::int32_t> tokens,
                                             std::span<const PageId> pages,
                                             const Retention& retention = {}) noexcept;
  /// Likewise, the pages of a sequence. If it goes on in a page that was published, its next
  /// `append` copies that page.
  /// @param tokens  The first tokens of the sequence, no more than it has.
  /// @return Likewise; `kBadHandle` (a table of another pool, not a live sequence),
  ///   `kInvalidArgument` (more tokens than the sequence has).
  [[nodiscard]] Result<std::int32_t> publish(std::uint64_t name_space, const PageTable& table,
                                             SeqId seq, std::span<const std::int32_t> tokens,
                                             const Retention& retention = {}) noexcept;

  /// Gives up to `num_pages` pages back to the pool. O(log(pages in the index)) a page, and as much
  /// for each leaf that is passed over because somebody holds it.
  /// @return How many were given back: fewer if there are no more, none if a listener asks.
  std::int32_t evict(std::int32_t num_pages) noexcept;
  /// Gives the expired pages back that no living page hangs on. O(log(pages in the index)) a page.
  /// @return How many were given back.
  std::int32_t evict_expired() noexcept;
  /// Takes a tenant's pages out of the index, those in use by sequences too (they keep their pages).
  /// What a lease holds stays. O(num_pages of the pool).
  /// @return How many left the index.
  std::int32_t erase(std::uint64_t name_space) noexcept;
  /// @return Pages that `evict` could give back now. O(num_pages of the pool).
  [[nodiscard]] std::int32_t evictable_pages() const noexcept;

  /// Says what time it is, in any unit; it is 0 at first, and a time before the last one is ignored.
  /// Without it no page expires. O(1).
  void set_time(std::int64_t now) noexcept;

  /// @return True if the page is in this index. O(1).
  [[nodiscard]] bool contains(PageId page) const noexcept;
  /// @return The tokens of a page of this index, else nothing. Valid until it leaves the index. O(1).
  [[nodiscard]] std::span<const std::int32_t> tokens(PageId page) const noexcept;

  /// @param listener  Outlives the cache and its leases; null for none.
  void set_listener(PrefixListener* listener) noexcept;

  /// Writes the index (not the pages' contents) as bytes, the same on every machine. Allocates.
  /// O(pages in the index · (page_size + log)).
  /// @param bytes  Replaced.
  /// @return `kOutOfMemory`; `bytes` is untouched then.
  Status save(std::vector<std::byte>& bytes) const noexcept;
  /// Fills an empty index from what `save` wrote, on new pages of the pool: order of use, priorities
  /// and the times that pages had left to live are as they were. Allocates. O(bytes · log).
  /// @param bytes  Not trusted: anything may be in them.
  /// @param pages  Replaced: what to load where.
  /// @return `kInvalidArgument` (the index is not empty, a call by a listener, the bytes are damaged
  ///   or those of another page size), `kOutOfPages`, `kOutOfMemory`. Nothing has changed then.
  Status restore(std::span<const std::byte> bytes, std::vector<RestoredPage>& pages) noexcept;

  /// Recomputes what must always hold, the pool's invariants included: every page is reachable by
  /// its tokens, parents outlive and are used after their children, siblings differ, only leaves can
  /// be evicted and in the right order, leases and references add up. O(num_pages · log). Allocates.
  /// @return `kInternal` with the first violation, `kOutOfMemory`.
  [[nodiscard]] Status check() const noexcept;

 private:
  friend struct internal::TestAccess;
  friend class Batcher;
  explicit PrefixCache(std::shared_ptr<internal::PrefixCacheState> state) noexcept;

  std::shared_ptr<internal::PrefixCacheState> state_;  // shared with the leases
};

}  // namespace v0
}  // namespace quire
