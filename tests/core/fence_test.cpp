// SPDX-License-Identifier: Apache-2.0
#include "quire/fence.hpp"

#include <gtest/gtest.h>

#include <utility>

namespace quire {
namespace {

TEST(FenceOfTheCpu, IsReachedAtOnceSinceCallsAreSynchronous) {
  Fence made(Device::cpu());
  Fence fence = std::move(made);
  for (int recorded = 0; recorded < 2; ++recorded) {
    bool reached = false;
    EXPECT_TRUE(fence.query(reached).ok());
    EXPECT_TRUE(reached);
    EXPECT_TRUE(fence.wait().ok());
    EXPECT_TRUE(fence.synchronize().ok());
    EXPECT_TRUE(fence.record().ok());
  }
}

TEST(FenceOfAGpu, ThatIsNotThereCannotBeMade) {
  try {
    const Fence fence(Device::cuda(1000));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDeviceError) << error.what();
  }
}

}  // namespace
}  // namespace quire
