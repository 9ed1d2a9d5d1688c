// SPDX-License-Identifier: Apache-2.0
// Several samples of one prompt, by fork.
#include <array>

#include "batching/batchers.hpp"
#include "cache/failing_new.hpp"
#include "quire/recorder.hpp"

namespace quire::test {
namespace {

using Ids = std::vector<std::uint64_t>;

class Samples : public Batchers {
 protected:
  void submit_samples(std::uint64_t id, std::int32_t prompt, std::int32_t max_new,
                      const Ids& further) {
    Request request{id, prompt, max_new};
    request.further_samples = further;
    const Status status = batcher_.submit(request);
    ASSERT_TRUE(status.ok()) << status.message();
    expect_sound();
  }
};

TEST_F(Samples, BeginWithTheFirstTokenAndShareThePagesOfThePrompt) {
  submit_samples(1, 6, 3, {11, 12});
  EXPECT_EQ(plan(), (std::vector<Share>{{1, 0, 6, kPrefill, kSamples}}));
  EXPECT_EQ(plan_.items[0].num_samples, 3);
  commit();
  EXPECT_EQ(pool_.num_used(), 2);
  EXPECT_EQ(finish(), Ids{});
  EXPECT_EQ(pool_.num_used(), 2);  // a fork takes no page
  EXPECT_EQ(batcher_.stats().running, 3);
  copies_.clear();
  EXPECT_EQ(step(), (std::vector<Share>{{1, 6, 1, kDecode, kSamples},
                                        {11, 6, 1, kDecode, kSamples},
                                        {12, 6, 1, kDecode, kSamples}}));
  EXPECT_EQ(plan_.items[0].num_samples, 1);
  EXPECT_EQ(copies_.size(), 2U);  // the last writer has the page for itself
  EXPECT_EQ(pool_.num_used(), 4);
  plan();
  commit();
  EXPECT_EQ(finish(), (Ids{1, 11, 12}));
  EXPECT_TRUE(batcher_.idle());
  EXPECT_EQ(batcher_.stats().finished, 3);
  EXPECT_EQ(batcher_.stats().prefill_tokens, 6);
}

TEST_F(Samples, TakeATokenEachOfTheFirstStepThatSamples) {
  submit_samples(1, 6, 3, {11});
  plan({.max_tokens = 4});
  EXPECT_EQ(plan_.items[0].num_samples, 0);
  commit();
  finish();
  plan();
  commit();
  Ids ended;
  expect_failure(batcher_.finish(plan_, std::array{5}, {}, ended), ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected 2 sampled tokens or none, got 1 for 1 items");
  ASSERT_TRUE(batcher_.finish(plan_, std::array{5, 6}, Ids{11}, ended).ok());
  EXPECT_EQ(ended, Ids{11});  // stopped by its first token
  expect_sound();
}

TEST_F(Samples, WithOneTokenEndAtOnce) {
  submit_samples(1, 6, 1, {11, 12});
  plan();
  commit();
  EXPECT_EQ(finish(), (Ids{1, 11, 12}));
  EXPECT_EQ(pool_.num_used(), 0);
}

TEST_F(Samples, WithoutASequenceWaitForOne) {
  submit_samples(1, 3, 4, {11, 12, 13, 14});  // five for four sequences
  step();
  EXPECT_EQ(batcher_.stats().running, 4);
  EXPECT_EQ(batcher_.stats().waiting, 1);
  while (plan_.items.back().request != 14) step();
  EXPECT_EQ(plan_.items.back().position, 0);
  EXPECT_EQ(plan_.items.back().num_new_tokens, 4);  // the prompt, and its first token
}

TEST_F(Samples, ThatHaveNotBegunEndWithTheirRequestOrByThemselves) {
  submit_samples(1, 6, 3, {11, 12});
  ASSERT_TRUE(batcher_.cancel(11).ok());
  EXPECT_EQ(batcher_.cancel(11).code(), ErrorCode::kInvalidArgument);
  plan();
  EXPECT_EQ(plan_.items[0].num_samples, 2);
  commit();
  ASSERT_TRUE(batcher_.cancel(12).ok());  // its token is on its way
  ASSERT_TRUE(batcher_.cancel(1).ok());
  EXPECT_EQ(finish(), (Ids{1, 12}));
  EXPECT_EQ(batcher_.stats().cancelled, 3);
  submit_samples(1, 6, 3, {11, 12});  // all ids are free again
  ASSERT_TRUE(batcher_.cancel(1).ok());
  EXPECT_TRUE(batcher_.idle());
  expect_sound();
}

TEST_F(Samples, NeedPlacesAndIdsOfTheirOwn) {
  submit(1, 3, 3);
  Request request{2, 3, 3};
  const Ids known{3, 1};
  request.further_samples = known;
  expect_failure(batcher_.submit(request), ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected an id that is not in use, got 1");
  const Ids twice{3, 3};
  request.further_samples = twice;
  expect_failure(batcher_.submit(request), ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected an id that is not in use, got 3");
  const Ids many{3, 4, 5, 6};
  request.further_samples = many;
  expect_failure(batcher_.submit(request), ErrorCode::kQueueFull,
                 "[batcher] submit: expected 5 free places for request 2, got 1 taken");
  expect_sound();
  submit_samples(2, 3, 3, {3, 4, 5});
}

TEST_F(Samples, AreAllOrNoneIfMemoryFails) {
  PrefixCache cache(pool_);
  Batcher batcher(table_, cache, {.max_requests = 5});
  const std::array prompt{1, 2, 3, 4, 5};
  Request request{1, 5, 3};
  request.prompt = prompt;
  const Ids further{2, 3};
  request.further_samples = further;
  int allowed = 0;
  for (;; ++allowed) {
    Status status;
    {
      const FailingNew failing(allowed, FailingNew::Which::kOne);
      status = batcher.submit(request);
      if (!failing.fired()) break;
    }
    ASSERT_EQ(status.code(), ErrorCode::kOutOfMemory);
    ASSERT_TRUE(batcher.check().ok()) << batcher.check().message();
    ASSERT_TRUE(batcher.idle());
  }
  EXPECT_GT(allowed, 4) << "ids and texts take memory";
  StepPlan step;
  std::vector<CopyOp> copies;
  ASSERT_TRUE(batcher.plan({}, step).ok());
  ASSERT_TRUE(batcher.commit(step, copies).ok());
  for (allowed = 0;; ++allowed) {
    Status status;
    Ids ended;
    {
      const FailingNew failing(allowed, FailingNew::Which::kOne);
      status = batcher.finish(step, std::array{7, 8, 9}, {}, ended);
      if (!failing.fired()) break;
    }
    ASSERT_EQ(status.code(), ErrorCode::kOutOfMemory);
    ASSERT_TRUE(batcher.check().ok()) << batcher.check().message();
  }
  EXPECT_GT(allowed, 2);
  EXPECT_EQ(batcher.stats().running, 3);
  EXPECT_TRUE(batcher.check().ok()) << batcher.check().message();
}

TEST_F(Samples, AreRecordedAsRequestsOfTheirOwn) {
  Recorder recorder;
  Request request{1, 6, 2};
  const Ids further{11, 12};
  request.further_samples = further;
  ASSERT_TRUE(batcher_.submit(request).ok());
  recorder.submitted(request, 0.0);
  ASSERT_TRUE(batcher_.cancel(11).ok());
  recorder.cancelled(11, 0.5);
  for (double now : {1.0, 2.0}) {
    plan();
    commit();
    recorder.committed(plan_, batcher_.stats(), now);
    recorder.finished(finish(), now + 0.5);
  }
  ASSERT_EQ(recorder.ended().size(), 3U);
  EXPECT_EQ(recorder.ended()[0].request, 11U);
  EXPECT_EQ(recorder.ended()[0].new_tokens, 0);
  for (const std::size_t i : {std::size_t{1}, std::size_t{2}}) {
    EXPECT_EQ(recorder.ended()[i].first_token, 1.5);
    EXPECT_EQ(recorder.ended()[i].finished, 2.5);
    EXPECT_EQ(recorder.ended()[i].new_tokens, 2);
    EXPECT_EQ(recorder.ended()[i].prompt_tokens, 6);
  }
  EXPECT_EQ(recorder.losses(), RecorderLosses{});
}

}  // namespace
}  // namespace quire::test
