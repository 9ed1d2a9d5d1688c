// SPDX-License-Identifier: Apache-2.0
// Who gets what in a step: chunks, order, admission, preemption.
#include "batching/batchers.hpp"

namespace quire {
namespace {

using test::Batchers;
using test::kDecode;
using test::kPrefill;
using test::kSamples;
using test::Share;
using testing::ElementsAre;
using testing::IsEmpty;

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

}  // namespace
}  // namespace quire
