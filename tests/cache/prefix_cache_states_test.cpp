// SPDX-License-Identifier: Apache-2.0
// All states that a small prefix cache can be in, with the sequences and the lease that hold its
// pages. From the empty one every call is made, then from each new state again, until no new one
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

struct World {
  std::int32_t num_pages = 0;
  std::size_t max_seqs = 0;
  bool with_lease = false;
  std::size_t states = 0;  // expected

  friend std::ostream& operator<<(std::ostream& out, const World& world) {
    return out << world.num_pages << " pages of 2, " << world.max_seqs << " sequences"
               << (world.with_lease ? ", a lease" : "");
  }
};

struct Op {
  enum class Kind { kStart, kPublish, kDestroy, kLease, kRelease, kEvict, kErase };
  Kind kind = Kind::kEvict;
  std::size_t n = 0;  // prompt, sequence or namespace
};

/// A cache, a table and what the device would hold.
class SmallCache {
 public:
  explicit SmallCache(const World& world)
      : world_(world),
        pool_({.num_pages = world.num_pages, .page_size = 2}),
        table_(pool_,
               {.max_seqs = static_cast<std::int32_t>(world.max_seqs), .max_tokens_per_seq = 4}),
        cache_(pool_),
        contents_(static_cast<std::size_t>(2 * world.num_pages), -1),
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
      EXPECT_TRUE(std::ranges::equal(tokens, on_page(page).first(tokens.size())));
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
    cache_.evict(world_.num_pages);
    EXPECT_EQ(pool_.num_free(), world_.num_pages);
    EXPECT_EQ(cache_.stats().pages, 0);
  }

  /// The pages of the index from the last used on, then the sequences, then the lease.
  [[nodiscard]] Canonical canonical() {
    auto& state = internal::TestAccess::state(cache_);
    std::vector<PageId> names;
    for (PageId page = 0; page < world_.num_pages; ++page) {
      if (cache_.contains(page)) names.push_back(page);
    }
    std::ranges::sort(names, std::greater(), [this](PageId page) { return node(page).last_use; });
    Canonical text;
    const auto name = [&names](PageId page) {
      if (page == kNoPage) return kNoPage;
      const auto found = std::ranges::find(names, page);
      const auto place = static_cast<std::int32_t>(found - names.begin());
      if (found == names.end()) names.push_back(page);
      return place;
    };
    for (std::size_t i = 0; i < static_cast<std::size_t>(state.stats.pages); ++i) {
      const auto& of = node(names[i]);
      text.push_back(static_cast<std::int32_t>(of.name_space));
      text.push_back(name(parent_of(names[i])));
      text.push_back(of.leases);
      const auto tokens = cache_.tokens(names[i]);
      text.insert(text.end(), tokens.begin(), tokens.end());
      text.push_back(kSeparator);
    }
    for (const Seq& seq : seqs_) {
      if (seq.prompt != nullptr) {
        text.push_back(static_cast<std::int32_t>(seq.prompt - kPrompts.data()));
        for (const PageId page : table_.pages(seq.id)) text.push_back(name(page));
      }
      text.push_back(kSeparator);
    }
    text.push_back(lease_.num_tokens());
    if (leased_ != nullptr) text.push_back(static_cast<std::int32_t>(leased_ - kPrompts.data()));
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

  // As an engine does: look up, adopt, append the rest, copy, write.
  void start(const Prompt& prompt) {
    const auto place = std::ranges::find(seqs_, nullptr, &Seq::prompt);
    const PrefixLease found = cache_.match(prompt.name_space, prompt.tokens);
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
  PrefixCache cache_;
  std::vector<std::int32_t> contents_;
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
                         testing::Values(World{3, 1, true, 1830}, World{3, 2, false, 2169},
                                         World{4, 1, true, 5229}));

}  // namespace
}  // namespace quire::test
