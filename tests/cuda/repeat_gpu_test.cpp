// SPDX-License-Identifier: Apache-2.0
// The same batch gives the same bits: in every run, whatever the workspaces held, from any thread
// and stream.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fill_shared_memory.hpp"
#include "support/device_batch.hpp"

namespace quire {
namespace {

using testing::DeviceBatch;
using testing::DeviceWorkspaces;
using testing::expect_matches;
using testing::kGpu;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::Rubbish;

constexpr std::array kRubbish = {Rubbish::kPattern, Rubbish::kOnes, Rubbish::kRandom};

/// Decode, chunks and empty requests; the long ones are split over many blocks.
RandomBatchOptions mixed(DType dtype, std::uint32_t seed = 1) {
  RandomBatchOptions options = testing::exact_options(dtype, 4, 2, 128);
  options.requests = {{1, 3000}, {1, 10}, {5, 1200}, {0, 0}, {90, 700}, {1, 513}, {1, 9000}};
  options.padding_rows = 40;
  options.seed = seed;
  return options;
}

class GpuRepeat : public ::testing::TestWithParam<DType> {};

TEST_P(GpuRepeat, GivesTheSameBitsWhateverTheWorkspacesHeld) {
  RandomBatch host(mixed(GetParam()));
  DeviceBatch batch(host);
  for (const BatchLimits& limits : {host.limits(), testing::kRoomyLimits}) {
    const Attention attention(kGpu, host.spec, limits);
    DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
    ASSERT_TRUE(batch.launch(attention, workspaces).ok());
    const std::vector<std::byte> expected = batch.result_bytes();
    expect_matches(host, oracle_of(host));
    for (const Rubbish of_schedule : kRubbish) {
      for (const Rubbish of_scratch : kRubbish) {
        batch.forget_results();
        workspaces.fill_schedule(of_schedule, batch.stream);
        workspaces.fill_scratch(of_scratch, batch.stream);
        ASSERT_TRUE(batch.launch(attention, workspaces).ok());
        EXPECT_EQ(batch.result_bytes(), expected);
      }
    }
    EXPECT_TRUE(workspaces.guards_are_untouched(batch.stream));
  }
}

// Groups that do not divide a tile's rows, prompts that do not fill tiles.
TEST_P(GpuRepeat, GivesTheSameBitsWhateverSharedMemoryHeld) {
  for (const auto& [group, head_dim] : {std::pair(3, 128), std::pair(4, 128), std::pair(5, 128),
                                        std::pair(7, 128), std::pair(4, 64), std::pair(5, 64)}) {
    SCOPED_TRACE("group " + std::to_string(group) + ", heads of " + std::to_string(head_dim));
    RandomBatchOptions options = testing::exact_options(GetParam(), group, 2, head_dim);
    options.spec.o_dtype = DType::kNone;
    options.requests = {{200, 700}, {70, 70}, {1, 3000}, {5, 1200}, {129, 400}};
    RandomBatch host(options);
    host.tensors.lse = {};
    DeviceBatch batch(host);
    const Attention attention(kGpu, host.spec, host.limits());
    const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
    std::vector<std::byte> expected;
    // Zeros; large numbers in both formats; the largest; not numbers.
    for (const unsigned char value : std::array<unsigned char, 5>{0x00, 0x77, 0x7b, 0x7f, 0xff}) {
      batch.forget_results();
      testing::require(testing::fill_shared_memory(value, batch.stream.get()));
      ASSERT_TRUE(batch.launch(attention, workspaces).ok());
      const std::vector<std::byte> bytes = batch.result_bytes();
      if (expected.empty()) expected = bytes;
      EXPECT_EQ(bytes, expected) << "after " << int{value};
    }
  }
}

TEST_P(GpuRepeat, ReusesOneScheduleForManyRunsWithAnyScratch) {
  RandomBatch host(mixed(GetParam()));
  DeviceBatch batch(host);
  const Attention attention(kGpu, host.spec, host.limits());
  DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  ASSERT_TRUE(batch.launch(attention, workspaces).ok());
  const std::vector<std::byte> expected = batch.result_bytes();
  for (int layer = 0; layer < 40; ++layer) {
    batch.forget_results();
    workspaces.fill_scratch(kRubbish[static_cast<std::size_t>(layer) % kRubbish.size()],
                            batch.stream);
    const Status status =
        attention.run(batch.batch, batch.tensors, workspaces.schedule(), workspaces.scratch(),
                      {.stream = batch.stream.get(), .check = nullptr});
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(batch.result_bytes(), expected) << "layer " << layer;
  }
  expect_matches(host, oracle_of(host));
}

TEST_P(GpuRepeat, SchedulesAnotherBatchInTheSameWorkspaces) {
  RandomBatch host(mixed(GetParam()));
  RandomBatchOptions shorter = mixed(GetParam(), 2);
  shorter.requests = {{7, 30}, {1, 600}};
  RandomBatch other(shorter);
  DeviceBatch batch(host);
  DeviceBatch of_other(other);
  const Attention attention(kGpu, host.spec, host.limits());
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  ASSERT_TRUE(batch.launch(attention, workspaces).ok());
  const std::vector<std::byte> expected = batch.result_bytes();
  for (int step = 0; step < 5; ++step) {
    of_other.forget_results();
    ASSERT_TRUE(of_other.launch(attention, workspaces).ok());
    of_other.mirror.download(of_other.stream);
    expect_matches(other, oracle_of(other));
    batch.forget_results();
    ASSERT_TRUE(batch.launch(attention, workspaces).ok());
    ASSERT_EQ(batch.result_bytes(), expected) << "step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Of, GpuRepeat,
                         ::testing::Values(DType::kBFloat16, DType::kFloat16, DType::kFloat32),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST(GpuAttention, UsedByTwoThreadsOnTwoStreamsGivesTheBitsOfASerialRun) {
  constexpr std::size_t kThreads = 2;
  constexpr int kRounds = 50;
  std::vector<std::unique_ptr<RandomBatch>> hosts;
  std::vector<std::unique_ptr<DeviceBatch>> batches;
  for (std::uint32_t seed = 1; seed <= kThreads; ++seed) {
    hosts.push_back(std::make_unique<RandomBatch>(mixed(DType::kBFloat16, seed)));
    batches.push_back(std::make_unique<DeviceBatch>(*hosts.back()));
  }
  const Attention attention(kGpu, hosts[0]->spec, hosts[0]->limits());
  std::vector<std::vector<std::byte>> expected;
  for (const std::unique_ptr<DeviceBatch>& batch : batches) {
    ASSERT_TRUE(batch->run(attention).ok());
    expected.push_back(batch->result_bytes());
    expect_matches(batch->host, oracle_of(batch->host));
  }
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      DeviceBatch& batch = *batches[i];
      const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
      for (int round = 0; round < kRounds; ++round) {
        batch.forget_results();
        // Several on the stream, so that both streams have work at the same time.
        for (int layer = 0; layer < 10; ++layer) {
          if (!batch.launch(attention, workspaces).ok()) return;
        }
        good += batch.result_bytes() == expected[i] ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good.load(), static_cast<int>(kThreads) * kRounds);
}

TEST(GpuAttention, CalledOnceGivesTheBitsOfScheduleAndRun) {
  RandomBatchOptions options = mixed(DType::kBFloat16);
  options.stale_pages = 0;
  RandomBatch host(options);
  DeviceBatch batch(host);
  BatchLimits limits = host.limits();  // as the call derives them from shapes
  limits.max_kv_len =
      static_cast<std::int32_t>(host.batch.page_table.size(1)) * host.spec.page_size;
  ASSERT_TRUE(batch.run(Attention(kGpu, host.spec, limits)).ok());
  const std::vector<std::byte> expected = batch.result_bytes();
  batch.forget_results();
  attention(kGpu, host.spec, batch.batch, batch.tensors,
            {.stream = batch.stream.get(), .check = nullptr});
  EXPECT_EQ(batch.result_bytes(), expected);
}

TEST(GpuAttention, RefusesWorkspacesThatAreTooSmallOrHostTensorsInASentence) {
  RandomBatch host(mixed(DType::kBFloat16));
  const DeviceBatch batch(host);
  const Attention attention(kGpu, host.spec, host.limits());
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  const CallOptions call{batch.stream.get(), nullptr};
  const Workspace schedule = workspaces.schedule();
  EXPECT_EQ(attention.schedule(batch.batch, schedule.first(schedule.size() - 1), call).code(),
            ErrorCode::kWorkspaceTooSmall);
  const Status status = attention.schedule(host.batch, schedule, call);
  EXPECT_EQ(status.message(), "[schedule] qo_indptr: expected a tensor on cuda:0, got one on cpu");
}

}  // namespace
}  // namespace quire
