// SPDX-License-Identifier: Apache-2.0
#include "cache/checked_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace quire::test {
namespace {

constexpr std::int32_t kMaxTokens = 24;
constexpr std::int32_t kMaxSeqs = 5;
constexpr std::int32_t kNameSpaces = 2;
constexpr std::int32_t kAlphabet = 2;
constexpr std::int64_t kEnd = std::numeric_limits<std::int64_t>::max();

std::size_t index_of(std::int64_t value) { return static_cast<std::size_t>(value); }

std::size_t common(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  return index_of(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace

CheckedCache::CheckedCache(Choose choose)
    : choose_(std::move(choose)),
      pool_spec_{.num_pages = 3 + choose_(14), .page_size = 1 + choose_(4)},
      host_spec_{.num_pages = 1 + choose_(12), .page_size = pool_spec_.page_size},
      has_host_(choose_(2) == 0),
      pool_(pool_spec_),
      host_(host_spec_),
      table_(pool_, {.max_seqs = kMaxSeqs, .max_tokens_per_seq = kMaxTokens}),
      spec_{.min_partial_tokens = 1 + choose_(3),
            .hash_seed = index_of(choose_(2)),
            .costs = {.bytes_per_token = 1.0,
                      .link_bytes_per_second = 1.0 + choose_(3),
                      .transfer_seconds = 0.5 * choose_(4),
                      .prefill_tokens_per_second = 1.25}},
      cache_(has_host_ ? PrefixCache(pool_, host_, spec_) : PrefixCache(pool_, spec_)) {
  const std::int32_t page_size = pool_spec_.page_size;
  contents_[0].assign(index_of(pool_spec_.num_pages) * index_of(page_size), -1);
  contents_[1].assign(index_of(host_spec_.num_pages) * index_of(page_size), -1);
  cache_.set_listener(this);
}

CheckedCache::~CheckedCache() { cache_.set_listener(nullptr); }

void CheckedCache::require(bool holds, std::source_location where) const {
  if (holds) return;
  throw std::logic_error(
      fmt::format("{}:{}: the oracle says otherwise", where.file_name(), where.line()));
}

void CheckedCache::forbid(bool wrong, std::source_location where) {
  if (wrong && !is_wrong_) wrong_event_ = where;
  is_wrong_ = is_wrong_ || wrong;
}

void CheckedCache::step() {
  using Step = void (CheckedCache::*)();
  constexpr Step kSteps[] = {
      &CheckedCache::start,         &CheckedCache::start,       &CheckedCache::start,
      &CheckedCache::publish,       &CheckedCache::publish,     &CheckedCache::publish,
      &CheckedCache::publish_own,   &CheckedCache::truncate,    &CheckedCache::destroy,
      &CheckedCache::release_lease, &CheckedCache::evict,       &CheckedCache::erase,
      &CheckedCache::misuse,        &CheckedCache::pass_time,   &CheckedCache::save_and_restore,
      &CheckedCache::offload,       &CheckedCache::offload,     &CheckedCache::fetch,
      &CheckedCache::fetch,         &CheckedCache::retire_some, &CheckedCache::evict_host};
  (this->*kSteps[choose_(std::size(kSteps))])();
  calling_ = Call::kNone;
  require(!is_wrong_, wrong_event_);
  require(arrived_.page == kNoPage);
  gone_from_host_.clear();
  host_has_lost_ = false;
  if (!copies_.empty() && choose_(4) == 0) {  // a copy may run at any time
    execute(copies_[index_of(choose_(static_cast<std::int32_t>(copies_.size())))]);
  }
  compare();
  compare_tiers();
}

std::span<std::int32_t> CheckedCache::on_page(Place place) {
  const auto page_size = index_of(pool_spec_.page_size);
  return std::span(contents_[static_cast<std::size_t>(place.tier)])
      .subspan(index_of(place.page) * page_size, page_size);
}

CheckedCache::Tokens CheckedCache::some_tokens() {
  std::vector<std::int32_t> tokens(index_of(choose_(kMaxTokens + 1)));
  const std::int32_t change = choose_(kMaxTokens + 1);  // prompts differ from here on
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = i < index_of(change) ? 0 : choose_(kAlphabet) - 1;
  }
  return tokens;
}

CheckedCache::Sequence* CheckedCache::some_seq() {
  if (seqs_.empty()) return nullptr;
  return &seqs_[index_of(choose_(static_cast<std::int32_t>(seqs_.size())))];
}

// The longest beginning that is on a path of the index on the device, by asking every page.
std::int32_t CheckedCache::longest_match(std::uint64_t name_space, const Tokens& tokens) const {
  std::size_t longest = 0;
  const auto page_size = index_of(pool_spec_.page_size);
  for (const auto& [place, stored] : stored_) {
    if (stored.name_space != name_space || place.tier != PageTier::kDevice) continue;
    const std::size_t same = common(stored.prefix, tokens);
    const std::size_t begin = (stored.prefix.size() - 1) / page_size * page_size;
    const bool worth_it = same >= begin + index_of(spec_.min_partial_tokens);
    if (same == begin + page_size || worth_it) longest = std::max(longest, same);
  }
  return static_cast<std::int32_t>(longest);
}

// A request comes in: what is there is shared, the rest gets pages and is written.
void CheckedCache::start() {
  const auto name_space = index_of(choose_(kNameSpaces));
  const Tokens tokens = some_tokens();
  const std::int32_t expected = longest_match(name_space, tokens);
  require(cache_.match_length(name_space, tokens) == expected);
  const OnHost on_host = naive_host(name_space, tokens);
  Held held{cache_.match(name_space, tokens), {}};
  require(held.lease.num_tokens() == expected);
  held.pages.resize(index_of(held.lease.num_pages()));
  held.lease.copy_pages(held.pages);
  std::vector<Place> path;
  for (const PageId page : held.pages) {
    path.push_back({PageTier::kDevice, page});
    require(stored_.at(path.back()).name_space == name_space);
  }
  if (!path.empty()) {
    require(common(stored_.at(path.back()).prefix, tokens) == index_of(expected));
  }
  use(on_host.path);
  use(path);
  const auto is_pending = [&] {
    return std::ranges::any_of(path, [&](Place place) { return is_written_to(place); });
  };
  require((held.lease.pending() != 0) == is_pending());
  while (held.lease.pending() != 0) retire(held.lease.pending());  // before anything is read
  require(!is_pending());
  Sequence seq{{}, name_space, {tokens.begin(), tokens.begin() + expected}};
  const Result<SeqId> made =
      held.pages.empty() ? table_.create() : cache_.adopt(held.lease, table_);
  require(made.ok() == (seqs_.size() < kMaxSeqs));
  if (choose_(3) == 0 && leases_.size() < 4) leases_.push_back(std::move(held));
  if (!made.ok()) return;
  seq.id = *made;
  require(table_.length(seq.id) == expected);
  seqs_.push_back(seq);
  std::vector<CopyOp> copies;
  const auto rest = static_cast<std::int32_t>(tokens.size()) - expected;
  if (!table_.append(seq.id, rest, copies).ok()) return;
  const CopyTensors cache{.dst = {contents_[0].data(),
                                  DType::kInt32,
                                  {pool_spec_.num_pages, pool_spec_.page_size, 1, 1}}};
  require(execute_copies(Device::cpu(), KvLayout::kNHD, copies, {&cache, 1}).ok());
  for (std::int32_t i = expected; i < expected + rest; ++i) {
    contents_[0][index_of(table_.slot(seq.id, i))] = tokens[index_of(i)];
  }
  seqs_.back().tokens = tokens;
}

// The page of a whole run; of a partial one the least page that begins with it. On the device.
PageId CheckedCache::known_page(std::uint64_t name_space, const Tokens& tokens, std::size_t begin,
                                std::size_t end) const {
  const auto page_size = index_of(pool_spec_.page_size);
  PageId least = kNoPage;
  for (const auto& [place, stored] : stored_) {
    const bool same_place = (stored.prefix.size() - 1) / page_size * page_size == begin;
    if (stored.name_space != name_space || !same_place || place.tier != PageTier::kDevice ||
        common(stored.prefix, tokens) < end) {
      continue;
    }
    if (least == kNoPage || stored.prefix < stored_.at({PageTier::kDevice, least}).prefix) {
      least = place.page;
    }
  }
  return least;
}

void CheckedCache::expect_publish(std::uint64_t name_space, const Tokens& tokens,
                                  const std::vector<PageId>& pages, const Retention& retention,
                                  const std::function<Result<std::int32_t>()>& call) {
  const auto page_size = index_of(pool_spec_.page_size);
  const auto on_device = [](PageId page) { return Place{PageTier::kDevice, page}; };
  std::vector<Place> path;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const std::size_t end = std::min((i + 1) * page_size, tokens.size());
    const PageId known = known_page(name_space, tokens, i * page_size, end);
    if (known == kNoPage) break;
    path.push_back(on_device(known));
  }
  const std::size_t on_path = path.size();
  std::size_t num_known = on_path;
  const std::vector<PageId> added(pages.begin() + std::ssize(path), pages.end());
  std::vector<PageId> unknown;
  std::ranges::copy_if(pages, std::back_inserter(unknown),
                       [&](PageId page) { return !stored_.contains(on_device(page)); });
  const bool allowed =
      std::set(unknown.begin(), unknown.end()).size() == unknown.size() &&
      std::ranges::none_of(added, [&](PageId page) { return stored_.contains(on_device(page)); });
  events_.clear();
  calling_ = Call::kPublish;
  const Result<std::int32_t> result = call();
  require(result.ok() == allowed);
  if (!allowed) {
    require(result.status().code() == ErrorCode::kInvalidArgument && events_.empty());
    return;
  }
  require(*result == std::ssize(added) && events_.size() == added.size());
  for (std::size_t i = on_path; i < pages.size(); ++i) {
    const std::size_t end = std::min((i + 1) * page_size, tokens.size());
    const Place parent = path.empty() ? Place{} : path.back();
    path.push_back(on_device(pages[i]));
    const PrefixEvent& event = events_[i - on_path];
    require(event.page == pages[i] && event.name_space == name_space);
    require(event.parent == parent.page && event.parent_tier == parent.tier);
    const Stored stored{name_space, {tokens.begin(), tokens.begin() + std::ptrdiff_t(end)},
                        parent,     0,
                        0,          retention};
    const auto [place, is_new] = stored_.try_emplace(path.back(), stored);
    require(place->second.prefix == stored.prefix && place->second.parent == parent);
    require(is_new || num_known == i);
    if (!is_new) ++num_known;  // it has come from the host, and is known like the others
  }
  for (std::size_t i = 0; i < num_known; ++i) {
    Retention& kept = stored_.at(path[i]).retention;
    if (expiry(stored_.at(path[i])) <= now_) {
      kept = retention;
      continue;
    }
    kept.priority = std::max(kept.priority, retention.priority);
    const bool forever = kept.time_to_live == 0 || retention.time_to_live == 0;
    kept.time_to_live = forever ? 0 : std::max(kept.time_to_live, retention.time_to_live);
  }
  use(path);
}

void CheckedCache::publish() {
  const Sequence* const seq = some_seq();
  if (seq == nullptr) return;
  const auto length = static_cast<std::int32_t>(seq->tokens.size());
  const std::int32_t n = choose_(3) == 0 ? choose_(length + 1) : length;
  // The pages of another namespace are refused, unless the tokens are known there too.
  const std::uint64_t name_space =
      choose_(8) == 0 ? index_of(choose_(kNameSpaces)) : seq->name_space;
  const Retention retention{choose_(3), choose_(2) == 0 ? 0 : 1 + choose_(20)};
  const Tokens tokens(seq->tokens.begin(), seq->tokens.begin() + n);
  const std::span<const PageId> held = table_.pages(seq->id);
  const std::size_t count = index_of((n + pool_spec_.page_size - 1) / pool_spec_.page_size);
  expect_publish(name_space, tokens, {held.begin(), held.begin() + std::ptrdiff_t(count)},
                 retention,
                 [&] { return cache_.publish(name_space, table_, seq->id, tokens, retention); });
}

// Pages that a caller holds without a table; sometimes one twice.
void CheckedCache::publish_own() {
  const std::vector<std::int32_t> tokens = some_tokens();
  std::vector<PageId> pages(
      index_of((std::ssize(tokens) + pool_spec_.page_size - 1) / pool_spec_.page_size));
  if (!pool_.allocate(pages).ok()) return;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::size_t page_size = index_of(pool_spec_.page_size);
    on_page({PageTier::kDevice, pages[i / page_size]})[i % page_size] = tokens[i];
  }
  const std::vector<PageId> own = pages;
  if (pages.size() > 1 && choose_(6) == 0) pages.back() = pages.front();
  const auto name_space = index_of(choose_(kNameSpaces));
  expect_publish(name_space, tokens, pages, {},
                 [&] { return cache_.publish(name_space, tokens, pages); });
  if (choose_(2) == 0) {
    require(pool_.release(own).ok());
  } else {
    own_.insert(own_.end(), own.begin(), own.end());
  }
}

void CheckedCache::truncate() {
  Sequence* const seq = some_seq();
  if (seq == nullptr) return;
  const std::int32_t length = choose_(static_cast<std::int32_t>(seq->tokens.size()) + 1);
  require(table_.truncate(seq->id, length).ok());
  seq->tokens.resize(index_of(length));
}

void CheckedCache::destroy() {
  if (Sequence* const seq = some_seq(); seq != nullptr) {
    require(table_.destroy(seq->id).ok());
    seqs_.erase(seqs_.begin() + (seq - seqs_.data()));
  }
  if (own_.empty()) return;
  require(pool_.release(own_.back()).ok());
  own_.pop_back();
}

void CheckedCache::release_lease() {
  if (leases_.empty()) return;
  leases_.erase(leases_.begin() + choose_(static_cast<std::int32_t>(leases_.size())));
}

void CheckedCache::evict() {
  const bool only_expired = choose_(4) == 0;
  calling_ = only_expired ? Call::kExpired : Call::kEvict;
  const std::int32_t possible = naive_evictable();
  const std::int32_t free = pool_.num_free();
  const auto before = std::ssize(stored_);
  const std::int32_t n = choose_(6) - 1;
  const std::int32_t evicted = only_expired ? cache_.evict_expired() : cache_.evict(n);
  if (only_expired) {
    require(before - std::ssize(stored_) == evicted);
    for (const auto& [place, stored] : stored_) require(is_held(place) || !is_dead(place));
  } else {
    require(evicted == std::clamp(n, 0, possible));
    require(pool_.num_free() == free + evicted);
  }
}

void CheckedCache::erase() {
  if (choose_(4) != 0) return;
  const auto name_space = index_of(choose_(kNameSpaces));
  const auto before = std::ssize(stored_);
  calling_ = Call::kErase;
  const std::int32_t erased = cache_.erase(name_space);
  require(erased == before - std::ssize(stored_));
  std::set<Place> kept;
  for (const Held& held : leases_) {
    for (const PageId page : held.pages) kept.insert({PageTier::kDevice, page});
  }
  for (const auto& [place, stored] : stored_) {
    require(stored.name_space != name_space || kept.contains(place));
  }
}

void CheckedCache::pass_time() {
  const std::int64_t now = now_ + choose_(12) - 1;
  cache_.set_time(now);
  now_ = std::max(now_, now);
}

// Elsewhere the same is found; damage is noticed. Of the host as much comes back as there is room for.
void CheckedCache::save_and_restore() {
  std::vector<std::byte> bytes;
  require(cache_.save(bytes).ok());
  PagePool pool(pool_spec_);
  const bool less_host = choose_(3) == 0;
  PagePool host(
      {less_host ? 1 + choose_(host_spec_.num_pages) : host_spec_.num_pages, pool_spec_.page_size});
  PrefixCache cache(pool, host, spec_);
  cache.set_time(now_);
  std::vector<RestoredPage> pages;
  if (choose_(2) == 0) {
    const auto bit = choose_(static_cast<std::int32_t>(bytes.size()) * 8);
    bytes[index_of(bit / 8)] ^= static_cast<std::byte>(1U << (static_cast<unsigned>(bit) % 8U));
    require(cache.restore(bytes, pages).code() == ErrorCode::kInvalidArgument);
    require(pool.num_free() == pool_spec_.num_pages && host.num_free() == host.spec().num_pages);
    require(cache.check().ok());
    return;
  }
  require(cache.restore(bytes, pages).ok() && cache.check().ok());
  const auto on_device = count(PageTier::kDevice);
  require(cache.stats().pages == on_device);
  require(cache.stats().host_pages ==
          std::min<std::ptrdiff_t>(count(PageTier::kHost), host.spec().num_pages));
  require(std::ssize(pages) == on_device + cache.stats().host_pages);
  for (const RestoredPage& page : pages) {
    const Stored& stored = stored_.at({page.tier, page.saved});
    if (page.tier == PageTier::kDevice) {
      require(std::ranges::equal(cache.tokens(page.page), cache_.tokens(page.saved)));
    }
    require(cache.match_length(stored.name_space, stored.prefix) ==
            longest_match(stored.name_space, stored.prefix));
  }
  const Tokens tokens = some_tokens();
  require(cache.match_length(0, tokens) == longest_match(0, tokens));
  if (!less_host && copies_.empty()) {
    require(cache.match_host(0, tokens) == cache_.match_host(0, tokens));
    std::vector<std::byte> again;
    require(cache.save(again).ok() && again.size() == bytes.size());
  }
  require(cache.evict(pool_spec_.num_pages) == on_device);
  cache.evict_host(host_spec_.num_pages);
  require(cache.stats().host_pages == 0 && cache.check().ok());
}

void CheckedCache::misuse() {
  const std::vector<std::int32_t> tokens(index_of(pool_spec_.page_size), 0);
  const PageId unknown = choose_(2) == 0 ? -1 : pool_spec_.num_pages;
  require(cache_.publish(0, tokens, std::vector{unknown}).status().code() == ErrorCode::kBadHandle);
  require(cache_.publish(0, tokens, {}).status().code() == ErrorCode::kInvalidArgument);
  require(cache_.publish(0, table_, {99, 1}, {}).status().code() == ErrorCode::kBadHandle);
  require(cache_.publish(0, {}, {}, {101, 0}).status().code() == ErrorCode::kInvalidArgument);
  require(cache_.publish(0, {}, {}, {0, -1}).status().code() == ErrorCode::kInvalidArgument);
  require(cache_.adopt(PrefixLease(), table_).status().code() == ErrorCode::kBadHandle);
  for (const auto& [place, stored] : stored_) {  // the index' own reference is not the caller's
    if (place.tier == PageTier::kDevice && std::ranges::find(own_, place.page) != own_.end()) {
      continue;
    }
    PagePool& pool = place.tier == PageTier::kDevice ? pool_ : host_;
    require(pool.release(place.page).code() == ErrorCode::kBadHandle);
  }
  if (const Sequence* const seq = some_seq(); seq != nullptr) {
    std::vector<std::int32_t> more(seq->tokens.size() + 1, 0);
    require(cache_.publish(0, table_, seq->id, more).status().code() ==
            ErrorCode::kInvalidArgument);
  }
}

// The head of a path is used last.
void CheckedCache::use(const std::vector<Place>& path) {
  for (auto place = path.rbegin(); place != path.rend(); ++place) {
    stored_.at(*place).last_use = ++clock_;
    stored_.at(*place).last_time = now_;
  }
}

bool CheckedCache::is_held(Place place) const {
  if (in_flight(place)) return true;
  if (place.tier == PageTier::kHost) return false;
  const auto in = [place](std::span<const PageId> pages) {
    return std::ranges::find(pages, place.page) != pages.end();
  };
  return in(own_) ||
         std::ranges::any_of(seqs_, [&](const auto& seq) { return in(table_.pages(seq.id)); }) ||
         std::ranges::any_of(leases_, [&](const Held& held) { return in(held.pages); });
}

bool CheckedCache::is_leaf(Place place, PageTier tier) const {
  return std::ranges::none_of(
      stored_, [=](const auto& it) { return it.second.parent == place && it.first.tier == tier; });
}

std::int64_t CheckedCache::expiry(const Stored& stored) const {
  const std::int64_t ttl = stored.retention.time_to_live;
  return ttl == 0 ? kEnd : stored.last_time + ttl;
}

bool CheckedCache::is_dead(Place place) const {
  return expiry(stored_.at(place)) <= now_ && is_leaf(place, PageTier::kDevice) &&
         is_leaf(place, PageTier::kHost);
}

bool CheckedCache::goes_before(Place a, Place b) const {
  const Stored& first = stored_.at(a);
  const Stored& second = stored_.at(b);
  if (is_dead(a) || is_dead(b)) {
    return is_dead(a) && (!is_dead(b) || expiry(first) < expiry(second));
  }
  return std::pair(first.retention.priority, first.last_use) <
         std::pair(second.retention.priority, second.last_use);
}

std::int32_t CheckedCache::naive_evictable() const {
  std::set<Place> staying;
  for (const auto& [held, stored] : stored_) {
    if (held.tier != PageTier::kDevice || !is_held(held)) continue;
    for (Place place = held; place.page != kNoPage; place = stored_.at(place).parent) {
      staying.insert(place);
    }
  }
  return static_cast<std::int32_t>(count(PageTier::kDevice) - std::ssize(staying));
}

std::ptrdiff_t CheckedCache::count(PageTier tier) const {
  return std::ranges::count_if(stored_, [=](const auto& it) { return it.first.tier == tier; });
}

void CheckedCache::compare() {
  const Status cache_check = cache_.check();
  if (!cache_check.ok()) throw std::logic_error(std::string(cache_check.message()));
  const Status table_check = table_.check();
  if (!table_check.ok()) throw std::logic_error(std::string(table_check.message()));
  require(cache_.stats().pages == count(PageTier::kDevice));
  require(cache_.stats().host_pages == count(PageTier::kHost));
  require(cache_.evictable_pages() == naive_evictable());
  for (const auto& [place, stored] : stored_) {  // what is written on the pages is what they say
    if (place.tier == PageTier::kDevice) {
      const std::span<const std::int32_t> tokens = cache_.tokens(place.page);
      require(std::ranges::equal(tokens, std::span(stored.prefix).last(tokens.size())));
    }
    const auto size = (stored.prefix.size() - 1) % index_of(pool_spec_.page_size) + 1;
    require(is_written_to(place) ||
            std::ranges::equal(on_page(place).first(size), std::span(stored.prefix).last(size)));
    require(cache_.match_length(stored.name_space, stored.prefix) ==
            longest_match(stored.name_space, stored.prefix));
  }
  for (const Sequence& seq : seqs_) {
    require(table_.length(seq.id) == std::ssize(seq.tokens));
    for (std::size_t i = 0; i < seq.tokens.size(); ++i) {
      const std::int64_t slot = table_.slot(seq.id, static_cast<std::int32_t>(i));
      require(contents_[0][index_of(slot)] == seq.tokens[i]);
    }
  }
  for (const Held& held : leases_) {
    std::vector<PageId> pages(held.pages.size());
    held.lease.copy_pages(pages);
    require(pages == held.pages);
    for (const PageId page : pages) require(cache_.contains(page));
  }
}

}  // namespace quire::test
