// SPDX-License-Identifier: Apache-2.0
// A batcher over a prefix cache with a host tier: who is swapped out, what comes back, who waits.
#include <limits>
#include <memory>
#include <numeric>

#include "batching/batchers.hpp"
#include "cache/failing_new.hpp"

namespace quire {
namespace {

using test::expect_failure;
using test::FailingNew;
using test::kDecode;
using test::kPrefill;
using test::kSamples;
using test::Share;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Tokens = std::vector<std::int32_t>;

Tokens text(std::int32_t n, std::int32_t first = 1) {
  Tokens tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Eight pages of four tokens on the device; moving a page costs a hundredth of computing it.
class Swaps : public testing::Test {
 protected:
  explicit Swaps(std::int32_t host_pages = 8, double tokens_per_second = 1.0)
      : host_({host_pages, 4}),
        cache_(pool_, host_,
               {.costs = {.bytes_per_token = 1.0,
                          .link_bytes_per_second = 100.0,
                          .transfer_seconds = 0.0,
                          .prefill_tokens_per_second = tokens_per_second}}) {}

  void submit(std::uint64_t id, const Tokens& prompt, std::int32_t max_new) {
    Request request{id, static_cast<std::int32_t>(prompt.size()), max_new};
    request.prompt = prompt;
    const Status status = batcher_.submit(request);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::vector<Share> plan() {
    const Status status = batcher_.plan(budget_, plan_);
    EXPECT_TRUE(status.ok()) << status.message();
    return test::shares_of(plan_);
  }
  void commit() {
    const Status status = batcher_.commit(plan_, copies_);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
  }
  void finish() {
    Tokens sampled;
    for (const StepItem& item : plan_.items) {
      if (item.samples) sampled.push_back(100 + static_cast<std::int32_t>(item.request));
    }
    std::vector<std::uint64_t> ended;
    const Status status = batcher_.finish(plan_, sampled, {}, ended);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
  }
  std::vector<Share> step() {
    std::vector<Share> shares = plan();
    commit();
    finish();
    return shares;
  }
  // Two requests grow until the newer one has to go, and until both have ended.
  void run_two() {
    submit(1, text(13), 12);
    submit(2, text(12, 50), 12);
    for (int steps = 0; !batcher_.idle(); ++steps) {
      ASSERT_LT(steps, 100);
      step();
    }
    EXPECT_EQ(batcher_.stats().finished, 2);
    EXPECT_GT(batcher_.stats().preemptions, 0);
  }
  void expect_sound() {
    const Status status = batcher_.check();
    EXPECT_TRUE(status.ok()) << status.message();
  }

  PagePool pool_{{.num_pages = 8, .page_size = 4}};
  PagePool host_;
  PageTable table_{pool_, {.max_seqs = 4, .max_tokens_per_seq = 32}};
  PrefixCache cache_;
  Batcher batcher_{table_, cache_, {.max_requests = 5}};
  StepBudget budget_{.max_tokens = 100, .max_seqs = 4};
  StepPlan plan_;
  std::vector<CopyOp> copies_;
};

TEST_F(Swaps, WhoeverIsPreemptedComesBackWithItsTokens) {
  submit(1, text(13), 12);
  submit(2, text(12, 50), 9);
  do step();
  while (plan_.preempted.empty());
  EXPECT_THAT(plan_.preempted, ElementsAre(2U));
  EXPECT_EQ(batcher_.stats().swaps, 1);
  const std::int64_t lost = batcher_.stats().recomputed_tokens;
  EXPECT_THAT(plan_.transfers.offloads, SizeIs(1)) << "as many as there must be";
  do step();
  while (plan_.items.back().request != 2);
  const StepItem& back = plan_.items.back();
  EXPECT_TRUE(back.admitted);
  EXPECT_EQ(back.position, lost) << "all that it had";
  EXPECT_EQ(back.num_new_tokens, 1);
  EXPECT_GT(batcher_.stats().fetched_tokens, 0);
  EXPECT_FALSE(plan_.transfers.fetches.empty());
  while (!batcher_.idle()) step();
  EXPECT_EQ(batcher_.stats().prefill_tokens + batcher_.stats().decode_tokens, 13 + 11 + 12 + 8)
      << "nothing is computed twice";
  EXPECT_EQ(cache_.stats().in_flight, 0);
}

TEST_F(Swaps, IdlePagesGoToTheHostAndAreFoundThere) {
  submit(1, text(16), 1);
  step();
  submit(2, text(30, 200), 1);
  step();
  EXPECT_THAT(plan_.transfers.offloads, SizeIs(4)) << "the whole of the first";
  EXPECT_EQ(cache_.match_length(0, text(16)), 0);
  submit(3, text(18), 1);
  EXPECT_THAT(plan(), ElementsAre(Share{3, 16, 2, kPrefill, kSamples}));
  commit();
  EXPECT_THAT(plan_.transfers.fetches, SizeIs(4));
  EXPECT_THAT(plan_.transfers.offloads, SizeIs(4))
      << "of five that make room: the host has no more";
  finish();
  EXPECT_EQ(batcher_.stats().fetched_tokens, 16);
  EXPECT_EQ(batcher_.stats().hit_tokens, 16);
  EXPECT_EQ(cache_.stats().hit_tokens, 16);
  EXPECT_EQ(cache_.stats().lookups, 3);
}

TEST_F(Swaps, TwoThatAreAdmittedTogetherFetchAPrefixOnce) {
  submit(1, text(8), 1);
  step();
  submit(2, text(32, 200), 1);
  step();
  Tokens other = text(8);
  other.push_back(77);
  submit(3, text(9), 1);
  submit(4, other, 1);
  EXPECT_THAT(plan(),
              ElementsAre(Share{3, 8, 1, kPrefill, kSamples}, Share{4, 8, 1, kPrefill, kSamples}));
  commit();
  EXPECT_THAT(plan_.transfers.fetches, SizeIs(2));
  finish();
}

TEST_F(Swaps, ARequestWhoseTokensNobodyKnowsIsComputedAgain) {
  ASSERT_TRUE(batcher_.submit({1, 13, 12}).ok());
  ASSERT_TRUE(batcher_.submit({2, 12, 12}).ok());
  for (int steps = 0; !batcher_.idle() && steps < 100; ++steps) {
    plan();
    commit();
    std::vector<std::uint64_t> ended;
    ASSERT_TRUE(batcher_.finish(plan_, {}, ended).ok());
  }
  EXPECT_TRUE(batcher_.idle());
  EXPECT_GT(batcher_.stats().preemptions, 0);
  EXPECT_EQ(batcher_.stats().swaps, 0);
  EXPECT_EQ(cache_.stats().offloaded, 0);
}

// Preemption after preemption, of victims whose pages a fence held, freed nothing.
TEST_F(Swaps, NobodyIsPreemptedForPagesThatAreAboutToComeFree) {
  submit(9, text(8, 300), 1);
  step();  // two idle pages
  submit(1, text(12), 12);
  submit(2, text(12, 50), 12);
  step();
  TransferPlan beside;
  ASSERT_EQ(cache_.offload(1, beside).value(), 1);
  EXPECT_EQ(cache_.parked_pages(), 1);
  step();  // both take a page: the other idle one went as well
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(pool_.num_free(), 0);
  EXPECT_THAT(plan(), IsEmpty()) << "both wait for the page that is parked";
  EXPECT_THAT(plan_.preempted, IsEmpty());
  commit();
  finish();
  EXPECT_EQ(cache_.retire(beside.ticket), 1);
  EXPECT_THAT(step(), ElementsAre(Share{1, 16, 1, kDecode, kSamples}));
  EXPECT_THAT(plan_.preempted, IsEmpty());
  while (!batcher_.idle()) step();
  EXPECT_GT(batcher_.stats().swaps, 0) << "there was none for both";
}

TEST_F(Swaps, NobodyIsAdmittedToPagesThatAreNotWrittenYet) {
  submit(1, text(8), 1);
  step();
  TransferPlan down;
  ASSERT_EQ(cache_.offload(2, down).value(), 2);
  cache_.retire(down.ticket);
  TransferPlan up;
  ASSERT_EQ(cache_.fetch(0, text(8), up).value(), 2);
  submit(2, text(9), 1);
  EXPECT_THAT(plan(), IsEmpty());
  cache_.retire(up.ticket);
  EXPECT_THAT(step(), ElementsAre(Share{2, 8, 1, kPrefill, kSamples}));
}

TEST_F(Swaps, APlanIsStaleOnceTheHostHasChanged) {
  submit(1, text(8), 1);
  step();
  submit(2, text(32, 200), 1);
  step();
  submit(3, text(9), 1);
  EXPECT_THAT(plan(), ElementsAre(Share{3, 8, 1, kPrefill, kSamples}));
  ASSERT_EQ(cache_.evict_host(1), 1);
  expect_failure(batcher_.commit(plan_, copies_), ErrorCode::kInvalidArgument,
                 "[batcher] commit: expected the last plan, unchanged, got a plan of step 2: the "
                 "prefix cache has changed");
  expect_sound();
  EXPECT_EQ(cache_.stats().leases, 0);
  EXPECT_THAT(step(), ElementsAre(Share{3, 4, 5, kPrefill, kSamples}));
}

TEST_F(Swaps, ACommitThatFailsLeavesNoCopyToMake) {
  submit(1, text(16), 1);
  step();
  submit(2, text(16, 50), 1);
  step();
  PrefixLease lease = cache_.match(0, text(16, 50));
  submit(3, text(24, 200), 1);
  plan();
  expect_failure(
      batcher_.commit(plan_, copies_), ErrorCode::kOutOfPages,
      "[batcher] commit: expected 6 free pages, got 4: others took pages since the plan");
  EXPECT_TRUE(plan_.transfers.empty());
  EXPECT_EQ(cache_.stats().host_pages, 0) << "what was sent would never be written";
  expect_sound();
  lease.release();
  step();
}

TEST_F(Swaps, ACommitWithoutMemoryChangesNothing) {
  submit(1, text(16), 1);
  step();
  submit(2, text(30, 200), 1);
  step();
  submit(3, text(18), 1);
  plan();
  const StepPlan planned = plan_;
  int failures = 0;
  for (int allowed = 0;; ++allowed) {
    plan_ = StepPlan();
    plan_.step = planned.step;
    plan_.items = planned.items;
    plan_.num_tokens = planned.num_tokens;
    const PrefixCacheStats before = cache_.stats();
    std::vector<CopyOp> copies;
    Status status;
    bool fired = false;
    {
      const FailingNew failing(allowed, FailingNew::Which::kOne);
      status = batcher_.commit(plan_, copies);
      fired = failing.fired();
    }
    expect_sound();
    if (status.ok()) break;
    EXPECT_TRUE(fired);
    ++failures;
    EXPECT_EQ(status.code(), ErrorCode::kOutOfMemory);
    EXPECT_EQ(cache_.stats().offloaded, before.offloaded);
    EXPECT_EQ(cache_.stats().leases, 0);
  }
  EXPECT_GE(failures, 3);
  finish();
}

TEST_F(Swaps, AStepOnTheHostTierAllocatesNothing) {
  for (int round = 0; round < 3; ++round) {
    submit(1, text(16), 1);
    plan();
    const long before = test::num_allocations();
    ASSERT_TRUE(batcher_.commit(plan_, copies_).ok());
    if (round > 1) {
      EXPECT_EQ(test::num_allocations(), before);
      EXPECT_FALSE(plan_.transfers.fetches.empty());
      EXPECT_FALSE(plan_.transfers.offloads.empty());
    }
    finish();
    submit(2, text(30, 200), 1);
    step();
  }
}

/// The host has room for a single page.
class NarrowSwaps : public Swaps {
 protected:
  NarrowSwaps() : Swaps(1) {}
};

TEST_F(NarrowSwaps, WhatTheHostHasNoRoomForIsComputedAgain) {
  run_two();
  EXPECT_GT(batcher_.stats().swaps, 0);
  EXPECT_GT(cache_.stats().host_evicted + cache_.stats().evicted, 0);
  EXPECT_GE(cache_.stats().host_pages, 0);
  EXPECT_LE(cache_.stats().host_pages, 1);
}

/// Computing takes no time.
class FreeComputing : public Swaps {
 protected:
  FreeComputing() : Swaps(8, std::numeric_limits<double>::infinity()) {}
};

TEST_F(FreeComputing, NobodyIsSwappedWhoIsSoonerComputed) {
  run_two();
  EXPECT_EQ(batcher_.stats().swaps, 0);
  EXPECT_EQ(cache_.stats().offloaded, 0);
}

}  // namespace
}  // namespace quire
