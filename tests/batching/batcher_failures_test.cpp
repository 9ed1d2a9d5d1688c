// SPDX-License-Identifier: Apache-2.0
// What the caller, or others who use the table and the pool, can do wrong; and standstills.
#include <array>
#include <limits>
#include <string>
#include <utility>

#include "batching/batchers.hpp"

namespace quire {
namespace {

using test::Batchers;
using test::expect_failure;
using test::kDecode;
using test::kSamples;
using test::Share;
using testing::ElementsAre;
using testing::IsEmpty;

TEST_F(Batchers, ARequestThatCanNeverFitIsRefused) {
  expect_failure(batcher_.submit({9, 30, 4, 0.0}), ErrorCode::kTooLong,
                 "[batcher] submit: expected at most 32 cached tokens, got 33 (request 9: 30 of "
                 "prompt, 4 new)");
  EXPECT_TRUE(batcher_.submit({9, 29, 4, 0.0}).ok());

  PagePool pool({.num_pages = 2, .page_size = 4});
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 100});
  Batcher small(table);
  expect_failure(small.submit({3, 8, 2, 0.0}), ErrorCode::kTooLong,
                 "[batcher] submit: expected at most the 2 pages of the pool, got 3 (request 3: 8 "
                 "of prompt, 2 new)");
  EXPECT_TRUE(small.submit({3, 8, 1, 0.0}).ok()) << "the last token is never cached";
  expect_failure(
      small.submit({4, std::numeric_limits<std::int32_t>::max(), 7, 0.0}), ErrorCode::kTooLong,
      "[batcher] submit: expected at most 100 cached tokens, got 2147483653 (request 4: 2147483647 "
      "of prompt, 7 new)");
}

TEST_F(Batchers, BadRequestsGetASentence) {
  expect_failure(batcher_.submit({1, 0, 4, 0.0}), ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected at least 1 prompt token and 1 new token, got 0 and 4 "
                 "(request 1)");
  expect_failure(batcher_.submit({1, 4, -4, 0.0}), ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected at least 1 prompt token and 1 new token, got 4 and -4 "
                 "(request 1)");
  expect_failure(batcher_.submit({1, 4, 4, std::numeric_limits<double>::quiet_NaN()}),
                 ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected a number as arrival, got NaN (request 1)");
  submit(1, 4, 4);
  expect_failure(batcher_.submit({1, 4, 4, 0.0}), ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected an id that is not in use, got 1");
  for (std::uint64_t id = 2; id <= 5; ++id) submit(id, 1, 1);
  expect_failure(batcher_.submit({6, 4, 4, 0.0}), ErrorCode::kQueueFull,
                 "[batcher] submit: expected a free place for request 6, got 5 of 5 taken");
  expect_sound();
}

TEST_F(Batchers, BadSpecsAndBudgetsGetASentence) {
  try {
    const Batcher batcher(table_, {.max_requests = 0});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "[batcher] max_requests: expected at least 1, got 0");
  }
  expect_failure(batcher_.plan({.max_tokens = 0, .max_seqs = 1}, plan_),
                 ErrorCode::kInvalidArgument,
                 "[batcher] plan: expected a budget of at least 1 token and 1 sequence, got 0 and "
                 "1");
}

TEST_F(Batchers, StepsFollowOneAnother) {
  std::vector<std::uint64_t> ended;
  submit(1, 4, 4);
  plan();
  expect_failure(batcher_.finish(plan_, {}, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected a step in flight, got step 0 with none committed");
  commit();
  StepPlan next;
  expect_failure(batcher_.plan({}, next), ErrorCode::kInvalidArgument,
                 "[batcher] plan: expected step 0 to be finished first, got it in flight");
  expect_failure(batcher_.commit(plan_, copies_), ErrorCode::kInvalidArgument,
                 "[batcher] commit: expected the last plan, unchanged, got a plan of step 0: it is "
                 "in flight already");
  const StepPlan first = plan_;
  finish();
  expect_failure(batcher_.commit(plan_, copies_), ErrorCode::kInvalidArgument,
                 "[batcher] commit: expected the last plan, unchanged, got a plan of step 0: "
                 "another step is next");
  plan();
  commit();
  expect_failure(batcher_.finish(first, {}, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected the plan of step 1, got that of step 0");
  EXPECT_THAT(ended, IsEmpty());
}

TEST_F(Batchers, AStoppedRequestEndsAtOnceAndOnlyIfItSamples) {
  submit(1, 4, 9);
  submit(2, 9, 9);
  plan({.max_tokens = 6, .max_seqs = 4});
  commit();
  std::vector<std::uint64_t> ended;
  const std::array<std::uint64_t, 2> with_a_prefill = {1, 2};
  expect_failure(batcher_.finish(plan_, with_a_prefill, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected ids of requests that sample in step 0, got 2");
  const std::array<std::uint64_t, 1> unknown = {77};
  expect_failure(batcher_.finish(plan_, unknown, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected ids of requests that sample in step 0, got 77");
  EXPECT_THAT(finish({1, 1}), ElementsAre(1U));
  EXPECT_EQ(pool_.num_used(), 1) << "2 has two tokens";
  submit(1, 1, 1);  // the id is free again
}

TEST_F(Batchers, APlanMayBeCommittedAfterMoreRequestsCameIn) {
  submit(1, 4, 4);
  plan();
  submit(2, 4, 4, -1.0);
  EXPECT_EQ(batcher_.commit(plan_, copies_).code(), ErrorCode::kInvalidArgument)
      << "2 arrived before the head of the queue: the plan is not first come, first served";
  plan();
  submit(3, 4, 4);
  commit();
}

TEST_F(Batchers, APlanThatWasTamperedWithIsRefused) {
  submit(1, 8, 4);
  submit(2, 8, 4);
  step();
  submit(3, 4, 4);
  plan();
  const StepPlan good = plan_;
  const auto refuse = [&](auto tamper, const char* why) {
    plan_ = good;
    tamper(plan_);
    expect_failure(batcher_.commit(plan_, copies_), ErrorCode::kInvalidArgument,
                   std::string("[batcher] commit: expected the last plan, unchanged, got a plan of "
                               "step 1: ") +
                       why);
    expect_sound();
  };
  const char* const changed = "an item is not as it was planned";
  refuse([](StepPlan& plan) { plan.items[0].num_new_tokens = 0; }, changed);
  refuse([](StepPlan& plan) { plan.items[0].num_new_tokens = 2; }, changed);
  refuse([](StepPlan& plan) { plan.items[0].position = 3; }, changed);
  refuse([](StepPlan& plan) { plan.items[0].samples = false; }, changed);
  refuse([](StepPlan& plan) { plan.items[0].index = 4; }, changed);
  refuse([](StepPlan& plan) { std::swap(plan.items[0], plan.items[1]); }, changed);
  refuse([](StepPlan& plan) { plan.items.push_back(plan.items.back()); },
         "nobody waits to be admitted");
  refuse([](StepPlan& plan) { plan.preempted = {1}; }, "others are the newest");
  refuse([](StepPlan& plan) { plan.preempted = {2, 1, 3}; }, "too many are preempted");
  refuse(
      [](StepPlan& plan) {
        plan.preempted = {2};
        plan.items.erase(plan.items.begin() + 1);
      },
      "nobody is admitted while others are preempted");
  plan_ = good;
  commit();
}

TEST_F(Batchers, CommitChangesNothingIfPagesWereTakenSinceThePlan) {
  submit(1, 20, 4);
  plan();
  std::array<PageId, 5> taken{};
  ASSERT_TRUE(pool_.allocate(taken).ok());
  expect_failure(
      batcher_.commit(plan_, copies_), ErrorCode::kOutOfPages,
      "[batcher] commit: expected 5 free pages, got 3: others took pages since the plan");
  EXPECT_EQ(table_.num_seqs(), 0);
  EXPECT_EQ(batcher_.stats().waiting, 1);
  expect_sound();
  ASSERT_TRUE(pool_.release(taken).ok());
  commit();
}

TEST_F(Batchers, CommitChangesNothingIfSequencesWereMadeSinceThePlan) {
  submit(1, 1, 1);
  submit(2, 1, 1);
  plan();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(table_.create().ok());
  expect_failure(
      batcher_.commit(plan_, copies_), ErrorCode::kQueueFull,
      "[batcher] commit: expected room for 5 sequences, got 4: others took slots since the plan");
  EXPECT_EQ(batcher_.stats().waiting, 2);
  expect_sound();
}

TEST_F(Batchers, ASequenceDestroyedBehindItsBackIsABadHandle) {
  submit(1, 4, 4);
  plan();
  commit();
  const SeqId seq = plan_.items[0].seq;
  finish();
  plan();
  ASSERT_TRUE(table_.destroy(seq).ok());
  expect_failure(
      batcher_.commit(plan_, copies_), ErrorCode::kBadHandle,
      "[batcher] commit: expected the sequence of request 1 as it was left, got one that "
      "was destroyed or changed");
  expect_failure(batcher_.plan({}, plan_), ErrorCode::kBadHandle,
                 "[batcher] plan: expected the sequence of request 1 as it was left, got one that "
                 "was destroyed or changed");
}

TEST_F(Batchers, AStandstillIsAValueThatSaysWhy) {
  std::array<PageId, 6> taken{};
  ASSERT_TRUE(pool_.allocate(taken).ok());
  submit(1, 8, 4);
  submit(2, 1, 1);
  step();
  expect_failure(
      batcher_.plan({}, plan_), ErrorCode::kOutOfPages,
      "[batcher] plan: expected 1 free pages for request 1, got 0: others keep the rest");
  ASSERT_TRUE(pool_.release(taken[0]).ok());
  EXPECT_THAT(plan(), ElementsAre(Share{1, 8, 1, kDecode, kSamples}));
}

TEST_F(Batchers, AHeadOfTheQueueThatFindsNoPagesIsAStandstillToo) {
  std::array<PageId, 7> taken{};
  ASSERT_TRUE(pool_.allocate(taken).ok());
  submit(1, 8, 4);
  expect_failure(
      batcher_.plan({}, plan_), ErrorCode::kOutOfPages,
      "[batcher] plan: expected 2 free pages for request 1, got 1: others keep the rest");
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(table_.create().ok());
  expect_failure(batcher_.plan({}, plan_), ErrorCode::kQueueFull,
                 "[batcher] plan: expected a free sequence slot for request 1, got 4 of 4 held by "
                 "others");
}

TEST_F(Batchers, AForkOfARunningSequenceMakesItsNextWriteACopy) {
  submit(1, 6, 4);
  step();
  const SeqId fork = table_.fork(plan_.items[0].seq, 6).value();
  plan();
  commit();
  EXPECT_THAT(copies_, ElementsAre(CopyOp{.src = 1, .dst = 2, .tokens = 2}));
  finish();
  ASSERT_TRUE(table_.destroy(fork).ok());
  expect_sound();
}

TEST_F(Batchers, NobodyIsPreemptedInVain) {
  submit(1, 12, 4);
  submit(2, 4, 4);
  step();
  const SeqId fork = table_.fork(plan_.items[1].seq, 4).value();
  std::array<PageId, 4> taken{};
  ASSERT_TRUE(pool_.allocate(taken).ok());
  expect_failure(
      batcher_.plan({}, plan_), ErrorCode::kOutOfPages,
      "[batcher] plan: expected 1 free pages for request 1, got 0: others keep the rest");
  EXPECT_THAT(plan_.preempted, IsEmpty()) << "the fork keeps the page that 2 would give back";
  ASSERT_TRUE(table_.destroy(fork).ok());
  plan();
  EXPECT_THAT(plan_.preempted, ElementsAre(2U));
}

}  // namespace
}  // namespace quire
