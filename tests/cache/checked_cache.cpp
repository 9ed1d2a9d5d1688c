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
      pool_(pool_spec_),
      table_(pool_, {.max_seqs = kMaxSeqs, .max_tokens_per_seq = kMaxTokens}),
      spec_{.min_partial_tokens = 1 + choose_(3), .hash_seed = index_of(choose_(2))},
      cache_(pool_, spec_),
      contents_(index_of(pool_spec_.num_pages) * index_of(pool_spec_.page_size), -1) {
  cache_.set_listener(this);
}

CheckedCache::~CheckedCache() { cache_.set_listener(nullptr); }

void CheckedCache::require(bool holds, std::source_location where) const {
  if (holds) return;
  throw std::logic_error(
      fmt::format("{}:{}: the oracle says otherwise", where.file_name(), where.line()));
}

void CheckedCache::step() {
  using Call = void (CheckedCache::*)();
  constexpr Call kCalls[] = {
      &CheckedCache::start,           &CheckedCache::start,    &CheckedCache::start,
      &CheckedCache::publish,         &CheckedCache::publish,  &CheckedCache::publish,
      &CheckedCache::publish_own,     &CheckedCache::truncate, &CheckedCache::destroy,
      &CheckedCache::release_lease,   &CheckedCache::evict,    &CheckedCache::evict,
      &CheckedCache::erase,           &CheckedCache::misuse,   &CheckedCache::pass_time,
      &CheckedCache::save_and_restore};
  (this->*kCalls[choose_(std::size(kCalls))])();
  require(!wrong_event_);
  compare();
}

// What leaves must have been next; what comes is noted.
void CheckedCache::on_event(const PrefixEvent& event) noexcept {
  PrefixLease refused = cache_.match(0, {});
  wrong_event_ |= cache_.evict(1) != 0 || cache_.erase(event.name_space) != 0 ||
                  cache_.publish(0, {}, {}).ok() || refused.num_tokens() != 0;
  if (event.kind == PrefixEvent::Kind::kStored) {
    events_.push_back(event);
    wrong_event_ |= evicting_ != Eviction::kNone || !cache_.contains(event.page);
    return;
  }
  const auto found = stored_.find(event.page);
  if (found == stored_.end() || evicting_ == Eviction::kNone || !is_leaf(event.page)) {
    wrong_event_ = true;
    return;
  }
  const Stored gone = found->second;
  wrong_event_ |=
      gone.name_space != event.name_space || gone.parent != event.parent ||
      !std::ranges::equal(event.tokens, std::span(gone.prefix).last(event.tokens.size()));
  stored_.erase(found);  // the page's own reference is gone by now: compare the others with it
  if (evicting_ == Eviction::kErase) return;
  wrong_event_ |= pool_.ref_count(event.page) != 0;
  wrong_event_ |= evicting_ == Eviction::kExpired && expiry(gone) > now_;
  for (const auto& [page, other] : stored_) {
    // Its parent may have become a leaf just now.
    if (page != gone.parent && may_go(page)) wrong_event_ |= goes_before(other, gone);
  }
}

std::vector<std::int32_t> CheckedCache::some_tokens() {
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

// The longest beginning that is on a path of the index, by asking every page.
std::int32_t CheckedCache::longest_match(std::uint64_t name_space,
                                         const std::vector<std::int32_t>& tokens) const {
  std::size_t longest = 0;
  const auto page_size = index_of(pool_spec_.page_size);
  for (const auto& [page, stored] : stored_) {
    if (stored.name_space != name_space) continue;
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
  const std::vector<std::int32_t> tokens = some_tokens();
  const std::int32_t expected = longest_match(name_space, tokens);
  require(cache_.match_length(name_space, tokens) == expected);
  Held held{cache_.match(name_space, tokens), {}};
  require(held.lease.num_tokens() == expected);
  held.pages.resize(index_of(held.lease.num_pages()));
  held.lease.copy_pages(held.pages);
  for (const PageId page : held.pages) require(stored_.at(page).name_space == name_space);
  if (!held.pages.empty()) {
    require(common(stored_.at(held.pages.back()).prefix, tokens) == index_of(expected));
  }
  use(held.pages);
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
  const CopyTensors cache{
      .dst = {contents_.data(), DType::kInt32, {pool_spec_.num_pages, pool_spec_.page_size, 1, 1}}};
  require(execute_copies(Device::cpu(), KvLayout::kNHD, copies, {&cache, 1}).ok());
  for (std::int32_t i = expected; i < expected + rest; ++i) {
    contents_[index_of(table_.slot(seq.id, i))] = tokens[index_of(i)];
  }
  seqs_.back().tokens = tokens;
}

// The page of a whole run; of a partial one the least page that begins with it.
PageId CheckedCache::known_page(std::uint64_t name_space, const std::vector<std::int32_t>& tokens,
                                std::size_t begin, std::size_t end) const {
  const auto page_size = index_of(pool_spec_.page_size);
  PageId least = kNoPage;
  for (const auto& [page, stored] : stored_) {
    const bool same_place = (stored.prefix.size() - 1) / page_size * page_size == begin;
    if (stored.name_space != name_space || !same_place || common(stored.prefix, tokens) < end) {
      continue;
    }
    if (least == kNoPage || stored.prefix < stored_.at(least).prefix) least = page;
  }
  return least;
}

void CheckedCache::expect_publish(std::uint64_t name_space, const std::vector<std::int32_t>& tokens,
                                  const std::vector<PageId>& pages, const Retention& retention,
                                  const std::function<Result<std::int32_t>()>& call) {
  const auto page_size = index_of(pool_spec_.page_size);
  std::vector<PageId> path;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const std::size_t end = std::min((i + 1) * page_size, tokens.size());
    const PageId known = known_page(name_space, tokens, i * page_size, end);
    if (known == kNoPage) break;
    path.push_back(known);
  }
  const std::vector<PageId> added(pages.begin() + std::ssize(path), pages.end());
  std::vector<PageId> unknown;
  std::ranges::copy_if(pages, std::back_inserter(unknown),
                       [&](PageId page) { return !stored_.contains(page); });
  const bool allowed =
      std::set(unknown.begin(), unknown.end()).size() == unknown.size() &&
      std::ranges::none_of(added, [&](PageId page) { return stored_.contains(page); });
  events_.clear();
  const Result<std::int32_t> result = call();
  require(result.ok() == allowed);
  if (!allowed) {
    require(result.status().code() == ErrorCode::kInvalidArgument && events_.empty());
    return;
  }
  require(*result == std::ssize(added) && events_.size() == added.size());
  for (const PageId page : path) {
    Retention& kept = stored_.at(page).retention;
    if (expiry(stored_.at(page)) <= now_) {
      kept = retention;
      continue;
    }
    kept.priority = std::max(kept.priority, retention.priority);
    const bool forever = kept.time_to_live == 0 || retention.time_to_live == 0;
    kept.time_to_live = forever ? 0 : std::max(kept.time_to_live, retention.time_to_live);
  }
  for (std::size_t i = path.size(); i < pages.size(); ++i) {
    const std::size_t end = std::min((i + 1) * page_size, tokens.size());
    const PageId parent = path.empty() ? kNoPage : path.back();
    stored_[pages[i]] = {name_space, {tokens.begin(), tokens.begin() + std::ptrdiff_t(end)},
                         parent,     0,
                         0,          retention};
    const PrefixEvent& event = events_[i - (pages.size() - added.size())];
    require(event.page == pages[i] && event.parent == parent && event.name_space == name_space);
    path.push_back(pages[i]);
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
  const std::vector<std::int32_t> tokens(seq->tokens.begin(), seq->tokens.begin() + n);
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
    contents_[index_of(pages[i / page_size]) * page_size + i % page_size] = tokens[i];
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
  evicting_ = only_expired ? Eviction::kExpired : Eviction::kAny;
  const std::int32_t possible = naive_evictable();
  const std::int32_t free = pool_.num_free();
  const std::int32_t count = choose_(6) - 1;
  const std::int32_t evicted = only_expired ? cache_.evict_expired() : cache_.evict(count);
  evicting_ = Eviction::kNone;
  if (!only_expired) require(evicted == std::clamp(count, 0, possible));
  require(pool_.num_free() == free + evicted);
  for (const auto& [page, stored] : stored_) {
    if (only_expired) require(!may_go(page) || expiry(stored) > now_);
  }
}

void CheckedCache::erase() {
  if (choose_(4) != 0) return;
  const auto name_space = index_of(choose_(kNameSpaces));
  const auto before = std::ssize(stored_);
  evicting_ = Eviction::kErase;
  const std::int32_t erased = cache_.erase(name_space);
  evicting_ = Eviction::kNone;
  require(erased == before - std::ssize(stored_));
  std::set<PageId> kept;
  for (const Held& held : leases_) kept.insert(held.pages.begin(), held.pages.end());
  for (const auto& [page, stored] : stored_) {
    require(stored.name_space != name_space || kept.contains(page));
  }
}

void CheckedCache::pass_time() {
  const std::int64_t now = now_ + choose_(12) - 1;
  cache_.set_time(now);
  now_ = std::max(now_, now);
}

// Elsewhere the same is found, and the same goes first; damage is noticed.
void CheckedCache::save_and_restore() {
  std::vector<std::byte> bytes;
  require(cache_.save(bytes).ok());
  PagePool pool(pool_spec_);
  PrefixCache cache(pool, spec_);
  cache.set_time(now_);
  std::vector<RestoredPage> pages;
  if (choose_(2) == 0) {
    const auto bit = choose_(static_cast<std::int32_t>(bytes.size()) * 8);
    bytes[index_of(bit / 8)] ^= static_cast<std::byte>(1U << (static_cast<unsigned>(bit) % 8U));
    require(cache.restore(bytes, pages).code() == ErrorCode::kInvalidArgument);
    require(pool.num_free() == pool_spec_.num_pages && cache.check().ok());
    return;
  }
  require(cache.restore(bytes, pages).ok() && cache.check().ok());
  require(pages.size() == stored_.size() && cache.stats().pages == std::ssize(stored_));
  for (const RestoredPage& page : pages) {
    const Stored& stored = stored_.at(page.saved);
    require(std::ranges::equal(cache.tokens(page.page), cache_.tokens(page.saved)));
    require(cache.match_length(stored.name_space, stored.prefix) ==
            longest_match(stored.name_space, stored.prefix));
  }
  const std::vector<std::int32_t> tokens = some_tokens();
  require(cache.match_length(0, tokens) == longest_match(0, tokens));
  std::vector<std::byte> again;
  require(cache.save(again).ok() && again.size() == bytes.size());
  require(cache.evict(pool_spec_.num_pages) == std::ssize(pages));
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
  for (const auto& [page, stored] : stored_) {  // the index' own reference is not the caller's
    if (std::ranges::find(own_, page) != own_.end()) continue;
    require(pool_.release(page).code() == ErrorCode::kBadHandle);
  }
  if (const Sequence* const seq = some_seq(); seq != nullptr) {
    std::vector<std::int32_t> more(seq->tokens.size() + 1, 0);
    require(cache_.publish(0, table_, seq->id, more).status().code() ==
            ErrorCode::kInvalidArgument);
  }
}

// The head of a path is used last.
void CheckedCache::use(const std::vector<PageId>& pages) {
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
    stored_.at(*page).last_use = ++clock_;
    stored_.at(*page).last_time = now_;
  }
}

bool CheckedCache::is_held(PageId page) const {
  const auto in = [page](std::span<const PageId> pages) {
    return std::ranges::find(pages, page) != pages.end();
  };
  return in(own_) ||
         std::ranges::any_of(seqs_, [&](const auto& seq) { return in(table_.pages(seq.id)); }) ||
         std::ranges::any_of(leases_, [&](const Held& held) { return in(held.pages); });
}

bool CheckedCache::is_leaf(PageId page) const {
  return std::ranges::none_of(stored_, [page](const auto& it) { return it.second.parent == page; });
}

std::int64_t CheckedCache::expiry(const Stored& stored) const {
  const std::int64_t ttl = stored.retention.time_to_live;
  return ttl == 0 ? kEnd : stored.last_time + ttl;
}

bool CheckedCache::goes_before(const Stored& a, const Stored& b) const {
  const bool a_expired = expiry(a) <= now_;
  const bool b_expired = expiry(b) <= now_;
  if (a_expired || b_expired) {
    return a_expired && (!b_expired || expiry(a) < expiry(b));
  }
  return std::pair(a.retention.priority, a.last_use) < std::pair(b.retention.priority, b.last_use);
}

std::int32_t CheckedCache::naive_evictable() const {
  std::set<PageId> staying;
  for (const auto& [id, stored] : stored_) {
    if (!is_held(id)) continue;
    for (PageId page = id; page != kNoPage; page = stored_.at(page).parent) staying.insert(page);
  }
  return static_cast<std::int32_t>(std::ssize(stored_) - std::ssize(staying));
}

void CheckedCache::compare() {
  const Status cache_check = cache_.check();
  if (!cache_check.ok()) throw std::logic_error(std::string(cache_check.message()));
  const Status table_check = table_.check();
  if (!table_check.ok()) throw std::logic_error(std::string(table_check.message()));
  require(cache_.stats().pages == std::ssize(stored_));
  require(cache_.evictable_pages() == naive_evictable());
  const auto page_size = index_of(pool_spec_.page_size);
  for (const auto& [page, stored] : stored_) {  // what is written on the pages is what they say
    const std::span<const std::int32_t> tokens = cache_.tokens(page);
    require(std::ranges::equal(tokens, std::span(stored.prefix).last(tokens.size())));
    require(std::ranges::equal(
        tokens, std::span(contents_).subspan(index_of(page) * page_size, tokens.size())));
    require(cache_.match_length(stored.name_space, stored.prefix) ==
            longest_match(stored.name_space, stored.prefix));
  }
  for (const Sequence& seq : seqs_) {
    require(table_.length(seq.id) == std::ssize(seq.tokens));
    for (std::size_t i = 0; i < seq.tokens.size(); ++i) {
      const std::int64_t slot = table_.slot(seq.id, static_cast<std::int32_t>(i));
      require(contents_[index_of(slot)] == seq.tokens[i]);
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
