// SPDX-License-Identifier: Apache-2.0
// A process of its own: the first work that quire does on the GPU is a capture. Kernels that the
// driver loads at their first launch must not get in its way. One test only, so that it is first.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "support/device_copies.hpp"
#include "support/device_step.hpp"

namespace quire {
namespace {

using testing::DeviceCopies;
using testing::DeviceMirror;
using testing::DeviceStep;
using testing::DeviceWorkspaces;
using testing::Graph;
using testing::KeySource;
using testing::kGpu;
using testing::kStepLimits;
using testing::RandomBatch;
using testing::RandomCopies;
using testing::Stream;

/// Two parts of one row and head, whose result is their mean.
struct TwoParts {
  explicit TwoParts(const Stream& stream) {
    mirror.add(testing::bytes_of(parts), DeviceMirror::Use::kRead, stream);
    mirror.add(testing::bytes_of(lse_parts), DeviceMirror::Use::kRead, stream);
    mirror.add(testing::bytes_of(o), DeviceMirror::Use::kWritten, stream);
    tensors.o_parts =
        mirror.on_device(TensorView(parts.data(), DType::kFloat32, {2, 1, 1, kHeadDim}));
    tensors.lse_parts = mirror.on_device(TensorView(lse_parts.data(), DType::kFloat32, {2, 1, 1}));
    tensors.o = mirror.on_device(MutableTensorView(o.data(), DType::kFloat32, {1, 1, kHeadDim}));
  }

  static constexpr std::int64_t kHeadDim = 2;
  std::vector<float> parts = {1.0F, 2.0F, 3.0F, 6.0F};
  std::vector<float> lse_parts = {5.0F, 5.0F};
  std::vector<float> o = std::vector<float>(kHeadDim, std::nanf(""));
  DeviceMirror mirror;
  MergeTensors tensors;
};

TEST(GpuCapture, IsTheVeryFirstWorkOfAProcess) {
  RandomBatch host(testing::step_options(3, KeySource::kDense));
  const ReferenceResult oracle = oracle_of(host);
  const DeviceStep step(host);
  const Stream& stream = step.device.stream;
  TwoParts parts(stream);
  RandomCopies copied({});
  RandomCopies wanted({});
  wanted.execute();
  const DeviceCopies copies(copied);
  const DeviceWorkspaces workspaces(workspace_sizes(kGpu, host.spec, kStepLimits), stream);
  stream.synchronize();

  const Attention attention(kGpu, host.spec, kStepLimits);
  const Graph graph(stream, [&] {
    step.launch(attention, workspaces);
    execute_copies(kGpu, copied.c.layout, copied.plan, copies.caches, {stream.get(), nullptr})
        .throw_if_error();
    merge_states(kGpu, parts.tensors, {.stream = stream.get(), .check = nullptr}).throw_if_error();
  });
  graph.launch(stream);
  step.device.mirror.download(stream);
  expect_matches(host, oracle);
  parts.mirror.download(stream);
  copies.download();
  EXPECT_TRUE(copied.dst == wanted.dst);
  EXPECT_EQ(parts.o, (std::vector<float>{2.0F, 4.0F}));
}

}  // namespace
}  // namespace quire
