// SPDX-License-Identifier: Apache-2.0
// Allocations that fail, those that must not be, and who owns what.
#include <optional>
#include <utility>

#include "batching/batchers.hpp"
#include "cache/failing_new.hpp"

namespace quire {
namespace {

using test::Batchers;
using test::expect_failure;
using test::FailingNew;
using testing::ElementsAre;

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

/// A request that begins with a partial page of the cache, from `submit` to the end of a step. The
/// allocation after the next `allowed` fails.
/// @return False if all that needed no more than `allowed`.
bool sharing_step_fails_cleanly(int allowed) {
  PagePool pool({.num_pages = 8, .page_size = 4});
  PageTable table(pool, {.max_seqs = 4, .max_tokens_per_seq = 32});
  PrefixCache cache(pool);
  Batcher batcher(table, cache, {.max_requests = 5});
  const std::vector<std::int32_t> text = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<std::int32_t> sampled = {9};
  StepPlan plan;
  std::vector<CopyOp> copies;
  std::vector<std::uint64_t> ended;
  Request request{1, 7, 1};
  request.prompt = std::span(text).first(7);
  batcher.submit(request).throw_if_error();
  batcher.plan({}, plan).throw_if_error();
  batcher.commit(plan, copies).throw_if_error();
  batcher.finish(plan, sampled, {}, ended).throw_if_error();

  request = {2, 8, 2};
  request.prompt = text;
  plan = {};
  ended = std::vector<std::uint64_t>();  // = {} would keep the memory
  int done = 0;
  const auto next_call = [&] {
    return done == 0   ? batcher.submit(request)
           : done == 1 ? batcher.plan({}, plan)
           : done == 2 ? batcher.commit(plan, copies)
                       : batcher.finish(plan, sampled, {}, ended);
  };
  bool fired = false;
  {
    const FailingNew failing(allowed, FailingNew::Which::kOne);
    while (done < 4 && next_call().ok()) ++done;
    fired = failing.fired();
  }
  EXPECT_EQ(fired, done < 4);
  EXPECT_TRUE(batcher.check().ok()) << batcher.check().message();
  EXPECT_EQ(cache.stats().leases, 0);
  EXPECT_EQ(batcher.stats().steps, done < 3 ? 1 : 2);
  EXPECT_EQ(pool.num_used(), done < 3 ? 2 : 3);
  if (done == 2) done = 1;  // a plan that failed to be committed is made again
  while (done < 4 && next_call().ok()) ++done;
  EXPECT_EQ(done, 4) << "the step goes on where it failed";
  EXPECT_EQ(copies.size(), 1U);
  EXPECT_EQ(batcher.stats().hit_tokens, 7);
  EXPECT_TRUE(batcher.check().ok());
  return fired;
}

TEST(Batcher, EveryFailedAllocationOfASharingStepLeavesEverythingAsItWas) {
  int allowed = 0;
  while (sharing_step_fails_cleanly(allowed)) ++allowed;
  EXPECT_GE(allowed, 4) << "submit, plan, commit and finish allocate the first time";
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

}  // namespace
}  // namespace quire
