// SPDX-License-Identifier: Apache-2.0
// Captured steps: whatever lies in device memory when a graph is replayed is what counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "support/device_step.hpp"

namespace quire {
namespace {

using testing::DeviceBatch;
using testing::DeviceStep;
using testing::DeviceWorkspaces;
using testing::Graph;
using testing::GuardedBytes;
using testing::KeySource;
using testing::kGpu;
using testing::kStepLimits;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::Stream;

class GpuGraph : public ::testing::TestWithParam<KeySource> {};

TEST_P(GpuGraph, OfAppendScheduleAndRunReplaysWithOtherLengthsAndTables) {
  constexpr std::uint32_t kReplays = 100;
  RandomBatch first(testing::step_options(1, GetParam()));
  const DeviceStep step(first);
  const Attention attention(kGpu, first.spec, kStepLimits);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), step.device.stream);
  const Graph graph(step.device.stream, [&] { step.launch(attention, workspaces); });
  for (std::uint32_t replay = 0; replay < kReplays; ++replay) {
    SCOPED_TRACE("replay " + std::to_string(replay));
    RandomBatch host(testing::step_options(2 + replay, GetParam()));
    const ReferenceResult oracle = oracle_of(host);
    step.load(host);
    graph.launch(step.device.stream);
    step.device.download_into(host);
    expect_matches(host, oracle);
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_TRUE(workspaces.guards_are_untouched(step.device.stream));
}

INSTANTIATE_TEST_SUITE_P(KeysInA, GpuGraph,
                         ::testing::Values(KeySource::kDense, KeySource::kCsr,
                                           KeySource::kCsrWithKvLen),
                         [](const auto& test) -> std::string {
                           if (test.param == KeySource::kDense) return "DenseTable";
                           return test.param == KeySource::kCsr ? "CsrTable" : "CsrTableWithKvLen";
                         });

TEST(GpuGraph, ReplaysTheSameBatchToTheSameBits) {
  RandomBatch host(testing::step_options(7, KeySource::kDense));
  DeviceBatch batch(host);
  const Attention attention(kGpu, host.spec, testing::kRoomyLimits);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  const Graph graph(batch.stream, [&] { batch.launch(attention, workspaces).throw_if_error(); });
  graph.launch(batch.stream);
  const std::vector<std::byte> expected = batch.result_bytes();
  expect_matches(host, oracle_of(host));
  for (int replay = 0; replay < 20; ++replay) {
    batch.forget_results();
    graph.launch(batch.stream);
    ASSERT_EQ(batch.result_bytes(), expected) << "replay " << replay;
  }
}

TEST(GpuGraph, OfThreeSpecsSharesOneScratch) {
  std::vector<RandomBatchOptions> options(3, testing::exact_options(DType::kBFloat16, 4, 2, 128));
  options[1] = testing::exact_options(DType::kFloat16, 7, 1, 64);
  options[1].spec.window_left = 100;
  options[2].spec.mask = Mask::kNone;
  options[2].spec.logits_soft_cap = 20.0F;
  options[2].spec.sinks = true;
  std::vector<std::unique_ptr<RandomBatch>> hosts;
  std::vector<std::unique_ptr<DeviceBatch>> batches;
  std::vector<Attention> attentions;
  std::vector<std::unique_ptr<GuardedBytes>> schedules;
  const Stream stream;
  std::size_t scratch_size = 0;
  for (RandomBatchOptions& of_layer : options) {
    of_layer.requests.push_back({1, 4000});  // split over many blocks
    hosts.push_back(std::make_unique<RandomBatch>(of_layer));
    batches.push_back(std::make_unique<DeviceBatch>(*hosts.back()));
    batches.back()->stream.synchronize();
    attentions.emplace_back(kGpu, hosts.back()->spec, hosts.back()->limits());
    const WorkspaceSizes sizes = attentions.back().workspace_sizes();
    schedules.push_back(std::make_unique<GuardedBytes>(sizes.schedule, stream));
    scratch_size = std::max(scratch_size, sizes.scratch);
  }
  const GuardedBytes scratch(scratch_size, stream);
  const Graph graph(stream, [&] {
    const CallOptions call{stream.get(), nullptr};
    for (std::size_t i = 0; i < attentions.size(); ++i) {
      attentions[i].schedule(batches[i]->batch, schedules[i]->get(), call).throw_if_error();
    }
    for (std::size_t layer = 0; layer < 3 * attentions.size(); ++layer) {
      const std::size_t i = layer % attentions.size();
      attentions[i]
          .run(batches[i]->batch, batches[i]->tensors, schedules[i]->get(), scratch.get(), call)
          .throw_if_error();
    }
  });
  for (int replay = 0; replay < 3; ++replay) {
    graph.launch(stream);
    stream.synchronize();
    for (std::size_t i = 0; i < hosts.size(); ++i) {
      SCOPED_TRACE("spec " + std::to_string(i));
      batches[i]->mirror.download(batches[i]->stream);
      expect_matches(*hosts[i], oracle_of(*hosts[i]));
      batches[i]->forget_results();
    }
  }
  EXPECT_TRUE(scratch.guards_are_untouched(stream));
}

}  // namespace
}  // namespace quire
