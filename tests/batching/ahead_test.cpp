// SPDX-License-Identifier: Apache-2.0
// Steps that are planned while another one runs: what is known, what is submitted, what is written.
#include <array>

#include "batching/batchers.hpp"
#include "quire/recorder.hpp"

namespace quire::test {
namespace {

using Ids = std::vector<std::uint64_t>;

/// The batchers of the other tests, one step ahead.
class Ahead : public Batchers {
 protected:
  Ahead() { batcher_ = Batcher(table_, {.max_requests = 5, .max_steps_in_flight = 2}); }

  /// Plans and commits a step, as plan number 0 or 1 of the two in flight.
  std::vector<Share> start(std::size_t which,
                           StepBudget budget = {.max_tokens = 100, .max_seqs = 4}) {
    std::vector<Share> shares = plan(budget);
    commit();
    plans_[which] = plan_;
    return shares;
  }
  Ids end(std::size_t which, const Ids& stopped = {}) {
    Ids ended;
    const Status status = batcher_.finish(plans_[which], stopped, ended);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
    return ended;
  }

  std::array<StepPlan, 2> plans_;
};

TEST_F(Ahead, WhoSamplesGoesOnWithATokenThatOnlyTheDeviceKnows) {
  submit(1, 5, 3);
  EXPECT_EQ(start(0), (std::vector<Share>{{1, 0, 5, kPrefill, kSamples}}));
  EXPECT_FALSE(plans_[0].items[0].awaits_token);
  EXPECT_EQ(start(1), (std::vector<Share>{{1, 5, 1, kDecode, kSamples}}));
  EXPECT_TRUE(plans_[1].items[0].awaits_token);
  EXPECT_EQ(end(0), Ids{});
  // Written: 5 tokens; submitted: 6; known: 6. The third sample is the last, and goes nowhere.
  EXPECT_EQ(start(0), (std::vector<Share>{{1, 6, 1, kDecode, kSamples}}));
  EXPECT_EQ(end(1), Ids{});
  EXPECT_EQ(plan(), std::vector<Share>{});
  EXPECT_EQ(end(0), Ids{1});
  EXPECT_TRUE(batcher_.idle());
  EXPECT_EQ(batcher_.stats().prefill_tokens + batcher_.stats().decode_tokens, 7);
}

TEST_F(Ahead, AChunkIsFollowedByTheNextOneBeforeItIsWritten) {
  submit(1, 9, 1);
  EXPECT_EQ(start(0, {.max_tokens = 4}), (std::vector<Share>{{1, 0, 4, kPrefill, false}}));
  EXPECT_EQ(start(1, {.max_tokens = 4}), (std::vector<Share>{{1, 4, 4, kPrefill, false}}));
  EXPECT_FALSE(plans_[1].items[0].awaits_token);
  end(0);
  EXPECT_EQ(start(0, {.max_tokens = 4}), (std::vector<Share>{{1, 8, 1, kPrefill, kSamples}}));
  end(1);
  EXPECT_EQ(end(0), Ids{1});
}

TEST_F(Ahead, NoMoreThanTwoStepsAreInFlightAndTheyEndInOrder) {
  submit(1, 5, 9);
  start(0);
  start(1);
  expect_failure(batcher_.plan({}, plan_), ErrorCode::kInvalidArgument,
                 "[batcher] plan: expected step 0 to be finished first, got it in flight");
  Ids ended;
  expect_failure(batcher_.finish(plans_[1], {}, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected the plan of step 0, got that of step 1");
  expect_failure(batcher_.commit(plans_[1], copies_), ErrorCode::kInvalidArgument,
                 "[batcher] commit: expected the last plan, unchanged, got a plan of step 1: it is "
                 "in flight already");
  end(0);
  end(1);
  expect_failure(batcher_.finish(plans_[1], {}, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected a step in flight, got step 1 with none committed");
}

TEST_F(Ahead, WhoIsStoppedEndsWithTheStepThatItIsInAlreadyAndWhatItSamplesThereIsVoid) {
  submit(1, 5, 9);
  submit(2, 5, 9);
  start(0);
  start(1);
  EXPECT_EQ(end(0, {1}), Ids{});
  EXPECT_EQ(plan(), (std::vector<Share>{{2, 6, 1, kDecode, kSamples}}));  // 1 is planned no more
  expect_failure(batcher_.cancel(1), ErrorCode::kInvalidArgument,
                 "[batcher] cancel: expected the id of a request that has not ended, got 1");
  const std::int32_t used = pool_.num_used();
  EXPECT_EQ(end(1, {1}), Ids{1});  // named again: nothing more happens
  EXPECT_EQ(pool_.num_used(), used - 2);
  EXPECT_EQ(batcher_.stats().finished, 1);
}

TEST_F(Ahead, WhoIsCancelledEndsWithTheLastStepThatItIsIn) {
  submit(1, 5, 9);
  start(0);
  start(1);
  ASSERT_TRUE(batcher_.cancel(1).ok());
  EXPECT_EQ(end(0), Ids{});
  EXPECT_GT(pool_.num_used(), 0);
  EXPECT_EQ(plan(), std::vector<Share>{});
  EXPECT_EQ(end(1), Ids{1});
  EXPECT_EQ(pool_.num_used(), 0);
  EXPECT_EQ(batcher_.stats().cancelled, 1);
}

TEST_F(Ahead, NobodyIsPreemptedWhileAStepIsInFlight) {
  submit(1, 16, 9);
  submit(2, 16, 9);
  start(0);
  EXPECT_EQ(pool_.num_free(), 0);
  EXPECT_EQ(plan(), std::vector<Share>{});  // a step has to be finished first
  expect_failure(
      batcher_.commit(plan_, copies_), ErrorCode::kInvalidArgument,
      "[batcher] commit: expected the last plan, unchanged, got a plan of step 1: it has "
      "no items, and a step is in flight");
  end(0);
  EXPECT_EQ(plan(), (std::vector<Share>{{1, 16, 1, kDecode, kSamples}}));
  EXPECT_EQ(plan_.preempted, Ids{2});
}

TEST_F(Ahead, APlanIsStaleOnceItsTokensAreKnown) {
  submit(1, 5, 9);
  start(0);
  plan();
  EXPECT_TRUE(plan_.items[0].awaits_token);
  end(0);
  EXPECT_EQ(batcher_.commit(plan_, copies_).code(), ErrorCode::kInvalidArgument);
  plan();
  EXPECT_FALSE(plan_.items[0].awaits_token);
  commit();
}

TEST_F(Ahead, ASpecMustBeInRange) {
  for (const std::int32_t steps : {0, 3}) {
    EXPECT_THROW(Batcher(table_, {.max_requests = 1, .max_steps_in_flight = steps}), Error);
  }
}

TEST_F(Ahead, ARecorderKnowsTwoStepsAndDoesNotCountWhatIsVoid) {
  Recorder recorder;
  recorder.submitted({1, 5, 9}, 0.0);
  submit(1, 5, 9);
  start(0);
  recorder.committed(plans_[0], batcher_.stats(), 1.0);
  start(1);
  recorder.committed(plans_[1], batcher_.stats(), 2.0);
  recorder.finished(end(0, {1}), Ids{1}, 3.0);
  recorder.finished(end(1), {}, 4.0);
  ASSERT_EQ(recorder.steps().size(), 2U);
  EXPECT_EQ(recorder.steps()[0].end, 3.0);
  EXPECT_EQ(recorder.steps()[1].end, 4.0);
  EXPECT_EQ(recorder.steps()[1].num_ended, 1);
  ASSERT_EQ(recorder.ended().size(), 1U);
  EXPECT_EQ(recorder.ended()[0].new_tokens, 1);
  EXPECT_EQ(recorder.ended()[0].first_token, 3.0);
}

}  // namespace
}  // namespace quire::test
