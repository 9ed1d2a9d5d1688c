// SPDX-License-Identifier: Apache-2.0
// What a CUDA build says of itself, with a GPU or without.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/backend.hpp"

namespace quire {
namespace {

TEST(CudaBuild, SaysThatItIsOne) { EXPECT_TRUE(cuda::built()); }

TEST(CudaBuild, NamesItsDevicesOrNoneWithoutADriver) {
  int index = 0;
  for (const DeviceInfo& info : cuda::devices()) {
    EXPECT_EQ(info.device, Device::cuda(index++));
    EXPECT_FALSE(info.name.empty());
    EXPECT_THAT(info.facts,
                ::testing::Contains(::testing::Pair("architecture", ::testing::StartsWith("sm_"))));
  }
}

TEST(CudaBuild, ComputesTheSizesOfWorkspacesWithoutADevice) {
  AttentionSpec spec;
  spec.num_qo_heads = 32;
  spec.num_kv_heads = 8;
  spec.head_dim_qk = 128;
  const WorkspaceSizes sizes = workspace_sizes(Device::cuda(), spec, {});
  EXPECT_GT(sizes.schedule, 0U);
  constexpr std::size_t kMostScratch = std::size_t{64} << 20;
  EXPECT_LE(sizes.scratch, kMostScratch);
}

// 64 results of a request at most, 32 heads of 128: 2^18 elements.
TEST(CudaBuild, RefusesLimitsWhoseResultsItCannotCount) {
  AttentionSpec spec;
  spec.num_qo_heads = 32;
  spec.num_kv_heads = 8;
  spec.head_dim_qk = 128;
  spec.batch_invariant = true;
  BatchLimits limits;
  EXPECT_GT(workspace_sizes(Device::cuda(), spec, limits).scratch,
            std::size_t{256} * 64 * 32 * 128 * sizeof(float));
  limits.max_num_seqs = 8192;
  limits.max_total_q = 8192;
  try {
    (void)workspace_sizes(Device::cuda(), spec, limits);
    FAIL() << "2^31 elements";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("batch_invariant: expected limits of which"));
  }
  limits.max_total_q = 100;  // so many requests with queries at most
  EXPECT_NO_THROW((void)workspace_sizes(Device::cuda(), spec, limits));
}

TEST(CudaBuild, ReportsTheRuntimesErrorInASentence) {
  CheckRecord record;
  constexpr Device kNoSuchDevice = Device::cuda(1000);
  const Status status = cuda::read_check_record(kNoSuchDevice, nullptr, {}, record);
  EXPECT_EQ(status.code(), ErrorCode::kDeviceError);
  EXPECT_THAT(std::string(status.message()),
              ::testing::StartsWith("[check_result] the CUDA runtime reported cudaError"));
}

}  // namespace
}  // namespace quire
