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

void PrefixCacheState::enlist(PageId leaf) noexcept {
  by_worth.push(leaf, worth(node(leaf)));
  if (node(leaf).time_to_live != Retention::kForever) by_expiry.push(leaf, expiry_key(node(leaf)));
}

void PrefixCacheState::delist(PageId page) noexcept {
  by_worth.remove(page);
  by_expiry.remove(page);
}

// The higher priority and the longer time count; those of an expired page no longer do.
void PrefixCacheState::retain(PageId page, const Retention& retention) noexcept {
  Node& kept = node(page);
  const bool listed = by_worth.contains(page);
  if (listed) delist(page);
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
  if (listed) enlist(page);
}

// Leaves that may not go are set aside until the end of the eviction.
PageId PrefixCacheState::next_expired() noexcept {
  while (!by_expiry.empty()) {
    const PageId page = by_expiry.top().page;
    if (by_expiry.top().key != expiry_key(node(page))) {
      by_expiry.raise_top(expiry_key(node(page)));
    } else if (!expired(node(page))) {
      break;
    } else if (held(page)) {
      by_expiry.park_top();
    } else {
      return page;
    }
  }
  return kNoPage;
}

PageId PrefixCacheState::least_wanted() noexcept {
  while (!by_worth.empty()) {
    const PageId page = by_worth.top().page;
    if (by_worth.top().key != worth(node(page))) {
      by_worth.raise_top(worth(node(page)));
    } else if (held(page)) {
      by_worth.park_top();
    } else {
      return page;
    }
  }
  return kNoPage;
}

void PrefixCacheState::announce(PrefixEvent::Kind kind, PageId page, PageId parent,
                                const PrefixRun& run) noexcept {
  if (listener == nullptr) return;
  announcing = true;
  listener->on_event({kind, run.name_space, page, parent, run.tokens});
  announcing = false;
}

void PrefixCacheState::remove_and_announce(PageId page) noexcept {
  const PrefixRun run =
      run_of(page);  // the tokens stay where they are until the page is used again
  const PageId parent = node(page).parent;
  remove(page);
  announce(PrefixEvent::Kind::kRemoved, page, parent, run);
}

std::int32_t PrefixCacheState::evict(std::int32_t count, bool only_expired) noexcept {
  std::int32_t evicted = 0;
  while (evicted < count) {
    PageId page = next_expired();
    if (page == kNoPage && !only_expired) page = least_wanted();
    if (page == kNoPage) break;
    remove_and_announce(page);
    ++evicted;
  }
  by_worth.unpark();
  by_expiry.unpark();
  stats.evicted += evicted;
  return evicted;
}

// Marks what is held and what that keeps in the index; the rest can be evicted.
std::int32_t PrefixCacheState::count_evictable(std::span<const std::int32_t> dropped) noexcept {
  ++last_mark;
  std::int32_t marked = 0;
  for (PageId id = 0; id < pool->spec.num_pages; ++id) {
    const std::int32_t gone = dropped.empty() ? 0 : dropped[static_cast<std::size_t>(id)];
    if (!has(id) || (node(id).leases == 0 && pool->page(id).refs - gone <= 1)) continue;
    for (PageId page = id; page != kNoPage && node(page).mark != last_mark;
         page = node(page).parent) {
      node(page).mark = last_mark;
      ++marked;
    }
  }
  return stats.pages - marked;
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
