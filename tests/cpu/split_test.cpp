// SPDX-License-Identifier: Apache-2.0
// How work is shared out must not show: splits, threads, executors and instruction sets.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/kernel_table.hpp"
#include "support/executors.hpp"
#include "support/random_batch.hpp"

namespace quire {
namespace {

using testing::Difference;
using testing::OneByOne;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::result_bytes;
using testing::ThreadPerTask;

/// Decode, append and prefill, long enough to be split.
RandomBatchOptions mixed(std::uint32_t seed = 1) {
  RandomBatchOptions options;
  options.spec.num_qo_heads = 8;
  options.spec.num_kv_heads = 2;
  options.spec.head_dim_qk = 32;
  options.spec.q_dtype = options.spec.kv_dtype = DType::kFloat32;
  options.requests = {{1, 3000}, {1, 10}, {5, 1200}, {0, 0}, {90, 700}, {1, 513}};
  options.padding_rows = 40;
  options.seed = seed;
  return options;
}

Attention make(const RandomBatch& batch, Executor& executor) {
  return Attention(Device::cpu(), batch.spec, batch.limits(), {.executor = &executor});
}

void expect_oracle(const RandomBatch& batch) {
  const Difference difference =
      compare(batch, reference_attention(batch.spec, batch.batch, batch.tensors));
  EXPECT_EQ(difference.mismatches, 0);
  EXPECT_LE(difference.o, 2e-6);
  EXPECT_LE(difference.lse, 1e-5);
}

TEST(SplitKv, AgreesWithTheOracleForAnyNumberOfRanges) {
  for (const std::int32_t concurrency : {1, 2, 3, 8, 64, 300}) {
    SCOPED_TRACE(concurrency);
    RandomBatchOptions options = mixed();
    options.spec.sinks = true;  // must enter once, however many pieces there are
    RandomBatch batch(options);
    OneByOne executor(concurrency);
    ASSERT_TRUE(testing::run(make(batch, executor), batch).ok());
    expect_oracle(batch);
    EXPECT_EQ(executor.calls, concurrency > 1 ? 1 : 0);
  }
}

TEST(SplitKv, StaysWithinFourUlpOfTheUnsplitResult) {
  RandomBatch batch(mixed());
  OneByOne alone(1);
  ASSERT_TRUE(testing::run(make(batch, alone), batch).ok());
  std::vector<float> unsplit;
  for (std::int64_t i = 0; i < batch.o_elements.size(); ++i)
    unsplit.push_back(batch.o_elements.get(i));
  OneByOne many(16);
  ASSERT_TRUE(testing::run(make(batch, many), batch).ok());
  constexpr double kUlp = 1.2e-7;
  double largest = 0.0;
  for (std::int64_t i = 0; i < batch.o_elements.size(); ++i) {
    const double difference = batch.o_elements.get(i) - unsplit[static_cast<std::size_t>(i)];
    largest = std::max(largest, std::abs(difference));
  }
  EXPECT_GT(largest, 0.0);  // it was split
  EXPECT_LE(largest, 4 * kUlp * batch.max_abs_v());
}

TEST(SplitKv, GivesTheSameBitsForAnyThreadsAndInEveryRun) {
  RandomBatch batch(mixed());
  OneByOne ordered(6);
  ASSERT_TRUE(testing::run(make(batch, ordered), batch).ok());
  const std::vector<std::byte> expected = result_bytes(batch);
  const auto pool = make_thread_pool(6);
  ThreadPerTask threads(6);
  for (int round = 0; round < 20; ++round) {
    for (Executor* executor : {static_cast<Executor*>(&threads), pool.get()}) {
      batch.forget_results();
      ASSERT_TRUE(testing::run(make(batch, *executor), batch).ok());
      ASSERT_EQ(result_bytes(batch), expected) << round;
    }
  }
}

TEST(Schedule, IsLeftAsItWasForTheNextRunOfTheSameStep) {
  RandomBatch batch(mixed());
  OneByOne executor(12);
  const Attention attention = make(batch, executor);
  testing::RubbishWorkspace schedule(attention.workspace_sizes().schedule);
  testing::RubbishWorkspace scratch(attention.workspace_sizes().scratch);
  ASSERT_TRUE(attention.schedule(batch.batch, schedule.get()).ok());
  const std::vector<std::byte> scheduled(schedule.get().begin(), schedule.get().end());
  ASSERT_TRUE(attention.run(batch.batch, batch.tensors, schedule.get(), scratch.get()).ok());
  const std::vector<std::byte> expected = result_bytes(batch);
  for (int layer = 0; layer < 3; ++layer) {
    batch.forget_results();
    std::memset(scratch.get().data(), 0xff, scratch.get().size());
    ASSERT_TRUE(attention.run(batch.batch, batch.tensors, schedule.get(), scratch.get()).ok());
    EXPECT_EQ(result_bytes(batch), expected);
    const Workspace now = schedule.get();
    EXPECT_TRUE(std::equal(now.begin(), now.end(), scheduled.begin(), scheduled.end()));
  }
}

TEST(Workspace, OfASmallerSizeIsRefused) {
  RandomBatch batch(mixed());
  OneByOne executor(4);
  const Attention attention = make(batch, executor);
  const WorkspaceSizes sizes =
      workspace_sizes(Device::cpu(), batch.spec, batch.limits(), {.executor = &executor});
  EXPECT_EQ(sizes.schedule, attention.workspace_sizes().schedule);
  EXPECT_EQ(sizes.scratch, attention.workspace_sizes().scratch);
  testing::RubbishWorkspace schedule(sizes.schedule);
  EXPECT_EQ(attention.schedule(batch.batch, schedule.get().first(sizes.schedule - 1)).code(),
            ErrorCode::kWorkspaceTooSmall);
}

TEST(Attention, IsUsedFromSeveralThreadsAtOnce) {
  constexpr std::uint32_t kCallers = 4;
  const auto pool = make_thread_pool(3);
  RandomBatch shape_giver(mixed());
  const Attention attention = make(shape_giver, *pool);
  std::atomic<std::uint32_t> good{0};
  std::vector<std::thread> callers;
  for (std::uint32_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      RandomBatch batch(mixed(caller + 10));
      if (!testing::run(attention, batch).ok()) return;
      const std::vector<std::byte> first = result_bytes(batch);
      for (int round = 0; round < 5; ++round) {
        batch.forget_results();
        if (!testing::run(attention, batch).ok() || result_bytes(batch) != first) return;
      }
      const Difference difference =
          compare(batch, reference_attention(batch.spec, batch.batch, batch.tensors));
      if (difference.mismatches == 0 && difference.o <= 2e-6) good.fetch_add(1);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(good.load(), kCallers);
}

/// Sets a variable of the environment for as long as it lives.
class Environment {
 public:
  explicit Environment(const char* tier) { setenv("QUIRE_CPU_TIER", tier, 1); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() { unsetenv("QUIRE_CPU_TIER"); }
};

/// The tiers of this build: names after "cpu.", whether this machine can run them.
std::vector<std::pair<std::string, bool>> tiers() {
  std::vector<std::pair<std::string, bool>> list;
  for (const core::KernelRow& row : core::kernel_table()) {
    if (row.device != DeviceType::kCpu) continue;
    list.emplace_back(row.name.substr(std::string_view("cpu.").size()), row.missing.empty());
  }
  return list;
}

TEST(Tier, OfTheEnvironmentIsTakenWhereTheOptionsNameNoKernel) {
  RandomBatchOptions options = mixed();
  options.spec.q_dtype = options.spec.kv_dtype = DType::kBFloat16;
  const RandomBatch batch(options);
  OneByOne executor(1);
  std::string preferred;
  for (const auto& [tier, runs] : tiers()) {
    if (!runs) continue;
    if (preferred.empty()) preferred = tier;
    const Environment environment(tier.c_str());
    EXPECT_EQ(make(batch, executor).kernel(), "cpu." + tier);
    EXPECT_EQ(supports(Device::cpu(), batch.spec).kernel, "cpu." + tier);
  }
  const Environment environment("");
  EXPECT_EQ(make(batch, executor).kernel(), "cpu." + preferred);
}

TEST(Tier, ThatThisMachineCannotRunIsRefusedWithWhatItLacks) {
  const RandomBatch batch(mixed());
  OneByOne executor(1);
  for (const core::KernelRow& row : core::kernel_table()) {
    if (row.device != DeviceType::kCpu || row.missing.empty()) continue;
    const Environment environment(std::string(row.name.substr(4)).c_str());
    const Support support = supports(Device::cpu(), batch.spec);
    EXPECT_FALSE(support.supported);
    EXPECT_TRUE(
        support.reason.starts_with("[attention] kernel: expected one that this processor "
                                   "can run, got " +
                                   std::string(row.name) + ", which needs "))
        << support.reason;
    EXPECT_TRUE(support.reason.ends_with("(forced by QUIRE_CPU_TIER)")) << support.reason;
  }
}

TEST(Tier, OfTheEnvironmentThatDoesNotServeTheSpecIsRefusedAndNotReplaced) {
  RandomBatchOptions options = mixed();
  options.spec.kv_dtype = DType::kFloat32;
  const RandomBatch batch(options);
  const Environment environment("avx512_bf16");
  EXPECT_FALSE(supports(Device::cpu(), batch.spec).supported);
}

TEST(Tier, OfTheEnvironmentThatDoesNotExistIsRefusedByAllWhoLookForAKernel) {
  const RandomBatch batch(mixed());
  OneByOne executor(1);
  const Environment environment("quantum");
  std::string names;
  for (const auto& [tier, runs] : tiers()) names += (names.empty() ? "cpu." : ", cpu.") + tier;
  const std::string text = "[attention] kernel: expected one of " + names +
                           " on cpu, got cpu.quantum (forced by QUIRE_CPU_TIER)";
  const Support support = supports(Device::cpu(), batch.spec);
  EXPECT_FALSE(support.supported);
  EXPECT_EQ(support.reason, text);
  try {
    (void)make(batch, executor);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_EQ(error.what(), text);
  }
}

TEST(Tier, OfTheEnvironmentYieldsToTheKernelOfTheOptions) {
  const RandomBatch batch(mixed());
  const Environment environment("quantum");
  const Attention attention(Device::cpu(), batch.spec, batch.limits(), {.kernel = "cpu.portable"});
  EXPECT_EQ(attention.kernel(), "cpu.portable");
}

}  // namespace
}  // namespace quire
