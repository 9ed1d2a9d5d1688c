// SPDX-License-Identifier: Apache-2.0
// A little of everything on the GPU, few enough to be run under a memory or race checker.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "support/append_batch.hpp"
#include "support/device_append.hpp"
#include "support/device_copies.hpp"
#include "support/device_step.hpp"
#include "support/spoilt_batches.hpp"

namespace quire {
namespace {

using testing::AppendBatch;
using testing::AppendCase;
using testing::CopyCase;
using testing::DeviceAppend;
using testing::DeviceBatch;
using testing::DeviceBytes;
using testing::DeviceStep;
using testing::DeviceWorkspaces;
using testing::expect_oracle;
using testing::Graph;
using testing::KeySource;
using testing::kGpu;
using testing::kStepLimits;
using testing::Place;
using testing::RandomBatch;
using testing::RandomBatchOptions;

/// Few rows and many, split requests, an empty one and one without keys.
RandomBatchOptions short_options(DType dtype, std::int32_t head_dim) {
  RandomBatchOptions options = testing::exact_options(dtype, 3, 2, head_dim);
  options.requests = {{1, 67}, {1, 600}, {0, 9}, {3, 1}, {8, 700}, {20, 90}, {70, 70}};
  return options;
}

TEST(GpuSmall, AttentionOfEveryDtype) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    expect_oracle(short_options(dtype, 64), std::string(to_string(dtype)));
  }
}

TEST(GpuSmall, AttentionOfEveryHeadDim) {
  for (const std::int32_t head_dim : {64, 96, 128, 192, 256, 512}) {
    RandomBatchOptions options = short_options(DType::kBFloat16, head_dim);
    if (!supports(kGpu, options.spec).supported) continue;  // a trimmed build
    options.requests = {{1, 300}, {33, 70}};
    expect_oracle(options, std::to_string(head_dim));
  }
}

TEST(GpuSmall, AttentionOverCachesOf8Bits) {
  for (const DType kv_dtype : {DType::kFloat8E4M3, DType::kInt8}) {
    RandomBatchOptions options = short_options(DType::kBFloat16, 128);
    options.spec.kv_dtype = kv_dtype;
    options.spec.kv_scale = KvScale::kPerHead;
    expect_oracle(options, std::string(to_string(kv_dtype)));
  }
  // Several tiles for each block, so that places in shared memory are used again.
  RandomBatchOptions options = short_options(DType::kFloat8E4M3, 128);
  options.requests = {{1, 40}, {700, 1500}};
  expect_oracle(options, "queries, too");
  options.spec.q_dtype = DType::kBFloat16;
  expect_oracle(options, "many tiles");
}

TEST(GpuSmall, AttentionOfEveryMask) {
  for (const Mask mask : {Mask::kNone, Mask::kTree, Mask::kFull}) {
    RandomBatchOptions options = short_options(DType::kBFloat16, 64);
    options.spec.mask = mask;
    options.spec.window_left = mask == Mask::kNone ? 40 : -1;
    expect_oracle(options, "mask " + std::to_string(static_cast<int>(mask)));
  }
}

TEST(GpuSmall, AttentionOverEveryKindOfTable) {
  for (const KeySource source :
       {KeySource::kDense, KeySource::kCsr, KeySource::kCsrWithKvLen, KeySource::kContiguous}) {
    for (const std::int32_t page_size : {1, 17}) {
      RandomBatchOptions options = short_options(DType::kFloat16, 64);
      options.spec.page_size = page_size;
      options.spec.kv_layout = page_size == 1 ? KvLayout::kNHD : KvLayout::kHND;
      options.source = source;
      options.strided_output = true;
      expect_oracle(options, "source " + std::to_string(static_cast<int>(source)));
    }
  }
}

TEST(GpuSmall, AttentionWithEverythingThatChangesLogits) {
  RandomBatchOptions options = short_options(DType::kBFloat16, 128);
  options.spec.logits_soft_cap = 20.0F;
  options.spec.sinks = options.spec.alibi = true;
  options.spec.kv_scale = KvScale::kPerHead;
  expect_oracle(options);
}

TEST(GpuSmall, StepThatIsCapturedAndReplayed) {
  RandomBatch host(testing::step_options(1, KeySource::kDense));
  const ReferenceResult oracle = oracle_of(host);
  const DeviceStep step(host);
  const Attention attention(kGpu, host.spec, kStepLimits);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), step.device.stream);
  const Graph graph(step.device.stream, [&] { step.launch(attention, workspaces); });
  for (int replay = 0; replay < 2; ++replay) graph.launch(step.device.stream);
  step.device.mirror.download(step.device.stream);
  expect_matches(host, oracle);
}

TEST(GpuSmall, AppendInEveryPairOfDtypes) {
  for (const DType from : {DType::kBFloat16, DType::kFloat32}) {
    for (const DType to : {DType::kBFloat16, DType::kFloat16}) {
      AppendCase c;
      c.new_dtype = from;
      c.cache_dtype = to;
      AppendBatch host(c);
      const DeviceAppend device(host);
      ASSERT_TRUE(device.append().ok());
      device.download();
      host.expect_written();
    }
  }
}

TEST(GpuSmall, CopiesWithinAPoolAndToTheHost) {
  for (CopyCase c : testing::copy_cases()) {
    if (c.num_pages > 20) continue;
    c.num_ops = std::min<std::int64_t>(c.num_ops, 10);
    expect_copies(c, Place::kDevice, Place::kDevice);
    if (c.src_pages > 0) expect_copies(c, Place::kHost, Place::kDevice);
  }
}

TEST(GpuSmall, CheckedModeWithEveryWrongValue) {
  for (const testing::Spoilt& spoilt : testing::spoilt_batches(64)) {
    SCOPED_TRACE(spoilt.what);
    RandomBatch host(spoilt.options);
    spoilt.spoil(host);
    const DeviceBatch batch(host);
    const Attention attention(kGpu, host.spec, testing::kSpoiltLimits);
    const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
    const DeviceBytes record(sizeof(CheckRecord));
    record.fill(std::byte{0}, batch.stream);
    auto* const check = reinterpret_cast<CheckRecord*>(record.data());
    ASSERT_TRUE(batch.launch(attention, workspaces, check).ok());
    const Status found = check_result(kGpu, check, {batch.stream.get(), nullptr});
    EXPECT_TRUE(found.code() == ErrorCode::kInvalidArgument || found.code() == ErrorCode::kTooLong)
        << found.message();
  }
}

}  // namespace
}  // namespace quire
