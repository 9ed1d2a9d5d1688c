// SPDX-License-Identifier: Apache-2.0
// What `quire bench` does with a GPU, played by the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bench/cold_timer.hpp"
#include "bench/gpu_workload.hpp"
#include "bench/report.hpp"
#include "bench/row_checks.hpp"
#include "tools/played_gpu.hpp"

namespace quire::tool {
namespace {

Workload small(Mask mask) {
  Workload workload;
  workload.name = "small";
  workload.heads = {8, 2};
  workload.head_dim = 64;
  workload.page_size = 16;
  workload.mask = mask;
  workload.qo_len = {1, 5, 40, 0};
  workload.kv_len = {70, 33, 40, 20};
  return workload;
}

constexpr std::int32_t kRepetitions = 25;

TEST(GpuBench, EveryKindOfRowIsMeasuredAndRight) {
  PlayedGpu gpu;
  ColdTimer timer(gpu, kRepetitions);
  for (const Mask mask : {Mask::kCausal, Mask::kNone, Mask::kTree}) {
    const Measurement measured = measure_on_gpu(small(mask), {}, timer);
    EXPECT_EQ(measured.repetitions, kRepetitions);
    EXPECT_EQ(measured.us_median, 5);
    EXPECT_EQ(measured.us_both, 5);
    EXPECT_EQ(measured.us_schedule, 0);  // what an empty kernel takes is taken off
    EXPECT_GT(measured.checks.rows, 0);
    EXPECT_EQ(measured.checks.failed, 0) << measured.checks.first_failure;
  }
  Workload windowed = small(Mask::kCausal);
  windowed.window_left = 20;
  EXPECT_EQ(measure_on_gpu(windowed, {}, timer).checks.failed, 0);
  Workload append = small(Mask::kCausal);
  append.qo_len = {1, 5, 40, 2};
  append.operation = Operation::kAppend;
  const Measurement appended = measure_on_gpu(append, {}, timer);
  EXPECT_GT(appended.checks.rows, 0);
  EXPECT_EQ(appended.checks.failed, 0) << appended.checks.first_failure;
  append.operation = Operation::kSchedule;
  EXPECT_EQ(measure_on_gpu(append, {}, timer).checks.rows, 0);
}

TEST(GpuBench, AnOutputThatNobodyWroteIsWrong) {
  constexpr std::uint64_t kSeed = 3;
  PlayedGpu gpu;
  Workload workload = small(Mask::kCausal);
  const Arrays arrays(workload, {}, gpu);
  const Attention attention(gpu.device(), arrays.spec(), arrays.layout().limits());
  for (const int byte : {0, 0xff}) {
    arrays.o().fill(byte);
    const SpotCheckResult result = check_attention(arrays, attention.spec(), kSeed);
    EXPECT_GT(result.rows, 0);
    EXPECT_EQ(result.failed, result.rows);
    EXPECT_THAT(result.first_failure, testing::HasSubstr("request "));
  }
  workload.operation = Operation::kAppend;
  workload.qo_len = {1, 5, 40, 2};
  const SpotCheckResult result = check_append(Arrays(workload, {}, gpu), kSeed);
  EXPECT_GT(result.rows, 0);
  EXPECT_EQ(result.failed, result.rows);
}

TEST(GpuBench, CeilingsComeFromTheSameTimer) {
  PlayedGpu gpu;
  ColdTimer timer(gpu, kRepetitions);
  EXPECT_EQ(timer.empty_us(), 5);
  const Ceilings ceilings = timer.measure_ceilings();
  EXPECT_NEAR(ceilings.read_gb_per_s, static_cast<double>(1 << 28) / 5e-6 / 1e9, 1e-6);
  EXPECT_NEAR(ceilings.gflop_per_s, 2.0 * 8192 * 8192 * 8192 / 5e-6 / 1e9, 1e-3);
  gpu.multiplies = false;
  EXPECT_EQ(timer.measure_ceilings().gflop_per_s, 0);
}

TEST(GpuBench, WithoutACeilingARowHasNoPercentage) {
  tool::Run run;
  run.arithmetic = "matmul";
  run.published = {4535, 803e3};
  run.ceilings = {4500, 0};
  Workload workload = small(Mask::kCausal);
  workload.peers = {{"slow", 20}, {"fast", 10}};
  Measurement measured;
  measured.us_median = 5;
  measured.bytes = 1e6;
  BenchOptions options;
  options.device = Device::cuda(1);
  nlohmann::ordered_json row = json_of(options, run, workload, measured);
  EXPECT_EQ(row.at("device"), "cuda:1");
  EXPECT_EQ(row.at("bound"), "read");
  EXPECT_NEAR(row.at("pct_of_ceiling").get<double>(), 100 * 1e6 / 4500e3 / 5, 1e-9);
  EXPECT_EQ(row.at("peer"), "fast");
  EXPECT_NEAR(row.at("us_peer_scaled").get<double>(), 10 * 4535.0 / 4500, 1e-9);
  measured.flop = 1e12;
  row = json_of(options, run, workload, measured);
  EXPECT_EQ(row.at("bound"), "matmul");
  EXPECT_TRUE(row.at("pct_of_ceiling").is_null());
  EXPECT_TRUE(row.at("floor_us").is_null());
  EXPECT_EQ(row.at("us_peer_scaled"), 10);
}

TEST(GpuBench, LimitsAreThoseOfAnEngineUnlessTheBatchIsLarger) {
  EXPECT_EQ(engine_limits({64, 64, 4096}), (BatchLimits{1024, 32768, 131072}));
  EXPECT_EQ(engine_limits({8192, 8192, 2048}), (BatchLimits{8192, 32768, 131072}));
}

}  // namespace
}  // namespace quire::tool
