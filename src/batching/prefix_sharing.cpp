// SPDX-License-Identifier: Apache-2.0
// How the requests of a batcher share pages through a prefix cache.
#include <algorithm>
#include <utility>

#include "batching/batcher_state.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

std::span<const std::int32_t> BatcherState::askable(const Place& place) const noexcept {
  if (!place.shares) return {};
  const std::vector<std::int32_t>& tokens = text_of(place).tokens;
  const auto all_but_last = static_cast<std::size_t>(place.known_or_awaited() - 1);
  return std::span(tokens).first(std::min(tokens.size(), all_but_last));
}

BatcherState::Hit BatcherState::find_hit(const Place& place) const noexcept {
  if (!place.shares) return {};
  const PrefixRun prefix{text_of(place).name_space, askable(place)};
  const PrefixCacheState::Path path = prefixes->find_path(prefix);
  if (!windows.empty()) return find_hit_with_windows(path, prefix);
  const PrefixCacheState::Closest partial = prefixes->partial_match(path, prefix);
  const PrefixCacheState::HostPart host = prefixes->host_part(path, prefix);
  Hit hit{path.pages * prefixes->page_size(), path.pages};
  if (host.tokens > partial.common && prefixes->worth_fetching(host)) {
    hit.tokens += host.tokens;
    hit.copied_pages = host.partial ? 1 : 0;
    hit.host_pages = host.pages - hit.copied_pages;
  } else if (partial.node != kNoNode) {
    hit.tokens += partial.common;
    count_page(partial.node, hit);
  }
  for (NodeId id = path.last; id != kNoNode; id = prefixes->node(id).parent) count_page(id, hit);
  return hit;
}

void BatcherState::count_page(NodeId id, Hit& hit) const noexcept {
  if (prefixes->page_of(prefixes->node(id)).refs == 1) ++hit.idle_pages;
  if (!prefixes->is_written(prefixes->node(id))) hit.pending = true;
}

// The longest prefix of whole pages whose window is there in all tables.
BatcherState::Hit BatcherState::find_hit_with_windows(const PrefixCacheState::Path& path,
                                                      const PrefixRun& prefix) const noexcept {
  PrefixCacheState::HostPart host = prefixes->host_part(path, prefix);
  if (host.partial) host = {prefixes->node(host.last).parent, host.pages - 1, 0, false};
  NodeId id = host.pages > 0 ? host.last : path.last;
  std::int32_t pages = path.pages + host.pages;
  for (; id != kNoNode; id = prefixes->node(id).parent, --pages) {
    host = {id, std::max(pages - path.pages, 0), 0, false};
    host.tokens = host.pages * prefixes->page_size();
    const bool reachable = host.pages == 0 || prefixes->worth_fetching(host);
    if (reachable && have_suffix(id)) break;
  }
  if (id == kNoNode) return {};
  Hit hit{pages * prefixes->page_size(), std::min(pages, path.pages)};
  hit.host_pages = pages - hit.whole_pages;
  for (; id != kNoNode; id = prefixes->node(id).parent) {
    if (prefixes->node(id).tier == PageTier::kDevice) count_page(id, hit);
  }
  return hit;
}

// One page less may be idle; that it still counts makes the caller ask for one too many, never too
// few.
BatcherState::Hit BatcherState::without_partial_page(const Hit& hit) const noexcept {
  Hit whole = hit;
  whole.tokens = (hit.whole_pages + hit.host_pages) * table.pool_spec().page_size;
  whole.idle_pages = std::min(hit.idle_pages, hit.whole_pages);
  whole.copied_pages = 0;
  return whole;
}

std::int32_t BatcherState::pin_host_part(const Place& place,
                                         std::span<const std::int32_t> tokens) noexcept {
  if (!prefixes->has_host()) return 0;
  const PrefixRun prefix{text_of(place).name_space, tokens};
  const PrefixCacheState::Path path = prefixes->find_path(prefix);
  const PrefixCacheState::HostPart part = prefixes->host_part(path, prefix);
  const std::int32_t behind =
      static_cast<std::int32_t>(tokens.size()) - path.pages * prefixes->page_size();
  if (part.tokens != behind || part.pages == 0) return 0;
  if (prefixes->partial_match(path, prefix).common == behind) return 0;
  for (NodeId id = path.last; id != kNoNode; id = prefixes->node(id).parent) {
    if (!prefixes->is_written(prefixes->node(id))) return 0;
  }
  for (const NodeId id : {path.last, part.last}) {
    if (id == kNoNode) continue;
    prefixes->pin(id);
    pins.push_back(id);
  }
  return part.pages;
}

std::int32_t BatcherState::shared_tokens(const Place& a, const Place& b) const noexcept {
  if (text_of(a).name_space != text_of(b).name_space) return 0;
  const std::vector<std::int32_t>& tokens = text_of(a).tokens;
  const auto common = std::ranges::mismatch(tokens, askable(b)).in1 - tokens.begin();
  const std::int32_t page_size = table.pool_spec().page_size;
  return static_cast<std::int32_t>(common) / page_size * page_size;
}

std::int64_t BatcherState::available_pages() const noexcept {
  const std::int64_t free_pages = table.num_free_pages();
  if (!prefixes) return free_pages;
  return free_pages +
         (holds_are_mixed() ? prefixes->count_evictable({}) : prefixes->pool->num_idle);
}

std::int64_t BatcherState::pages_once_retired() const noexcept {
  return std::int64_t{table.num_free_pages()} + prefixes->count_parked() +
         prefixes->count_evictable({}, true);
}

void BatcherState::evict_for(std::int64_t pages, TransferPlan& transfers) noexcept {
  const std::int64_t missing = pages - table.num_free_pages();
  if (!cache || missing <= 0) return;
  if (prefixes->announcing) return;
  prefixes->offload(static_cast<std::int32_t>(missing), transfers,
                    PrefixCacheState::Fencing::kOrdered);
}

void BatcherState::evict_sent(TransferPlan& transfers) noexcept {
  for (const CopyOp& op : transfers.offloads) {
    const NodeId id = prefixes->at(PageTier::kHost).node_of(op.dst);
    if (id == kNoNode) continue;
    prefixes->remove_with_host_children(id);
    ++prefixes->stats.host_evicted;
  }
  transfers.clear();
}

// What the lease does not hold is pinned on the host, or has come from there for somebody else just now.
SeqId BatcherState::adopt(const Place& place, std::int32_t tokens, const PrefixLease& lease,
                          TransferPlan& transfers) noexcept {
  if (tokens == 0) return *table.create();
  if (lease.num_tokens() == tokens) return *cache->adopt(lease, table);
  const PrefixRun prefix{text_of(place).name_space,
                         askable(place).first(static_cast<std::size_t>(tokens))};
  const PrefixCacheState::HostPart part = prefixes->host_part(prefixes->find_path(prefix), prefix);
  if (part.pages > 0) prefixes->fetch(part, transfers, PrefixCacheState::Fencing::kOrdered);
  counters.fetched_tokens += part.tokens;
  return *cache->adopt(cache->match(prefix.name_space, prefix.tokens), table);
}

bool BatcherState::is_worth_swapping(const Place& place) const noexcept {
  if (!place.shares || !prefixes->has_host()) return false;
  const auto told = static_cast<std::int32_t>(
      std::min(text_of(place).tokens.size(), static_cast<std::size_t>(place.cached)));
  return prefixes->worth_fetching({.pages = pages_for(told), .tokens = told});
}

// A page that further samples of the prompt share and that is not in the index stays out of it for as
// long. One that the prompt ends in would have to be copied for each of them, even the last one, for
// which there may be no page; and one whose place in the index another page has taken (after an erase)
// would hang on a page that these sequences do not hold.
bool BatcherState::keeps_private(PageId id) const noexcept {
  const PagePoolState::Page& page = sequences.pool->page(id);
  return !page.indexed && page.table_refs() > 1;
}

// Page after page: a walk from the first one would cost O(tokens) each time.
void BatcherState::publish_filled(Place& place, std::int32_t written) noexcept {
  const std::int32_t page_size = table.pool_spec().page_size;
  const Text& text = text_of(place);
  const auto told =
      static_cast<std::int32_t>(std::min(text.tokens.size(), static_cast<std::size_t>(written)));
  const auto slot = static_cast<std::int32_t>(place.seq.slot);
  PageId* const row = sequences.row(slot);
  while (told - place.published * page_size >= page_size) {
    const PageId parent = place.published == 0 ? kNoPage : row[place.published - 1];
    if (parent != kNoPage && prefixes->node_of(parent) == kNoNode) {  // erased meanwhile
      place.published = 0;
      continue;
    }
    const std::span<const std::int32_t> run =
        std::span(text.tokens)
            .subspan(
                static_cast<std::size_t>(place.published) * static_cast<std::size_t>(page_size),
                static_cast<std::size_t>(page_size));
    PageId& page = row[place.published];
    if (keeps_private(page)) return;
    const PageId known = prefixes->extend(parent, {text.name_space, run}, page, text.retention);
    if (known == kNoPage) return;
    if (known != page) {  // somebody else's with the same tokens: one of them is enough
      sequences.edit(slot, place.published);
      prefixes->pool->add_ref(known);
      prefixes->pool->drop_ref(page);
      page = known;
    }
    ++place.published;
  }
}

// Refused only while a listener of the cache is called; then the pages are not shared.
void BatcherState::publish_all(const Place& place) noexcept {
  if (!place.shares) return;
  const Text& text = text_of(place);
  const auto page_size = static_cast<std::size_t>(table.pool_spec().page_size);
  auto told = std::min(text.tokens.size(), static_cast<std::size_t>(place.cached));
  const PageId* const row = sequences.row(static_cast<std::int32_t>(place.seq.slot));
  for (std::size_t index = 0; index * page_size < told; ++index) {
    if (keeps_private(row[index])) told = index * page_size;
  }
  static_cast<void>(cache->publish(text.name_space, table, place.seq,
                                   std::span(text.tokens).first(told), text.retention));
}

BatcherState::Reclaim::~Reclaim() {
  for (std::size_t rank = first_; rank < batcher_.running.size(); ++rank) {
    for (const PageId page : batcher_.pages_of(batcher_.running[rank])) {
      batcher_.dropped[static_cast<std::size_t>(page)] = 0;
    }
  }
}

void BatcherState::Reclaim::add_next() noexcept {
  const PagePoolState& pool = *batcher_.sequences.pool;
  for (const PageId id : batcher_.pages_of(batcher_.running[--first_])) {
    const PagePoolState::Page& page = pool.page(id);
    if (++batcher_.dropped[static_cast<std::size_t>(id)] == page.refs - (page.indexed ? 1 : 0)) {
      ++(page.indexed ? idle_ : freed_);
    }
  }
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
