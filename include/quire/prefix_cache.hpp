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

#include "quire/copies.hpp"
#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/page_pool.hpp"
#include "quire/page_table.hpp"

namespace quire {
inline namespace v0 {

/// What it takes to get the keys and values of tokens back from the host, and to compute them again. The
/// defaults are those of a model of 8e9 weights with 32 layers of 8 heads of 128 dims in 16 bits, on a GPU
/// with half of what PCIe 5 promises: measure your own.
struct TierCosts {
  double bytes_per_token = 131072.0;           ///< K and V of all layers, > 0.
  double link_bytes_per_second = 25e9;         ///< Between device and host, > 0.
  double transfer_seconds = 50e-6;             ///< Of a transfer, whatever its size, ≥ 0.
  double prefill_tokens_per_second = 20000.0;  ///< > 0.

  /// @return Seconds that the link needs for whole pages of so many tokens.
  [[nodiscard]] double link_seconds(std::int64_t tokens) const noexcept {
    return static_cast<double>(tokens) * bytes_per_token / link_bytes_per_second;
  }
  /// @return Seconds that a prefill needs for so many tokens.
  [[nodiscard]] double recompute_seconds(std::int64_t tokens) const noexcept {
    return static_cast<double>(tokens) / prefill_tokens_per_second;
  }

  /// Equal in every field.
  friend bool operator==(const TierCosts&, const TierCosts&) = default;
};

/// How a cache finds prefixes.
struct PrefixCacheSpec {
  /// The least tokens of a page that are worth a copy of it: a match ends inside a page, or with a
  /// page that was published in part, only if it takes that many from it. At least 1; more than
  /// page_size − 1: only whole pages are matched.
  std::int32_t min_partial_tokens = 1;
  /// Of the index. Results do not depend on it; a secret one keeps strangers from making lookups
  /// slow on purpose.
  std::uint64_t hash_seed = 0;
  /// Of a cache with a host tier.
  TierCosts costs{};

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

/// Where a page of an index is: in the pool of the device, or in that of the host.
enum class PageTier : std::int32_t { kDevice = 0, kHost = 1 };

/// Copies between the device and the host as data. The ops of one plan do not depend on one another,
/// except that all offloads come before all fetches; neither do those of two plans of which neither has
/// retired. Clear a plan once it has been executed, and it stops allocating.
struct TransferPlan {
  std::uint64_t ticket = 0;      ///< What `PrefixCache::retire` is told; 0 while it needs none.
  std::vector<CopyOp> offloads;  ///< From pages of the device to pages of the host.
  std::vector<CopyOp> fetches;   ///< From pages of the host to pages of the device.

  /// @return True if there is nothing to copy.
  [[nodiscard]] bool empty() const noexcept { return offloads.empty() && fetches.empty(); }
  /// Forgets ops and ticket, keeps the memory.
  void clear() noexcept {
    ticket = 0;
    offloads.clear();
    fetches.clear();
  }
};

/// What the host has of a prefix, behind what the device has of it.
struct HostMatch {
  std::int32_t tokens = 0;      ///< Behind those that the device has.
  std::int32_t pages = 0;       ///< That hold them: `fetch` takes as many of the device.
  bool worth_fetching = false;  ///< Sooner there than computed, by `TierCosts`.

  /// Equal in every field.
  friend bool operator==(const HostMatch&, const HostMatch&) = default;
};

/// A page came into the index or left it. One that moves between device and host comes into the one, then
/// leaves the other; the pages behind it stay behind it.
struct PrefixEvent {
  /// What happened.
  enum class Kind : std::int32_t { kStored = 0, kRemoved = 1 };

  Kind kind = Kind::kStored;                 ///< What happened.
  std::uint64_t name_space = 0;              ///< Whose page it is.
  PageId page = kNoPage;                     ///< The page.
  PageId parent = kNoPage;                   ///< The page before it; `kNoPage` of a first page.
  std::span<const std::int32_t> tokens{};    ///< Of this page; valid during the call.
  PageTier tier = PageTier::kDevice;         ///< Of `page`.
  PageTier parent_tier = PageTier::kDevice;  ///< Of `parent`.
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
  std::int64_t stored = 0;        ///< Pages of the device that were published into the index.
  std::int64_t evicted = 0;  ///< Pages of the device that left the index for want of room or time.
  std::int64_t erased = 0;   ///< Pages that `erase` took out of the index.
  std::int32_t pages = 0;    ///< Pages of the device in the index.
  std::int32_t leases = 0;   ///< Live leases that hold a page.
  std::int64_t offloaded = 0;       ///< Pages that moved to the host.
  std::int64_t fetched = 0;         ///< Pages that moved back.
  std::int64_t fetched_tokens = 0;  ///< Tokens found on these.
  std::int64_t declined =
      0;  ///< Pages that `fetch` left on the host, computing them being quicker.
  std::int64_t host_evicted =
      0;                        ///< Pages of the host that left the index for want of room or time.
  std::int32_t host_pages = 0;  ///< Pages of the host in the index.
  std::int32_t in_flight = 0;   ///< Copies that have not retired.
};

/// A page of a restored index: what page `saved` held when the snapshot was made belongs into
/// page `page`.
struct RestoredPage {
  PageId saved = kNoPage;             ///< Its id in the snapshot.
  PageId page = kNoPage;              ///< Its id now.
  std::int32_t tokens = 0;            ///< Tokens on it.
  PageTier tier = PageTier::kDevice;  ///< Of both pages.

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
  /// @return 0 if all of its pages have been written, else the ticket of a transfer that still writes to
  ///   some: they must not be read before it. O(num_pages).
  [[nodiscard]] std::uint64_t pending() const noexcept;
  /// Lets the pages go now. O(1).
  void release() noexcept;

 private:
  friend class PrefixCache;

  std::shared_ptr<internal::PrefixCacheState> state_;
  std::int32_t node_ = -1;  // of the last page; the others are its ancestors
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
/// A cache may have a second pool, of pages in memory of the host. Then pages can leave the device for it
/// and come back:
///
///     offload(n, plan)                  what evict(n) would free goes to the host, if it is wanted
///     match_host(name_space, prompt)    what the host has behind what the device has
///     fetch(name_space, prompt, plan)   brings that back, if it is sooner there than computed
///     …     execute the plan, on any stream, and wait for it on the host
///     retire(plan.ticket)               now the pages that it read are free
///
/// Until then a page that goes is in use (`parked_pages`), so that nobody writes to it; one that comes is
/// in the index and can be matched, and `PrefixLease::pending` says what its readers have to wait for; one
/// that a copy still writes on the host is not found. The host has an order of its own by priority, use
/// and time to live: it keeps the most wanted, and only leaves leave it. What is not worth it, by
/// `TierCosts`, by its priority or because it has expired, is evicted instead.
///
/// All memory is taken at construction: about 150 + 4 · page_size bytes a page of the pools. Every
/// call is all-or-nothing, deterministic, and allocates nothing but its error text, unless it says
/// otherwise. Several caches may use one pool; a page is in one of them at most. One owner: calls
/// must not overlap in time, nor with the pool's. Movable, not copyable; a moved-from cache may only
/// be destroyed or assigned to.
class QUIRE_API PrefixCache {
 public:
  /// An empty index over the pages of `pool`, whose state it keeps alive. O(num_pages).
  /// @throws Error `kInvalidArgument` (the spec is out of range), `kOutOfMemory`.
  explicit PrefixCache(PagePool& pool, const PrefixCacheSpec& spec = {});
  /// Likewise, with a host tier on the pages of `host`, another pool of the same page size, whose state it
  /// keeps alive too.
  /// @throws Error also if the pools are one, or their pages differ in size (`kInvalidArgument`).
  PrefixCache(PagePool& pool, PagePool& host, const PrefixCacheSpec& spec = {});
  PrefixCache(PrefixCache&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  PrefixCache& operator=(PrefixCache&&) noexcept;  ///< Likewise.
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;
  /// Gives all pages back, once no lease lives any more. Copies in flight must have run by then.
  ~PrefixCache();

  /// @return The spec that it was made with. O(1).
  [[nodiscard]] const PrefixCacheSpec& spec() const noexcept;
  /// @return Counters and the present state. O(1).
  [[nodiscard]] PrefixCacheStats stats() const noexcept;
  /// @return Free pages of the pool: those that `restore` may take. O(1).
  [[nodiscard]] std::int32_t num_free_pages() const noexcept;
  /// @return Likewise of the host's pool; 0 without one. O(1).
  [[nodiscard]] std::int32_t num_free_host_pages() const noexcept;

  /// Finds the longest beginning of `tokens` that is in the index on the device, counts as a use of its pages, of
  /// those on the host behind them too, and pins them. An engine that needs the logits of the last token asks without it.
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

  /// Gives up to `num_pages` pages back to the pool. What hangs on them on the host leaves the index with
  /// them. O(log(pages in the index)) a page, and as much for each leaf that is passed over because
  /// somebody holds it.
  /// @return How many were given back: fewer if there are no more, none if a listener asks.
  std::int32_t evict(std::int32_t num_pages) noexcept;
  /// Gives the expired pages of both tiers back that no living page hangs on. O(log(pages in the index)) a
  /// page.
  /// @return How many were given back.
  std::int32_t evict_expired() noexcept;
  /// Sends up to `num_pages` pages that `evict` would give back to the host. Where the host is full, the
  /// least wanted leaf there makes room for what is wanted more. Those that are not worth it are evicted.
  /// A page that moves is in use until its copy has retired. O(log(pages in the index)) a page, as `evict`.
  /// @param plan  Receives the copies, and a ticket if it has none.
  /// @return How many left the device. `kOutOfMemory` (the plan could not grow): nothing has changed.
  [[nodiscard]] Result<std::int32_t> offload(std::int32_t num_pages, TransferPlan& plan) noexcept;
  /// @return What the host has of a prefix, behind what the device has of it, as far as it has been
  ///   written there. O(tokens + log).
  [[nodiscard]] HostMatch match_host(std::uint64_t name_space,
                                     std::span<const std::int32_t> tokens) const noexcept;
  /// Moves what `match_host` tells of to free pages of the device, or does nothing if that is not worth it.
  /// `match` finds it then. O(tokens + pages · log).
  /// @param plan  Receives the copies, and a ticket if it has none. They must have run before the pages
  ///              are read: see `PrefixLease::pending`.
  /// @return Pages that moved. `kOutOfPages` (fewer are free: evict, or offload and retire, then ask again),
  ///   `kOutOfMemory` (the plan could not grow). Nothing has changed then.
  [[nodiscard]] Result<std::int32_t> fetch(std::uint64_t name_space,
                                           std::span<const std::int32_t> tokens,
                                           TransferPlan& plan) noexcept;
  /// The copies of a plan have been made: what they read may be written, what they wrote may be read. In
  /// any order, each ticket once its plan has run. O(copies in flight).
  /// @return How many of them were in flight; 0 for a ticket that has retired.
  std::int32_t retire(std::uint64_t ticket) noexcept;
  /// Gives up to `num_pages` pages of the host back to its pool. @return How many.
  std::int32_t evict_host(std::int32_t num_pages) noexcept;
  /// @return Pages of the device that only copies in flight hold. O(copies in flight).
  [[nodiscard]] std::int32_t parked_pages() const noexcept;
  /// Takes a tenant's pages of both tiers out of the index, those in use by sequences too (they keep their
  /// pages).
  /// What a lease holds stays. O(num_pages of the pool).
  /// @return How many left the index.
  std::int32_t erase(std::uint64_t name_space) noexcept;
  /// @return Pages that `evict` could give back now. O(num_pages of the pool).
  [[nodiscard]] std::int32_t evictable_pages() const noexcept;

  /// Says what time it is, in any unit; it is 0 at first, and a time before the last one is ignored.
  /// Without it no page expires. O(1).
  void set_time(std::int64_t now) noexcept;

  /// @return True if the page of the device is in this index. O(1).
  [[nodiscard]] bool contains(PageId page) const noexcept;
  /// @return The tokens of a page of the device in this index, else nothing. Valid until it leaves the index. O(1).
  [[nodiscard]] std::span<const std::int32_t> tokens(PageId page) const noexcept;

  /// @param listener  Outlives the cache and its leases; null for none.
  void set_listener(PrefixListener* listener) noexcept;

  /// Writes the index (not the pages' contents) as bytes, the same on every machine. Allocates.
  /// O(pages in the index · (page_size + log)).
  /// @param bytes  Replaced.
  /// @return `kOutOfMemory`; `bytes` is untouched then.
  Status save(std::vector<std::byte>& bytes) const noexcept;
  /// Fills an empty index from what `save` wrote, on new pages of the pools: order of use, priorities
  /// and the times that pages had left to live are as they were. Each page comes into the tier that it was
  /// in. Of those on the host, so many of the most recently used as it has room for; none without a host
  /// tier. Allocates. O(bytes · log).
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
