// SPDX-License-Identifier: Apache-2.0
// Which pages leave a prefix cache, and when.
#include <algorithm>

#include "cache/prefix_cache_state.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

std::int64_t PrefixCacheState::expiry(const Node& of) const noexcept {
  if (of.time_to_live == Retention::kForever) return kEnd;
  return of.last_time > kEnd - of.time_to_live ? kEnd : of.last_time + of.time_to_live;
}

void PrefixCacheState::enlist(NodeId leaf) noexcept {
  const Node& of = node(leaf);
  at(of.tier).by_worth.push(of.page, worth(of));
  if (of.time_to_live != Retention::kForever) at(of.tier).by_expiry.push(of.page, expiry_key(of));
}

void PrefixCacheState::delist(NodeId id) noexcept {
  at(node(id).tier).by_worth.remove(node(id).page);
  at(node(id).tier).by_expiry.remove(node(id).page);
}

// The higher priority and the longer time count; those of an expired page no longer do.
void PrefixCacheState::retain(NodeId id, const Retention& retention) noexcept {
  Node& kept = node(id);
  const bool listed = at(kept.tier).by_worth.contains(kept.page);
  if (listed) delist(id);
  if (expired(kept)) {
    kept.priority = retention.priority;
    kept.time_to_live = retention.time_to_live;
  } else {
    const bool forever =
        kept.time_to_live == Retention::kForever || retention.time_to_live == Retention::kForever;
    kept.priority = std::max(kept.priority, retention.priority);
    kept.time_to_live =
        forever ? Retention::kForever : std::max(kept.time_to_live, retention.time_to_live);
  }
  if (listed) enlist(id);
}

// Leaves that may not go are set aside until the end of the eviction.
NodeId PrefixCacheState::next_expired(PageTier tier) noexcept {
  PageHeap& heap = at(tier).by_expiry;
  while (!heap.empty()) {
    const NodeId id = at(tier).node_of(heap.top().page);
    if (heap.top().key != expiry_key(node(id))) {
      heap.raise_top(expiry_key(node(id)));
    } else if (!expired(node(id))) {
      break;
    } else if (held(id) || node(id).has_children()) {
      heap.set_top_aside();
    } else {
      return id;
    }
  }
  return kNoNode;
}

NodeId PrefixCacheState::least_wanted(PageTier tier) noexcept {
  PageHeap& heap = at(tier).by_worth;
  while (!heap.empty()) {
    const NodeId id = at(tier).node_of(heap.top().page);
    if (heap.top().key != worth(node(id))) {
      heap.raise_top(worth(node(id)));
    } else if (held(id)) {
      heap.set_top_aside();
    } else {
      return id;
    }
  }
  return kNoNode;
}

void PrefixCacheState::put_back() noexcept {
  for (TierState& tier : tiers) {
    tier.by_worth.put_back();
    tier.by_expiry.put_back();
  }
}

PrefixEvent PrefixCacheState::event_of(PrefixEvent::Kind kind, NodeId id) const noexcept {
  const Node& of = node(id);
  PrefixEvent event{kind, of.name_space, of.page, kNoPage, tokens_of(id), of.tier};
  if (of.parent != kNoNode) {
    event.parent = node(of.parent).page;
    event.parent_tier = node(of.parent).tier;
  }
  return event;
}

void PrefixCacheState::announce(const PrefixEvent& event) noexcept {
  if (listener == nullptr) return;
  announcing = true;
  listener->on_event(event);
  announcing = false;
}

void PrefixCacheState::announce(PrefixEvent::Kind kind, NodeId id) noexcept {
  if (listener != nullptr) announce(event_of(kind, id));
}

void PrefixCacheState::remove_and_announce(NodeId id) noexcept {
  // The tokens stay where they are until the node is used again.
  const PrefixEvent event = event_of(PrefixEvent::Kind::kRemoved, id);
  remove(id);
  announce(event);
}

void PrefixCacheState::remove_with_host_children(NodeId top) noexcept {
  NodeId id = top;
  while (id != kNoNode) {
    const NodeId child = node(id).children[index_of(PageTier::kHost)];
    if (child != kNoNode) {
      id = child;
      continue;
    }
    const NodeId parent = id == top ? kNoNode : node(id).parent;
    if (id != top) ++stats.host_evicted;
    remove_and_announce(id);
    id = parent;
  }
}

std::int32_t PrefixCacheState::evict(std::int32_t count) noexcept {
  std::int32_t evicted = 0;
  while (evicted < count) {
    NodeId id = next_expired(PageTier::kDevice);
    if (id == kNoNode) id = least_wanted(PageTier::kDevice);
    if (id == kNoNode) break;
    remove_with_host_children(id);
    ++evicted;
  }
  put_back();
  stats.evicted += evicted;
  return evicted;
}

std::int32_t PrefixCacheState::evict_expired(PageTier tier) noexcept {
  std::int32_t evicted = 0;
  for (NodeId id = next_expired(tier); id != kNoNode; id = next_expired(tier)) {
    remove_and_announce(id);
    ++evicted;
  }
  put_back();
  (tier == PageTier::kDevice ? stats.evicted : stats.host_evicted) += evicted;
  return evicted;
}

// Marks what is held and what that keeps in the index; the rest can be evicted.
std::int32_t PrefixCacheState::count_evictable(std::span<const std::int32_t> dropped,
                                               bool once_retired) noexcept {
  ++last_mark;
  std::int32_t marked = 0;
  for (PageId page = 0; page < pool->spec.num_pages; ++page) {
    const std::int32_t gone = (dropped.empty() ? 0 : dropped[static_cast<std::size_t>(page)]) +
                              (once_retired ? pool->page(page).transfers : 0);
    const NodeId held_node = node_of(page);
    if (held_node == kNoNode ||
        (node(held_node).leases == 0 && pool->page(page).refs - gone <= 1)) {
      continue;
    }
    for (NodeId id = held_node; id != kNoNode && node(id).mark != last_mark; id = node(id).parent) {
      node(id).mark = last_mark;
      ++marked;
    }
  }
  return stats.pages - marked;
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
