// SPDX-License-Identifier: Apache-2.0
// A prefix cache with a host tier: what moves when, and what its copies in flight hold.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cache/failing_new.hpp"
#include "cache/prefix_cache_state.hpp"
#include "cache/test_access.hpp"
#include "quire/prefix_cache.hpp"

namespace quire {
namespace {

using test::FailingNew;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Tokens = std::vector<std::int32_t>;

constexpr std::uint64_t kTenant = 7;
constexpr double kNever = std::numeric_limits<double>::infinity();

Tokens counted(std::int32_t from, std::int32_t count) {
  Tokens tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

/// Six pages of four tokens on the device, four on the host, and what is written on them.
class PrefixTiers : public testing::Test {
 protected:
  explicit PrefixTiers(const TierCosts& costs = {}) : cache_(pool_, host_, {.costs = costs}) {}

  /// A sequence of its own that is written, published and ended.
  void serve(const Tokens& tokens, const Retention& retention = {}) {
    const SeqId seq = table_.create().value();
    ASSERT_TRUE(table_.append(seq, static_cast<std::int32_t>(tokens.size()), copies_).ok());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      on_device_[static_cast<std::size_t>(table_.slot(seq, static_cast<std::int32_t>(i)))] =
          tokens[i];
    }
    ASSERT_TRUE(cache_.publish(kTenant, table_, seq, tokens, retention).ok());
    ASSERT_TRUE(table_.destroy(seq).ok());
  }
  void execute(const TransferPlan& plan) {
    const MutableTensorView device{on_device_.data(), DType::kInt32, {6, 4, 1, 1}};
    const MutableTensorView host{on_host_.data(), DType::kInt32, {4, 4, 1, 1}};
    const CopyTensors down{.dst = host, .src = device};
    const CopyTensors up{.dst = device, .src = host};
    for (const auto& [ops, caches] :
         {std::pair(plan.offloads, down), std::pair(plan.fetches, up)}) {
      const Status status = execute_copies(Device::cpu(), KvLayout::kNHD, ops, {&caches, 1});
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }
  /// Everything that can move goes to the host, and has got there.
  void send_all() {
    TransferPlan plan;
    ASSERT_TRUE(cache_.offload(6, plan).ok());
    execute(plan);
    cache_.retire(plan.ticket);
  }
  std::int32_t found(const Tokens& tokens) const { return cache_.match_length(kTenant, tokens); }
  std::int32_t on_host(const Tokens& tokens) const {
    return cache_.match_host(kTenant, tokens).tokens;
  }
  /// What the device would read of a prompt.
  Tokens read(const Tokens& tokens) {
    const PrefixLease lease = cache_.match(kTenant, tokens);
    EXPECT_EQ(lease.pending(), 0U);
    std::vector<PageId> pages(static_cast<std::size_t>(lease.num_pages()));
    lease.copy_pages(pages);
    Tokens text;
    for (const PageId page : pages) {
      const auto* const begin = on_device_.data() + 4 * static_cast<std::ptrdiff_t>(page);
      text.insert(text.end(), begin, begin + 4);
    }
    text.resize(static_cast<std::size_t>(lease.num_tokens()));
    return text;
  }
  void expect_sound() {
    const Status cache = cache_.check();
    EXPECT_TRUE(cache.ok()) << cache.message();
    const Status table = table_.check();
    EXPECT_TRUE(table.ok()) << table.message();
  }

  PagePool pool_{{.num_pages = 6, .page_size = 4}};
  PagePool host_{{.num_pages = 4, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 3, .max_tokens_per_seq = 24}};
  PrefixCache cache_;
  std::vector<CopyOp> copies_;
  Tokens on_device_ = Tokens(24, -1);
  Tokens on_host_ = Tokens(16, -1);
};

TEST_F(PrefixTiers, APromptGoesToTheHostAndComesBackAsItWas) {
  serve(counted(0, 10));
  send_all();
  EXPECT_EQ(pool_.num_free(), 6);
  EXPECT_EQ(host_.num_used(), 3);
  EXPECT_EQ(found(counted(0, 10)), 0);
  EXPECT_EQ(cache_.match_host(kTenant, counted(0, 12)), (HostMatch{10, 3, true}));
  EXPECT_EQ(cache_.match_host(kTenant + 1, counted(0, 12)), HostMatch{});
  on_device_.assign(on_device_.size(), -1);

  TransferPlan plan;
  EXPECT_EQ(cache_.fetch(kTenant, counted(0, 12), plan).value(), 3);
  execute(plan);
  EXPECT_EQ(cache_.retire(plan.ticket), 3);
  EXPECT_EQ(read(counted(0, 12)), counted(0, 10));
  EXPECT_EQ(host_.num_used(), 0);
  EXPECT_EQ(cache_.stats().offloaded, 3);
  EXPECT_EQ(cache_.stats().fetched, 3);
  EXPECT_EQ(cache_.stats().fetched_tokens, 10);
  expect_sound();
}

// Where offloads were not waited for, others wrote to the pages, and the host kept their text.
TEST_F(PrefixTiers, APageThatGoesIsNobodysUntilItsCopyHasRetired) {
  serve(counted(0, 24));
  TransferPlan plan;
  EXPECT_EQ(cache_.offload(4, plan).value(), 4);
  EXPECT_EQ(pool_.num_free(), 0);
  EXPECT_EQ(cache_.parked_pages(), 4);
  EXPECT_EQ(cache_.evict(6), 2);  // nor are they evicted a second time
  const SeqId other = table_.create().value();
  EXPECT_EQ(table_.append(other, 9, copies_).code(), ErrorCode::kOutOfPages);
  ASSERT_TRUE(table_.append(other, 8, copies_).ok());
  for (std::int32_t i = 0; i < 8; ++i) {
    on_device_[static_cast<std::size_t>(table_.slot(other, i))] = 1000 + i;
  }
  execute(plan);  // as late as it may be
  for (const CopyOp& op : plan.offloads) {
    EXPECT_LT(on_host_[static_cast<std::size_t>(4 * op.dst)], 1000);
  }
  EXPECT_EQ(cache_.retire(plan.ticket), 4);
  EXPECT_EQ(pool_.num_free(), 4);
  EXPECT_EQ(cache_.parked_pages(), 0);
  expect_sound();
}

TEST_F(PrefixTiers, APageThatComesIsPendingUntilItsCopyHasRetired) {
  serve(counted(0, 12));
  send_all();
  TransferPlan plan;
  ASSERT_EQ(cache_.fetch(kTenant, counted(0, 8), plan).value(), 2);
  const PrefixLease lease = cache_.match(kTenant, counted(0, 12));
  EXPECT_EQ(lease.num_tokens(), 8);
  EXPECT_EQ(lease.pending(), plan.ticket);
  EXPECT_EQ(host_.num_free(), 1);  // what is read is not written either
  TransferPlan second;
  ASSERT_EQ(cache_.fetch(kTenant, counted(0, 12), second).value(), 1);
  EXPECT_NE(second.ticket, plan.ticket);
  const PrefixLease whole = cache_.match(kTenant, counted(0, 12));
  EXPECT_EQ(whole.num_tokens(), 12);
  execute(second);
  cache_.retire(second.ticket);  // in any order
  EXPECT_EQ(whole.pending(), plan.ticket);
  execute(plan);
  cache_.retire(plan.ticket);
  EXPECT_EQ(whole.pending(), 0U);
  EXPECT_EQ(lease.pending(), 0U);
  expect_sound();
}

TEST_F(PrefixTiers, APageThatACopyStillWritesOnTheHostIsNotFetched) {
  serve(counted(0, 8));
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(1, plan).value(), 1);
  EXPECT_EQ(on_host(counted(0, 8)), 0);
  TransferPlan back;
  EXPECT_EQ(cache_.fetch(kTenant, counted(0, 8), back).value(), 0);
  EXPECT_TRUE(back.empty());
  EXPECT_EQ(back.ticket, 0U);
  cache_.retire(plan.ticket);
  EXPECT_EQ(on_host(counted(0, 8)), 4);
}

TEST_F(PrefixTiers, ATicketRetiresOnce) {
  serve(counted(0, 8));
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(2, plan).value(), 2);
  EXPECT_EQ(cache_.retire(plan.ticket + 1), 0);
  EXPECT_EQ(cache_.retire(plan.ticket), 2);
  EXPECT_EQ(cache_.retire(plan.ticket), 0);
  EXPECT_EQ(pool_.num_free(), 6);
  EXPECT_EQ(host_.num_used(), 2);
  expect_sound();
}

TEST_F(PrefixTiers, AFullHostKeepsWhatIsWantedMost) {
  serve(counted(0, 8));
  serve(counted(100, 8));
  send_all();
  EXPECT_EQ(host_.num_free(), 0);
  serve(counted(200, 4));
  send_all();  // the tail of what was used first has to go
  EXPECT_EQ(on_host(counted(0, 8)), 4);
  EXPECT_EQ(on_host(counted(100, 8)), 8);
  EXPECT_EQ(on_host(counted(200, 4)), 4);
  serve(counted(300, 4), {.priority = 1});
  send_all();  // wanted less than all that is there
  EXPECT_EQ(on_host(counted(300, 4)), 0);
  EXPECT_EQ(pool_.num_free(), 6);
  EXPECT_EQ(cache_.stats().host_evicted, 1);
  EXPECT_EQ(cache_.stats().evicted, 1);
  expect_sound();
}

TEST_F(PrefixTiers, AChainLongerThanTheHostKeepsItsHead) {
  serve(counted(0, 24));
  TransferPlan plan;
  EXPECT_EQ(cache_.offload(6, plan).value(), 6);
  EXPECT_THAT(plan.offloads, SizeIs(4));  // what was displaced again is not copied
  EXPECT_EQ(cache_.parked_pages(), 4);
  EXPECT_EQ(pool_.num_free(), 2);
  execute(plan);
  cache_.retire(plan.ticket);
  EXPECT_EQ(on_host(counted(0, 24)), 16);
  expect_sound();
}

// Without a way out, what waits for room and what waits for a fence wait for each other.
TEST_F(PrefixTiers, AHostFullOfCopiesInFlightStopsNobody) {
  serve(counted(0, 16));
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(4, plan).value(), 4);
  serve(counted(100, 8));
  EXPECT_EQ(pool_.num_free(), 0);
  TransferPlan more;
  EXPECT_EQ(cache_.offload(6, more).value(), 2);  // evicted instead
  EXPECT_TRUE(more.empty());
  EXPECT_EQ(pool_.num_free(), 2);
  cache_.retire(plan.ticket);
  EXPECT_EQ(on_host(counted(0, 16)), 16);
  expect_sound();
}

TEST_F(PrefixTiers, WhatHasPagesOnTheirWayToAFullHostWaitsForThem) {
  serve(counted(0, 20));
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(4, plan).value(), 4);
  TransferPlan more;
  EXPECT_EQ(cache_.offload(1, more).value(), 0);
  cache_.retire(plan.ticket);
  EXPECT_EQ(cache_.offload(1, more).value(), 1);
  EXPECT_EQ(on_host(counted(0, 20)), 0);  // its head is on its way
  cache_.retire(more.ticket);
  EXPECT_EQ(on_host(counted(0, 20)), 16);
  expect_sound();
}

TEST_F(PrefixTiers, OnlyLeavesLeaveTheHost) {
  serve(counted(0, 16));
  send_all();
  EXPECT_EQ(cache_.evict_host(1), 1);
  EXPECT_EQ(on_host(counted(0, 16)), 12);
  EXPECT_EQ(cache_.evict_host(9), 3);
  EXPECT_EQ(cache_.evict_host(1), 0);
  EXPECT_EQ(host_.num_free(), 4);
  expect_sound();
}

TEST_F(PrefixTiers, WhatHangsOnAnEvictedPageGoesWithIt) {
  serve(counted(0, 12));
  serve(Tokens{0, 1, 2, 3, 50, 51, 52, 53});
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(2, plan).value(), 2);
  EXPECT_EQ(cache_.evict(1), 1);  // a leaf of the device with nothing behind it, or all behind it
  EXPECT_EQ(cache_.evict(4), 1);
  EXPECT_EQ(cache_.stats().pages, 0);
  EXPECT_EQ(cache_.stats().host_pages, 0);
  EXPECT_EQ(host_.num_free(), 2);  // its copies still write
  cache_.retire(plan.ticket);
  EXPECT_EQ(host_.num_free(), 4);
  EXPECT_EQ(pool_.num_free(), 6);
  expect_sound();
}

TEST_F(PrefixTiers, ExpiredPagesDoNotGoToTheHostAndLeaveIt) {
  serve(counted(0, 4), {.time_to_live = 10});
  serve(counted(100, 4), {.time_to_live = 20});
  cache_.set_time(10);
  send_all();
  EXPECT_EQ(cache_.stats().host_pages, 1);
  EXPECT_EQ(on_host(counted(100, 4)), 4);
  EXPECT_EQ(cache_.evict_expired(), 0);
  cache_.set_time(20);
  EXPECT_EQ(cache_.evict_expired(), 1);
  EXPECT_EQ(cache_.stats().host_pages, 0);
  expect_sound();
}

TEST_F(PrefixTiers, PagesComputedAgainTakeThePlaceOfThoseOnTheHost) {
  serve(counted(0, 12), {.priority = 60});
  send_all();
  serve(counted(0, 9), {.priority = 40});
  EXPECT_EQ(found(counted(0, 12)), 9);
  EXPECT_EQ(on_host(counted(0, 12)), 4);  // that is more than what the device has of this page
  EXPECT_EQ(host_.num_free(), 3);
  EXPECT_EQ(cache_.stats().fetched, 0);
  TransferPlan plan;
  ASSERT_EQ(cache_.fetch(kTenant, counted(0, 12), plan).value(), 1);
  EXPECT_EQ(found(counted(0, 12)), 12);
  expect_sound();
}

TEST_F(PrefixTiers, EventsSayTheTier) {
  struct Listener : PrefixListener {
    void on_event(const PrefixEvent& event) noexcept override {
      heard.emplace_back(event.kind == PrefixEvent::Kind::kStored ? "stored" : "removed",
                         event.tier == PageTier::kDevice ? "device" : "host", event.tokens.front(),
                         event.parent_tier == PageTier::kDevice ? "device" : "host");
    }
    std::vector<std::tuple<std::string, std::string, std::int32_t, std::string>> heard;
  } listener;
  serve(counted(0, 8));
  cache_.set_listener(&listener);
  TransferPlan plan;
  ASSERT_TRUE(cache_.offload(2, plan).ok());
  EXPECT_THAT(listener.heard, ElementsAre(std::tuple("stored", "host", 4, "device"),
                                          std::tuple("removed", "device", 4, "device"),
                                          std::tuple("stored", "host", 0, "device"),
                                          std::tuple("removed", "device", 0, "device")));
  listener.heard.clear();
  cache_.retire(plan.ticket);
  ASSERT_TRUE(cache_.fetch(kTenant, counted(0, 4), plan).ok());
  ASSERT_EQ(cache_.evict_host(1), 1);
  EXPECT_THAT(listener.heard, ElementsAre(std::tuple("stored", "device", 0, "device"),
                                          std::tuple("removed", "host", 0, "device"),
                                          std::tuple("removed", "host", 4, "device")));
  cache_.set_listener(nullptr);
}

TEST_F(PrefixTiers, ASnapshotRemembersTheTiers) {
  serve(counted(0, 16));
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(3, plan).value(), 3);
  std::vector<std::byte> bytes;
  ASSERT_TRUE(cache_.save(bytes).ok());

  PagePool pool({.num_pages = 1, .page_size = 4});
  PagePool host({.num_pages = 2, .page_size = 4});
  PrefixCache smaller(pool, host);
  std::vector<RestoredPage> pages;
  ASSERT_TRUE(smaller.restore(bytes, pages).ok());
  ASSERT_THAT(pages, SizeIs(3));
  EXPECT_EQ(pages[0].tier, PageTier::kDevice);
  EXPECT_EQ(pages[2].tier, PageTier::kHost);
  EXPECT_EQ(smaller.match_length(kTenant, counted(0, 16)), 4);
  EXPECT_EQ(smaller.match_host(kTenant, counted(0, 16)).tokens, 8);
  EXPECT_TRUE(smaller.check().ok());

  PagePool alone({.num_pages = 1, .page_size = 4});
  PrefixCache without(alone);
  ASSERT_TRUE(without.restore(bytes, pages).ok());
  EXPECT_THAT(pages, SizeIs(1));
  EXPECT_TRUE(without.check().ok());
}

TEST_F(PrefixTiers, AFullDeviceFetchesNothing) {
  serve(counted(0, 8));
  send_all();
  const SeqId seq = table_.create().value();
  ASSERT_TRUE(table_.append(seq, 20, copies_).ok());
  TransferPlan plan;
  const Result<std::int32_t> fetched = cache_.fetch(kTenant, counted(0, 8), plan);
  EXPECT_EQ(fetched.status().code(), ErrorCode::kOutOfPages);
  EXPECT_EQ(fetched.status().message(), "[prefix_cache] fetch: expected 2 free pages, got 1");
  EXPECT_TRUE(plan.empty());
  EXPECT_EQ(cache_.fetch(kTenant, counted(0, 4), plan).value(), 1);
  expect_sound();
}

TEST_F(PrefixTiers, APlanThatCannotGrowChangesNothing) {
  const Tokens prompt = counted(0, 12);
  serve(prompt);
  for (const bool back : {false, true}) {
    if (back) send_all();
    const PrefixCacheStats before = cache_.stats();
    int failures = 0;
    bool fired = true;
    for (int allowed = 0; fired; ++allowed) {
      TransferPlan plan;
      std::optional<Result<std::int32_t>> result;
      {
        const FailingNew failing(allowed, FailingNew::Which::kAllFromThere);
        result = back ? cache_.fetch(kTenant, prompt, plan) : cache_.offload(1, plan);
        fired = failing.fired();
      }
      expect_sound();
      if (!fired) {
        EXPECT_TRUE(result->ok());
        cache_.retire(plan.ticket);
        break;
      }
      ++failures;
      EXPECT_EQ(result->status().code(), ErrorCode::kOutOfMemory);
      EXPECT_TRUE(plan.empty());
      EXPECT_EQ(plan.ticket, 0U);
      EXPECT_EQ(cache_.stats().offloaded, before.offloaded);
      EXPECT_EQ(cache_.stats().fetched, before.fetched);
    }
    EXPECT_GT(failures, 0);
  }
}

TEST_F(PrefixTiers, WithRoomInThePlanNothingAllocates) {
  const Tokens prompt = counted(0, 12);
  serve(prompt);
  TransferPlan plan;
  plan.offloads.reserve(8);
  plan.fetches.reserve(8);
  const long before = test::num_allocations();
  ASSERT_EQ(cache_.offload(3, plan).value(), 3);
  cache_.retire(plan.ticket);
  plan.clear();
  ASSERT_EQ(cache_.fetch(kTenant, prompt, plan).value(), 3);
  cache_.retire(plan.ticket);
  EXPECT_EQ(test::num_allocations(), before);
}

TEST_F(PrefixTiers, ACacheThatEndsGivesThePagesOfBothTiersBack) {
  serve(counted(0, 12));
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(1, plan).value(), 1);
  cache_ = PrefixCache(pool_);
  EXPECT_EQ(pool_.num_free(), 6);
  EXPECT_EQ(host_.num_free(), 4);
  EXPECT_TRUE(pool_.check().ok());
  EXPECT_TRUE(host_.check().ok());
}

TEST_F(PrefixTiers, AForgottenFlightIsNoticed) {
  serve(counted(0, 4));
  TransferPlan plan;
  ASSERT_EQ(cache_.offload(1, plan).value(), 1);
  auto& state = internal::TestAccess::state(cache_);
  const PageId first = std::exchange(state.first_in_flight, kNoPage);
  EXPECT_EQ(cache_.check().message(),
            "[prefix_cache] check: 0 copies in flight are listed and 1 noted, the counter says 1");
  state.first_in_flight = first;
  expect_sound();
}

TEST(PrefixTiersOfOnePool, AreRefused) {
  PagePool pool({.num_pages = 2, .page_size = 4});
  PagePool other({.num_pages = 2, .page_size = 8});
  const auto refusal = [&](PagePool& host, const PrefixCacheSpec& spec) {
    try {
      PrefixCache(pool, host, spec);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal(pool, {}),
            "[prefix_cache] host: expected another pool than the device's, got that one");
  EXPECT_EQ(refusal(other, {}), "[prefix_cache] host: expected pages of 4 tokens, got pages of 8");
  PagePool host({.num_pages = 2, .page_size = 4});
  EXPECT_EQ(refusal(host, {.costs = {.bytes_per_token = 0}}),
            "[prefix_cache] costs.bytes_per_token: expected a number above 0, got 0");
  EXPECT_EQ(refusal(host, {.costs = {.transfer_seconds = -1}}),
            "[prefix_cache] costs.transfer_seconds: expected a number of at least 0, got -1");
  EXPECT_TRUE(host.check().ok());
}

/// A token takes a second to compute, a page of four two and another one for the transfer.
class PricedTiers : public PrefixTiers {
 protected:
  PricedTiers() : PrefixTiers({1.0, 2.0, 1.0, 1.0}) {}
};

TEST_F(PricedTiers, WhatIsComputedSoonerStaysWhereItIs) {
  serve(counted(0, 8));
  send_all();
  EXPECT_EQ(cache_.match_host(kTenant, counted(0, 3)), (HostMatch{3, 1, false}));  // 3 and 3
  EXPECT_EQ(cache_.match_host(kTenant, counted(0, 4)), (HostMatch{4, 1, true}));
  EXPECT_EQ(cache_.match_host(kTenant, counted(0, 5)), (HostMatch{5, 2, false}));
  TransferPlan plan;
  EXPECT_EQ(cache_.fetch(kTenant, counted(0, 3), plan).value(), 0);
  EXPECT_EQ(cache_.stats().declined, 1);
  EXPECT_THAT(plan.fetches, IsEmpty());
}

TEST_F(PricedTiers, WhatIsInFlightGoesFirstOnTheLink) {
  serve(counted(0, 4));
  serve(counted(100, 4));
  send_all();
  TransferPlan plan;
  ASSERT_EQ(cache_.fetch(kTenant, counted(0, 4), plan).value(), 1);
  EXPECT_FALSE(cache_.match_host(kTenant, counted(100, 4)).worth_fetching);
  cache_.retire(plan.ticket);
  EXPECT_TRUE(cache_.match_host(kTenant, counted(100, 4)).worth_fetching);
}

TEST_F(PricedTiers, AShortLastPageIsNotWorthTheWay) {
  serve(counted(0, 6));
  send_all();
  EXPECT_EQ(cache_.stats().offloaded, 1);
  EXPECT_EQ(cache_.stats().evicted, 1);
}

/// Computing is free.
class IdleTiers : public PrefixTiers {
 protected:
  IdleTiers() : PrefixTiers({.prefill_tokens_per_second = kNever}) {}
};

TEST_F(IdleTiers, NothingGoesWhereNothingWouldComeBack) {
  serve(counted(0, 12));
  send_all();
  EXPECT_EQ(cache_.stats().offloaded, 0);
  EXPECT_EQ(cache_.stats().evicted, 3);
  EXPECT_EQ(pool_.num_free(), 6);
}

}  // namespace
}  // namespace quire
