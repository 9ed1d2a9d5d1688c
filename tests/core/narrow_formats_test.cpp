// SPDX-License-Identifier: Apache-2.0
#include "core/narrow_formats.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "core/float_formats.hpp"

namespace quire::core {
namespace {

template <typename Element>
Element narrow_of(float value) {
  Element element;
  from_float(value, element);
  return element;
}

TEST(NarrowFormats, EveryCodeHasTheValueOfTheScalarConversion) {
  for (int code = 0; code < 256; ++code) {
    const auto bits = static_cast<std::uint8_t>(code);
    const float e4m3 = float_from_float8_e4m3(bits);
    const float e5m2 = float_from_float8_e5m2(bits);
    if (std::isnan(e4m3)) {
      EXPECT_TRUE(std::isnan(to_float(Float8E4M3{bits}))) << code;
    } else {
      EXPECT_EQ(std::bit_cast<std::uint32_t>(to_float(Float8E4M3{bits})),
                std::bit_cast<std::uint32_t>(e4m3))
          << code;
    }
    if (std::isnan(e5m2)) {
      EXPECT_TRUE(std::isnan(to_float(Float8E5M2{bits}))) << code;
    } else {
      EXPECT_EQ(std::bit_cast<std::uint32_t>(to_float(Float8E5M2{bits})),
                std::bit_cast<std::uint32_t>(e5m2))
          << code;
    }
    EXPECT_EQ(to_float(Int8{static_cast<std::int8_t>(code)}),
              static_cast<float>(static_cast<std::int8_t>(code)));
  }
}

TEST(NarrowFormats, EveryFiniteNumberKeepsItsCode) {
  for (int code = 0; code < 256; ++code) {
    const auto bits = static_cast<std::uint8_t>(code);
    const float e4m3 = to_float(Float8E4M3{bits});
    const float e5m2 = to_float(Float8E5M2{bits});
    if (std::isfinite(e4m3)) {
      EXPECT_EQ(narrow_of<Float8E4M3>(e4m3).bits, bits);
    }
    if (std::isfinite(e5m2)) {
      EXPECT_EQ(narrow_of<Float8E5M2>(e5m2).bits, bits);
    }
    const auto value = static_cast<std::int8_t>(code);
    EXPECT_EQ(narrow_of<Int8>(static_cast<float>(value)).value, value);
  }
}

/// No finite code of `Element` is nearer to `value` than the one that it becomes; of two that are
/// as near, that with an even mantissa.
template <typename Element>
void expect_nearest(float value) {
  const Element chosen = narrow_of<Element>(value);
  const double distance = std::fabs(static_cast<double>(to_float(chosen)) - value);
  for (int code = 0; code < 256; ++code) {
    const Element other{static_cast<std::uint8_t>(code)};
    if (!std::isfinite(to_float(other))) continue;
    const double its = std::fabs(static_cast<double>(to_float(other)) - value);
    ASSERT_LE(distance, its) << value << " became " << to_float(chosen);
    if (its == distance && to_float(other) != to_float(chosen)) {
      ASSERT_EQ(chosen.bits % 2, 0) << value;
    }
  }
}

TEST(NarrowFormats, NumbersBecomeTheNearestCodeAndTiesTheEvenOne) {
  std::mt19937 random(8);
  std::uniform_real_distribution<float> exponent(-20.0F, 18.0F);
  std::uniform_real_distribution<float> mantissa(-2.0F, 2.0F);
  for (int i = 0; i < 4000; ++i) {
    const float value = std::ldexp(mantissa(random), static_cast<int>(exponent(random)));
    expect_nearest<Float8E4M3>(value);
    expect_nearest<Float8E5M2>(value);
  }
  for (int code = 0; code < 0x7b; ++code) {  // halfway between neighbours
    const auto bits = static_cast<std::uint8_t>(code);
    const auto next = static_cast<std::uint8_t>(code + 1);
    expect_nearest<Float8E4M3>((to_float(Float8E4M3{bits}) + to_float(Float8E4M3{next})) / 2);
    expect_nearest<Float8E5M2>((to_float(Float8E5M2{bits}) + to_float(Float8E5M2{next})) / 2);
  }
  for (int i = -130 * 8; i <= 130 * 8; ++i) {
    const float value = static_cast<float>(i) / 8.0F;
    const float nearest = std::nearbyint(std::fmin(std::fmax(value, -128.0F), 127.0F));
    EXPECT_EQ(to_float(narrow_of<Int8>(value)), nearest) << value;
  }
}

TEST(NarrowFormats, NumbersBeyondTheLargestSaturateAndNanStaysNan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const float large : {449.0F, 464.0F, 479.9F, 1e30F, kInfinity}) {
    EXPECT_EQ(to_float(narrow_of<Float8E4M3>(large)), 448.0F);
    EXPECT_EQ(to_float(narrow_of<Float8E4M3>(-large)), -448.0F);
    EXPECT_EQ(to_float(narrow_of<Int8>(large)), 127.0F);
    EXPECT_EQ(to_float(narrow_of<Int8>(-large)), -128.0F);
  }
  EXPECT_EQ(to_float(narrow_of<Float8E5M2>(61440.0F)), 57344.0F);
  EXPECT_EQ(to_float(narrow_of<Float8E5M2>(-kInfinity)), -57344.0F);
  EXPECT_TRUE(std::isnan(to_float(narrow_of<Float8E4M3>(kNan))));
  EXPECT_TRUE(std::isnan(to_float(narrow_of<Float8E5M2>(-kNan))));
  EXPECT_EQ(narrow_of<Int8>(kNan).value, 0);
}

TEST(NarrowFormats, CodesAreThoseOfTheScalarConversions) {
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const std::uint32_t lower : {0x0000U, 0x0001U, 0x8000U, 0xffffU}) {
      const auto value = std::bit_cast<float>(upper << 16 | lower);
      ASSERT_EQ(narrow_of<Float8E4M3>(value).bits, float8_e4m3_from_float(value)) << value;
      ASSERT_EQ(narrow_of<Float8E5M2>(value).bits, float8_e5m2_from_float(value)) << value;
      ASSERT_EQ(narrow_of<Int8>(value).value, int8_from_float(value)) << value;
    }
  }
}

TEST(NarrowFormats, AScaleMakesTheLargestOfItsRowTheLargestNumber) {
  for (const DType dtype : {DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8}) {
    EXPECT_EQ(scale_of_row(0.0F, dtype), 1.0F);
    EXPECT_EQ(scale_of_row(largest_of(dtype), dtype), 1.0F);
    EXPECT_EQ(scale_of_row(2.0F * largest_of(dtype), dtype), 2.0F);
    EXPECT_TRUE(std::isfinite(scale_of_row(std::numeric_limits<float>::infinity(), dtype)));
  }
}

}  // namespace
}  // namespace quire::core
