// SPDX-License-Identifier: Apache-2.0
#include "pages/page_map.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_code.hpp"
#include "replay/page_history.hpp"

namespace quire::tool {
namespace {

/// Six pages of four tokens: request 10 has 6 tokens on pages 0 and 1, request 12 is a fork of it
/// with 5 tokens, and page 2 belongs to somebody else.
class PageMaps : public testing::Test {
 protected:
  PageMaps() {
    first_ = table_.create().value();
    table_.append(first_, 6, copies_).throw_if_error();
    second_ = table_.fork(first_, 5).value();
    std::vector<PageId> others(1);
    pool_.allocate(others).throw_if_error();
    StepPlan plan;
    plan.items = {{12, 1, second_, 0, 5, 1, true, true, true},
                  {10, 0, first_, 0, 6, 1, true, true, true}};
    running_.committed(plan);
  }

  PagePool pool_{{.num_pages = 6, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 4, .max_tokens_per_seq = 24}};
  std::vector<CopyOp> copies_;
  SeqId first_, second_;
  RunningRequests running_;
};

TEST_F(PageMaps, SayWhoHasAPageHowFullItIsAndHowOftenItIsReferredTo) {
  const PageMap map = running_.map(table_);
  EXPECT_THAT(map.owners, testing::ElementsAre(PageMap::Owner{10, 6}, PageMap::Owner{12, 5}));
  EXPECT_THAT(map.pages, testing::ElementsAre(PageMap::Page{0, 4, 2}, PageMap::Page{0, 2, 2},
                                              PageMap::Page{PageMap::kOthers, 0, 1},
                                              PageMap::Page{}, PageMap::Page{}, PageMap::Page{}));
  EXPECT_EQ(map.num_used(), 3);
  EXPECT_EQ(map.num_shared(), 2);
  EXPECT_EQ(map.wasted_positions(), 2);
}

TEST_F(PageMaps, ForgetWhoIsPreemptedAndWhoEnds) {
  StepPlan plan;
  plan.preempted = {12};
  running_.committed(plan);
  table_.destroy(second_).throw_if_error();
  EXPECT_EQ(running_.map(table_).owners.size(), 1);
  running_.finished(std::vector<std::uint64_t>{10});
  table_.destroy(first_).throw_if_error();
  const PageMap map = running_.map(table_);
  EXPECT_TRUE(map.owners.empty());
  EXPECT_EQ(map.num_used(), 1);
}

TEST_F(PageMaps, AreReadAsTheyWereWritten) {
  PageMap map = running_.map(table_);
  map.step = 7;
  map.time_s = 1.25;
  EXPECT_EQ(parse_page_map(page_map_json(map), "map.json"), map);
}

std::string error_of(const std::string& text) {
  try {
    static_cast<void>(parse_page_map(text, "map.json"));
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kUsage);
    return error.what();
  }
  return "none";
}

TEST(PageMapText, ThatIsWrongGetsItsSentence) {
  const auto with = [](const std::string& rest) {
    return R"({"kind": "quire page map", "step": 1, "time_s": 0, "page_size": 4, )" + rest;
  };
  EXPECT_EQ(error_of("]"), "map.json: expected a page map in JSON, got something else");
  EXPECT_EQ(error_of("[]"), "map.json: expected a field kind");
  EXPECT_EQ(error_of(R"({"kind": 1})"), "map.json: kind: expected \"quire page map\"");
  EXPECT_EQ(error_of(with(R"("num_pages": 0})")),
            "map.json: num_pages: expected a whole number from 1 to 67108864");
  EXPECT_EQ(error_of(with(R"("num_pages": 2, "owners": 3})")),
            "map.json: owners: expected an array");
  EXPECT_EQ(error_of(with(R"("num_pages": 2, "owners": [[1]]})")),
            "map.json: owners: expected rows of 2 numbers");
  const std::string owners = R"("num_pages": 2, "owners": [[5, 3]], )";
  EXPECT_EQ(error_of(with(owners + R"("pages": [[2, 0, 3, 1]]})")),
            "map.json: pages, id: expected a whole number from 0 to 1");
  EXPECT_EQ(error_of(with(owners + R"("pages": [[0, 1, 3, 1]]})")),
            "map.json: pages, owner: expected a whole number from -2 to 0");
  EXPECT_EQ(error_of(with(owners + R"("pages": [[0, 0, 5, 1]]})")),
            "map.json: pages, tokens: expected a whole number from 0 to 4");
  EXPECT_EQ(error_of(with(owners + R"("pages": [[0, 0, 3, 1], [0, 0, 3, 1]]})")),
            "map.json: pages: expected page 0 once");
  EXPECT_EQ(error_of(with(owners + R"("pages": [[0, 0, 3, 1e3]]})")),
            "map.json: pages, references: expected a whole number from 1 to 2147483647");
  EXPECT_EQ(error_of(with(owners + R"("pages": []})")), "none");
}

TEST(PageHistory, StaysBoundedAndEvenlySpaced) {
  PagePool pool({.num_pages = 1000, .page_size = 4});
  PageTable table(pool, {.max_seqs = 4, .max_tokens_per_seq = 4000});
  PageHistory history(1000);
  std::vector<CopyOp> copies;
  const SeqId seq = table.create().value();
  StepPlan plan;
  plan.items = {{41, 0, seq, 0, 1, 1, true, true, true}};
  for (plan.step = 0; plan.step < 3000; ++plan.step) {
    if (plan.step < 2048) table.append(seq, 1, copies).throw_if_error();
    if (plan.step == 2048) table.truncate(seq, 100).throw_if_error();
    history.committed(plan, table, static_cast<double>(plan.step) / 2);
  }
  EXPECT_LE(history.columns().size(), PageHistory::kMostColumns);
  EXPECT_GT(history.columns().size(), PageHistory::kMostColumns / 3);
  const std::uint64_t apart = history.columns()[1].step;
  for (std::size_t i = 0; i < history.columns().size(); ++i) {
    EXPECT_EQ(history.columns()[i].step, i * apart);
    EXPECT_EQ(history.columns()[i].time_s, static_cast<double>(i * apart) / 2);
  }
  EXPECT_GE(history.maps().size(), 20);
  EXPECT_LE(history.maps().size(), 60);
  EXPECT_EQ(history.pages_per_row(), 6);
  EXPECT_EQ(history.columns()[0].owners.size(), 167);
  EXPECT_EQ(history.columns()[0].owners[0], 42) << "page 0 belongs to request 41";
  EXPECT_EQ(history.columns()[0].owners[1], PageHistory::Column::kFree);
  EXPECT_GE(history.fullest().num_used(), 500);
}

}  // namespace
}  // namespace quire::tool
