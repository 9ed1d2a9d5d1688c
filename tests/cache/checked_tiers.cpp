// SPDX-License-Identifier: Apache-2.0
// The host tier of the checked cache: what moves, in which order, and when its copies run.
#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <vector>

#include "cache/checked_cache.hpp"

namespace quire::test {
namespace {

std::size_t common(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  return static_cast<std::size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

bool begins_with(const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& prefix) {
  return common(tokens, prefix) == prefix.size();
}

}  // namespace

// What leaves must have been next; what comes is noted.
void CheckedCache::on_event(const PrefixEvent& event) noexcept {
  const PrefixLease refused = cache_.match(0, {});
  TransferPlan plan;
  const Result<std::int32_t> offloaded = cache_.offload(1, plan);
  forbid(cache_.evict(1) != 0 || cache_.erase(event.name_space) != 0 ||
         cache_.publish(0, {}, {}).ok() || refused.num_tokens() != 0 || !offloaded.ok() ||
         *offloaded != 0 || cache_.evict_host(1) != 0 || cache_.retire(1) != 0);
  if (event.kind == PrefixEvent::Kind::kStored) {
    note_stored(event);
  } else {
    note_removed(event);
  }
}

void CheckedCache::note_stored(const PrefixEvent& event) {
  const Place place{event.tier, event.page};
  forbid(stored_.contains(place));
  if (calling_ == Call::kPublish) {
    forbid(event.tier != PageTier::kDevice || !cache_.contains(event.page));
    events_.push_back(event);
  } else if (calling_ == Call::kOffload || calling_ == Call::kFetch) {
    const bool to_host = calling_ == Call::kOffload;
    forbid(arrived_.page != kNoPage || in_flight(place) ||
           event.tier != (to_host ? PageTier::kHost : PageTier::kDevice));
    arrived_ = place;
    // Who went from the host before has made room for it: one, the least wanted, in a full host.
    forbid(gone_from_host_.size() > 1 || !in_order_);
    forbid(gone_from_host_.size() == 1 && host_.num_free() != 0);
    gone_from_host_.clear();
    in_order_ = true;
  } else {
    forbid(true);
  }
}

void CheckedCache::note_removed(const PrefixEvent& event) {
  const Place place{event.tier, event.page};
  const auto found = stored_.find(place);
  if (found == stored_.end()) {
    forbid(true);
    return;
  }
  const Stored gone = found->second;
  forbid(gone.name_space != event.name_space || gone.parent.page != event.parent ||
         gone.parent.tier != event.parent_tier ||
         !std::ranges::equal(event.tokens, std::span(gone.prefix).last(event.tokens.size())));
  const bool replaced = calling_ == Call::kPublish && !events_.empty();
  if (replaced || arrived_.page != kNoPage) {  // it has moved
    const Place to = replaced ? Place{PageTier::kDevice, events_.back().page} : arrived_;
    forbid(to.tier == place.tier || (calling_ == Call::kOffload && !may_go(place)));
    if (calling_ == Call::kOffload) note_victim(place);
    arrived_ = {};
    move(place, to);
    return;
  }
  forbid(calling_ == Call::kNone || calling_ == Call::kFetch || !is_leaf(place, PageTier::kHost) ||
         !is_leaf(place, place.tier));
  if (calling_ == Call::kExpired) forbid(!is_dead(place) || is_held(place));
  if (place.tier == PageTier::kHost && (calling_ == Call::kEvict || calling_ == Call::kOffload)) {
    // It makes room, or goes with the page of the device that it hangs on.
    in_order_ = in_order_ && may_go(place) && std::ranges::none_of(stored_, [&](const auto& it) {
                  return it.first.tier == PageTier::kHost && it.first != place &&
                         may_go(it.first) && goes_before(it.first, place);
                });
    gone_from_host_.push_back(gone);
    host_has_lost_ = true;
    stored_.erase(found);
    return;
  }
  if (calling_ == Call::kEvictHost) note_victim(place);
  if (calling_ == Call::kEvict || calling_ == Call::kOffload) {
    note_victim(place);
    for (const Stored& child : gone_from_host_) {
      forbid(child.name_space != gone.name_space || !begins_with(child.prefix, gone.prefix));
    }
    gone_from_host_.clear();
    in_order_ = true;
  }
  stored_.erase(found);
}

// Nothing in its tier that may go would have gone before. Its parent may have become a leaf just now, and
// what has children on the host may have to wait for them, also if it loses them in this call.
void CheckedCache::note_victim(Place place) {
  forbid(!may_go(place));
  for (const auto& [other, stored] : stored_) {
    if (other.tier != place.tier || other == stored_.at(place).parent || !may_go(other)) continue;
    if (calling_ == Call::kOffload && !is_leaf(other, PageTier::kHost)) continue;
    if (calling_ == Call::kOffload && host_has_lost_ && is_dead(other)) continue;
    forbid(goes_before(other, place));
  }
}

void CheckedCache::move(Place from, Place to) {
  auto moved = stored_.extract(from);
  moved.key() = to;
  stored_.insert(std::move(moved));
  for (auto& [place, stored] : stored_) {
    if (stored.parent == from) stored.parent = to;
  }
}

bool CheckedCache::in_flight(Place place) const {
  return std::ranges::any_of(
      copies_, [=](const Copy& copy) { return copy.src == place || copy.dst == place; });
}

bool CheckedCache::is_written_to(Place place) const {
  return std::ranges::any_of(copies_, [=](const Copy& copy) { return copy.dst == place; });
}

bool CheckedCache::is_worth_it(std::int32_t pages, std::int32_t tokens) const {
  const double bytes = static_cast<double>(pages) * pool_spec_.page_size;
  return bytes / spec_.costs.link_bytes_per_second < tokens / 1.25;
}

// The whole pages on the path, then the child that the prefix ends inside.
CheckedCache::OnHost CheckedCache::naive_host(std::uint64_t name_space,
                                              const Tokens& tokens) const {
  const auto page_size = static_cast<std::size_t>(pool_spec_.page_size);
  OnHost found;
  Place last;
  std::size_t end = 0;
  bool fetchable = true;
  const auto is_child = [&](const auto& it) {
    return it.second.parent == last && it.second.name_space == name_space;
  };
  for (bool further = true; further;) {
    further = false;
    for (const auto& it : stored_) {
      if (!is_child(it) || it.second.prefix.size() != end + page_size ||
          !begins_with(tokens, it.second.prefix)) {
        continue;
      }
      last = it.first;
      end += page_size;
      further = true;
      if (last.tier == PageTier::kDevice) break;
      found.path.push_back(last);
      fetchable = fetchable && !is_written_to(last);
      if (fetchable) {
        ++found.match.pages;
        found.match.tokens += pool_spec_.page_size;
      }
      break;
    }
  }
  std::size_t most = 0;
  Place best;
  for (const auto& it : stored_) {
    if (!fetchable || !is_child(it) || it.first.tier != PageTier::kHost) continue;
    const std::size_t same = common(it.second.prefix, tokens) - end;
    if (same > most || (same == most && most > 0 && it.second.prefix < stored_.at(best).prefix)) {
      most = same;
      best = it.first;
    }
  }
  if (most >= static_cast<std::size_t>(spec_.min_partial_tokens) && !is_written_to(best)) {
    found.path.push_back(best);
    ++found.match.pages;
    found.match.tokens += static_cast<std::int32_t>(most);
  }
  const auto pages = found.match.pages + static_cast<std::int32_t>(copies_.size());
  const double seconds = spec_.costs.transfer_seconds + static_cast<double>(pages) *
                                                            pool_spec_.page_size /
                                                            spec_.costs.link_bytes_per_second;
  found.match.worth_fetching = found.match.pages > 0 && seconds < found.match.tokens / 1.25;
  return found;
}

void CheckedCache::take(const TransferPlan& plan) {
  require(plan.empty() == (plan.ticket == 0));
  const auto add = [&](const std::vector<CopyOp>& ops, PageTier src, PageTier dst) {
    for (const CopyOp& op : ops) {
      require(op.src_begin == 0 && op.dst_begin == 0);
      require(op.tokens ==
              static_cast<std::int32_t>((stored_.at({dst, op.dst}).prefix.size() - 1) %
                                            static_cast<std::size_t>(pool_spec_.page_size) +
                                        1));
      copies_.push_back({plan.ticket, {src, op.src}, {dst, op.dst}, op.tokens});
    }
  };
  add(plan.offloads, PageTier::kDevice, PageTier::kHost);
  add(plan.fetches, PageTier::kHost, PageTier::kDevice);
}

void CheckedCache::offload() {
  TransferPlan plan;
  const std::int32_t possible = naive_evictable();
  const std::int32_t free = pool_.num_free();
  const auto before = cache_.stats();
  const std::int32_t n = choose_(6) - 1;
  calling_ = Call::kOffload;
  const Result<std::int32_t> gone = cache_.offload(n, plan);
  require(gone.ok() && plan.fetches.empty());
  // What has children on their way to a host without room waits for them.
  require(*gone == std::clamp(n, 0, possible) ||
          (*gone < std::clamp(n, 0, possible) && !copies_.empty()));
  const auto moved = static_cast<std::int32_t>(plan.offloads.size());
  require(cache_.stats().offloaded - before.offloaded >= moved);
  require(pool_.num_free() == free + *gone - moved);  // what is read must not be written yet
  require(has_host_ || moved == 0);
  for (const CopyOp& op : plan.offloads) require(is_worth_it(1, op.tokens));
  take(plan);
}

void CheckedCache::fetch() {
  const auto name_space = static_cast<std::size_t>(choose_(2));
  const Tokens tokens = some_tokens();
  const HostMatch expected = naive_host(name_space, tokens).match;
  require(cache_.match_host(name_space, tokens) == expected);
  const std::int32_t free = pool_.num_free();
  const std::int32_t length = cache_.match_length(name_space, tokens);
  TransferPlan plan;
  calling_ = Call::kFetch;
  const Result<std::int32_t> fetched = cache_.fetch(name_space, tokens, plan);
  const bool fits = expected.pages <= free || !expected.worth_fetching;
  require(fetched.ok() == fits && plan.offloads.empty());
  if (!fits) {
    require(fetched.status().code() == ErrorCode::kOutOfPages && plan.empty());
    return;
  }
  const std::int32_t pages = expected.worth_fetching ? expected.pages : 0;
  require(*fetched == pages && std::ssize(plan.fetches) == pages);
  require(pool_.num_free() == free - pages);
  take(plan);
  const std::int32_t now = cache_.match_length(name_space, tokens);
  require(pages == 0 ? now == length : now >= expected.tokens);
}

void CheckedCache::execute(Copy& copy) {
  if (copy.executed) return;
  copy.executed = true;
  const auto tokens = static_cast<std::size_t>(copy.tokens);
  std::ranges::copy(on_page(copy.src).first(tokens), on_page(copy.dst).begin());
}

void CheckedCache::retire(std::uint64_t ticket) {
  std::int32_t flew = 0;
  for (Copy& copy : copies_) {
    if (copy.ticket != ticket) continue;
    execute(copy);
    ++flew;
  }
  require(flew > 0 && cache_.retire(ticket) == flew && cache_.retire(ticket) == 0);
  std::erase_if(copies_, [ticket](const Copy& copy) { return copy.ticket == ticket; });
}

// In any order.
void CheckedCache::retire_some() {
  require(cache_.retire(0) == 0);
  for (std::int32_t n = choose_(4); n > 0 && !copies_.empty(); --n) {
    retire(copies_[static_cast<std::size_t>(choose_(static_cast<std::int32_t>(copies_.size())))]
               .ticket);
  }
}

void CheckedCache::evict_host() {
  const std::int32_t n = choose_(4) - 1;
  const auto before = count(PageTier::kHost);
  const std::int32_t free = host_.num_free();
  calling_ = Call::kEvictHost;
  const std::int32_t evicted = cache_.evict_host(n);
  require(before - count(PageTier::kHost) == evicted && host_.num_free() == free + evicted);
  require(evicted == std::max(n, 0) || std::ranges::none_of(stored_, [this](const auto& it) {
            return it.first.tier == PageTier::kHost && may_go(it.first);
          }));
}

void CheckedCache::compare_tiers() {
  require(cache_.stats().in_flight == std::ssize(copies_));
  std::int32_t parked = 0;
  for (const Copy& copy : copies_) {
    const Place place = copy.src.tier == PageTier::kDevice ? copy.src : copy.dst;
    require(pool_.ref_count(place.page) > 0);
    const auto held = [&](std::span<const PageId> pages) {
      return std::ranges::find(pages, place.page) != pages.end();
    };
    if (!stored_.contains(place) && !held(own_) &&
        std::ranges::none_of(seqs_, [&](const auto& seq) { return held(table_.pages(seq.id)); })) {
      ++parked;
    }
  }
  require(cache_.parked_pages() == parked);
}

}  // namespace quire::test
