// SPDX-License-Identifier: Apache-2.0
// Kernels and devices through the C ABI.
#include <gtest/gtest.h>

#include <cstring>

#include "c/client.hpp"
#include "quire/info.hpp"

namespace quire::c_test {
namespace {

TEST(CInfo, ListsEveryKernelOfTheTable) {
  const auto expected = kernels();
  ASSERT_EQ(quire_kernel_count(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    quire_kernel_info info = QUIRE_KERNEL_INFO_INIT;
    ASSERT_EQ(quire_kernel_get(i, &info), QUIRE_OK) << quire_last_error();
    EXPECT_EQ(info.name, expected[i].name);
    EXPECT_EQ(info.summary, expected[i].summary);
    EXPECT_EQ(info.q_dtypes, expected[i].q_dtypes);
    EXPECT_EQ(info.kv_dtypes, expected[i].kv_dtypes);
    EXPECT_EQ(info.head_dims, expected[i].head_dims);
    EXPECT_EQ(info.masks, expected[i].masks);
    EXPECT_EQ(info.options, expected[i].options);
    EXPECT_EQ(info.kv_scales, expected[i].kv_scales);
    EXPECT_EQ(info.device_type, static_cast<std::int32_t>(expected[i].device));
  }
}

TEST(CInfo, ListsTheCpuFirst) {
  ASSERT_GE(quire_device_count(), 1U);
  quire_device_info info = QUIRE_DEVICE_INFO_INIT;
  ASSERT_EQ(quire_device_get(0, &info), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(info.device.type, QUIRE_DEVICE_CPU);
  EXPECT_GT(std::strlen(info.name), 0U);
}

TEST(CInfo, AnIndexBeyondTheEndIsRefused) {
  quire_kernel_info info = QUIRE_KERNEL_INFO_INIT;
  const std::size_t count = quire_kernel_count();
  EXPECT_EQ(quire_kernel_get(count, &info), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(quire_last_error()), "[quire_kernel_get] index: expected less than " +
                                                 std::to_string(count) + ", got " +
                                                 std::to_string(count));
  EXPECT_EQ(quire_kernel_get(0, nullptr), QUIRE_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace quire::c_test
