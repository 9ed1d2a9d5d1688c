// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "replay/engine.hpp"
#include "replay/report.hpp"

namespace quire::tool {
namespace {

ReplayOptions small_options() {
  ReplayOptions options;
  options.shape.heads = {4, 2};
  options.shape.head_dim = 64;
  options.pages = 64;
  options.max_tokens_per_step = 48;
  options.max_seqs = 8;
  options.layers = 2;
  options.check_every = 1;
  options.threads = 2;
  return options;
}

std::vector<TraceRequest> small_trace() {
  std::vector<TraceRequest> requests;
  for (std::int32_t i = 0; i < 30; ++i) {
    requests.push_back({0.001 * i, 1 + i * 37 % 150, i % 7});
  }
  return requests;
}

ReplayReport run(const ReplayOptions& options, const std::vector<TraceRequest>& requests) {
  return replay(options, requests, [](double, const BatcherStats&) {});
}

TEST(Replay, ServesEveryRequestAndGivesEveryPageBack) {
  const ReplayReport report = run(small_options(), small_trace());
  EXPECT_EQ(report.batcher.finished, 30);
  EXPECT_EQ(report.refused, 0);
  EXPECT_EQ(report.lost_pages, 0);
  EXPECT_EQ(report.broken_invariant, "");
  EXPECT_GT(report.checks.rows, 100);
  EXPECT_EQ(report.checks.failed, 0) << report.checks.first_failure;
  EXPECT_TRUE(report.passed());
  std::int64_t tokens = 0;
  for (const TraceRequest& request : small_trace()) {
    tokens += request.input_tokens + std::max(request.output_tokens, 1) - 1;
  }
  EXPECT_EQ(report.tokens() - report.batcher.recomputed_tokens, tokens);
  EXPECT_EQ(report.step_seconds.size(), static_cast<std::size_t>(report.batcher.steps));
}

TEST(Replay, AFullPoolPreemptsAndStillServesEveryRequestRightly) {
  ReplayOptions options = small_options();
  options.pages = 12;
  std::vector<TraceRequest> requests(12, TraceRequest{0, 30, 100});
  const ReplayReport report = run(options, requests);
  EXPECT_GT(report.batcher.preemptions, 0);
  EXPECT_GT(report.batcher.recomputed_tokens, 0);
  EXPECT_EQ(report.batcher.finished, 12);
  EXPECT_EQ(report.batcher.peak_used_pages, 12);
  EXPECT_TRUE(report.passed()) << report.checks.first_failure;
}

TEST(Replay, WhoIsPreemptedComesBackFromTheHostAsItWas) {
  ReplayOptions options = small_options();
  options.pages = 12;
  const std::vector<TraceRequest> requests(12, TraceRequest{0, 30, 100});
  const ReplayReport without = run(options, requests);
  options.host_pages = 40;
  const ReplayReport report = run(options, requests);
  EXPECT_GT(report.batcher.swaps, 0);
  EXPECT_GT(report.cache.fetched, 0);
  EXPECT_EQ(report.batcher.finished, 12);
  EXPECT_LT(report.tokens(), without.tokens());
  EXPECT_TRUE(report.passed()) << report.checks.first_failure << report.broken_invariant;
  const auto json = report_json(options, report, "");
  EXPECT_EQ(json.at("swaps"), report.batcher.swaps);
  EXPECT_NE(report_text(options, report, "").find("host tier"), std::string::npos);
}

TEST(Replay, AWindowGivesPagesBack) {
  ReplayOptions options = small_options();
  options.pages = 60;
  options.shape.window = 40;
  options.keep_pages = true;
  const std::vector<TraceRequest> requests(12, TraceRequest{0, 30, 100});
  const ReplayReport report = run(options, requests);
  EXPECT_EQ(report.batcher.finished, 12);
  EXPECT_EQ(report.batcher.preemptions, 0) << "eight times 130 tokens would not fit";
  EXPECT_LE(report.batcher.peak_used_pages, 8 * (40 / 16 + 2));
  EXPECT_LE(report.peak.paged, 16.0 * report.batcher.peak_used_pages);
  EXPECT_TRUE(report.passed()) << report.checks.first_failure << report.broken_invariant;
}

TEST(Replay, AHostWithoutRoomStopsNobody) {
  ReplayOptions options = small_options();
  options.pages = 12;
  options.host_pages = 1;
  const ReplayReport report = run(options, std::vector<TraceRequest>(12, TraceRequest{0, 30, 100}));
  EXPECT_EQ(report.batcher.finished, 12);
  EXPECT_GT(report.batcher.preemptions, 0);
  EXPECT_TRUE(report.passed()) << report.checks.first_failure << report.broken_invariant;
}

TEST(Replay, ARequestThatCanNeverFitIsRefusedAndNamed) {
  std::vector<TraceRequest> requests = small_trace();
  requests.push_back({1, 64 * 16 + 1, 1});
  const ReplayReport report = run(small_options(), requests);
  EXPECT_EQ(report.refused, 1);
  EXPECT_NE(report.first_refusal, "");
  EXPECT_EQ(report.batcher.finished, 30);
  EXPECT_TRUE(report.passed());
}

TEST(Replay, TraceArrivalsSkipIdleTime) {
  ReplayOptions options = small_options();
  options.arrivals = Arrivals::kTrace;
  const ReplayReport report = run(options, {{0, 10, 2}, {3600, 10, 2}, {7200, 10, 2}});
  EXPECT_EQ(report.batcher.finished, 3);
  EXPECT_GE(report.virtual_s, 7200);
  EXPECT_LT(report.wall_s, 600);
  EXPECT_EQ(report.batcher.steps, 6);
}

TEST(Replay, AfterItsDurationNothingIsTakenIn) {
  ReplayOptions options = small_options();
  options.duration_s = 1e-9;
  const ReplayReport report = run(options, small_trace());
  EXPECT_EQ(report.batcher.finished, 0);
  EXPECT_EQ(report.left_out, 30);
  EXPECT_TRUE(report.passed());
}

TEST(Replay, WithoutAttentionTheBookkeepingIsTheSame) {
  ReplayOptions options = small_options();
  const ReplayReport with = run(options, small_trace());
  options.attention = false;
  const ReplayReport without = run(options, small_trace());
  EXPECT_EQ(with.batcher.steps, without.batcher.steps);
  EXPECT_EQ(with.batcher.peak_used_pages, without.batcher.peak_used_pages);
  EXPECT_EQ(with.mean.used, without.mean.used);
  EXPECT_EQ(without.checks.rows, 0);
  EXPECT_EQ(without.kernel, "");
}

TEST(Replay, PagesTakeLessThanPaddingAndMoreThanTokens) {
  const ReplayReport report = run(small_options(), small_trace());
  EXPECT_LE(report.mean.used, report.mean.paged);
  EXPECT_LT(report.mean.paged, report.mean.padded);
  EXPECT_GE(report.peak.used, report.mean.used);
  EXPECT_EQ(report.position_bytes, 2U * 2 * 2 * 64 * 2);
}

TEST(Replay, ALostPageOrAFailedCheckIsNotAPass) {
  ReplayReport report;
  EXPECT_TRUE(report.passed());
  report.lost_pages = 1;
  EXPECT_FALSE(report.passed());
  EXPECT_NE(report_text({}, report, "").find("FAIL (1 are lost"), std::string::npos);
  report.lost_pages = 0;
  report.checks = {10, 1, 0.5, "request 3"};
  EXPECT_FALSE(report.passed());
  EXPECT_FALSE(report_json({}, report, "").at("passed").get<bool>());
}

/// A step of two requests whose outputs are computed by the oracle's own formula for one key.
class SpotCheck : public testing::Test {
 protected:
  SpotCheck() : q_noise_(DType::kFloat32, 1), kv_noise_(DType::kFloat32, 2) {
    spec_.num_qo_heads = 2;
    spec_.num_kv_heads = 1;
    spec_.head_dim_qk = spec_.head_dim_vo = 64;
    spec_.q_dtype = spec_.kv_dtype = spec_.o_dtype = DType::kFloat32;
    spec_.sm_scale = 0.125F;
    plan_.items = {{7, 0, {}, 0, 1, 1, true, true, true}, {9, 1, {}, 0, 1, 1, true, true, true}};
    plan_.num_tokens = 2;
    output_.resize(2 * 2 * 64);
    for (std::size_t row = 0; row < 2; ++row) {
      for (std::size_t head = 0; head < 2; ++head) {  // one key: the output is its value
        kv_noise_.fill(output_.data() + (row * 2 + head) * 64, 64,
                       noise_key(plan_.items[row].request, 0, NoiseTensor::kV, 0));
      }
    }
  }

  SpotCheckResult check() {
    SpotChecker checker(spec_, 0, q_noise_, kv_noise_, {}, 1);
    checker.check(plan_, reinterpret_cast<const std::byte*>(output_.data()));
    return checker.result();
  }

  AttentionSpec spec_;
  StepPlan plan_;
  Noise q_noise_;
  Noise kv_noise_;
  std::vector<float> output_;
};

TEST_F(SpotCheck, PassesWhatIsRight) {
  const SpotCheckResult result = check();
  EXPECT_EQ(result.rows, 16);
  EXPECT_EQ(result.failed, 0) << result.first_failure;
}

TEST_F(SpotCheck, NamesTheRowThatIsWrong) {
  for (float& value : output_) value += 0.01F;
  const SpotCheckResult result = check();
  EXPECT_EQ(result.failed, result.rows);
  EXPECT_NEAR(result.max_error, 0.01, 1e-4);
  EXPECT_NE(result.first_failure.find("position 0, head "), std::string::npos)
      << result.first_failure;
}

}  // namespace
}  // namespace quire::tool
