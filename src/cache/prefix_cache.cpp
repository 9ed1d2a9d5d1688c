// SPDX-License-Identifier: Apache-2.0
#include "quire/prefix_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "cache/failure.hpp"
#include "cache/page_table_state.hpp"
#include "cache/prefix_cache_state.hpp"
#include "cache/prefix_hash.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

PrefixCacheState::TierState::TierState(std::shared_ptr<PagePoolState> pages_of)
    : pool(std::move(pages_of)),
      nodes(pool ? pool->pages.size() : 0, kNoNode),
      by_worth(pool ? pool->spec.num_pages : 0),
      by_expiry(pool ? pool->spec.num_pages : 0) {
  if (pool) ++pool->num_caches;
}

PrefixCacheState::TierState::~TierState() {
  for (std::size_t page = 0; page < nodes.size(); ++page) {
    if (nodes[page] != kNoNode) pool->unindex(static_cast<PageId>(page));
  }
  if (pool) --pool->num_caches;
}

PrefixCacheState::PrefixCacheState(std::shared_ptr<PagePoolState> pages_of,
                                   std::shared_ptr<PagePoolState> host_pages,
                                   const PrefixCacheSpec& cache_spec)
    : tiers{TierState(std::move(pages_of)), TierState(std::move(host_pages))},
      pool(at(PageTier::kDevice).pool),
      spec(cache_spec),
      nodes(at(PageTier::kDevice).nodes.size() + at(PageTier::kHost).nodes.size()),
      tokens(std::make_unique_for_overwrite<std::int32_t[]>(
          nodes.size() * static_cast<std::size_t>(pool->spec.page_size))),
      buckets(std::bit_ceil(nodes.size()), kNoNode),
      seen(pool->pages.size()),
      transfers(has_host() ? pool->pages.size() : 0) {
  for (std::size_t id = 0; id + 1 < nodes.size(); ++id) {
    nodes[id].next_in_bucket = static_cast<NodeId>(id + 1);
  }
}

PrefixCacheState::~PrefixCacheState() {
  while (first_in_flight != kNoPage) {
    retire(transfers[static_cast<std::size_t>(first_in_flight)].ticket);
  }
}

}  // namespace internal

namespace {

using cache::failure;
using internal::kNoNode;
using internal::NodeId;
using internal::PageTableState;
using internal::PrefixCacheState;
using internal::PrefixRun;

// Costs may be infinite, but for what is divided by it.
void check_costs(const TierCosts& costs) {
  const auto require = [](const char* field, double value, bool holds) {
    if (holds) return;
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[prefix_cache] costs.{}: expected a number {} 0, got {}", field,
                            field == std::string_view("transfer_seconds") ? "of at least" : "above",
                            value));
  };
  require("bytes_per_token", costs.bytes_per_token, costs.bytes_per_token > 0);
  require("link_bytes_per_second", costs.link_bytes_per_second, costs.link_bytes_per_second > 0);
  require("transfer_seconds", costs.transfer_seconds, costs.transfer_seconds >= 0);
  require("prefill_tokens_per_second", costs.prefill_tokens_per_second,
          costs.prefill_tokens_per_second > 0);
}

std::shared_ptr<PrefixCacheState> make_state(std::shared_ptr<internal::PagePoolState> pool,
                                             std::shared_ptr<internal::PagePoolState> host,
                                             const PrefixCacheSpec& spec) {
  check_costs(spec.costs);
  if (host == pool) {
    throw Error(ErrorCode::kInvalidArgument,
                "[prefix_cache] host: expected another pool than the device's, got that one");
  }
  if (host && host->spec.page_size != pool->spec.page_size) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[prefix_cache] host: expected pages of {} tokens, got pages of {}",
                            pool->spec.page_size, host->spec.page_size));
  }
  const std::int64_t most = std::int64_t{pool->spec.num_pages} + (host ? host->spec.num_pages : 0);
  if (most > std::numeric_limits<std::int32_t>::max()) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("[prefix_cache] host: expected at most 2^31 - 1 pages in both pools, got {}",
                    most));
  }
  if (spec.min_partial_tokens < 1) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[prefix_cache] min_partial_tokens: expected at least 1, got {}",
                            spec.min_partial_tokens));
  }
  try {
    return std::make_shared<PrefixCacheState>(std::move(pool), std::move(host), spec);
  } catch (const std::bad_alloc&) {  // bad_array_new_length included
    throw Error(
        ErrorCode::kOutOfMemory,
        fmt::format("[prefix_cache] expected memory for an index of {} pages, got none", most));
  }
}

std::size_t pages_for(std::size_t tokens, std::int32_t page_size) noexcept {
  const auto size = static_cast<std::size_t>(page_size);
  return tokens / size + (tokens % size != 0 ? 1 : 0);
}

// The part of a prefix that stands on its page `index`.
PrefixRun run_at(const PrefixRun& prefix, std::size_t index, std::int32_t page_size) noexcept {
  const auto size = static_cast<std::size_t>(page_size);
  const std::span<const std::int32_t> rest = prefix.tokens.subspan(index * size);
  return {prefix.name_space, rest.first(std::min(rest.size(), size))};
}

Status check_retention(const Retention& retention) noexcept {
  if (retention.priority < 0 || retention.priority > Retention::kMaxPriority) {
    return failure(ErrorCode::kInvalidArgument,
                   "[prefix_cache] publish: expected a priority in [0, {}], got {}",
                   Retention::kMaxPriority, retention.priority);
  }
  if (retention.time_to_live < 0) {
    return failure(ErrorCode::kInvalidArgument,
                   "[prefix_cache] publish: expected a time to live of at least 0, got {}",
                   retention.time_to_live);
  }
  return {};
}

Status no_call_by_listener(const char* call) noexcept {
  return failure(ErrorCode::kInvalidArgument,
                 "[prefix_cache] {}: expected a call from outside of the listener", call);
}

// Every page must be in use.
Status check_pages(const PrefixCacheState& cache, std::span<const PageId> pages,
                   std::size_t num_tokens) noexcept {
  const std::size_t expected = pages_for(num_tokens, cache.page_size());
  if (pages.size() != expected) {
    return failure(ErrorCode::kInvalidArgument,
                   "[prefix_cache] publish: expected {} pages for {} tokens, got {}", expected,
                   num_tokens, pages.size());
  }
  for (const PageId page : pages) {
    if (cache.pool->has(page) && cache.pool->page(page).refs > 0) continue;
    return failure(ErrorCode::kBadHandle,
                   "[prefix_cache] publish: expected pages in use, got page {} ({})", page,
                   cache.pool->has(page) ? "free" : "unknown");
  }
  return {};
}

// The pages from `known` on must not be in an index yet, no page twice in the call. `clock` is this
// call's alone.
Status check_new_pages(PrefixCacheState& cache, std::span<const PageId> pages,
                       std::size_t known) noexcept {
  for (std::size_t index = 0; index < pages.size(); ++index) {
    const PageId page = pages[index];
    if (index >= known && cache.pool->page(page).indexed) {
      return failure(
          ErrorCode::kInvalidArgument,
          "[prefix_cache] publish: expected new pages, got page {}, which is in an index "
          "for other tokens",
          page);
    }
    if (cache.node_of(page) != internal::kNoNode) continue;
    if (cache.seen[static_cast<std::size_t>(page)] == cache.clock) {
      return failure(ErrorCode::kInvalidArgument,
                     "[prefix_cache] publish: expected different pages, got page {} twice", page);
    }
    cache.seen[static_cast<std::size_t>(page)] = cache.clock;
  }
  return {};
}

// The part of a prefix that the index knows on the device: whole pages, and perhaps one that begins with
// the rest.
struct Known {
  PrefixCacheState::Path path;
  NodeId rest = kNoNode;

  [[nodiscard]] NodeId last() const noexcept { return rest != kNoNode ? rest : path.last; }
  [[nodiscard]] std::size_t pages() const noexcept {
    return static_cast<std::size_t>(path.pages) + (rest != kNoNode ? 1 : 0);
  }
};

Known find_known(const PrefixCacheState& cache, const PrefixRun& prefix) noexcept {
  Known known{cache.find_path(prefix)};
  const auto whole = static_cast<std::size_t>(known.path.pages);
  if (whole + 1 != pages_for(prefix.tokens.size(), cache.page_size())) return known;
  const PrefixRun run = run_at(prefix, whole, cache.page_size());
  const PrefixCacheState::Closest closest =
      cache.closest_child(known.path.last, PageTier::kDevice, run);
  if (std::cmp_equal(closest.common, run.tokens.size())) known.rest = closest.node;
  return known;
}

// Counts as a use of what is known; the first page of all gets the clock `first_use`.
void use_known(PrefixCacheState& cache, const Known& known, std::uint64_t first_use,
               const Retention& retention) noexcept {
  NodeId id = known.last();
  for (std::size_t index = known.pages(); index-- > 0; id = cache.node(id).parent) {
    cache.retain(id, retention);
    cache.use(id, first_use - index);
  }
}

// Puts the pages behind what is known into the index. First those that are on the host: the page that was
// computed again takes the place of that one.
void store(PrefixCacheState& cache, const Known& known, const PrefixRun& prefix,
           std::span<const PageId> pages, std::uint64_t first_use,
           const Retention& retention) noexcept {
  NodeId parent = known.path.last;
  std::uint64_t hash = known.path.hash;
  std::size_t first_new = known.pages();
  for (std::size_t index = known.pages(); index < pages.size(); ++index) {
    const PrefixRun run = run_at(prefix, index, cache.page_size());
    hash = cache::hash_run(hash, run.tokens);
    NodeId id = first_new == index ? cache.find(parent, hash, run) : kNoNode;
    if (id != kNoNode) {
      cache.replace(id, pages[index]);
      cache.retain(id, retention);
      ++first_new;
    } else {
      id = cache.insert(pages[index], parent, hash, run);
      cache.node(id).priority = retention.priority;
      cache.node(id).time_to_live = retention.time_to_live;
    }
    cache.use(id, first_use - index);
    parent = id;
  }
  if (first_new < pages.size()) cache.enlist(parent);
  for (const PageId page : pages.subspan(first_new)) {
    cache.announce(PrefixEvent::Kind::kStored, cache.node_of(page));
  }
}

}  // namespace

PrefixListener::~PrefixListener() = default;

PrefixCache::PrefixCache(PagePool& pool, const PrefixCacheSpec& spec)
    : state_(make_state(pool.state_, nullptr, spec)) {}
PrefixCache::PrefixCache(PagePool& pool, PagePool& host, const PrefixCacheSpec& spec)
    : state_(make_state(pool.state_, host.state_, spec)) {}
PrefixCache::PrefixCache(std::shared_ptr<PrefixCacheState> state) noexcept
    : state_(std::move(state)) {}
PrefixCache::PrefixCache(PrefixCache&&) noexcept = default;
PrefixCache& PrefixCache::operator=(PrefixCache&&) noexcept = default;
PrefixCache::~PrefixCache() = default;

const PrefixCacheSpec& PrefixCache::spec() const noexcept { return state_->spec; }
PrefixCacheStats PrefixCache::stats() const noexcept { return state_->stats; }
std::int32_t PrefixCache::num_free_pages() const noexcept { return state_->pool->num_free; }

PrefixLease PrefixCache::match(std::uint64_t name_space,
                               std::span<const std::int32_t> tokens) noexcept {
  PrefixCacheState& cache = *state_;
  PrefixLease lease;
  if (cache.announcing) return lease;
  const PrefixRun prefix{name_space, cache::countable(tokens)};
  // A use for each page that could be found, and one for a partial page of each tier.
  cache.clock += pages_for(prefix.tokens.size(), cache.page_size()) + 2;
  const PrefixCacheState::Path path = cache.use_path(prefix, cache.clock);
  const PrefixCacheState::Closest partial = cache.partial_match(path, prefix);
  if (partial.node != kNoNode) {
    cache.use(partial.node, cache.clock - static_cast<std::uint64_t>(path.pages));
  }
  if (const PrefixCacheState::HostPart host = cache.host_part(path, prefix); host.partial) {
    cache.use(host.last, cache.clock - static_cast<std::uint64_t>(path.pages + host.pages));
  }
  lease.node_ = partial.node != kNoNode ? partial.node : path.last;
  lease.num_tokens_ = path.pages * cache.page_size() + partial.common;
  ++cache.stats.lookups;
  cache.stats.asked_tokens += static_cast<std::int64_t>(prefix.tokens.size());
  cache.stats.hit_tokens += lease.num_tokens_;
  if (lease.node_ == kNoNode) return lease;
  lease.state_ = state_;
  ++cache.node(lease.node_).leases;
  ++cache.stats.leases;
  return lease;
}

std::int32_t PrefixCache::match_length(std::uint64_t name_space,
                                       std::span<const std::int32_t> tokens) const noexcept {
  const PrefixRun prefix{name_space, cache::countable(tokens)};
  const PrefixCacheState::Path path = state_->find_path(prefix);
  return path.pages * state_->page_size() + state_->partial_match(path, prefix).common;
}

Result<SeqId> PrefixCache::adopt(const PrefixLease& lease, PageTable& table) const noexcept {
  PageTableState& rows = *table.state_;
  if (lease.state_ != state_ || rows.pool != state_->pool) {
    return failure(ErrorCode::kBadHandle,
                   "[prefix_cache] adopt: expected a lease of this cache and a table on its pool");
  }
  if (lease.num_tokens_ > rows.spec.max_tokens_per_seq) {
    return failure(ErrorCode::kTooLong,
                   "[prefix_cache] adopt: expected at most {} tokens in a sequence, got {}",
                   rows.spec.max_tokens_per_seq, lease.num_tokens_);
  }
  if (rows.first_free_slot == PageTableState::kNoSlot) {
    return failure(ErrorCode::kQueueFull,
                   "[prefix_cache] adopt: expected a free sequence slot, got {} of {} in use",
                   rows.num_live, rows.spec.max_seqs);
  }
  const SeqId seq = rows.take_slot(lease.num_tokens_);
  const auto slot = static_cast<std::int32_t>(seq.slot);
  lease.copy_pages({rows.row(slot), static_cast<std::size_t>(lease.num_pages())});
  for (const PageId page : rows.pages(slot)) state_->pool->add_ref(page);
  return seq;
}

Result<std::int32_t> PrefixCache::publish(std::uint64_t name_space,
                                          std::span<const std::int32_t> tokens,
                                          std::span<const PageId> pages,
                                          const Retention& retention) noexcept {
  PrefixCacheState& cache = *state_;
  const PrefixRun prefix{name_space, tokens};
  if (cache.announcing) return no_call_by_listener("publish");
  Status status = check_retention(retention);
  if (status.ok()) status = check_pages(cache, pages, tokens.size());
  if (!status.ok()) return status;

  const Known known = find_known(cache, prefix);
  const std::span<const PageId> added = pages.subspan(known.pages());
  const std::uint64_t first_use = cache.clock + pages.size() + 1;
  ++cache.clock;
  status = check_new_pages(cache, pages, known.pages());
  if (!status.ok()) return status;

  cache.clock = first_use;
  use_known(cache, known, first_use, retention);
  cache.stats.stored += std::ssize(added);
  store(cache, known, prefix, pages, first_use, retention);
  return static_cast<std::int32_t>(added.size());
}

Result<std::int32_t> PrefixCache::publish(std::uint64_t name_space, const PageTable& table,
                                          SeqId seq, std::span<const std::int32_t> tokens,
                                          const Retention& retention) noexcept {
  const PageTableState& rows = *table.state_;
  const std::int32_t slot = rows.find(seq);
  if (rows.pool != state_->pool || slot == PageTableState::kNoSlot) {
    return failure(ErrorCode::kBadHandle,
                   "[prefix_cache] publish: expected a live sequence of a table on the cache's "
                   "pool, got slot {} of generation {}",
                   seq.slot, seq.generation);
  }
  if (std::cmp_greater(tokens.size(), rows.at(slot).length)) {
    return failure(ErrorCode::kInvalidArgument,
                   "[prefix_cache] publish: expected at most the sequence's {} tokens, got {}",
                   rows.at(slot).length, tokens.size());
  }
  if (rows.at(slot).holes > 0) {
    return failure(
        ErrorCode::kInvalidArgument,
        "[prefix_cache] publish: expected a sequence with all of its pages, got one that "
        "has given its first {} back",
        rows.at(slot).holes);
  }
  return publish(name_space, tokens,
                 rows.pages(slot).first(pages_for(tokens.size(), state_->page_size())), retention);
}

std::int32_t PrefixCache::evict(std::int32_t num_pages) noexcept {
  return state_->announcing ? 0 : state_->evict(num_pages);
}

std::int32_t PrefixCache::evict_expired() noexcept {
  if (state_->announcing) return 0;
  const std::int32_t on_host = state_->evict_expired(PageTier::kHost);
  return on_host + state_->evict_expired(PageTier::kDevice);
}

std::int32_t PrefixCache::erase(std::uint64_t name_space) noexcept {
  PrefixCacheState& cache = *state_;
  if (cache.announcing) return 0;
  std::int32_t erased = 0;
  for (std::size_t start = 0; start < cache.nodes.size(); ++start) {
    auto id = static_cast<NodeId>(start);  // a leaf, then what has become one
    while (id != kNoNode && cache.node(id).num_tokens > 0 &&
           cache.node(id).name_space == name_space && !cache.node(id).has_children() &&
           cache.node(id).leases == 0) {
      const NodeId parent = cache.node(id).parent;
      cache.remove_and_announce(id);
      ++erased;
      id = parent;
    }
  }
  cache.stats.erased += erased;
  return erased;
}

std::int32_t PrefixCache::evictable_pages() const noexcept { return state_->count_evictable({}); }

void PrefixCache::set_time(std::int64_t now) noexcept { state_->now = std::max(state_->now, now); }

bool PrefixCache::contains(PageId page) const noexcept { return state_->node_of(page) != kNoNode; }

std::span<const std::int32_t> PrefixCache::tokens(PageId page) const noexcept {
  const NodeId id = state_->node_of(page);
  if (id == kNoNode) return {};
  return state_->tokens_of(id);
}

void PrefixCache::set_listener(PrefixListener* listener) noexcept { state_->listener = listener; }

}  // namespace v0
}  // namespace quire
