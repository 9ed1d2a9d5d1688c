// SPDX-License-Identifier: Apache-2.0
// How the pages of a prefix cache move between the device and the host.
#include <algorithm>
#include <exception>
#include <utility>

#include "cache/failure.hpp"
#include "cache/prefix_cache_state.hpp"
#include "cache/prefix_hash.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

bool PrefixCacheState::worth_offloading(const Node& of) const noexcept {
  return has_host() &&
         spec.costs.link_seconds(page_size()) < spec.costs.recompute_seconds(of.num_tokens);
}

// What is in flight goes first on the link.
bool PrefixCacheState::worth_fetching(const HostPart& part) const noexcept {
  const std::int64_t pages = std::int64_t{part.pages} + stats.in_flight;
  return part.pages > 0 &&
         spec.costs.transfer_seconds + spec.costs.link_seconds(pages * page_size()) <
             spec.costs.recompute_seconds(part.tokens);
}

PageId PrefixCacheState::take_host_page(const Node& leaf) noexcept {
  TierState& host = at(PageTier::kHost);
  if (host.pool->num_free == 0) {
    NodeId victim = next_expired(PageTier::kHost);
    if (victim == kNoNode) {
      victim = least_wanted(PageTier::kHost);
      if (victim == kNoNode) return kNoPage;
      if (!leaf.has_children() && worth(node(victim)) > worth(leaf)) return kNoPage;
    }
    remove_and_announce(victim);
    ++stats.host_evicted;
  }
  return host.pool->take();
}

void PrefixCacheState::track(PageId page, PageId host_page, TransferPlan& plan,
                             bool fetches) noexcept {
  if (plan.ticket == 0) plan.ticket = ++last_ticket;
  at(PageTier::kHost).pool->begin_transfer(host_page);
  transfers[static_cast<std::size_t>(page)] = {plan.ticket, host_page, first_in_flight, fetches};
  first_in_flight = page;
  num_fetching += fetches ? 1 : 0;
  ++stats.in_flight;
}

std::int32_t PrefixCacheState::offload(std::int32_t count, TransferPlan& plan,
                                       Fencing fencing) noexcept {
  const std::size_t first = plan.offloads.size();
  std::int32_t gone = 0;
  while (gone < count) {
    NodeId id = next_expired(PageTier::kDevice);
    const bool is_expired = id != kNoNode;
    if (!is_expired) id = least_wanted(PageTier::kDevice);
    if (id == kNoNode) break;
    const bool wanted = !is_expired && worth_offloading(node(id));
    const PageId host_page = wanted ? take_host_page(node(id)) : kNoPage;
    if (host_page != kNoPage) {
      send(id, host_page, plan, fencing);
    } else if (node(id).has_children() && fencing == Fencing::kTicket) {
      at(PageTier::kDevice).by_worth.set_top_aside();  // until what is behind it has got there
      continue;
    } else {
      remove_with_host_children(id);
      ++stats.evicted;
    }
    ++gone;
  }
  put_back();
  drop_displaced(plan, first, fencing);
  return gone;
}

// The page of the device is held until it is known that its copy is wanted.
void PrefixCacheState::send(NodeId id, PageId host_page, TransferPlan& plan,
                            Fencing fencing) noexcept {
  const PrefixEvent before = event_of(PrefixEvent::Kind::kRemoved, id);
  plan.offloads.push_back({before.page, host_page, node(id).num_tokens});
  if (fencing == Fencing::kTicket) pool->begin_transfer(before.page);
  move(id, PageTier::kHost, host_page);
  at(PageTier::kHost).pool->drop_ref(host_page);  // the index' own is left
  ++stats.offloaded;
  announce(PrefixEvent::Kind::kStored, id);
  announce(before);
}

// Where the host is small, what comes later displaces what came before: its copy is not made.
void PrefixCacheState::drop_displaced(TransferPlan& plan, std::size_t first,
                                      Fencing fencing) noexcept {
  ++last_mark;
  std::size_t kept = plan.offloads.size();
  for (std::size_t i = plan.offloads.size(); i-- > first;) {
    const CopyOp op = plan.offloads[i];
    const NodeId id = at(PageTier::kHost).node_of(op.dst);
    if (id != kNoNode && node(id).mark != last_mark) {
      node(id).mark = last_mark;
      if (fencing == Fencing::kTicket) track(op.src, op.dst, plan, false);
      plan.offloads[--kept] = op;
    } else if (fencing == Fencing::kTicket) {
      pool->end_transfer(op.src);
    }
  }
  const auto begin = plan.offloads.begin();
  plan.offloads.erase(begin + static_cast<std::ptrdiff_t>(first),
                      begin + static_cast<std::ptrdiff_t>(kept));
}

void PrefixCacheState::fetch(const HostPart& part, TransferPlan& plan, Fencing fencing) noexcept {
  const std::size_t first = plan.fetches.size();
  plan.fetches.resize(first + static_cast<std::size_t>(part.pages));
  NodeId id = part.last;
  for (std::size_t i = plan.fetches.size(); i-- > first; id = node(id).parent) {
    plan.fetches[i].src = id;  // for now: the first must move first
  }
  for (std::size_t i = first; i < plan.fetches.size(); ++i) {
    id = plan.fetches[i].src;
    const PrefixEvent before = event_of(PrefixEvent::Kind::kRemoved, id);
    const PageId page = pool->take();
    plan.fetches[i] = {before.page, page, node(id).num_tokens};
    if (fencing == Fencing::kTicket) {
      pool->begin_transfer(page);
      track(page, before.page, plan, true);
    }
    move(id, PageTier::kDevice, page);
    pool->drop_ref(page);  // the index' own is left
    announce(PrefixEvent::Kind::kStored, id);
    announce(before);
  }
  stats.fetched += part.pages;
  stats.fetched_tokens += part.tokens;
}

void PrefixCacheState::replace(NodeId id, PageId page) noexcept {
  const PrefixEvent before = event_of(PrefixEvent::Kind::kRemoved, id);
  move(id, PageTier::kDevice, page);
  announce(PrefixEvent::Kind::kStored, id);
  announce(before);
}

std::int32_t PrefixCacheState::retire(std::uint64_t ticket) noexcept {
  std::int32_t retired = 0;
  PageId* link = &first_in_flight;
  while (*link != kNoPage) {
    const PageId page = *link;
    Transfer& transfer = transfers[static_cast<std::size_t>(page)];
    if (transfer.ticket != ticket) {
      link = &transfer.next;
      continue;
    }
    *link = transfer.next;
    num_fetching -= transfer.fetches ? 1 : 0;
    at(PageTier::kHost).pool->end_transfer(transfer.host);
    transfer = {};
    pool->end_transfer(page);
    ++retired;
  }
  stats.in_flight -= retired;
  return retired;
}

std::int32_t PrefixCacheState::count_parked() const noexcept {
  std::int32_t parked = 0;
  for (PageId page = first_in_flight; page != kNoPage;
       page = transfers[static_cast<std::size_t>(page)].next) {
    if (std::as_const(*pool).page(page).parked()) ++parked;
  }
  return parked;
}

}  // namespace internal

namespace {

using internal::PrefixCacheState;
using internal::PrefixRun;

// All that a plan will hold, before the first change.
Status make_room(std::vector<CopyOp>& copies, std::int32_t more, const char* call) noexcept {
  const std::size_t size = copies.size() + static_cast<std::size_t>(more);
  try {
    if (copies.capacity() < size) copies.reserve(std::max(size, 2 * copies.capacity()));
    return {};
  } catch (const std::exception&) {
    return cache::failure(ErrorCode::kOutOfMemory,
                          "[prefix_cache] {}: expected memory for a copy plan of {} ops, got none",
                          call, size);
  }
}

PrefixCacheState::HostPart host_part_of(const PrefixCacheState& cache, std::uint64_t name_space,
                                        std::span<const std::int32_t> tokens) noexcept {
  const PrefixRun prefix{name_space, cache::countable(tokens)};
  return cache.host_part(cache.find_path(prefix), prefix);
}

}  // namespace

Result<std::int32_t> PrefixCache::offload(std::int32_t num_pages, TransferPlan& plan) noexcept {
  PrefixCacheState& cache = *state_;
  if (cache.announcing || num_pages <= 0) return 0;
  const std::int32_t most = std::min(num_pages, cache.stats.pages);
  if (Status status = make_room(plan.offloads, most, "offload"); !status.ok()) return status;
  return cache.offload(most, plan, PrefixCacheState::Fencing::kTicket);
}

HostMatch PrefixCache::match_host(std::uint64_t name_space,
                                  std::span<const std::int32_t> tokens) const noexcept {
  const PrefixCacheState::HostPart part = host_part_of(*state_, name_space, tokens);
  return {part.tokens, part.pages, state_->worth_fetching(part)};
}

Result<std::int32_t> PrefixCache::fetch(std::uint64_t name_space,
                                        std::span<const std::int32_t> tokens,
                                        TransferPlan& plan) noexcept {
  PrefixCacheState& cache = *state_;
  if (cache.announcing) return 0;
  const PrefixCacheState::HostPart part = host_part_of(cache, name_space, tokens);
  if (part.pages == 0) return 0;
  if (!cache.worth_fetching(part)) {
    cache.stats.declined += part.pages;
    return 0;
  }
  if (part.pages > cache.pool->num_free) {
    return cache::failure(ErrorCode::kOutOfPages,
                          "[prefix_cache] fetch: expected {} free pages, got {}", part.pages,
                          cache.pool->num_free);
  }
  if (Status status = make_room(plan.fetches, part.pages, "fetch"); !status.ok()) return status;
  cache.fetch(part, plan, PrefixCacheState::Fencing::kTicket);
  return part.pages;
}

std::int32_t PrefixCache::retire(std::uint64_t ticket) noexcept {
  return state_->announcing ? 0 : state_->retire(ticket);
}

std::int32_t PrefixCache::evict_host(std::int32_t num_pages) noexcept {
  PrefixCacheState& cache = *state_;
  std::int32_t evicted = 0;
  if (cache.announcing || !cache.has_host()) return 0;
  while (evicted < num_pages) {
    internal::NodeId id = cache.next_expired(PageTier::kHost);
    if (id == internal::kNoNode) id = cache.least_wanted(PageTier::kHost);
    if (id == internal::kNoNode) break;
    cache.remove_and_announce(id);
    ++evicted;
  }
  cache.put_back();
  cache.stats.host_evicted += evicted;
  return evicted;
}

std::int32_t PrefixCache::num_free_host_pages() const noexcept {
  return state_->has_host() ? state_->at(PageTier::kHost).pool->num_free : 0;
}

std::int32_t PrefixCache::parked_pages() const noexcept { return state_->count_parked(); }

}  // namespace v0
}  // namespace quire
