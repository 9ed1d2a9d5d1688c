// SPDX-License-Identifier: Apache-2.0
// Hit rates of small traces, counted by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "common/exit_code.hpp"
#include "prefixes/hit_rate.hpp"
#include "tools/run_quire.hpp"

namespace quire::tool {
namespace {

using testing::HasSubstr;

TraceRequest prompt(std::int32_t tokens, std::vector<std::uint32_t> blocks) {
  return {.input_tokens = tokens, .blocks = std::move(blocks)};
}

// Three pages, the last with 100 tokens; one that shares two of them; the first again; its head.
const std::vector<TraceRequest> kPrompts = {prompt(1124, {0, 1, 2}), prompt(1124, {0, 1, 3}),
                                            prompt(1124, {0, 1, 2}), prompt(512, {0})};

TEST(HitRate, CountsPartialLastPagesWithoutALimit) {
  const HitRate rate = hit_rate(kPrompts, 512, 0);
  EXPECT_EQ(rate.pages, 10);
  EXPECT_EQ(rate.hit_pages, 0 + 2 + 3 + 1);
  EXPECT_EQ(rate.tokens, 3 * 1124 + 512);
  EXPECT_EQ(rate.hit_tokens, 0 + 1024 + 1124 + 512);
  EXPECT_EQ(rate.evicted, 0);
}

TEST(HitRate, LosesThePagesThatDoNotFit) {
  const HitRate rate = hit_rate(kPrompts, 512, 3);
  EXPECT_EQ(rate.hit_pages, 0 + 2 + 2 + 1);
  EXPECT_EQ(rate.hit_tokens, 0 + 1024 + 1024 + 512);
  EXPECT_EQ(rate.evicted, 2);
}

TEST(HitRate, KeepsTheHeadOfAPromptLongerThanItsTail) {
  const std::vector<TraceRequest> prompts = {prompt(1124, {0, 1, 2}), prompt(1024, {4, 5}),
                                             prompt(1124, {0, 1, 2})};
  EXPECT_EQ(hit_rate(prompts, 512, 4).hit_pages, 2);
}

TEST(HitRate, KeepsWhatWasUsedLast) {
  const std::vector<TraceRequest> prompts = {prompt(512, {0}), prompt(512, {1}), prompt(512, {0}),
                                             prompt(512, {2}), prompt(512, {0}), prompt(512, {1})};
  EXPECT_EQ(hit_rate(prompts, 512, 2).hit_pages, 2) << "0 twice; 1 had to go for 2";
}

TEST(HitRate, OfLargerPagesLosesWhatIsSharedOfThemOnlyInPart) {
  const std::vector<TraceRequest> prompts = {prompt(1024, {0, 1}), prompt(1024, {0, 2})};
  const HitRate rate = hit_rate(prompts, 1024, 0);
  EXPECT_EQ(rate.hit_pages, 0);
  EXPECT_EQ(rate.hit_tokens, 512);
}

TEST(HitRate, NeedsRoomForThePromptAndItsBlocks) {
  EXPECT_THROW(hit_rate(kPrompts, 512, 2), CommandError);
  EXPECT_THROW(hit_rate(std::vector<TraceRequest>{prompt(512, {})}, 512, 0), CommandError);
}

TEST(PrefixesCommand, PrintsAHitRateForEachCapacity) {
  const std::string trace = write_file(
      "prefixes.jsonl",
      R"({"timestamp": 0, "input_length": 1124, "output_length": 1, "hash_ids": [0, 1, 2]})"
      "\n"
      R"({"timestamp": 1, "input_length": 1124, "output_length": 1, "hash_ids": [0, 1, 3]})"
      "\n");
  const CommandResult table = run_quire({"prefixes", trace, "--capacity", "3,4"});
  EXPECT_EQ(table.exit_code, 0) << table.error;
  EXPECT_THAT(table.out, HasSubstr("33.3 %"));
  const CommandResult json = run_quire({"prefixes", trace, "--capacity", "3", "--json"});
  const auto rates = nlohmann::json::parse(json.out).at("hit_rates");
  ASSERT_EQ(rates.size(), 2);
  EXPECT_EQ(rates[0].at("hit_pages"), 2);
  EXPECT_EQ(rates[1].at("capacity_pages"), 3);
  EXPECT_EQ(rates[1].at("evicted_pages"), 1);
}

TEST(PrefixesCommand, RefusesATraceWithoutBlocks) {
  const std::string trace =
      write_file("blockless.jsonl", R"({"timestamp": 0, "input_length": 1124, "output_length": 1})"
                                    "\n");
  const CommandResult result = run_quire({"prefixes", trace});
  EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kUsage));
  EXPECT_THAT(result.error, HasSubstr("expected hash_ids in every request"));
}

}  // namespace
}  // namespace quire::tool
