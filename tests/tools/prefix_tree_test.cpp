// SPDX-License-Identifier: Apache-2.0
#include "replay/prefix_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "replay/engine.hpp"

namespace quire::tool {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

/// A run in short.
std::vector<std::int32_t> told(const PrefixTree::Run& run) {
  return {run.parent, run.position, run.tokens, run.pages, run.subtree, run.finds, run.hidden};
}

/// Prompts of a head of 2 pages, then one of 3 and one of 1 of their own; and one of a page alone.
class PrefixTrees : public testing::Test {
 protected:
  PrefixTrees() {
    cache_.set_listener(&tree_);
    publish({1, 1, 2, 2, 3, 3, 4, 4, 5, 5});
    publish({1, 1, 2, 2, 6, 6});
    publish({9});
  }
  void publish(const std::vector<std::int32_t>& tokens) {
    const SeqId seq = *table_.create();
    std::vector<CopyOp> copies;
    table_.append(seq, static_cast<std::int32_t>(tokens.size()), copies).throw_if_error();
    cache_.publish(0, table_, seq, tokens).status().throw_if_error();
    table_.destroy(seq).throw_if_error();
  }
  void admit(const std::vector<std::int32_t>& prompt) {
    Batcher batcher(table_, cache_, {.max_requests = 1});
    Request request{1, static_cast<std::int32_t>(prompt.size()), 1};
    request.prompt = prompt;
    batcher.submit(request).throw_if_error();
    StepPlan plan;
    std::vector<CopyOp> copies;
    batcher.plan({}, plan).throw_if_error();
    batcher.commit(plan, copies).throw_if_error();
    tree_.committed(plan, table_);
  }

  PagePool pool_{{.num_pages = 16, .page_size = 2}};
  PageTable table_{pool_, {.max_seqs = 2, .max_tokens_per_seq = 16}};
  PrefixCache cache_{pool_};
  PrefixTree tree_{16, 0};
};

TEST_F(PrefixTrees, HasARunForEachStretchBetweenBranches) {
  const std::vector<PrefixTree::Run> runs = tree_.runs(10);
  ASSERT_EQ(runs.size(), 4U);
  EXPECT_THAT(told(runs[0]), ElementsAre(-1, 0, 4, 2, 6, 0, 0));
  EXPECT_THAT(told(runs[1]), ElementsAre(0, 4, 6, 3, 3, 0, 0));
  EXPECT_THAT(told(runs[2]), ElementsAre(0, 4, 2, 1, 1, 0, 0)) << "of equals the older first";
  EXPECT_THAT(told(runs[3]), ElementsAre(-1, 0, 1, 1, 1, 0, 0));
  EXPECT_EQ(tree_.num_pages(), 7);
}

TEST_F(PrefixTrees, ARunEndsWherePagesWereFoundMoreOften) {
  admit({1, 1, 2, 2, 3, 3, 8});
  const std::vector<PrefixTree::Run> runs = tree_.runs(10);
  ASSERT_EQ(runs.size(), 5U);
  EXPECT_THAT(told(runs[0]), ElementsAre(-1, 0, 4, 2, 6, 1, 0));
  EXPECT_THAT(told(runs[1]), ElementsAre(0, 4, 2, 1, 3, 1, 0)) << "found with the head";
  EXPECT_THAT(told(runs[2]), ElementsAre(1, 6, 4, 2, 2, 0, 0)) << "not found";
  EXPECT_EQ(tree_.num_found(), 3);
}

TEST_F(PrefixTrees, OfALargeTreeTheLargestBranchesAreTold) {
  const std::vector<PrefixTree::Run> runs = tree_.runs(2);
  ASSERT_EQ(runs.size(), 2U);
  EXPECT_THAT(told(runs[0]), ElementsAre(-1, 0, 4, 2, 6, 0, 1)) << "a page of the other branch";
  EXPECT_THAT(told(runs[1]), ElementsAre(0, 4, 6, 3, 3, 0, 0));
}

TEST_F(PrefixTrees, ForgetsWhatIsEvicted) {
  EXPECT_EQ(cache_.evict(16), 7);
  EXPECT_EQ(tree_.num_pages(), 0);
  EXPECT_THAT(tree_.runs(10), IsEmpty());
}

TEST(PrefixTree, APageThatMovesToTheHostAndBackKeepsItsPlaceAndItsFinds) {
  PagePool pool({.num_pages = 8, .page_size = 2});
  PagePool host({.num_pages = 8, .page_size = 2});
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 16});
  PrefixCache cache(pool, host, {.costs = {.prefill_tokens_per_second = 1}});
  PrefixTree tree(8, 8);
  cache.set_listener(&tree);
  const std::vector<std::int32_t> tokens = {1, 1, 2, 2, 3, 3};
  const SeqId seq = *table.create();
  std::vector<CopyOp> copies;
  table.append(seq, 6, copies).throw_if_error();
  cache.publish(0, table, seq, tokens).status().throw_if_error();
  table.destroy(seq).throw_if_error();
  TransferPlan plan;
  const auto shapes = [&] {
    std::vector<std::vector<std::int32_t>> all;
    for (const PrefixTree::Run& run : tree.runs(9))
      all.push_back({run.parent, run.pages, run.on_host});
    return all;
  };
  ASSERT_EQ(*cache.offload(1, plan), 1);
  EXPECT_THAT(shapes(), ElementsAre(ElementsAre(-1, 2, 0), ElementsAre(0, 1, 1)));
  ASSERT_EQ(*cache.offload(1, plan), 1);
  EXPECT_THAT(shapes(), ElementsAre(ElementsAre(-1, 1, 0), ElementsAre(0, 2, 1)))
      << "what hung on the page hangs on it still";
  EXPECT_EQ(tree.num_host_pages(), 2);
  ASSERT_EQ(cache.retire(plan.ticket), 2);
  plan.clear();
  ASSERT_EQ(*cache.fetch(0, tokens, plan), 2);
  EXPECT_THAT(shapes(), ElementsAre(ElementsAre(-1, 3, 0)));
  EXPECT_EQ(tree.num_pages(), 3);
  cache.retire(plan.ticket);
  cache.set_listener(nullptr);
}

TEST(PrefixTree, OfAReplayIsWhatTheCacheHasAtTheEnd) {
  ReplayOptions options;
  options.attention = false;
  options.prefix_cache = options.keep_steps = options.keep_pages = true;
  options.pages = 60;
  options.shape.page_size = 512;
  options.max_seqs = 4;
  std::vector<TraceRequest> requests;
  for (std::uint32_t i = 0; i < 40; ++i) {
    requests.push_back({0.0, 2000, 3, {0, 1 + i % 3, 10 + i % 7, 100 + i}});
  }
  const ReplayReport report = replay(options, requests, [](double, const BatcherStats&) {});
  ASSERT_TRUE(report.passed());
  ASSERT_NE(report.tree, nullptr);
  EXPECT_GT(report.batcher.hit_tokens, 0);
  EXPECT_EQ(report.tree->num_pages(), report.batcher.idle_pages);
  std::int32_t pages = 0;
  for (const PrefixTree::Run& run : report.tree->runs(1000)) {
    pages += run.pages;
    EXPECT_EQ(run.hidden, 0);
  }
  EXPECT_EQ(pages, report.tree->num_pages());
  EXPECT_EQ(report.tree->runs(1)[0].finds, 39) << "all but the first began with the head";
  ASSERT_EQ(report.step_pages.size(), report.step_seconds.size());
  for (const StepPages& step : report.step_pages) {
    EXPECT_LE(step.tokens, step.positions);
    EXPECT_LE(step.idle, 60);
  }
}

}  // namespace
}  // namespace quire::tool
