// SPDX-License-Identifier: Apache-2.0
// The invariants of a prefix cache, recomputed from scratch.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "cache/failure.hpp"
#include "cache/prefix_cache_state.hpp"
#include "cache/prefix_hash.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::PageHeap;
using internal::PagePoolState;
using internal::PrefixCacheState;
using Node = PrefixCacheState::Node;

Status broken(PageId page, const char* what) noexcept {
  return failure(ErrorCode::kInternal, "[prefix_cache] check: page {} {}", page, what);
}

// A page of the index and its parent. Uses grow towards the root, so that there are no cycles.
Status check_node(const PrefixCacheState& cache, PageId page) noexcept {
  const Node& node = cache.node(page);
  if (!cache.pool->page(page).indexed) return broken(page, "is in the index without a reference");
  if (node.num_tokens > cache.page_size()) return broken(page, "has more tokens than fit");
  if (node.last_use > cache.clock) return broken(page, "is used in the future");
  if (node.leases < 0) return broken(page, "has fewer leases than none");
  std::uint64_t before = cache::hash_root(cache.spec.hash_seed, node.name_space);
  if (node.parent != kNoPage) {
    if (!cache.has(node.parent)) return broken(page, "has outlived its parent");
    const Node& parent = cache.node(node.parent);
    if (parent.num_tokens != cache.page_size()) return broken(page, "follows a partial page");
    if (parent.name_space != node.name_space) return broken(page, "follows another namespace's");
    if (parent.last_use <= node.last_use) return broken(page, "was used after its parent");
    before = parent.hash;
  }
  if (cache::hash_run(before, cache.tokens_of(page)) == node.hash) return {};
  return broken(page, "has another hash than its tokens");
}

// What a page that is not in the index must not have.
Status check_absent(const PrefixCacheState& cache, PageId page) noexcept {
  if (cache.by_worth.contains(page) || cache.by_expiry.contains(page)) {
    return broken(page, "can be evicted and is not in the index");
  }
  if (cache.pool->page(page).indexed && cache.pool->num_caches == 1) {
    return broken(page, "has a reference of the index and is not in it");
  }
  return {};
}

Status check_nodes(const PrefixCacheState& cache) {
  std::vector<std::int32_t> children(cache.nodes.size());
  std::int32_t pages = 0;
  std::int64_t leases = 0;
  for (PageId page = 0; page < cache.pool->spec.num_pages; ++page) {
    Status status = cache.has(page) ? check_node(cache, page) : check_absent(cache, page);
    if (!status.ok()) return status;
    if (!cache.has(page)) continue;
    ++pages;
    leases += cache.node(page).leases;
    const PageId parent = cache.node(page).parent;
    if (parent != kNoPage) ++children[static_cast<std::size_t>(parent)];
  }
  for (PageId page = 0; page < cache.pool->spec.num_pages; ++page) {
    if (cache.node(page).num_children != children[static_cast<std::size_t>(page)]) {
      return broken(page, "has another number of children than the counter says");
    }
  }
  if (pages == cache.stats.pages && leases == cache.stats.leases) return {};
  return failure(ErrorCode::kInternal,
                 "[prefix_cache] check: {} pages and {} leases, the counters say {} and {}", pages,
                 leases, cache.stats.pages, cache.stats.leases);
}

// Every page of the index is in its bucket, once.
Status check_buckets(const PrefixCacheState& cache) noexcept {
  std::int32_t listed = 0;
  for (std::size_t index = 0; index < cache.buckets.size(); ++index) {
    for (PageId page = cache.buckets[index]; page != kNoPage;
         page = cache.node(page).next_in_bucket) {
      if (!cache.has(page)) return broken(page, "is in a bucket and not in the index");
      if ((cache.node(page).hash & (cache.buckets.size() - 1)) != index) {
        return broken(page, "is in a bucket of another hash");
      }
      if (++listed > cache.stats.pages) return broken(page, "is in a bucket twice");
    }
  }
  if (listed == cache.stats.pages) return {};
  return failure(ErrorCode::kInternal, "[prefix_cache] check: {} pages of {} are in buckets",
                 listed, cache.stats.pages);
}

bool comes_before(const PrefixCacheState& cache, PageId a, PageId b) noexcept {
  if (cache.node(a).name_space != cache.node(b).name_space) {
    return cache.node(a).name_space < cache.node(b).name_space;
  }
  return std::ranges::lexicographical_compare(cache.tokens_of(a), cache.tokens_of(b));
}

// The children of one parent, in order and all different, hashes falling downwards. `left` counts the
// pages that have not been seen in any treap.
Status check_siblings(const PrefixCacheState& cache, PageId parent, std::int32_t& left) {
  std::vector<PageId> way;
  PageId page = cache.first_child(parent);
  PageId previous = kNoPage;
  while (page != kNoPage || !way.empty()) {
    for (; page != kNoPage; page = cache.node(page).less) {
      if (!cache.has(page)) return broken(page, "is a sibling and not in the index");
      if (left-- == 0) return broken(page, "is a sibling twice");
      way.push_back(page);
    }
    page = way.back();
    way.pop_back();
    const Node& node = cache.node(page);
    if (node.parent != parent) return broken(page, "is a child of two parents");
    for (const PageId below : {node.less, node.greater}) {
      if (below != kNoPage && cache.has(below) && cache.node(below).hash > node.hash) {
        return broken(below, "has a greater hash than the sibling above it");
      }
    }
    if (previous != kNoPage && !comes_before(cache, previous, page)) {
      return broken(page, "is not greater than the sibling before it");
    }
    previous = page;
    page = node.greater;
  }
  return {};
}

Status check_trees(const PrefixCacheState& cache) {
  std::int32_t left = cache.stats.pages;
  Status status = check_siblings(cache, kNoPage, left);
  for (PageId page = 0; status.ok() && page < cache.pool->spec.num_pages; ++page) {
    if (cache.has(page)) status = check_siblings(cache, page, left);
  }
  if (!status.ok() || left == 0) return status;
  return failure(ErrorCode::kInternal, "[prefix_cache] check: {} pages are nobody's children",
                 left);
}

// The heap holds those pages that it should, none later than its key says, each where it says.
template <typename Belongs, typename Key>
Status check_heap(const PrefixCacheState& cache, const PageHeap& heap, Belongs belongs,
                  Key key) noexcept {
  std::int32_t members = 0;
  for (PageId page = 0; page < cache.pool->spec.num_pages; ++page) {
    const bool should = cache.has(page) && belongs(cache.node(page));
    if (should != heap.contains(page)) {
      return broken(page, should ? "cannot be evicted" : "can be evicted though it is no leaf");
    }
    if (should) ++members;
  }
  if (heap.num_parked() != 0 || heap.size() != members) {
    return failure(ErrorCode::kInternal, "[prefix_cache] check: {} pages in a heap of {}", members,
                   heap.size());
  }
  for (std::int32_t position = 0; position < heap.size(); ++position) {
    const PageHeap::Entry& entry = heap.at(position);
    if (heap.position(entry.page) != position)
      return broken(entry.page, "is elsewhere in the heap");
    if (entry.key > key(cache.node(entry.page))) return broken(entry.page, "would go too late");
    if (position > 0 && heap.at((position - 1) / 2).key > entry.key) {
      return broken(entry.page, "is too low in the heap");
    }
  }
  return {};
}

Status check_heaps(const PrefixCacheState& cache) noexcept {
  const auto leaf = [](const Node& node) { return node.num_children == 0; };
  const auto mortal_leaf = [](const Node& node) {
    return node.num_children == 0 && node.time_to_live != Retention::kForever;
  };
  Status status = check_heap(cache, cache.by_worth, leaf,
                             [&cache](const Node& node) { return cache.worth(node); });
  if (!status.ok()) return status;
  return check_heap(cache, cache.by_expiry, mortal_leaf,
                    [&cache](const Node& node) { return cache.expiry_key(node); });
}

}  // namespace

Status PrefixCache::check() const noexcept {
  try {
    Status status = state_->pool->check();
    if (status.ok()) status = check_nodes(*state_);
    if (status.ok()) status = check_buckets(*state_);
    if (status.ok()) status = check_trees(*state_);
    if (status.ok()) status = check_heaps(*state_);
    return status;
  } catch (const std::exception&) {
    return failure(ErrorCode::kOutOfMemory,
                   "[prefix_cache] check: expected memory for a count of each page, got none");
  }
}

}  // namespace v0
}  // namespace quire
