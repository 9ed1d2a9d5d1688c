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

TEST(FloatFormats, OfEightBitsAreTheNearestOfAllCodes) {
  const auto expect_nearest = [](auto encode, auto decode, float largest) {
    for (float value = -1.2F * largest; value < 1.2F * largest; value += largest / 4099.0F) {
      const float clamped = std::fmin(std::fmax(value, -largest), largest);
      const float got = decode(encode(value));
      for (int code = 0; code < 256; ++code) {
        const float other = decode(static_cast<std::uint8_t>(code));
        if (!std::isfinite(other)) continue;
        ASSERT_LE(std::abs(got - clamped), std::abs(other - clamped)) << value;
      }
    }
    for (int code = 0; code < 256; ++code) {
      const float value = decode(static_cast<std::uint8_t>(code));
      if (std::isfinite(value)) {
        EXPECT_EQ(encode(value), code);
      }
    }
  };
  expect_nearest(float8_e4m3_from_float, float_from_float8_e4m3, 448.0F);
  expect_nearest(float8_e5m2_from_float, float_from_float8_e5m2, 57344.0F);
  EXPECT_EQ(float8_e4m3_from_float(17.0F), float8_e4m3_from_float(16.0F));  // a tie, to even
  EXPECT_EQ(float8_e4m3_from_float(0x1p-10F), 0);                           // likewise
  EXPECT_EQ(float8_e4m3_from_float(0x1.8p-10F), 1);
  EXPECT_EQ(float8_e4m3_from_float(std::numeric_limits<float>::infinity()), 0x7e);
  EXPECT_EQ(float8_e5m2_from_float(-std::numeric_limits<float>::infinity()), 0xfb);
  EXPECT_TRUE(std::isnan(float_from_float8_e4m3(float8_e4m3_from_float(std::nanf("")))));
  EXPECT_TRUE(std::isnan(float_from_float8_e5m2(float8_e5m2_from_float(std::nanf("")))));
}

TEST(FloatFormats, Int8RoundsToEvenAndSaturates) {
  EXPECT_EQ(int8_from_float(2.5F), 2);
  EXPECT_EQ(int8_from_float(-3.5F), -4);
  EXPECT_EQ(int8_from_float(1e9F), 127);
  EXPECT_EQ(int8_from_float(-1e9F), -128);
  EXPECT_EQ(int8_from_float(std::nanf("")), 0);
}

}  // namespace
}  // namespace quire::core
