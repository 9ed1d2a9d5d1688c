// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a `PrefixCache` holds. A node of the tree has the number of its page, so that there is no
/// node without a page, no page with two nodes, and nothing to allocate.
///
/// A node is found in two ways. Whole pages: a hash table leads from the tokens up to a page to its
/// node, so that a lookup knows where to look long before it gets there and memory has time to
/// answer. The best page to end inside: the children of a node are a binary search tree by tokens (a
/// treap, whose shape the nodes' hashes decide), where the longest common beginning lies on the way
/// to where the tokens belong.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "cache/page_heap.hpp"
#include "cache/page_pool_state.hpp"
#include "quire/prefix_cache.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

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
    PageId parent = kNoPage;
    PageId next_in_bucket = kNoPage;
    std::int32_t num_tokens = 0;  ///< 0: the page is not in the index
    std::int32_t leases = 0;      ///< that end here
    std::uint64_t name_space = 0;
    std::int64_t time_to_live = Retention::kForever;
    PageId less = kNoPage;      ///< siblings with lesser tokens, as a treap
    PageId greater = kNoPage;   ///< likewise greater
    PageId children = kNoPage;  ///< root of their treap
    std::int32_t num_children = 0;
    std::int32_t priority = 0;
    std::uint64_t mark = 0;  ///< scratch

    friend bool operator==(const Node&, const Node&) = default;
  };

  /// The whole pages of a prefix that are in the index.
  struct Path {
    PageId last = kNoPage;
    std::int32_t pages = 0;
    std::uint64_t hash = 0;  ///< of the last one; without one, what the first would start from
  };
  /// The child that has the most tokens in common with a run; of several, the least.
  struct Closest {
    PageId page = kNoPage;
    std::int32_t common = 0;
  };

  PrefixCacheState(std::shared_ptr<PagePoolState> pages_of, const PrefixCacheSpec& cache_spec);
  PrefixCacheState(const PrefixCacheState&) = delete;
  PrefixCacheState& operator=(const PrefixCacheState&) = delete;
  ~PrefixCacheState();

  [[nodiscard]] Node& node(PageId page) noexcept { return nodes[static_cast<std::size_t>(page)]; }
  [[nodiscard]] const Node& node(PageId page) const noexcept {
    return nodes[static_cast<std::size_t>(page)];
  }
  [[nodiscard]] std::int32_t page_size() const noexcept { return pool->spec.page_size; }
  [[nodiscard]] bool has(PageId page) const noexcept {
    return pool->has(page) && node(page).num_tokens > 0;
  }
  [[nodiscard]] std::int32_t* tokens_at(PageId page) const noexcept {
    return tokens.get() + static_cast<std::size_t>(page) * static_cast<std::size_t>(page_size());
  }
  [[nodiscard]] std::span<const std::int32_t> tokens_of(PageId page) const noexcept {
    return {tokens_at(page), static_cast<std::size_t>(node(page).num_tokens)};
  }
  [[nodiscard]] PrefixRun run_of(PageId page) const noexcept {
    return {node(page).name_space, tokens_of(page)};
  }
  [[nodiscard]] PageId& children_of(PageId parent) noexcept {
    return parent == kNoPage ? roots : node(parent).children;
  }
  [[nodiscard]] PageId first_child(PageId parent) const noexcept {
    return parent == kNoPage ? roots : node(parent).children;
  }
  [[nodiscard]] PageId& bucket(std::uint64_t hash) noexcept {
    return buckets[static_cast<std::size_t>(hash) & (buckets.size() - 1)];
  }
  [[nodiscard]] PageId bucket(std::uint64_t hash) const noexcept {
    return buckets[static_cast<std::size_t>(hash) & (buckets.size() - 1)];
  }

  /// Finding: prefix_index.cpp.
  [[nodiscard]] PageId find(PageId parent, std::uint64_t hash, const PrefixRun& run) const noexcept;
  /// @param visit  Called with each page of the path and its index.
  template <typename Visit>
  [[nodiscard]] Path walk(const PrefixRun& prefix, Visit visit) const noexcept;
  [[nodiscard]] Path find_path(const PrefixRun& prefix) const noexcept;
  /// @return The path of a prefix whose pages from index i on get the clock `first_use` − i.
  Path use_path(const PrefixRun& prefix, std::uint64_t first_use) noexcept;
  [[nodiscard]] Closest closest_child(PageId parent, const PrefixRun& run) const noexcept;
  /// @return The least child that does not come before a run.
  [[nodiscard]] PageId least_from(PageId parent, const PrefixRun& run) const noexcept;
  /// @return The child that a match ends inside, if it is worth it.
  [[nodiscard]] Closest partial_match(const Path& path, const PrefixRun& prefix) const noexcept;

  /// Changing: prefix_index.cpp. None of it can fail.
  void insert(PageId page, PageId parent, std::uint64_t hash, const PrefixRun& run) noexcept;
  void remove(PageId page) noexcept;  ///< a leaf without leases
  /// Puts one more page of a sequence into the index while the sequence grows, without walking
  /// its prefix. It is used just before its parent was: a walk at the end of the sequence says when.
  /// @param parent  The page before it, in the index and whole; `kNoPage` for a first page.
  /// @return The page of the index that holds these tokens in this place, `page` or one that was
  ///   there before; `kNoPage` if `page` is in an index for something else, or a listener asks.
  PageId extend(PageId parent, const PrefixRun& run, PageId page,
                const Retention& retention) noexcept;
  void use(PageId page, std::uint64_t clock_value) noexcept {
    node(page).last_use = clock_value;
    node(page).last_time = now;
  }
  void retain(PageId page, const Retention& retention) noexcept;
  void insert_sibling(PageId page) noexcept;
  void remove_sibling(PageId page) noexcept;

  /// Eviction: prefix_eviction.cpp.
  [[nodiscard]] bool held(PageId page) const noexcept {
    return node(page).leases > 0 || pool->page(page).refs > 1;
  }
  [[nodiscard]] std::int64_t expiry(const Node& of) const noexcept;
  [[nodiscard]] bool expired(const Node& of) const noexcept { return expiry(of) <= now; }
  [[nodiscard]] std::uint64_t worth(const Node& of) const noexcept {
    return static_cast<std::uint64_t>(of.priority) * kPriorityUnit + of.last_use;
  }
  [[nodiscard]] std::uint64_t expiry_key(const Node& of) const noexcept {
    return static_cast<std::uint64_t>(std::max<std::int64_t>(expiry(of), 0));
  }
  void enlist(PageId leaf) noexcept;
  void delist(PageId page) noexcept;
  [[nodiscard]] PageId next_expired() noexcept;
  [[nodiscard]] PageId least_wanted() noexcept;
  void announce(PrefixEvent::Kind kind, PageId page, PageId parent, const PrefixRun& run) noexcept;
  void remove_and_announce(PageId page) noexcept;
  /// Removes leaves until `count` are gone or none is left that may go.
  std::int32_t evict(std::int32_t count, bool only_expired) noexcept;
  /// @param dropped  By page: references that are about to go; empty for none.
  /// @return Pages that `evict` could remove then. O(num_pages).
  [[nodiscard]] std::int32_t count_evictable(std::span<const std::int32_t> dropped) noexcept;

  std::shared_ptr<PagePoolState> pool;
  PrefixCacheSpec spec;
  std::vector<Node> nodes;                 ///< by page
  std::unique_ptr<std::int32_t[]> tokens;  ///< [num_pages, page_size], uninitialised where unused
  std::vector<PageId> buckets;             ///< a power of two
  PageId roots = kNoPage;                  ///< treap of the first pages of all namespaces
  PageHeap by_worth;                       ///< leaves by priority and last use
  PageHeap by_expiry;                      ///< leaves that do not live forever, by expiry
  /// Counts uses of pages. Begins where the stamps of a path, one lower a page, stay positive.
  std::uint64_t clock = std::uint64_t{1} << 32U;
  std::int64_t now = 0;  ///< the caller's time
  std::uint64_t last_mark = 0;
  PrefixListener* listener = nullptr;
  bool announcing = false;  ///< a listener is being called
  PrefixCacheStats stats;
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
