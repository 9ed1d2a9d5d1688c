// SPDX-License-Identifier: Apache-2.0
// Requests that begin alike, step by step: who computes what, who waits for whom, who keeps pages.
#include <limits>
#include <numeric>

#include "batching/batchers.hpp"

namespace quire {
namespace {

using test::expect_failure;
using test::kDecode;
using test::kPrefill;
using test::kSamples;
using test::Share;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr bool kGoesOn = false;

using Tokens = std::vector<std::int32_t>;

// `n` tokens: `first`, `first` + 1, …
Tokens text(std::int32_t n, std::int32_t first = 1) {
  Tokens tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Eight pages of four tokens.
class SharedPrefixes : public testing::Test {
 protected:
  void submit(std::uint64_t id, const Tokens& prompt, std::int32_t max_new,
              std::uint64_t name_space = 0) {
    Request request{id, static_cast<std::int32_t>(prompt.size()), max_new};
    request.prompt = prompt;
    request.name_space = name_space;
    const Status status = batcher_.submit(request);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::vector<Share> plan() {
    const Status status = batcher_.plan(budget_, plan_);
    EXPECT_TRUE(status.ok()) << status.message();
    return test::shares_of(plan_);
  }
  void commit() {
    copies_.clear();
    const Status status = batcher_.commit(plan_, copies_);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
  }
  // Every sampling item samples 100 + its request.
  std::vector<std::uint64_t> finish() {
    Tokens sampled;
    for (const StepItem& item : plan_.items) {
      if (item.samples) sampled.push_back(100 + static_cast<std::int32_t>(item.request));
    }
    std::vector<std::uint64_t> ended;
    const Status status = batcher_.finish(plan_, sampled, {}, ended);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
    return ended;
  }
  std::vector<Share> step() {
    std::vector<Share> shares = plan();
    commit();
    finish();
    return shares;
  }
  void expect_sound() {
    const Status status = batcher_.check();
    EXPECT_TRUE(status.ok()) << status.message();
  }

  PagePool pool_{{.num_pages = 8, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 4, .max_tokens_per_seq = 32}};
  PrefixCache cache_{pool_};
  Batcher batcher_{table_, cache_, {.max_requests = 5}};
  StepBudget budget_{.max_tokens = 100, .max_seqs = 4};
  StepPlan plan_;
  std::vector<CopyOp> copies_;
};

TEST_F(SharedPrefixes, WhatARequestLeftIsNotComputedAgain) {
  submit(1, text(10), 1);
  EXPECT_THAT(step(), ElementsAre(Share{1, 0, 10, kPrefill, kSamples}));
  EXPECT_EQ(pool_.num_used(), 3) << "the cache keeps them, the partial one too";
  EXPECT_EQ(batcher_.stats().idle_pages, 3);

  submit(2, text(12), 1);
  EXPECT_THAT(plan(), ElementsAre(Share{2, 10, 2, kPrefill, kSamples}));
  commit();
  EXPECT_THAT(copies_, ElementsAre(CopyOp{2, table_.pages(plan_.items[0].seq)[2], 2}))
      << "it goes on in a page of its own";
  finish();
  const BatcherStats stats = batcher_.stats();
  EXPECT_EQ(stats.asked_tokens, 9 + 11);
  EXPECT_EQ(stats.hit_tokens, 10);
  EXPECT_EQ(stats.prefill_tokens, 12);
  EXPECT_EQ(cache_.stats().asked_tokens, 9 + 11);
  EXPECT_EQ(cache_.stats().hit_tokens, 10);
}

TEST_F(SharedPrefixes, TheLastTokenIsAlwaysComputed) {
  submit(1, text(8), 1);
  step();
  submit(2, text(8), 1);
  EXPECT_THAT(step(), ElementsAre(Share{2, 7, 1, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, AnswersAreSharedToo) {
  submit(1, text(6), 3);
  while (!batcher_.idle()) step();  // caches 1…6, 101, 101
  Tokens next = text(6);
  next.insert(next.end(), {101, 101, 101, 7});
  submit(2, next, 1);
  EXPECT_THAT(step(), ElementsAre(Share{2, 8, 2, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, AnswersThatWereNotToldAreNotShared) {
  submit(1, text(6), 3);
  while (!batcher_.idle()) {
    plan();
    commit();
    std::vector<std::uint64_t> ended;
    ASSERT_TRUE(batcher_.finish(plan_, {}, ended).ok());
  }
  Tokens next = text(6);
  next.insert(next.end(), {101, 101});
  submit(2, next, 1);
  EXPECT_THAT(step(), ElementsAre(Share{2, 6, 2, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, TenantsDoNotShare) {
  submit(1, text(8), 1, 1);
  step();
  submit(2, text(8), 1, 2);
  EXPECT_THAT(step(), ElementsAre(Share{2, 0, 8, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, TheSecondRequestForAPrefixThatIsBeingComputedWaitsForIt) {
  submit(1, text(8), 2);
  submit(2, text(9), 2);
  EXPECT_THAT(step(), ElementsAre(Share{1, 0, 8, kPrefill, kSamples}));
  EXPECT_THAT(step(),
              ElementsAre(Share{1, 8, 1, kDecode, kSamples}, Share{2, 8, 1, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, NobodyWaitsForLessThanAPage) {
  submit(1, text(8), 1);
  Tokens other = text(3);
  other.insert(other.end(), 5, 77);
  submit(2, other, 1);
  EXPECT_THAT(step(),
              ElementsAre(Share{1, 0, 8, kPrefill, kSamples}, Share{2, 0, 8, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, WhoeverWaitedForACancelledRequestComputesTheRest) {
  budget_.max_tokens = 5;
  submit(1, text(12), 1);
  submit(2, text(12), 1);
  EXPECT_THAT(step(), ElementsAre(Share{1, 0, 5, kPrefill, kGoesOn}));
  budget_.max_tokens = 100;
  EXPECT_THAT(plan(), ElementsAre(Share{1, 5, 7, kPrefill, kSamples}));
  ASSERT_TRUE(batcher_.cancel(1).ok());
  expect_sound();
  expect_failure(
      batcher_.commit(plan_, copies_), ErrorCode::kInvalidArgument,
      "[batcher] commit: expected the last plan, unchanged, got a plan of step 1: an item "
      "is not as it was planned");
  EXPECT_THAT(step(), ElementsAre(Share{2, 5, 7, kPrefill, kSamples}));
  EXPECT_EQ(batcher_.stats().cancelled, 1);
  EXPECT_EQ(batcher_.stats().finished, 1);
}

TEST_F(SharedPrefixes, ACancelledRequestThatTakesPartEndsWithTheStep) {
  submit(1, text(4), 9);
  plan();
  commit();
  ASSERT_TRUE(batcher_.cancel(1).ok());
  expect_failure(batcher_.cancel(1), ErrorCode::kInvalidArgument,
                 "[batcher] cancel: expected the id of a request that has not ended, got 1");
  EXPECT_EQ(pool_.num_used(), 1) << "the device may be writing to it";
  EXPECT_THAT(finish(), ElementsAre(1U));
  EXPECT_TRUE(batcher_.idle());
  EXPECT_EQ(batcher_.stats().cancelled, 1);
  EXPECT_EQ(batcher_.cancel(1).code(), ErrorCode::kInvalidArgument);
  submit(2, text(4), 1);
  ASSERT_TRUE(batcher_.cancel(2).ok()) << "it waits";
  EXPECT_TRUE(batcher_.idle());
  EXPECT_THAT(step(), IsEmpty());
}

TEST_F(SharedPrefixes, CachedPagesMakeRoomBeforeAnybodyIsPreempted) {
  submit(1, text(16), 1);
  step();
  submit(2, text(16, 50), 1);
  step();
  EXPECT_EQ(pool_.num_free(), 0);
  submit(3, text(20, 200), 1);
  EXPECT_THAT(step(), ElementsAre(Share{3, 0, 20, kPrefill, kSamples}));
  EXPECT_EQ(cache_.match_length(0, text(16)), 0)
      << "the least recently used prefix went, tail first";
  EXPECT_EQ(cache_.match_length(0, text(16, 50)), 12);
  EXPECT_EQ(batcher_.stats().preemptions, 0);
}

TEST_F(SharedPrefixes, APreemptedRequestFindsWhatIsLeftOfItsPages) {
  submit(1, text(13), 9);
  submit(2, text(12, 50), 9);
  std::vector<Share> shares;
  do shares = step();
  while (plan_.preempted.empty());
  EXPECT_THAT(plan_.preempted, ElementsAre(2U));
  EXPECT_GT(cache_.match_length(0, text(12, 50)), 0);
  while (!batcher_.idle()) step();
  const BatcherStats stats = batcher_.stats();
  EXPECT_GT(stats.hit_tokens, 0);
  EXPECT_LT(stats.prefill_tokens + stats.decode_tokens, 13 + 8 + 12 + 8 + stats.recomputed_tokens);
}

TEST_F(SharedPrefixes, OneOfTwoEqualPagesIsKept) {
  budget_.max_tokens = 4;
  submit(1, text(8), 2);
  step();
  // Somebody else computes and publishes the second page meanwhile.
  const SeqId other = *table_.create();
  ASSERT_TRUE(table_.append(other, 8, copies_).ok());
  ASSERT_TRUE(cache_.publish(0, table_, other, text(8)).ok());
  const PageId theirs = table_.pages(other)[1];
  step();
  plan();
  EXPECT_EQ(table_.pages(plan_.items[0].seq)[1], theirs);
  ASSERT_TRUE(table_.destroy(other).ok());
  EXPECT_EQ(pool_.num_used(), 2);
  expect_sound();
}

TEST_F(SharedPrefixes, APlanIsStaleOnceTheCacheHasChanged) {
  submit(1, text(8), 1);
  step();
  submit(2, text(8), 1);
  plan();
  cache_.evict(1);
  expect_failure(batcher_.commit(plan_, copies_), ErrorCode::kInvalidArgument,
                 "[batcher] commit: expected the last plan, unchanged, got a plan of step 1: the "
                 "prefix cache has changed");
  expect_sound();
  EXPECT_EQ(cache_.stats().leases, 0);
  EXPECT_THAT(step(), ElementsAre(Share{2, 4, 4, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, PagesThatOthersPinAreNotCountedTwice) {
  submit(1, text(16), 1);
  step();
  PrefixLease lease = cache_.match(0, text(16));
  submit(2, text(24, 200), 1);
  plan();
  expect_failure(
      batcher_.commit(plan_, copies_), ErrorCode::kOutOfPages,
      "[batcher] commit: expected 6 free pages, got 4: others took pages since the plan");
  expect_sound();
  expect_failure(
      batcher_.plan(budget_, plan_), ErrorCode::kOutOfPages,
      "[batcher] plan: expected 6 free pages for request 2, got 4: others keep the rest");
  lease.release();
  EXPECT_THAT(step(), ElementsAre(Share{2, 0, 24, kPrefill, kSamples}));
}

TEST_F(SharedPrefixes, BadTextsGetASentence) {
  Request request{1, 3, 1};
  const Tokens two = text(2);
  request.prompt = two;
  expect_failure(
      batcher_.submit(request), ErrorCode::kInvalidArgument,
      "[batcher] submit: expected the 3 tokens of the prompt or none, got 2 (request 1)");
  request.prompt = {};
  request.retention.priority = 101;
  expect_failure(
      batcher_.submit(request), ErrorCode::kInvalidArgument,
      "[batcher] submit: expected a retention of priority 0 to 100 and a time to live of "
      "at least 0, got 101 and 0 (request 1)");
  submit(2, text(3), 4);
  plan();
  commit();
  std::vector<std::uint64_t> ended;
  expect_failure(batcher_.finish(plan_, two, {}, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected 1 sampled tokens or none, got 2 for 1 items");
  PagePool pool({.num_pages = 2, .page_size = 4});
  PrefixCache elsewhere(pool);
  try {
    const Batcher batcher(table_, elsewhere);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadHandle);
    EXPECT_STREQ(
        error.what(),
        "[batcher] cache: expected a prefix cache on the table's pool, got one on another");
  }
}

TEST_F(SharedPrefixes, TheCacheMayBeErasedWhileRequestsRun) {
  budget_.max_tokens = 4;
  submit(1, text(12), 2);
  step();
  EXPECT_EQ(cache_.erase(0), 1);
  expect_sound();
  step();
  EXPECT_EQ(cache_.match_length(0, text(12)), 8) << "from the beginning again";
  while (!batcher_.idle()) step();
  EXPECT_EQ(cache_.evict(8), 4) << "the partial page too";
  EXPECT_EQ(pool_.num_used(), 0);
}

}  // namespace
}  // namespace quire
