// SPDX-License-Identifier: Apache-2.0
// The examples of docs/concepts, played: what the drawings say is what happens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "quire/batcher.hpp"

namespace quire {
namespace {

using testing::ElementsAre;

TEST(Concepts, TheThreeRequestsOfTheBatchingPage) {
  PagePool pool({.num_pages = 7, .page_size = 4});
  PageTable table(pool, {.max_seqs = 4, .max_tokens_per_seq = 28});
  Batcher batcher(table);
  constexpr std::uint64_t kA = 0, kB = 1, kC = 2;
  std::vector<std::vector<std::int32_t>> tokens(3);
  std::vector<std::int32_t> used, step_tokens;
  std::vector<std::uint64_t> preempted_in, ended;
  StepPlan plan;
  std::vector<CopyOp> copies;
  batcher.submit({kA, 6, 8, 0.0}).throw_if_error();
  for (std::uint64_t step = 0; !batcher.idle(); ++step) {
    if (step == 1) batcher.submit({kB, 10, 4, 0.5}).throw_if_error();
    if (step == 3) batcher.submit({kC, 4, 4, 2.5}).throw_if_error();
    batcher.plan({.max_tokens = 8, .max_seqs = 4}, plan).throw_if_error();
    batcher.commit(plan, copies).throw_if_error();
    for (auto& row : tokens) row.push_back(0);
    for (const StepItem& item : plan.items) tokens[item.request].back() = item.num_new_tokens;
    for (const std::uint64_t request : plan.preempted) {
      EXPECT_EQ(request, kC);
      preempted_in.push_back(step);
    }
    used.push_back(batcher.stats().used_pages);
    step_tokens.push_back(plan.num_tokens);
    batcher.finish(plan, {}, ended).throw_if_error();
  }
  EXPECT_THAT(tokens[kA], ElementsAre(6, 1, 1, 1, 1, 1, 1, 1, 0));
  EXPECT_THAT(tokens[kB], ElementsAre(0, 7, 3, 1, 1, 1, 0, 0, 0));
  EXPECT_THAT(tokens[kC], ElementsAre(0, 0, 0, 4, 0, 0, 5, 1, 1));
  EXPECT_THAT(step_tokens, ElementsAre(6, 8, 4, 6, 2, 2, 6, 2, 1));
  EXPECT_THAT(used, ElementsAre(2, 4, 5, 7, 7, 7, 5, 6, 2));
  EXPECT_THAT(preempted_in, ElementsAre(5));
  EXPECT_THAT(ended, ElementsAre(kB, kA, kC));
}

TEST(Concepts, TheForkOfThePagesPage) {
  PagePool pool({.num_pages = 4, .page_size = 4});
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 16});
  std::vector<CopyOp> copies;
  const SeqId a = table.create().value();
  table.append(a, 6, copies).throw_if_error();
  EXPECT_THAT(table.pages(a), ElementsAre(0, 1));
  const SeqId b = table.fork(a, 6).value();
  EXPECT_THAT(table.pages(b), ElementsAre(0, 1));
  EXPECT_EQ(pool.ref_count(0), 2);
  EXPECT_EQ(pool.ref_count(1), 2);
  EXPECT_EQ(pool.num_used(), 2);
  table.append(b, 1, copies).throw_if_error();
  EXPECT_THAT(copies, ElementsAre(CopyOp{.src = 1, .dst = 2, .tokens = 2}));
  EXPECT_THAT(table.pages(b), ElementsAre(0, 2));
  EXPECT_EQ(pool.ref_count(0), 2);
  EXPECT_EQ(pool.ref_count(1), 1);
  copies.clear();
  table.append(a, 1, copies).throw_if_error();
  EXPECT_TRUE(copies.empty()) << "page 1 is A's alone by now";
  EXPECT_EQ(table.slot(b, 6), 2 * 4 + 2);
}

}  // namespace
}  // namespace quire
