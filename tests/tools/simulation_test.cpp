// SPDX-License-Identifier: Apache-2.0
// Replays without attention: what time they say that it took.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "replay/cost_model.hpp"
#include "replay/engine.hpp"
#include "replay/latency.hpp"
#include "replay/report.hpp"

namespace quire::tool {
namespace {

TEST(CostModel, CountsThePairsThatAreSeen) {
  for (std::int64_t window = -1; window < 12; ++window) {
    for (std::int64_t position = 0; position < 9; ++position) {
      for (std::int64_t n = 0; n < 9; ++n) {
        std::int64_t pairs = 0;
        for (std::int64_t q = position; q < position + n; ++q) {
          for (std::int64_t k = 0; k <= q; ++k) pairs += window < 0 || k >= q - window ? 1 : 0;
        }
        EXPECT_EQ(visible_pairs(position, n, window), pairs)
            << n << " at " << position << ", window " << window;
      }
    }
  }
}

/// A decode at position 9 and a prefill of 4 tokens at position 6.
StepPlan mixed_plan() {
  StepPlan plan;
  plan.items = {{1, 0, {}, 9, 1, false, true, false}, {2, 1, {}, 6, 4, true, true, false}};
  plan.num_tokens = 5;
  return plan;
}

TEST(CostModel, AStepTakesItsOverheadItsBytesAndItsFlop) {
  Shape shape;
  shape.heads = {4, 2};
  shape.head_dim = 64;
  const CostModel model = {
      .overhead_us = 100, .bandwidth_gbps = 1, .peak_tflops = 1e-3, .params_billion = 1e-6};
  // K and V, 3 layers, 2 heads, 64 elements of 2 bytes; 20 keys are read, 5 tokens written.
  const double position_bytes = 2 * 3 * 2 * 64 * 2;
  const StepCost cost = step_cost(model, shape, 3, mixed_plan());
  EXPECT_EQ(cost.bytes, 2 * 1000 + position_bytes * (10 + 10 + 5));
  EXPECT_EQ(cost.flop, 2 * 1000 * 5 + 4 * 3 * 4 * 64 * (10 + 7 + 8 + 9 + 10));
  EXPECT_DOUBLE_EQ(step_seconds(model, shape, 3, mixed_plan()),
                   100e-6 + cost.bytes / 1e9 + cost.flop / 1e9);
}

TEST(CostModel, PagesThatMoveTakeTheLink) {
  Shape shape;
  shape.heads = {4, 2};
  shape.head_dim = 64;
  shape.page_size = 16;
  StepPlan plan;
  plan.transfers.offloads.resize(2);
  plan.transfers.fetches.resize(1);
  const double page_bytes =
      2.0 * 3 * 2 * 64 * 16 * static_cast<double>(size_of(shape.cache_dtype()));
  EXPECT_EQ(step_cost({}, shape, 3, plan).link_bytes, 3 * page_bytes);
  const TierCosts costs =
      tier_costs({.peak_tflops = 2, .params_billion = 0.5, .link_gbps = 3}, shape, 3);
  EXPECT_EQ(costs.bytes_per_token, page_bytes / 16);
  EXPECT_EQ(costs.link_bytes_per_second, 3e9);
  EXPECT_EQ(costs.prefill_tokens_per_second, 2000);
}

TEST(CostModel, AWindowHidesKeys) {
  Shape shape;
  shape.heads = {1, 1};
  shape.head_dim = 1;
  shape.dtype = DType::kFloat32;
  shape.window = 2;
  const StepCost cost = step_cost({.params_billion = 0}, shape, 1, mixed_plan());
  EXPECT_EQ(cost.bytes, 2 * 4 * (3 + 6 + 5));
  EXPECT_EQ(cost.flop, 4 * (3 + 4 * 3));
}

TEST(Percentiles, LeaveOutWhatIsUnknown) {
  const double unknown = std::numeric_limits<double>::quiet_NaN();
  const Percentiles found = percentiles_of({3, unknown, 1, 2, unknown, 4});
  EXPECT_EQ(found.count, 4);
  EXPECT_EQ(found.p50, 2);
  EXPECT_EQ(found.max, 4);
  EXPECT_EQ(percentiles_of({}).max, 0);
}

ReplayOptions simulation() {
  ReplayOptions options;
  options.attention = false;
  options.arrivals = Arrivals::kTrace;
  options.pages = 64;
  options.max_tokens_per_step = 48;
  options.max_seqs = 8;
  options.keep_steps = true;
  return options;
}

ReplayReport run(const ReplayOptions& options, const std::vector<TraceRequest>& requests) {
  return replay(options, requests, [](double, const BatcherStats&) {});
}

TEST(Simulation, ALoneRequestWaitsForItsOwnStepsOnly) {
  ReplayOptions options = simulation();
  options.cost = {
      .overhead_us = 1e6, .bandwidth_gbps = 1e9, .peak_tflops = 1e9, .params_billion = 0};
  const ReplayReport report = run(options, {{0, 100, 5}, {1000, 10, 1}});
  ASSERT_EQ(report.recorder->ended().size(), 2);
  const RequestRecord& first = report.recorder->ended()[0];
  EXPECT_NEAR(first.time_to_first_token(), 3, 1e-6) << "chunks of 48, 48 and 4 tokens";
  EXPECT_NEAR(first.time_per_token(), 1, 1e-6);
  EXPECT_NEAR(first.finished, 7, 1e-6);
  EXPECT_EQ(report.recorder->ended()[1].submitted, 1000);
  EXPECT_NEAR(report.virtual_s, 1001, 1e-6);
  EXPECT_NEAR(report.busy_s(), 8, 1e-6);
}

TEST(Simulation, WhoeverHasArrivedWaits) {
  ReplayOptions options = simulation();
  options.max_seqs = 1;
  const ReplayReport report = run(options, std::vector<TraceRequest>(100, {0, 10, 2}));
  EXPECT_EQ(report.recorder->steps()[0].waiting, 99);
  const Latencies latencies = latencies_of(report.recorder->ended());
  EXPECT_EQ(latencies.first_token.count, 100);
  EXPECT_GT(latencies.first_token.max, 10 * latencies.first_token.p50 / 6);
}

TEST(Simulation, TheSameOptionsGiveTheSameTimes) {
  const std::vector<TraceRequest> requests(40, {0.01, 60, 20});
  const ReplayReport one = run(simulation(), requests);
  const ReplayReport two = run(simulation(), requests);
  EXPECT_EQ(one.virtual_s, two.virtual_s);
  EXPECT_EQ(one.step_seconds, two.step_seconds);
}

TEST(Simulation, TheRecordingAddsUpToTheBatchersCounters) {
  ReplayOptions options = simulation();
  options.pages = 12;
  const ReplayReport report = run(options, std::vector<TraceRequest>(12, {0, 30, 100}));
  EXPECT_GT(report.batcher.preemptions, 0);
  const Records<StepRecord> steps = report.recorder->steps();
  ASSERT_EQ(steps.size(), static_cast<std::size_t>(report.batcher.steps));
  std::int64_t preempted = 0;
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    preempted += steps[i].num_preempted;
    tokens += steps[i].prefill_tokens + steps[i].decode_tokens;
    EXPECT_NEAR(steps[i].end - steps[i].begin, report.step_seconds[i], 1e-12);
  }
  EXPECT_EQ(preempted, report.batcher.preemptions);
  EXPECT_EQ(tokens, report.tokens());
  EXPECT_EQ(report.recorder->losses(), RecorderLosses{});
  EXPECT_TRUE(report.passed());
}

TEST(Simulation, WithoutStepsLatenciesAreKept) {
  ReplayOptions options = simulation();
  options.keep_steps = false;
  const ReplayReport report = run(options, std::vector<TraceRequest>(20, {0, 30, 10}));
  EXPECT_EQ(report.recorder->ended().size(), 20);
  EXPECT_EQ(report.recorder->steps().size(), 1);
}

TEST(Simulation, PromptsThatBeginWithTheSameBlocksArePagesOfTheCache) {
  ReplayOptions options = simulation();
  options.prefix_cache = true;
  options.shape.page_size = 64;
  options.pages = 100;
  options.max_tokens_per_step = 2048;
  const std::vector<TraceRequest> requests = {
      {0, 1000, 1, {7, 8}}, {0, 1024, 1, {7, 9}}, {0, 600, 1, {8, 7}}};
  const ReplayReport report = run(options, requests);
  EXPECT_EQ(report.batcher.asked_tokens, 999 + 1023 + 599);
  EXPECT_EQ(report.batcher.hit_tokens, 512) << "the second prompt's first block; the third's is 8";
  EXPECT_EQ(report.batcher.prefill_tokens, 1000 + 512 + 600);
  EXPECT_EQ(report.lost_pages, 0);
  EXPECT_TRUE(report.passed()) << report.broken_invariant;
  EXPECT_EQ(report_json(options, report, "")["hit_tokens"], 512);
  EXPECT_NE(report_text(options, report, "").find("512 not computed"), std::string::npos);
}

TEST(Simulation, DecodingRequestsReadTheBlocksThatTheyShareOnce) {
  ReplayOptions options = simulation();
  options.prefix_cache = true;
  options.shape.page_size = 64;
  options.pages = 200;
  options.max_tokens_per_step = 2048;
  options.arrivals = Arrivals::kTrace;
  // The first is alone when it is prefilled and until the others come; all decode together then.
  const std::vector<TraceRequest> requests = {
      {0, 1000, 60, {7, 8}}, {1e-4, 1024, 40, {7, 9}}, {1e-4, 1024, 40, {7, 1}}};
  const ReplayReport report = run(options, requests);
  EXPECT_EQ(report.batcher.hit_tokens, 2 * 512);
  EXPECT_TRUE(report.passed()) << report.broken_invariant;
  const std::int64_t saved = report.key_reads.apart - report.key_reads.grouped;
  EXPECT_EQ(saved % 512, 0);
  EXPECT_GE(saved, 39 * 2 * 512);
  EXPECT_LE(saved, 40 * 2 * 512);
  EXPECT_EQ(report.bytes_not_read(), static_cast<std::uint64_t>(saved) * report.position_bytes);
  EXPECT_EQ(report_json(options, report, "").at("kv_bytes_not_read"), report.bytes_not_read());
  EXPECT_NE(report_text(options, report, "").find("shared prefixes"), std::string::npos);

  options.prefix_cache = false;
  const ReplayReport without = run(options, requests);
  EXPECT_EQ(without.bytes_not_read(), 0U);
  EXPECT_EQ(report_text(options, without, "").find("shared prefixes"), std::string::npos);
}

TEST(Simulation, WhatTheDeviceHasNoRoomForIsFoundOnTheHost) {
  ReplayOptions options = simulation();
  options.prefix_cache = true;
  options.shape.page_size = 64;
  options.pages = 20;
  options.host_pages = 40;
  options.max_tokens_per_step = 2048;
  options.arrivals = Arrivals::kTrace;
  options.cost = {.overhead_us = 0, .bandwidth_gbps = 1e9, .peak_tflops = 1e-3, .link_gbps = 1e-3};
  const std::vector<TraceRequest> requests = {
      {0, 1024, 1, {7, 8}}, {1e6, 1024, 1, {1, 2}}, {2e6, 1024, 1, {7, 8}}};
  const ReplayReport report = run(options, requests);
  EXPECT_EQ(report.batcher.hit_tokens, 1023);
  EXPECT_EQ(report.batcher.fetched_tokens, 1023 - 4 * 64) << "four pages were still there";
  EXPECT_EQ(report.cache.fetched, 12);
  EXPECT_TRUE(report.passed()) << report.broken_invariant;
  // The pages that came, and those that made room for them, cross the link one after another.
  const auto moved = static_cast<double>(12 + report.cache.offloaded) * 64;
  const double bytes = moved * static_cast<double>(report.position_bytes);
  EXPECT_GT(report.busy_s(), bytes / 1e6);
}

TEST(Simulation, TailWasteIsThatOfTheFinalLengths) {
  const ReplayReport report = run(simulation(), {{0, 30, 10}, {0, 1, 0}});
  ASSERT_EQ(report.tail_waste.size(), 5);
  EXPECT_EQ(report.tail_waste[0].page_size, 16);
  EXPECT_NEAR(report.tail_waste[0].percent, 100.0 * (64 - 42) / 64, 1e-9);
  EXPECT_NEAR(report.tail_waste[4].percent, 100.0 * (512 - 42) / 512, 1e-9);
  const nlohmann::json json = report_json(simulation(), report, "");
  EXPECT_NEAR(json.at("tail_waste_percent").at("64").get<double>(), 100.0 * (128 - 42) / 128, 1e-9);
  EXPECT_EQ(json.at("first_token_s").at("count"), 2);
  EXPECT_EQ(json.at("cost_model").at("bandwidth_gbps"), 4536);
}

}  // namespace
}  // namespace quire::tool
