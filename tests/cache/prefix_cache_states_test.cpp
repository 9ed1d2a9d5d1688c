// SPDX-License-Identifier: Apache-2.0
// All states that a small prefix cache can be in, with the sequences and the lease that hold its
// pages, and the host tier with its copies in flight. From the empty one every call is made, then from each new state again, until no new one
// turns up. States that differ in the names of pages only count once; the order of use counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <iostream>
#include <ostream>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "cache/prefix_cache_state.hpp"
#include "cache/test_access.hpp"
#include "quire/page_table.hpp"
#include "quire/prefix_cache.hpp"

namespace quire::test {
namespace {

using Canonical = std::vector<std::int32_t>;
using Tokens = std::vector<std::int32_t>;

constexpr std::int32_t kSeparator = -2;

struct Prompt {
  std::uint64_t name_space = 0;
  Tokens tokens;
};

const std::vector<Prompt> kPrompts = {
    {0, {7}}, {0, {7, 7}}, {0, {7, 8}}, {0, {7, 7, 8}}, {1, {7, 7}}};

const PrefixCacheSpec kAlwaysWorthIt = {.costs = {.transfer_seconds = 0}};

struct World {
  std::int32_t num_pages = 0;
  std::size_t max_seqs = 0;
  bool with_lease = false;
  std::int32_t host_pages = 0;
  std::size_t states = 0;  // expected

  friend std::ostream& operator<<(std::ostream& out, const World& world) {
    return out << world.num_pages << " pages of 2, " << world.max_seqs << " sequences"
               << (world.with_lease ? ", a lease" : "") << ", " << world.host_pages
               << " pages of the host";
  }
};

struct Op {
  enum class Kind {
    kStart,
    kPublish,
    kDestroy,
    kLease,
    kRelease,
    kEvict,
    kErase,
    kOffload,
    kFetch,
    kRetire
  };
  Kind kind = Kind::kEvict;
  std::size_t n = 0;  // prompt, sequence, namespace or plan
};

/// A cache, a table and what the device would hold.
class SmallCache {
 public:
  explicit SmallCache(const World& world)
      : world_(world),
        pool_({.num_pages = world.num_pages, .page_size = 2}),
        table_(pool_,
               {.max_seqs = static_cast<std::int32_t>(world.max_seqs), .max_tokens_per_seq = 4}),
        host_({.num_pages = std::max(world.host_pages, 1), .page_size = 2}),
        cache_(world.host_pages > 0 ? PrefixCache(pool_, host_, kAlwaysWorthIt)
                                    : PrefixCache(pool_)),
        contents_(static_cast<std::size_t>(2 * world.num_pages), -1),
        host_contents_(static_cast<std::size_t>(2 * world.host_pages), -1),
        seqs_(world.max_seqs) {}

  [[nodiscard]] std::vector<Op> ops() const {
    std::vector<Op> ops = {{Op::Kind::kEvict, 0}, {Op::Kind::kErase, 0}, {Op::Kind::kErase, 1}};
    for (std::size_t prompt = 0; prompt < kPrompts.size(); ++prompt) {
      ops.push_back({Op::Kind::kStart, prompt});
      if (world_.with_lease && leased_ == nullptr) ops.push_back({Op::Kind::kLease, prompt});
    }
    for (std::size_t seq = 0; seq < seqs_.size(); ++seq) {
      if (seqs_[seq].prompt == nullptr) continue;
      ops.push_back({Op::Kind::kPublish, seq});
      ops.push_back({Op::Kind::kDestroy, seq});
    }
    if (leased_ != nullptr) ops.push_back({Op::Kind::kRelease, 0});
    if (world_.host_pages == 0) return ops;
    ops.push_back({Op::Kind::kOffload, 0});
    for (std::size_t prompt = 0; prompt < kPrompts.size(); ++prompt) {
      ops.push_back({Op::Kind::kFetch, prompt});
    }
    for (std::size_t plan = 0; plan < plans_.size(); ++plan) {
      ops.push_back({Op::Kind::kRetire, plan});
    }
    return ops;
  }

  void apply(const Op& op) {
    switch (op.kind) {
      case Op::Kind::kStart:
        return start(kPrompts[op.n]);
      case Op::Kind::kPublish:
        return publish(seqs_[op.n]);
      case Op::Kind::kDestroy:
        EXPECT_TRUE(table_.destroy(seqs_[op.n].id).ok());
        seqs_[op.n] = {};
        return;
      case Op::Kind::kLease:
        lease_ = cache_.match(kPrompts[op.n].name_space, kPrompts[op.n].tokens);
        leased_ = lease_.num_pages() > 0 ? &kPrompts[op.n] : nullptr;
        return;
      case Op::Kind::kRelease:
        lease_.release();
        leased_ = nullptr;
        return;
      case Op::Kind::kEvict: {
        const std::int32_t evictable = naive_evictable();
        EXPECT_EQ(cache_.evictable_pages(), evictable);
        EXPECT_EQ(cache_.evict(1), std::min(evictable, 1));
        return;
      }
      case Op::Kind::kErase:
        cache_.erase(op.n);
        return;
      case Op::Kind::kOffload:
        return offload();
      case Op::Kind::kFetch:
        return fetch(kPrompts[op.n]);
      case Op::Kind::kRetire:
        return retire(op.n);
    }
  }

  /// What must hold in every state.
  void verify() {
    EXPECT_TRUE(cache_.check().ok()) << cache_.check().message();
    EXPECT_TRUE(table_.check().ok()) << table_.check().message();
    for (const Seq& seq : seqs_) {
      for (std::size_t i = 0; seq.prompt != nullptr && i < seq.prompt->tokens.size(); ++i) {
        const std::int64_t slot = table_.slot(seq.id, static_cast<std::int32_t>(i));
        EXPECT_EQ(contents_[static_cast<std::size_t>(slot)], seq.prompt->tokens[i]);
      }
    }
    for (PageId page = 0; page < world_.num_pages; ++page) {
      const auto tokens = cache_.tokens(page);
      if (is_written_to(PageTier::kDevice, page)) continue;
      EXPECT_TRUE(std::ranges::equal(tokens, on_page(page).first(tokens.size())));
    }
    auto& state = internal::TestAccess::state(cache_);
    for (PageId page = 0; page < world_.host_pages; ++page) {
      const internal::NodeId id = state.at(PageTier::kHost).node_of(page);
      if (id == internal::kNoNode || is_written_to(PageTier::kHost, page)) continue;
      const auto tokens = state.tokens_of(id);
      EXPECT_TRUE(std::ranges::equal(tokens, on_host_page(page).first(tokens.size())));
    }
    verify_lease();
    for (const Prompt& prompt : kPrompts) {
      EXPECT_EQ(cache_.match_length(prompt.name_space, prompt.tokens), naive_match(prompt));
    }
  }

  /// Once nobody holds a page, all of them can be free again.
  void expect_drains() {
    lease_.release();
    for (const Seq& seq : seqs_) {
      EXPECT_TRUE(seq.prompt == nullptr || table_.destroy(seq.id).ok());
    }
    while (!plans_.empty()) retire(plans_.size() - 1);
    cache_.evict(world_.num_pages);
    cache_.evict_host(world_.host_pages);
    EXPECT_EQ(pool_.num_free(), world_.num_pages);
    EXPECT_EQ(host_.num_free(), host_.spec().num_pages);
    EXPECT_EQ(cache_.stats().pages + cache_.stats().host_pages, 0);
  }

  /// The pages of the index from the last used on, then the sequences, the lease and the copies in
  /// flight.
  [[nodiscard]] Canonical canonical() {
    auto& state = internal::TestAccess::state(cache_);
    std::vector<internal::NodeId> ids;
    for (std::size_t id = 0; id < state.nodes.size(); ++id) {
      if (state.nodes[id].num_tokens > 0) ids.push_back(static_cast<internal::NodeId>(id));
    }
    std::ranges::sort(ids, std::greater(),
                      [&state](internal::NodeId id) { return state.node(id).last_use; });
    Canonical text;
    std::vector<std::pair<PageTier, PageId>> names;
    const auto name = [&names](PageTier tier, PageId page) {
      const std::pair key(tier, page);
      const auto found = std::ranges::find(names, key);
      const auto place = static_cast<std::int32_t>(found - names.begin());
      if (found == names.end()) names.push_back(key);
      return place;
    };
    for (const internal::NodeId id : ids) name(state.node(id).tier, state.node(id).page);
    for (const internal::NodeId id : ids) {
      const auto& of = state.node(id);
      text.push_back(static_cast<std::int32_t>(of.name_space));
      text.push_back(static_cast<std::int32_t>(of.tier));
      text.push_back(static_cast<std::int32_t>(std::ranges::find(ids, of.parent) - ids.begin()));
      text.push_back(of.leases);
      const auto tokens = state.tokens_of(id);
      text.insert(text.end(), tokens.begin(), tokens.end());
      text.push_back(kSeparator);
    }
    for (const Seq& seq : seqs_) {
      if (seq.prompt != nullptr) {
        text.push_back(static_cast<std::int32_t>(seq.prompt - kPrompts.data()));
        for (const PageId page : table_.pages(seq.id)) {
          text.push_back(name(PageTier::kDevice, page));
        }
      }
      text.push_back(kSeparator);
    }
    text.push_back(lease_.num_tokens());
    if (leased_ != nullptr) text.push_back(static_cast<std::int32_t>(leased_ - kPrompts.data()));
    for (const TransferPlan& plan : plans_) {
      text.push_back(kSeparator);
      for (const CopyOp& op : plan.offloads) {
        text.push_back(name(PageTier::kDevice, op.src));
        text.push_back(name(PageTier::kHost, op.dst));
      }
      text.push_back(kSeparator);
      for (const CopyOp& op : plan.fetches) {
        text.push_back(name(PageTier::kHost, op.src));
        text.push_back(name(PageTier::kDevice, op.dst));
      }
    }
    return text;
  }

 private:
  [[nodiscard]] const internal::PrefixCacheState::Node& node(PageId page) {
    auto& state = internal::TestAccess::state(cache_);
    return state.node(state.node_of(page));
  }
  [[nodiscard]] PageId parent_of(PageId page) {
    const internal::NodeId parent = node(page).parent;
    if (parent == internal::kNoNode) return kNoPage;
    return internal::TestAccess::state(cache_).node(parent).page;
  }

  struct Seq {
    SeqId id;
    const Prompt* prompt = nullptr;
  };

  [[nodiscard]] std::span<std::int32_t> on_page(PageId page) {
    return std::span(contents_).subspan(static_cast<std::size_t>(2 * page), 2);
  }

  [[nodiscard]] std::span<std::int32_t> on_host_page(PageId page) {
    return std::span(host_contents_).subspan(static_cast<std::size_t>(2 * page), 2);
  }
  [[nodiscard]] bool is_written_to(PageTier tier, PageId page) const {
    return std::ranges::any_of(plans_, [&](const TransferPlan& plan) {
      const auto& ops = tier == PageTier::kHost ? plan.offloads : plan.fetches;
      return std::ranges::any_of(ops, [page](const CopyOp& op) { return op.dst == page; });
    });
  }

  // What may leave does, unless what hangs on it is on its way to a host that has no room.
  void offload() {
    const std::int32_t evictable = naive_evictable();
    const std::int32_t free = pool_.num_free();
    TransferPlan plan;
    const std::int32_t gone = cache_.offload(1, plan).value();
    EXPECT_TRUE(gone == std::min(evictable, 1) || !plans_.empty());
    EXPECT_EQ(pool_.num_free() - free, gone - static_cast<std::int32_t>(plan.offloads.size()));
    if (!plan.empty()) plans_.push_back(plan);
  }

  void fetch(const Prompt& prompt) {
    const HostMatch there = cache_.match_host(prompt.name_space, prompt.tokens);
    const std::int32_t length = naive_match(prompt);
    TransferPlan plan;
    const Result<std::int32_t> fetched = cache_.fetch(prompt.name_space, prompt.tokens, plan);
    EXPECT_EQ(fetched.ok(), there.pages <= pool_.num_free() + std::ssize(plan.fetches));
    if (fetched.ok()) {
      EXPECT_GE(naive_match(prompt), there.pages > 0 ? there.tokens : length);
    }
    if (!plan.empty()) plans_.push_back(plan);
  }

  // The copies run as late as they may.
  void retire(std::size_t index) {
    const TransferPlan plan = plans_[index];
    plans_.erase(plans_.begin() + static_cast<std::ptrdiff_t>(index));
    for (const CopyOp& op : plan.offloads) {
      std::ranges::copy(on_page(op.src).first(static_cast<std::size_t>(op.tokens)),
                        on_host_page(op.dst).begin());
    }
    for (const CopyOp& op : plan.fetches) {
      std::ranges::copy(on_host_page(op.src).first(static_cast<std::size_t>(op.tokens)),
                        on_page(op.dst).begin());
    }
    EXPECT_EQ(cache_.retire(plan.ticket), std::ssize(plan.offloads) + std::ssize(plan.fetches));
  }

  // As an engine does: look up, adopt, append the rest, copy, write.
  void start(const Prompt& prompt) {
    const auto place = std::ranges::find(seqs_, nullptr, &Seq::prompt);
    const PrefixLease found = cache_.match(prompt.name_space, prompt.tokens);
    while (found.pending() != 0) {
      retire(static_cast<std::size_t>(
          std::ranges::find(plans_, found.pending(), &TransferPlan::ticket) - plans_.begin()));
    }
    const Result<SeqId> id = found.num_pages() > 0 ? cache_.adopt(found, table_) : table_.create();
    EXPECT_EQ(id.ok(), place != seqs_.end());
    if (!id.ok()) return;
    std::vector<CopyOp> copies;
    const auto size = static_cast<std::int32_t>(prompt.tokens.size());
    const std::int32_t needed = table_.pages_needed(*id, size - found.num_tokens());
    const bool fits = needed <= pool_.num_free();
    const Status status = table_.append(*id, size - found.num_tokens(), copies);
    EXPECT_EQ(status.ok(), fits);
    if (!status.ok()) {
      EXPECT_TRUE(table_.destroy(*id).ok());
      return;
    }
    for (const CopyOp& copy : copies) {  // from the first token on: nobody accepts a tree here
      std::ranges::copy(on_page(copy.src).first(static_cast<std::size_t>(copy.tokens)),
                        on_page(copy.dst).begin());
    }
    for (std::int32_t i = found.num_tokens(); i < size; ++i) {
      contents_[static_cast<std::size_t>(table_.slot(*id, i))] =
          prompt.tokens[static_cast<std::size_t>(i)];
    }
    *place = {*id, &prompt};
  }

  // A page may be in the index for fewer tokens than the sequence has on it: erased, then published
  // again by a sequence that had adopted a part of it. Then the longer one is refused.
  void publish(const Seq& seq) {
    const Prompt& prompt = *seq.prompt;
    const auto size = static_cast<std::int32_t>(prompt.tokens.size());
    const std::int32_t found = naive_match(prompt);
    const std::span<const PageId> pages = table_.pages(seq.id);
    const auto known = found == size ? pages.size() : static_cast<std::size_t>(found / 2);
    const bool in_the_way = std::ranges::any_of(
        pages.subspan(known), [this](PageId page) { return cache_.contains(page); });
    const Canonical before = canonical();
    const Status status = cache_.publish(prompt.name_space, table_, seq.id, prompt.tokens).status();
    EXPECT_EQ(status.ok(), !in_the_way) << status.message();
    EXPECT_TRUE(status.ok() ? naive_match(prompt) == size : canonical() == before);
  }

  void verify_lease() {
    if (leased_ == nullptr) return;
    std::vector<PageId> pages(static_cast<std::size_t>(lease_.num_pages()));
    lease_.copy_pages(pages);
    for (std::int32_t i = 0; i < lease_.num_tokens(); ++i) {
      const PageId page = pages[static_cast<std::size_t>(i / 2)];
      EXPECT_TRUE(cache_.contains(page));
      if (is_written_to(PageTier::kDevice, page)) continue;
      EXPECT_EQ(on_page(page)[static_cast<std::size_t>(i % 2)],
                leased_->tokens[static_cast<std::size_t>(i)]);
    }
  }

  [[nodiscard]] Tokens prefix_of(PageId page) {
    const PageId parent = parent_of(page);
    Tokens prefix = parent == kNoPage ? Tokens() : prefix_of(parent);
    const auto tokens = cache_.tokens(page);
    prefix.insert(prefix.end(), tokens.begin(), tokens.end());
    return prefix;
  }

  [[nodiscard]] std::int32_t naive_match(const Prompt& prompt) {
    std::ptrdiff_t longest = 0;
    for (PageId page = 0; page < world_.num_pages; ++page) {
      if (!cache_.contains(page) || node(page).name_space != prompt.name_space) continue;
      const Tokens prefix = prefix_of(page);
      const auto end = std::ranges::mismatch(prefix, prompt.tokens).in1;
      longest = std::max(longest, end - prefix.begin());
    }
    return static_cast<std::int32_t>(longest);
  }

  // Pages of the index that nobody holds, nor any page behind them.
  [[nodiscard]] std::int32_t naive_evictable() {
    std::set<PageId> kept;
    for (PageId id = 0; id < world_.num_pages; ++id) {
      if (!cache_.contains(id)) continue;
      bool held = pool_.ref_count(id) > 1 || node(id).leases > 0;
      for (PageId page = id; held && page != kNoPage; page = parent_of(page)) {
        kept.insert(page);
      }
    }
    return cache_.stats().pages - static_cast<std::int32_t>(kept.size());
  }

  const World& world_;
  PagePool pool_;
  PageTable table_;
  PagePool host_;
  PrefixCache cache_;
  std::vector<std::int32_t> contents_;
  std::vector<std::int32_t> host_contents_;
  std::vector<TransferPlan> plans_;  // that have not retired
  std::vector<Seq> seqs_;
  PrefixLease lease_;
  const Prompt* leased_ = nullptr;
};

SmallCache played(const World& world, const std::vector<Op>& way) {
  SmallCache cache(world);
  for (const Op& op : way) cache.apply(op);
  return cache;
}

class AllPrefixStates : public testing::TestWithParam<World> {};

TEST_P(AllPrefixStates, AgreeWithTheOracle) {
  const World& world = GetParam();
  std::set<Canonical> seen = {SmallCache(world).canonical()};
  std::deque<std::vector<Op>> frontier(1);
  std::size_t transitions = 0;
  std::size_t depth = 0;
  while (!frontier.empty() && !HasFailure()) {
    const std::vector<Op> way = std::move(frontier.front());
    frontier.pop_front();
    depth = way.size();
    for (const Op& op : played(world, way).ops()) {
      SmallCache cache = played(world, way);
      ++transitions;
      cache.apply(op);
      cache.verify();
      if (!seen.insert(cache.canonical()).second) continue;
      frontier.push_back(way);
      frontier.back().push_back(op);
      cache.expect_drains();
    }
  }
  std::cout << world << ": all " << seen.size() << " states, " << transitions << " calls, at most "
            << depth << " calls from the empty cache\n";
  EXPECT_EQ(seen.size(), world.states);
}

INSTANTIATE_TEST_SUITE_P(Worlds, AllPrefixStates,
                         testing::Values(World{3, 1, true, 0, 1830}, World{3, 2, false, 0, 2169},
                                         World{4, 1, true, 0, 5229}, World{2, 1, false, 1, 643},
                                         World{2, 1, true, 2, 15745},
                                         World{3, 1, false, 2, 15587}));

}  // namespace
}  // namespace quire::test
