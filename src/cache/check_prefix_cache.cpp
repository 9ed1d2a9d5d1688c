// SPDX-License-Identifier: Apache-2.0
// The invariants of a prefix cache, recomputed from scratch.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include "cache/failure.hpp"
#include "cache/prefix_cache_state.hpp"
#include "cache/prefix_hash.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::kNoNode;
using internal::NodeId;
using internal::PageHeap;
using internal::PagePoolState;
using internal::PrefixCacheState;
using Node = PrefixCacheState::Node;

Status broken(PageTier tier, PageId page, const char* what) noexcept {
  return failure(ErrorCode::kInternal, "[prefix_cache] check: page {}{} {}", page,
                 tier == PageTier::kDevice ? "" : " of the host", what);
}

Status broken(const Node& node, const char* what) noexcept {
  return broken(node.tier, node.page, what);
}

// A page of the index and its parent. Uses grow towards the root, so that there are no cycles.
Status check_node(const PrefixCacheState& cache, NodeId id) noexcept {
  const Node& node = cache.node(id);
  if (cache.at(node.tier).node_of(node.page) != id) return broken(node, "leads to another node");
  if (!cache.page_of(node).indexed) return broken(node, "is in the index without a reference");
  if (node.num_tokens > cache.page_size()) return broken(node, "has more tokens than fit");
  if (node.last_use > cache.clock) return broken(node, "is used in the future");
  if (node.leases < 0) return broken(node, "has fewer leases than none");
  std::uint64_t before = cache::hash_root(cache.spec.hash_seed, node.name_space);
  if (node.parent != kNoNode) {
    const Node& parent = cache.node(node.parent);
    if (parent.num_tokens == 0) return broken(node, "has outlived its parent");
    if (parent.num_tokens != cache.page_size()) return broken(node, "follows a partial page");
    if (parent.name_space != node.name_space) return broken(node, "follows another namespace's");
    if (parent.last_use <= node.last_use) return broken(node, "was used after its parent");
    if (parent.tier > node.tier) return broken(node, "follows a page that is on the host");
    before = parent.hash;
  }
  if (cache::hash_run(before, cache.tokens_of(id)) == node.hash) return {};
  return broken(node, "has another hash than its tokens");
}

// What a page that is not in the index must not have.
Status check_absent(const PrefixCacheState& cache, PageTier tier, PageId page) noexcept {
  const PrefixCacheState::TierState& of = cache.at(tier);
  if (of.by_worth.contains(page) || of.by_expiry.contains(page)) {
    return broken(tier, page, "can be evicted and is not in the index");
  }
  if (std::as_const(*of.pool).page(page).indexed && of.pool->num_caches == 1) {
    return broken(tier, page, "has a reference of the index and is not in it");
  }
  return {};
}

Status check_pages(const PrefixCacheState& cache) noexcept {
  for (const PageTier tier : {PageTier::kDevice, PageTier::kHost}) {
    const PrefixCacheState::TierState& of = cache.at(tier);
    std::int32_t pages = 0;
    for (PageId page = 0; std::cmp_less(page, of.nodes.size()); ++page) {
      const NodeId id = of.node_of(page);
      Status status;
      if (id == kNoNode) {
        status = check_absent(cache, tier, page);
      } else if (++pages; cache.node(id).tier != tier || cache.node(id).page != page) {
        status = broken(tier, page, "is that of another page's node");
      }
      if (!status.ok()) return status;
    }
    const std::int32_t counted =
        tier == PageTier::kDevice ? cache.stats.pages : cache.stats.host_pages;
    if (pages == counted) continue;
    return failure(ErrorCode::kInternal,
                   "[prefix_cache] check: {} pages of the {} in the index, the counter says {}",
                   pages, tier == PageTier::kDevice ? "device" : "host", counted);
  }
  return {};
}

std::int32_t count_nodes(const PrefixCacheState& cache) noexcept {
  return cache.stats.pages + cache.stats.host_pages;
}

// Every node is a page's, or free and on the list of the free once.
Status check_nodes(const PrefixCacheState& cache) {
  std::vector<std::array<std::int32_t, internal::kNumTiers>> children(cache.nodes.size());
  std::size_t used = 0;
  std::int64_t leases = 0;
  for (std::size_t id = 0; id < cache.nodes.size(); ++id) {
    const Node& node = cache.nodes[id];
    if (node.num_tokens == 0) continue;
    if (Status status = check_node(cache, static_cast<NodeId>(id)); !status.ok()) return status;
    ++used;
    leases += node.leases;
    if (node.parent != kNoNode) {
      ++children[static_cast<std::size_t>(node.parent)][internal::index_of(node.tier)];
    }
  }
  for (std::size_t id = 0; id < cache.nodes.size(); ++id) {
    if (cache.nodes[id].num_children == children[id]) continue;
    return broken(cache.nodes[id], "has another number of children than the counter says");
  }
  if (!std::cmp_equal(used, count_nodes(cache)) || leases != cache.stats.leases) {
    return failure(ErrorCode::kInternal,
                   "[prefix_cache] check: {} pages and {} leases, the counters say {} and {}", used,
                   leases, count_nodes(cache), cache.stats.leases);
  }
  std::size_t listed = 0;
  for (NodeId id = cache.first_free; id != kNoNode && listed <= cache.nodes.size();
       id = cache.node(id).next_in_bucket) {
    if (cache.node(id).num_tokens > 0) return broken(cache.node(id), "has a node that is free");
    ++listed;
  }
  if (used + listed == cache.nodes.size()) return {};
  return failure(ErrorCode::kInternal,
                 "[prefix_cache] check: {} nodes of pages and {} free ones, of {}", used, listed,
                 cache.nodes.size());
}

// Every page of the index is in its bucket, once.
Status check_buckets(const PrefixCacheState& cache) noexcept {
  std::int32_t listed = 0;
  for (std::size_t index = 0; index < cache.buckets.size(); ++index) {
    for (NodeId id = cache.buckets[index]; id != kNoNode; id = cache.node(id).next_in_bucket) {
      const Node& node = cache.node(id);
      if (node.num_tokens == 0) return broken(node, "is in a bucket and not in the index");
      if ((node.hash & (cache.buckets.size() - 1)) != index) {
        return broken(node, "is in a bucket of another hash");
      }
      if (++listed > count_nodes(cache)) return broken(node, "is in a bucket twice");
    }
  }
  if (listed == count_nodes(cache)) return {};
  return failure(ErrorCode::kInternal, "[prefix_cache] check: {} pages of {} are in buckets",
                 listed, count_nodes(cache));
}

bool comes_before(const PrefixCacheState& cache, NodeId a, NodeId b) noexcept {
  if (cache.node(a).name_space != cache.node(b).name_space) {
    return cache.node(a).name_space < cache.node(b).name_space;
  }
  return std::ranges::lexicographical_compare(cache.tokens_of(a), cache.tokens_of(b));
}

// The children of one parent in a tier, in order and all different, hashes falling downwards. `left`
// counts the pages that have not been seen in any treap.
Status check_siblings(const PrefixCacheState& cache, NodeId parent, PageTier tier,
                      std::int32_t& left, std::vector<NodeId>& in_order) {
  std::vector<NodeId> way;
  NodeId id = cache.first_child(parent, tier);
  NodeId previous = kNoNode;
  while (id != kNoNode || !way.empty()) {
    for (; id != kNoNode; id = cache.node(id).less) {
      const Node& node = cache.node(id);
      if (node.num_tokens == 0) return broken(node, "is a sibling and not in the index");
      if (left-- == 0) return broken(node, "is a sibling twice");
      way.push_back(id);
    }
    id = way.back();
    way.pop_back();
    const Node& node = cache.node(id);
    if (node.parent != parent || node.tier != tier) {
      return broken(node, "is a child of two parents");
    }
    for (const NodeId below : {node.less, node.greater}) {
      if (below != kNoNode && cache.node(below).hash > node.hash) {
        return broken(cache.node(below), "has a greater hash than the sibling above it");
      }
    }
    if (previous != kNoNode && !comes_before(cache, previous, id)) {
      return broken(node, "is not greater than the sibling before it");
    }
    in_order.push_back(id);
    previous = id;
    id = node.greater;
  }
  return {};
}

// Siblings differ, also if one is on the device and the other on the host.
Status check_children(const PrefixCacheState& cache, NodeId parent, std::int32_t& left) {
  std::vector<NodeId> here;
  std::vector<NodeId> there;
  Status status = check_siblings(cache, parent, PageTier::kDevice, left, here);
  if (status.ok()) status = check_siblings(cache, parent, PageTier::kHost, left, there);
  const auto before = [&cache](NodeId a, NodeId b) { return comes_before(cache, a, b); };
  for (const NodeId id : there) {
    if (!status.ok() || !std::ranges::binary_search(here, id, before)) continue;
    status = broken(cache.node(id), "is on the device too");
  }
  return status;
}

Status check_trees(const PrefixCacheState& cache) {
  std::int32_t left = count_nodes(cache);
  Status status = check_children(cache, kNoNode, left);
  for (std::size_t id = 0; status.ok() && id < cache.nodes.size(); ++id) {
    if (cache.nodes[id].num_tokens > 0) {
      status = check_children(cache, static_cast<NodeId>(id), left);
    }
  }
  if (!status.ok() || left == 0) return status;
  return failure(ErrorCode::kInternal, "[prefix_cache] check: {} pages are nobody's children",
                 left);
}

// The heap holds those pages that it should, none later than its key says, each where it says.
template <typename Belongs, typename Key>
Status check_heap(const PrefixCacheState& cache, PageTier tier, const PageHeap& heap,
                  Belongs belongs, Key key) noexcept {
  const PrefixCacheState::TierState& of = cache.at(tier);
  std::int32_t members = 0;
  for (PageId page = 0; std::cmp_less(page, of.nodes.size()); ++page) {
    const NodeId id = of.node_of(page);
    const bool should = id != kNoNode && belongs(cache.node(id));
    if (should != heap.contains(page)) {
      return broken(tier, page,
                    should ? "cannot be evicted" : "can be evicted though it is no leaf");
    }
    if (should) ++members;
  }
  if (heap.num_aside() != 0 || heap.size() != members) {
    return failure(ErrorCode::kInternal, "[prefix_cache] check: {} pages in a heap of {}", members,
                   heap.size());
  }
  for (std::int32_t position = 0; position < heap.size(); ++position) {
    const PageHeap::Entry& entry = heap.at(position);
    if (heap.position(entry.page) != position) {
      return broken(tier, entry.page, "is elsewhere in the heap");
    }
    if (entry.key > key(cache.node(of.node_of(entry.page)))) {
      return broken(tier, entry.page, "would go too late");
    }
    if (position > 0 && heap.at((position - 1) / 2).key > entry.key) {
      return broken(tier, entry.page, "is too low in the heap");
    }
  }
  return {};
}

Status check_heaps(const PrefixCacheState& cache, PageTier tier) noexcept {
  const auto leaf = [](const Node& node) { return node.is_leaf(); };
  const auto mortal_leaf = [](const Node& node) {
    return node.is_leaf() && node.time_to_live != Retention::kForever;
  };
  Status status = check_heap(cache, tier, cache.at(tier).by_worth, leaf,
                             [&cache](const Node& node) { return cache.worth(node); });
  if (!status.ok()) return status;
  return check_heap(cache, tier, cache.at(tier).by_expiry, mortal_leaf,
                    [&cache](const Node& node) { return cache.expiry_key(node); });
}

// Every copy in flight holds a page of each pool, and no page is held by two.
Status check_transfers(const PrefixCacheState& cache) {
  if (!cache.has_host()) return {};
  const PagePoolState& device = *cache.pool;
  const PagePoolState& host = *cache.at(PageTier::kHost).pool;
  std::vector<bool> seen(host.pages.size());
  std::int32_t listed = 0;
  for (PageId page = cache.first_in_flight; page != kNoPage && listed <= cache.stats.in_flight;
       page = cache.transfers[static_cast<std::size_t>(page)].next) {
    const PrefixCacheState::Transfer& transfer = cache.transfers[static_cast<std::size_t>(page)];
    ++listed;
    if (transfer.ticket == 0 || device.page(page).transfers != 1 || !host.has(transfer.host) ||
        host.page(transfer.host).transfers != 1 || seen[static_cast<std::size_t>(transfer.host)]) {
      return broken(PageTier::kDevice, page,
                    "is in a transfer that does not hold both of its pages");
    }
    seen[static_cast<std::size_t>(transfer.host)] = true;
  }
  std::int32_t held = 0;
  for (const PrefixCacheState::Transfer& transfer : cache.transfers)
    held += transfer.ticket != 0 ? 1 : 0;
  if (listed == cache.stats.in_flight && held == listed) return {};
  return failure(ErrorCode::kInternal,
                 "[prefix_cache] check: {} copies in flight are listed and {} noted, the counter "
                 "says {}",
                 listed, held, cache.stats.in_flight);
}

}  // namespace

Status PrefixCache::check() const noexcept {
  try {
    Status status = state_->pool->check();
    if (status.ok() && state_->has_host()) status = state_->at(PageTier::kHost).pool->check();
    if (status.ok()) status = check_pages(*state_);
    if (status.ok()) status = check_nodes(*state_);
    if (status.ok()) status = check_buckets(*state_);
    if (status.ok()) status = check_trees(*state_);
    for (const PageTier tier : {PageTier::kDevice, PageTier::kHost}) {
      if (status.ok()) status = check_heaps(*state_, tier);
    }
    if (status.ok()) status = check_transfers(*state_);
    return status;
  } catch (const std::exception&) {
    return failure(ErrorCode::kOutOfMemory,
                   "[prefix_cache] check: expected memory for a count of each page, got none");
  }
}

}  // namespace v0
}  // namespace quire
