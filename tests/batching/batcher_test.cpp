// SPDX-License-Identifier: Apache-2.0
#include "quire/batcher.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "batching/batcher_state.hpp"
#include "cache/failing_new.hpp"
#include "cache/test_access.hpp"

namespace quire {
namespace {

using test::FailingNew;
using testing::ElementsAre;
using testing::IsEmpty;

void expect_failure(const Status& status, ErrorCode code, std::string_view text) {
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(status.message(), text);
}

/// What a test wants to see of an item.
struct Share {
  std::uint64_t request;
  std::int32_t position;
  std::int32_t n;
  bool is_prefill;
  bool samples;

  friend bool operator==(const Share&, const Share&) = default;
};

std::ostream& operator<<(std::ostream& out, const Share& share) {
  return out << "request " << share.request << " at " << share.position << " +" << share.n
             << (share.is_prefill ? " prefill" : " decode") << (share.samples ? " samples" : "");
}

constexpr bool kPrefill = true;
constexpr bool kDecode = false;
constexpr bool kSamples = true;

/// Eight pages of four tokens, four sequences of at most 32, five requests.
class Batchers : public testing::Test {
 protected:
  void submit(std::uint64_t id, std::int32_t prompt, std::int32_t max_new, double arrival = 0.0) {
    const Status status = batcher_.submit({id, prompt, max_new, arrival});
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::vector<Share> plan(StepBudget budget = {.max_tokens = 100, .max_seqs = 4}) {
    const Status status = batcher_.plan(budget, plan_);
    EXPECT_TRUE(status.ok()) << status.message();
    std::vector<Share> shares;
    for (const StepItem& item : plan_.items) {
      shares.push_back(
          {item.request, item.position, item.num_new_tokens, item.is_prefill, item.samples});
    }
    return shares;
  }
  void commit() {
    const Status status = batcher_.commit(plan_, copies_);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
  }
  std::vector<std::uint64_t> finish(std::vector<std::uint64_t> stopped = {}) {
    std::vector<std::uint64_t> ended;
    const Status status = batcher_.finish(plan_, stopped, ended);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
    return ended;
  }
  std::vector<Share> step(StepBudget budget = {.max_tokens = 100, .max_seqs = 4}) {
    std::vector<Share> shares = plan(budget);
    commit();
    finish();
    return shares;
  }
  void step_until_preempted() {
    do {
      step();
    } while (plan_.preempted.empty() && !batcher_.idle());
  }
  void expect_sound() {
    const Status status = batcher_.check();
    EXPECT_TRUE(status.ok()) << status.message();
  }

  PagePool pool_{{.num_pages = 8, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 4, .max_tokens_per_seq = 32}};
  Batcher batcher_{table_, {.max_requests = 5}};
  StepPlan plan_;
  std::vector<CopyOp> copies_;
};

TEST_F(Batchers, APromptIsPrefilledThenDecodedTokenByToken) {
  submit(7, 6, 3);
  EXPECT_THAT(step(), ElementsAre(Share{7, 0, 6, kPrefill, kSamples}));
  EXPECT_THAT(step(), ElementsAre(Share{7, 6, 1, kDecode, kSamples}));
  EXPECT_THAT(plan(), ElementsAre(Share{7, 7, 1, kDecode, kSamples}));
  commit();
  EXPECT_THAT(finish(), ElementsAre(7U));
  EXPECT_TRUE(batcher_.idle());
  EXPECT_EQ(pool_.num_free(), 8);
  EXPECT_THAT(plan(), IsEmpty());
}

TEST_F(Batchers, APlanChangesNothing) {
  submit(1, 6, 3);
  plan();
  plan();
  EXPECT_EQ(pool_.num_free(), 8);
  EXPECT_EQ(table_.num_seqs(), 0);
  EXPECT_EQ(batcher_.stats().steps, 0);
  expect_sound();
}

TEST_F(Batchers, ACommittedPlanIsWhatTheBuilderTakes) {
  submit(1, 6, 3);
  submit(2, 5, 3);
  plan();
  commit();
  ASSERT_EQ(plan_.batch.size(), 2U);
  EXPECT_EQ(plan_.batch[0], (BatchEntry{plan_.items[0].seq, 6}));
  EXPECT_EQ(plan_.batch[1], (BatchEntry{plan_.items[1].seq, 5}));
  EXPECT_EQ(table_.length(plan_.items[1].seq), 5);
  BatchBuilder builder(table_);
  EXPECT_EQ(builder.tight_shape(plan_.batch).value(), (BatchShape{2, 11, 2, 4}));
}

TEST_F(Batchers, ALongPromptIsCutIntoChunks) {
  submit(1, 10, 2);
  const StepBudget budget{.max_tokens = 4, .max_seqs = 4};
  EXPECT_THAT(step(budget), ElementsAre(Share{1, 0, 4, kPrefill, !kSamples}));
  EXPECT_THAT(step(budget), ElementsAre(Share{1, 4, 4, kPrefill, !kSamples}));
  EXPECT_THAT(step(budget), ElementsAre(Share{1, 8, 2, kPrefill, kSamples}));
  EXPECT_THAT(step(budget), ElementsAre(Share{1, 10, 1, kDecode, kSamples}));
}

TEST_F(Batchers, ChunksFillTheBudgetThatDecodesLeave) {
  submit(1, 2, 5);
  submit(2, 2, 5);
  step();
  submit(3, 9, 2);
  const StepBudget budget{.max_tokens = 6, .max_seqs = 4};
  EXPECT_THAT(step(budget),
              ElementsAre(Share{1, 2, 1, kDecode, kSamples}, Share{2, 2, 1, kDecode, kSamples},
                          Share{3, 0, 4, kPrefill, !kSamples}));
}

TEST_F(Batchers, AnOlderPrefillLeavesItsShareOfTheBudgetToYoungerDecodes) {
  submit(2, 2, 5, 2.0);
  step();
  submit(1, 12, 2, 1.0);
  const StepBudget budget{.max_tokens = 5, .max_seqs = 4};
  step(budget);
  EXPECT_THAT(step(budget),
              ElementsAre(Share{1, 4, 4, kPrefill, !kSamples}, Share{2, 3, 1, kDecode, kSamples}));
}

TEST_F(Batchers, TheOldestGetsATokenEvenIfDecodesCouldTakeTheBudget) {
  submit(2, 2, 5, 2.0);
  step();
  submit(1, 6, 2, 1.0);
  step({.max_tokens = 4, .max_seqs = 4});
  EXPECT_THAT(step({.max_tokens = 1, .max_seqs = 4}),
              ElementsAre(Share{1, 3, 1, kPrefill, !kSamples}));
}

TEST_F(Batchers, RequestsGoInTheOrderOfArrivalThenOfSubmission) {
  submit(1, 1, 1, 5.0);
  submit(2, 1, 1, 3.0);
  submit(3, 1, 1, 5.0);
  submit(4, 1, 1, 3.0);
  EXPECT_THAT(plan({.max_tokens = 3, .max_seqs = 4}),
              ElementsAre(Share{2, 0, 1, kPrefill, kSamples}, Share{4, 0, 1, kPrefill, kSamples},
                          Share{1, 0, 1, kPrefill, kSamples}));
}

TEST_F(Batchers, NobodyOvertakesTheHeadOfTheQueue) {
  submit(1, 20, 3);
  submit(2, 16, 3);
  submit(3, 1, 3);
  EXPECT_THAT(step(), ElementsAre(Share{1, 0, 20, kPrefill, kSamples}))
      << "5 of 8 pages are taken, so 2 has to wait, and 3 behind it";
  EXPECT_EQ(batcher_.stats().waiting, 2);
}

TEST_F(Batchers, NoMoreRequestsRunThanTheBudgetOrTheTableAllow) {
  for (std::uint64_t id = 1; id <= 5; ++id) submit(id, 1, 3);
  EXPECT_EQ(plan({.max_tokens = 100, .max_seqs = 2}).size(), 2U);
  EXPECT_EQ(plan({.max_tokens = 100, .max_seqs = 5}).size(), 4U) << "the table holds 4 sequences";
}

TEST_F(Batchers, ARequestIsAdmittedOnlyIfItsWholePromptFindsPages) {
  submit(1, 16, 8);
  submit(2, 17, 1);
  step();
  EXPECT_THAT(plan({.max_tokens = 5, .max_seqs = 4}),
              ElementsAre(Share{1, 16, 1, kDecode, kSamples}))
      << "a first chunk of 2 would fit, but not the rest";
}

TEST_F(Batchers, WhenTheBudgetIsShortTheOlderDecodesGoFirst) {
  for (std::uint64_t id = 1; id <= 4; ++id) submit(id, 1, 9);
  step();
  EXPECT_THAT(plan({.max_tokens = 2, .max_seqs = 4}),
              ElementsAre(Share{1, 1, 1, kDecode, kSamples}, Share{2, 1, 1, kDecode, kSamples}));
}

TEST_F(Batchers, TheNewestIsPreemptedWhenPagesRunOutAndKeepsWhatItHasSampled) {
  submit(1, 16, 8);
  submit(2, 12, 5);
  step_until_preempted();  // 1 wants a sixth page, 2 has the other three
  EXPECT_THAT(plan_.preempted, ElementsAre(2U));
  EXPECT_EQ(batcher_.stats().preemptions, 1);
  EXPECT_EQ(batcher_.stats().recomputed_tokens, 12);
  EXPECT_EQ(batcher_.stats().waiting, 1);
  EXPECT_EQ(pool_.num_used(), 6);

  while (batcher_.stats().finished == 0) step();
  EXPECT_THAT(step(), ElementsAre(Share{2, 0, 13, kPrefill, kSamples}))
      << "the prompt and the token sampled before";
}

TEST_F(Batchers, AYoungerRequestWaitsForPagesItCannotTakeFromAnOlderOne) {
  submit(1, 12, 4);
  submit(2, 16, 4);
  step();  // 3 + 4 pages; 1 decodes at 12, 2 at 16
  EXPECT_THAT(step(), ElementsAre(Share{1, 12, 1, kDecode, kSamples}))
      << "the last page goes to the older one, 2 keeps its own and waits";
  EXPECT_EQ(batcher_.stats().preemptions, 0);
  EXPECT_EQ(batcher_.stats().running, 2);
}

TEST_F(Batchers, APrefillTakesTheRoomThereIsBeforeAnyoneIsPreempted) {
  submit(2, 3, 8, 2.0);
  step();
  submit(1, 28, 1, 1.0);
  step({.max_tokens = 5, .max_seqs = 4});
  while (batcher_.stats().preemptions == 0 && !batcher_.idle()) step();
  EXPECT_EQ(batcher_.stats().preemptions, 0) << "28 tokens and the 4 of the other fit exactly";
}

TEST_F(Batchers, ThePreemptedGoesBeforeThoseWhoCameLater) {
  submit(1, 16, 8);
  submit(2, 12, 5);
  submit(3, 20, 1);
  step_until_preempted();
  ASSERT_THAT(plan_.preempted, ElementsAre(2U));
  while (batcher_.stats().finished == 0) step();
  EXPECT_EQ(plan()[0].request, 2U);
}

// The smallest pool in which each fits alone: both grow to all eight pages.
TEST_F(Batchers, TwoRequestsThatFitOnlyOneAtATimeBothFinish) {
  submit(1, 1, 32);
  submit(2, 1, 32);
  int steps = 0;
  while (!batcher_.idle() && steps < 200) {
    ASSERT_THAT(step(), testing::Not(IsEmpty()));
    ++steps;
  }
  EXPECT_TRUE(batcher_.idle());
  EXPECT_EQ(batcher_.stats().finished, 2);
  EXPECT_EQ(batcher_.stats().preemptions, 1);
  EXPECT_EQ(batcher_.stats().peak_used_pages, 8);
  EXPECT_EQ(pool_.num_free(), 8);
}

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

/// A step that needs memory everywhere: one request writes to a page that a fork shares, another is
/// admitted, a third ends. The allocation after the next `allowed` fails.
/// @return False if the step needed no more than `allowed`.
bool step_fails_cleanly(int allowed, FailingNew::Which which) {
  PagePool pool({.num_pages = 8, .page_size = 4});
  PageTable table(pool, {.max_seqs = 4, .max_tokens_per_seq = 32});
  Batcher batcher(table, {.max_requests = 5});
  StepPlan plan;
  std::vector<CopyOp> copies;
  std::vector<std::uint64_t> ended;
  batcher.submit({1, 11, 4, 0.0}).throw_if_error();
  batcher.submit({2, 2, 2, 0.0}).throw_if_error();
  batcher.plan({}, plan).throw_if_error();
  batcher.commit(plan, copies).throw_if_error();
  batcher.finish(plan, {}, ended).throw_if_error();
  EXPECT_TRUE(table.fork(plan.items[0].seq, 10).ok());
  batcher.submit({3, 4, 4, 0.0}).throw_if_error();

  plan = {};
  int done = 0;
  const auto next_call = [&] {
    return done == 0   ? batcher.plan({}, plan)
           : done == 1 ? batcher.commit(plan, copies)
                       : batcher.finish(plan, {}, ended);
  };
  bool fired = false;
  {
    const FailingNew failing(allowed, which);
    while (done < 3 && next_call().ok()) ++done;
    fired = failing.fired();
  }
  EXPECT_EQ(fired, done < 3);
  EXPECT_TRUE(batcher.check().ok()) << batcher.check().message();
  EXPECT_EQ(batcher.stats().steps, done < 2 ? 1 : 2);
  EXPECT_EQ(pool.num_used(), done < 2 ? 4 : done == 2 ? 6 : 5);
  done = done == 2 ? 2 : 0;
  while (done < 3 && next_call().ok()) ++done;
  EXPECT_EQ(done, 3) << "the step goes on where it failed";
  EXPECT_EQ(copies.size(), 1U);
  EXPECT_THAT(ended, ElementsAre(2U));
  EXPECT_TRUE(batcher.check().ok());
  return fired;
}

TEST(Batcher, EveryFailedAllocationOfAStepLeavesEverythingAsItWas) {
  for (const auto which : {FailingNew::Which::kOne, FailingNew::Which::kAllFromThere}) {
    int allowed = 0;
    while (step_fails_cleanly(allowed, which)) ++allowed;
    EXPECT_GE(allowed, 4) << "plan, commit and finish allocate the first time";
  }
}

TEST_F(Batchers, ASubmitWithoutMemoryQueuesNothing) {
  Status status;
  {
    const FailingNew failing(0, FailingNew::Which::kOne);
    status = batcher_.submit({1, 1, 1, 0.0});
  }
  expect_failure(status, ErrorCode::kOutOfMemory, "[batcher] submit: expected memory, got none");
  EXPECT_TRUE(batcher_.idle());
  expect_sound();
  submit(1, 1, 1);
}

TEST_F(Batchers, ASteadyStateStepDoesNotAllocate) {
  submit(1, 4, 20);
  submit(2, 4, 8);
  std::vector<std::uint64_t> ended;
  ended.reserve(8);
  step();
  step();
  const long before = test::num_allocations();
  EXPECT_TRUE(batcher_.plan({}, plan_).ok());
  EXPECT_TRUE(batcher_.commit(plan_, copies_).ok());
  EXPECT_TRUE(batcher_.finish(plan_, {}, ended).ok());
  EXPECT_EQ(test::num_allocations(), before);
}

TEST(Batcher, GivesItsSequencesBackWhenItEnds) {
  PagePool pool({.num_pages = 4, .page_size = 4});
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 16});
  {
    Batcher batcher(table);
    StepPlan plan;
    std::vector<CopyOp> copies;
    ASSERT_TRUE(batcher.submit({1, 7, 2, 0.0}).ok());
    ASSERT_TRUE(batcher.plan({}, plan).ok());
    ASSERT_TRUE(batcher.commit(plan, copies).ok());
    EXPECT_EQ(table.num_seqs(), 1);
  }
  EXPECT_EQ(table.num_seqs(), 0);
  EXPECT_EQ(pool.num_free(), 4);
}

TEST(Batcher, MovesTogetherWithItsTable) {
  struct Engine {
    PagePool pool{{.num_pages = 4, .page_size = 4}};
    PageTable table{pool, {.max_seqs = 2, .max_tokens_per_seq = 16}};
    Batcher batcher{table};
  };
  std::optional<Engine> engine(std::in_place);
  ASSERT_TRUE(engine->batcher.submit({1, 7, 2, 0.0}).ok());
  Engine moved = std::move(*engine);
  engine.reset();
  StepPlan plan;
  std::vector<CopyOp> copies;
  ASSERT_TRUE(moved.batcher.plan({}, plan).ok());
  ASSERT_TRUE(moved.batcher.commit(plan, copies).ok());
  EXPECT_EQ(moved.table.length(plan.items[0].seq), 7);
  EXPECT_EQ(moved.pool.num_used(), 2);
}

// check() is only worth its name if it notices.
class BrokenBatcher : public Batchers {
 protected:
  BrokenBatcher() {
    submit(1, 4, 4);
    submit(2, 4, 4);
    step();
    submit(3, 30, 2);
    submit(4, 30, 2);
  }
  internal::BatcherState& state() { return internal::TestAccess::state(batcher_); }
  void expect_noticed(std::string_view text) {
    expect_failure(batcher_.check(), ErrorCode::kInternal, text);
  }
};

TEST_F(BrokenBatcher, ARunningRequestOutOfOrderIsNoticed) {
  std::swap(state().running[0], state().running[1]);
  expect_noticed("[batcher] check: request 1 runs out of order or is not marked as running");
}

TEST_F(BrokenBatcher, ASequenceOfAnotherLengthIsNoticed) {
  state().at(0).cached = 3;
  expect_noticed("[batcher] check: request 1 has a sequence of 4 tokens, 3 cached, 5 known");
}

TEST_F(BrokenBatcher, ALeftOverPartInAStepIsNoticed) {
  state().at(1).in_step = true;
  expect_noticed("[batcher] check: request 2 takes part in a step that is not in flight");
}

TEST_F(BrokenBatcher, ABrokenQueueIsNoticed) {
  state().at(3).prev = internal::BatcherState::kNobody;
  expect_noticed(
      "[batcher] check: request 4 waits out of order, wrongly linked or with a sequence");
}

TEST_F(BrokenBatcher, ALostWaitingRequestIsNoticed) {
  state().newest_waiting = 2;
  state().at(2).next = internal::BatcherState::kNobody;
  expect_noticed("[batcher] check: 1 requests wait, the counter says 2");
}

TEST_F(BrokenBatcher, AnIdThatLeadsNowhereIsNoticed) {
  state().index_of.erase(3);
  expect_noticed("[batcher] check: request 3 is not found by its id");
}

TEST_F(BrokenBatcher, ALostPlaceIsNoticed) {
  state().first_free = internal::BatcherState::kNobody;
  expect_noticed("[batcher] check: 4 places are taken, 0 free, 4 in the lists, 4 known by id");
}

}  // namespace
}  // namespace quire
