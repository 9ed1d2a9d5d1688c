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

TEST(CudaBuild, SaysWhichWorkHasNoKernelYet) {
  EXPECT_EQ(cuda::append(Device::cuda(), {}, {}, {}).code(), ErrorCode::kUnsupported);
  EXPECT_EQ(cuda::merge_states(Device::cuda(), {}, {}).code(), ErrorCode::kUnsupported);
  EXPECT_THROW((void)cuda::workspace_sizes({}), Error);
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
