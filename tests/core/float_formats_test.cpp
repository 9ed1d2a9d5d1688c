// SPDX-License-Identifier: Apache-2.0
#include "core/float_formats.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>

namespace quire::core {
namespace {

TEST(Float16, ReturnsToEveryCodeThatIsNotNan) {
  for (std::uint32_t code = 0; code < 0x10000U; ++code) {
    const float value = float_from_float16(static_cast<std::uint16_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(float_from_float16(float16_from_float(value))));
    } else {
      EXPECT_EQ(float16_from_float(value), code);
    }
  }
}

TEST(BFloat16, ReturnsToEveryCodeThatIsNotNan) {
  for (std::uint32_t code = 0; code < 0x10000U; ++code) {
    const float value = float_from_bfloat16(static_cast<std::uint16_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(float_from_bfloat16(bfloat16_from_float(value))));
    } else {
      EXPECT_EQ(bfloat16_from_float(value), code);
    }
  }
}

/// No neighbouring code is nearer, and a tie went to the even code.
template <typename FromFloat, typename ToFloat>
void expect_nearest(FromFloat from_float, ToFloat to_float, float value) {
  const std::uint16_t code = from_float(value);
  const double error = std::fabs(static_cast<double>(to_float(code)) - value);
  if (!std::isfinite(error)) return;  // overflow is tested on its own
  for (const int step : {-1, 1}) {
    const auto neighbour = static_cast<std::uint16_t>(code + step);
    const double other = std::fabs(static_cast<double>(to_float(neighbour)) - value);
    if (!std::isfinite(other)) continue;
    EXPECT_LE(error, other) << value;
    if (error == other && error > 0) {
      EXPECT_EQ(code % 2, 0) << value;
    }
  }
}

TEST(Float16, RoundsToNearestEven) {
  std::mt19937 random(1);
  for (int round = 0; round < 200'000; ++round) {
    const auto exponent = static_cast<int>(random() % 44) - 28;
    const float value = std::ldexp(1.0F + static_cast<float>(random() % 4096) / 4096.0F, exponent);
    expect_nearest(float16_from_float, float_from_float16, random() % 2 == 0 ? value : -value);
  }
}

TEST(BFloat16, RoundsToNearestEven) {
  std::mt19937 random(2);
  for (int round = 0; round < 200'000; ++round) {
    const float value = std::ldexp(1.0F + static_cast<float>(random() % 1024) / 1024.0F,
                                   static_cast<int>(random() % 60) - 30);
    expect_nearest(bfloat16_from_float, float_from_bfloat16, random() % 2 == 0 ? value : -value);
  }
}

TEST(Float16, OverflowsToInfinityFromHalfwayOn) {
  EXPECT_EQ(float16_from_float(65519.0F), 0x7bff);
  EXPECT_EQ(float16_from_float(65520.0F), 0x7c00);
  EXPECT_EQ(float16_from_float(-1e10F), 0xfc00);
}

TEST(Float8, HasTheValuesOfTheOcpTable) {
  EXPECT_EQ(float_from_float8_e4m3(0x7e), 448.0F);
  EXPECT_TRUE(std::isnan(float_from_float8_e4m3(0x7f)));
  EXPECT_TRUE(std::isnan(float_from_float8_e4m3(0xff)));
  EXPECT_EQ(float_from_float8_e4m3(0x01), std::ldexp(1.0F, -9));
  EXPECT_EQ(float_from_float8_e4m3(0xb8), -1.0F);
  EXPECT_EQ(float_from_float8_e5m2(0x7b), 57344.0F);
  EXPECT_TRUE(std::isinf(float_from_float8_e5m2(0x7c)));
  EXPECT_EQ(float_from_float8_e5m2(0x01), std::ldexp(1.0F, -16));
}

}  // namespace
}  // namespace quire::core
