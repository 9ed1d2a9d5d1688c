// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a `PrefixCache` holds. A node of the tree is one page of a prefix, in one of the two tiers; there
/// are as many nodes as both pools have pages, so that there is nothing to allocate. Nodes on the device
/// hang on nodes on the device, so that those form the upper part of the tree and the host the lower.
///
/// A node is found in two ways. Whole pages: a hash table leads from the tokens up to a page to its
/// node, so that a lookup knows where to look long before it gets there and memory has time to
/// answer. The best page to end inside: the children of a node in a tier are a binary search tree by tokens (a
/// treap, whose shape the nodes' hashes decide), where the longest common beginning lies on the way
/// to where the tokens belong.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "cache/page_heap.hpp"
#include "cache/page_pool_state.hpp"
#include "quire/prefix_cache.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

/// A node of the tree of a prefix cache.
using NodeId = std::int32_t;
inline constexpr NodeId kNoNode = -1;
inline constexpr std::size_t kNumTiers = 2;
inline constexpr std::size_t index_of(PageTier tier) noexcept {
  return static_cast<std::size_t>(tier);
}

/// What stands on a page, and whose it is.
struct PrefixRun {
  std::uint64_t name_space = 0;
  std::span<const std::int32_t> tokens;
};

struct PrefixCacheState {
  static constexpr std::uint64_t kPriorityUnit = std::uint64_t{1} << 56U;         // > any clock
  static constexpr std::int64_t kEnd = std::numeric_limits<std::int64_t>::max();  // of time

  struct Node {
    std::uint64_t hash = 0;      ///< of all tokens up to here
    std::uint64_t last_use = 0;  ///< on the cache's clock; more than any descendant's
    std::int64_t last_time = 0;  ///< likewise, in the caller's time
    NodeId parent = kNoNode;
    NodeId next_in_bucket = kNoNode;  ///< of a free node: the next free one
    std::int32_t num_tokens = 0;      ///< 0: the node is free
    std::int32_t leases = 0;          ///< that end here
    std::uint64_t name_space = 0;
    std::int64_t time_to_live = Retention::kForever;
    NodeId less = kNoNode;     ///< siblings with lesser tokens, as a treap
    NodeId greater = kNoNode;  ///< likewise greater
    std::array<NodeId, kNumTiers> children{kNoNode, kNoNode};  ///< roots of their treaps, by tier
    std::array<std::int32_t, kNumTiers> num_children{};        ///< likewise
    std::int32_t priority = 0;
    PageId page = kNoPage;  ///< of the pool of its tier
    PageTier tier = PageTier::kDevice;
    std::uint64_t mark = 0;    ///< scratch
    std::uint64_t serial = 0;  ///< tells the successive pages of prefixes in a node apart

    [[nodiscard]] bool has_children() const noexcept {
      return num_children[0] + num_children[1] > 0;
    }
    /// @return True if none of the pages behind it is in its tier: then it may leave that.
    [[nodiscard]] bool is_leaf() const noexcept { return num_children[index_of(tier)] == 0; }

    friend bool operator==(const Node&, const Node&) = default;
  };

  /// The whole pages of a prefix that are in the index: first those on the device, then those on the host.
  struct Path {
    NodeId last = kNoNode;        ///< on the device
    std::int32_t pages = 0;       ///< likewise
    std::uint64_t hash = 0;       ///< of the last one; without one, what the first would start from
    NodeId deepest = kNoNode;     ///< of all
    std::int32_t host_pages = 0;  ///< between the two
  };
  /// The child that has the most tokens in common with a run; of several, the least.
  struct Closest {
    NodeId node = kNoNode;
    std::int32_t common = 0;
  };
  /// A copy in flight that reads a page of the device, or writes it. No page has two.
  struct Transfer {
    std::uint64_t ticket = 0;  ///< 0: none
    PageId host = kNoPage;     ///< the other page
    PageId next = kNoPage;     ///< page of the device that has the next one
    bool fetches = false;      ///< it writes the page of the device

    friend bool operator==(const Transfer&, const Transfer&) = default;
  };
  /// What belongs to the pages of one pool.
  struct TierState {
    TierState(std::shared_ptr<PagePoolState> pages_of);
    TierState(const TierState&) = delete;
    TierState& operator=(const TierState&) = delete;
    ~TierState();

    [[nodiscard]] NodeId node_of(PageId page) const noexcept {
      return pool && pool->has(page) ? nodes[static_cast<std::size_t>(page)] : kNoNode;
    }

    std::shared_ptr<PagePoolState> pool;  ///< null: no such tier
    std::vector<NodeId> nodes;            ///< by page
    PageHeap by_worth;                    ///< pages of leaves by priority and last use
    PageHeap by_expiry;                   ///< pages of leaves that do not live forever, by expiry
    NodeId roots = kNoNode;               ///< treap of the first pages of all namespaces
  };

  PrefixCacheState(std::shared_ptr<PagePoolState> pages_of,
                   std::shared_ptr<PagePoolState> host_pages, const PrefixCacheSpec& cache_spec);
  PrefixCacheState(const PrefixCacheState&) = delete;
  PrefixCacheState& operator=(const PrefixCacheState&) = delete;
  ~PrefixCacheState();

  [[nodiscard]] Node& node(NodeId id) noexcept { return nodes[static_cast<std::size_t>(id)]; }
  [[nodiscard]] const Node& node(NodeId id) const noexcept {
    return nodes[static_cast<std::size_t>(id)];
  }
  [[nodiscard]] TierState& at(PageTier tier) noexcept { return tiers[index_of(tier)]; }
  [[nodiscard]] const TierState& at(PageTier tier) const noexcept { return tiers[index_of(tier)]; }
  [[nodiscard]] bool has_host() const noexcept { return tiers[1].pool != nullptr; }
  [[nodiscard]] std::int32_t page_size() const noexcept { return pool->spec.page_size; }
  /// @return The node of a page of the device, else `kNoNode`.
  [[nodiscard]] NodeId node_of(PageId page) const noexcept { return tiers[0].node_of(page); }
  [[nodiscard]] PagePoolState::Page& page_of(const Node& of) noexcept {
    return at(of.tier).pool->page(of.page);
  }
  [[nodiscard]] const PagePoolState::Page& page_of(const Node& of) const noexcept {
    return std::as_const(*at(of.tier).pool).page(of.page);
  }
  [[nodiscard]] std::int32_t* tokens_at(NodeId id) const noexcept {
    return tokens.get() + static_cast<std::size_t>(id) * static_cast<std::size_t>(page_size());
  }
  [[nodiscard]] std::span<const std::int32_t> tokens_of(NodeId id) const noexcept {
    return {tokens_at(id), static_cast<std::size_t>(node(id).num_tokens)};
  }
  [[nodiscard]] PrefixRun run_of(NodeId id) const noexcept {
    return {node(id).name_space, tokens_of(id)};
  }
  [[nodiscard]] NodeId& children_of(NodeId parent, PageTier tier) noexcept {
    return parent == kNoNode ? at(tier).roots : node(parent).children[index_of(tier)];
  }
  [[nodiscard]] NodeId first_child(NodeId parent, PageTier tier) const noexcept {
    return parent == kNoNode ? at(tier).roots : node(parent).children[index_of(tier)];
  }
  [[nodiscard]] NodeId& bucket(std::uint64_t hash) noexcept {
    return buckets[static_cast<std::size_t>(hash) & (buckets.size() - 1)];
  }
  [[nodiscard]] NodeId bucket(std::uint64_t hash) const noexcept {
    return buckets[static_cast<std::size_t>(hash) & (buckets.size() - 1)];
  }

  /// Finding: prefix_index.cpp.
  [[nodiscard]] NodeId find(NodeId parent, std::uint64_t hash, const PrefixRun& run) const noexcept;
  /// @param visit  Called with each node of the path and its index.
  template <typename Visit>
  [[nodiscard]] Path walk(const PrefixRun& prefix, Visit visit) const noexcept;
  [[nodiscard]] Path find_path(const PrefixRun& prefix) const noexcept;
  /// @return The path of a prefix whose pages on the device get the clock `first_use` − i from index i
  ///   on, and one less those on the host.
  Path use_path(const PrefixRun& prefix, std::uint64_t first_use) noexcept;
  [[nodiscard]] Closest closest_child(NodeId parent, PageTier tier,
                                      const PrefixRun& run) const noexcept;
  /// @return The least child that does not come before a run.
  [[nodiscard]] NodeId least_from(NodeId parent, PageTier tier,
                                  const PrefixRun& run) const noexcept;
  /// @return The child on the device that a match ends inside, if it is worth it.
  [[nodiscard]] Closest partial_match(const Path& path, const PrefixRun& prefix) const noexcept;
  /// What lies on the host behind a path on the device.
  struct HostPart {
    NodeId last = kNoNode;    ///< its last node; the others are ancestors
    std::int32_t pages = 0;   ///< a last one that the prefix ends inside included
    std::int32_t tokens = 0;  ///< of the prefix on them
    bool partial = false;     ///< the prefix ends inside the last one, or that is partial itself
  };
  [[nodiscard]] HostPart host_part(const Path& path, const PrefixRun& prefix) const noexcept;

  /// Changing: prefix_index.cpp. None of it can fail.
  NodeId insert(PageId page, NodeId parent, std::uint64_t hash, const PrefixRun& run,
                PageTier tier = PageTier::kDevice) noexcept;
  void remove(NodeId id) noexcept;  ///< without children and leases
  void settle(NodeId id, PageTier tier, PageId page) noexcept;
  void unsettle(NodeId id) noexcept;
  /// Puts a node onto a page in use of another tier, and gives the index' reference to the old one back.
  void move(NodeId id, PageTier tier, PageId page) noexcept;
  /// Puts a node of the host onto a page of the device that holds the same, and tells.
  void replace(NodeId id, PageId page) noexcept;
  /// Puts one more page of a sequence into the index while the sequence grows, without walking
  /// its prefix. It is used just before its parent was: a walk at the end of the sequence says when.
  /// @param parent  The page before it, in the index and whole; `kNoPage` for a first page.
  /// @return The page of the index that holds these tokens in this place, `page` or one that was
  ///   there before; `kNoPage` if `page` is in an index for something else, that one is still being
  ///   written by a copy, or a listener asks.
  PageId extend(PageId parent, const PrefixRun& run, PageId page,
                const Retention& retention) noexcept;
  void use(NodeId id, std::uint64_t clock_value) noexcept {
    node(id).last_use = clock_value;
    node(id).last_time = now;
  }
  void retain(NodeId id, const Retention& retention) noexcept;
  void insert_sibling(NodeId id) noexcept;
  void remove_sibling(NodeId id) noexcept;

  /// Eviction: prefix_eviction.cpp.
  [[nodiscard]] bool held(NodeId id) const noexcept {
    return node(id).leases > 0 || page_of(node(id)).refs > 1;
  }
  [[nodiscard]] std::int64_t expiry(const Node& of) const noexcept;
  [[nodiscard]] bool expired(const Node& of) const noexcept { return expiry(of) <= now; }
  [[nodiscard]] std::uint64_t worth(const Node& of) const noexcept {
    return static_cast<std::uint64_t>(of.priority) * kPriorityUnit + of.last_use;
  }
  [[nodiscard]] std::uint64_t expiry_key(const Node& of) const noexcept {
    return static_cast<std::uint64_t>(std::max<std::int64_t>(expiry(of), 0));
  }
  void enlist(NodeId leaf) noexcept;
  void delist(NodeId id) noexcept;
  /// @return An expired leaf of a tier without any children.
  [[nodiscard]] NodeId next_expired(PageTier tier) noexcept;
  [[nodiscard]] NodeId least_wanted(PageTier tier) noexcept;
  /// Puts back what the two set aside.
  void put_back() noexcept;
  void announce(PrefixEvent::Kind kind, NodeId id) noexcept;
  /// A page as an event says it, and telling it: what has gone is told when it has gone.
  [[nodiscard]] PrefixEvent event_of(PrefixEvent::Kind kind, NodeId id) const noexcept;
  void announce(const PrefixEvent& event) noexcept;
  void remove_and_announce(NodeId id) noexcept;
  /// Removes a leaf of the device with what hangs on it on the host, the last first.
  void remove_with_host_children(NodeId id) noexcept;
  /// Removes leaves of the device until `count` are gone or none is left that may go.
  std::int32_t evict(std::int32_t count) noexcept;
  std::int32_t evict_expired(PageTier tier) noexcept;
  /// @param dropped  By page: references that are about to go; empty for none.
  /// @param once_retired  As if no copies were in transfer.
  /// @return Pages of the device that `evict` could remove then. O(num_pages).
  [[nodiscard]] std::int32_t count_evictable(std::span<const std::int32_t> dropped,
                                             bool once_retired = false) noexcept;

  /// The host tier: prefix_tiers.cpp.
  /// When the pages of a plan have been read and written.
  enum class Fencing : std::uint8_t {
    kTicket,   ///< once `retire` says so: until then they are held
    kOrdered,  ///< before anything that is planned from now on is done
  };
  [[nodiscard]] bool is_written(const Node& of) const noexcept {
    return !has_host() || of.tier == PageTier::kHost ||
           transfers[static_cast<std::size_t>(of.page)].ticket == 0;
  }
  /// @return True if getting a page back from the host takes less time than computing it.
  [[nodiscard]] bool worth_offloading(const Node& of) const noexcept;
  [[nodiscard]] bool worth_fetching(const HostPart& part) const noexcept;
  /// A page of the host for a leaf of the device. Takes it from the least wanted leaf there if need be,
  /// and if that is wanted less, or if the leaf of the device has children on the host.
  PageId take_host_page(const Node& leaf) noexcept;
  /// Moves leaves to the host, or removes those that are not worth it, until `count` have left the
  /// device or none is left that may. There is room in the plan for `count` ops.
  std::int32_t offload(std::int32_t count, TransferPlan& plan, Fencing fencing) noexcept;
  /// Moves what lies on the host to free pages of the device. There are enough, and room in the plan.
  void fetch(const HostPart& part, TransferPlan& plan, Fencing fencing) noexcept;
  void send(NodeId id, PageId host_page, TransferPlan& plan, Fencing fencing) noexcept;
  void drop_displaced(TransferPlan& plan, std::size_t first, Fencing fencing) noexcept;
  /// A copy is in flight; the page of the device is held already.
  void track(PageId page, PageId host_page, TransferPlan& plan, bool fetches) noexcept;
  std::int32_t retire(std::uint64_t ticket) noexcept;
  /// @return Pages of the device that become free with the copies in flight. O(in flight).
  [[nodiscard]] std::int32_t count_parked() const noexcept;
  /// A node that must stay where it is, as by a lease.
  void pin(NodeId id) noexcept {
    ++node(id).leases;
    ++stats.leases;
  }
  void unpin(NodeId id) noexcept {
    --node(id).leases;
    --stats.leases;
  }

  std::array<TierState, kNumTiers> tiers;
  std::shared_ptr<PagePoolState> pool;  ///< of the device
  PrefixCacheSpec spec;
  std::vector<Node> nodes;
  std::unique_ptr<std::int32_t[]> tokens;  ///< [nodes, page_size], uninitialised where unused
  std::vector<NodeId> buckets;             ///< a power of two
  NodeId first_free = 0;
  std::vector<std::uint64_t> seen;   ///< by page of the device: the last `publish` that named it
  std::vector<Transfer> transfers;   ///< by page of the device; none without a host
  std::int32_t num_fetching = 0;     ///< of the copies in flight
  PageId first_in_flight = kNoPage;  ///< of the device
  std::uint64_t last_ticket = 0;
  /// Counts uses of pages. Begins where the stamps of a path, one lower a page, stay positive.
  std::uint64_t clock = std::uint64_t{1} << 32U;
  std::int64_t now = 0;  ///< the caller's time
  std::uint64_t last_mark = 0;
  std::uint64_t last_serial = 0;
  PrefixListener* listener = nullptr;
  bool announcing = false;  ///< a listener is being called
  PrefixCacheStats stats;
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
