// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scalar conversions between float and the narrow formats, exact or rounding to nearest even.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace quire::core {

inline float float_from_bfloat16(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t bfloat16_from_float(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x0040U);
  const std::uint32_t round = 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<std::uint16_t>((bits + round) >> 16);
}

/// 2^exponent, for exponents of normal numbers.
inline float power_of_two(int exponent) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(127 + exponent) << 23);
}

/// Value of a small IEEE-like format: `kExponentBits` and `kMantissaBits`, subnormals included,
/// no special codes.
template <int kExponentBits, int kMantissaBits>
inline float float_from_fields(std::uint32_t bits) noexcept {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  const auto mantissa = static_cast<int>(bits & ((1U << kMantissaBits) - 1U));
  const auto exponent = static_cast<int>((bits >> kMantissaBits) & ((1U << kExponentBits) - 1U));
  const int steps = exponent == 0 ? mantissa : mantissa + (1 << kMantissaBits);
  const float magnitude =
      static_cast<float>(steps) * power_of_two(std::max(exponent, 1) - kBias - kMantissaBits);
  return ((bits >> (kExponentBits + kMantissaBits)) & 1U) != 0 ? -magnitude : magnitude;
}

inline float float_from_float16(std::uint16_t bits) noexcept {
  if ((bits & 0x7c00U) == 0x7c00U) {
    const float special = (bits & 0x03ffU) != 0 ? std::numeric_limits<float>::quiet_NaN()
                                                : std::numeric_limits<float>::infinity();
    return (bits & 0x8000U) != 0 ? -special : special;
  }
  return float_from_fields<5, 10>(bits);
}

inline std::uint16_t float16_from_float(float value) noexcept {
  constexpr float kSmallestOverflow = 65520.0F;  // halfway between the largest half and 2^16
  constexpr float kSmallestNormal = 6.103515625e-05F;
  constexpr float kSubnormalSteps = 16777216.0F;  // 2^24 steps per unit
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000U : 0U);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude >= kSmallestOverflow) return static_cast<std::uint16_t>(sign | 0x7c00U);
  if (magnitude < kSmallestNormal) {
    return static_cast<std::uint16_t>(
        sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * kSubnormalSteps)));
  }
  const auto bits = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t rounded = bits + 0x0fffU + ((bits >> 13) & 1U);
  constexpr std::uint32_t kRebias = (127U - 15U) << 10;
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - kRebias));
}

inline float float_from_float8_e4m3(std::uint8_t bits) noexcept {
  if ((bits & 0x7fU) == 0x7fU) return std::numeric_limits<float>::quiet_NaN();
  return float_from_fields<4, 3>(bits);
}

inline float float_from_float8_e5m2(std::uint8_t bits) noexcept {
  return float_from_float16(static_cast<std::uint16_t>(bits << 8));
}

/// Magnitude of the nearest code of a small format, to even, its largest finite code at most.
template <int kExponentBits, int kMantissaBits>
inline std::uint8_t saturated_code(float magnitude, std::uint8_t largest) noexcept {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  if (magnitude >= float_from_fields<kExponentBits, kMantissaBits>(largest)) return largest;
  const int own_exponent = static_cast<int>(std::bit_cast<std::uint32_t>(magnitude) >> 23) - 127;
  const int exponent = std::max(own_exponent, 1 - kBias);  // of the steps; that of subnormals
  const auto steps = static_cast<int>(std::nearbyint(
      magnitude * power_of_two(kMantissaBits - exponent)));  // a carry is one step more
  return static_cast<std::uint8_t>(((exponent + kBias - 1) << kMantissaBits) + steps);
}

/// Nearest, to even; beyond ±448 (infinity included) ±448; NaN stays NaN.
inline std::uint8_t float8_e4m3_from_float(float value) noexcept {
  constexpr std::uint8_t kLargest = 0x7e;
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return static_cast<std::uint8_t>(sign | 0x7fU);
  return static_cast<std::uint8_t>(sign | saturated_code<4, 3>(std::fabs(value), kLargest));
}

/// Nearest, to even; beyond ±57344 (infinity included) ±57344; NaN stays NaN.
inline std::uint8_t float8_e5m2_from_float(float value) noexcept {
  constexpr std::uint8_t kLargest = 0x7b;
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return static_cast<std::uint8_t>(sign | 0x7eU);
  return static_cast<std::uint8_t>(sign | saturated_code<5, 2>(std::fabs(value), kLargest));
}

/// Nearest, to even; saturates; NaN becomes 0.
inline std::int8_t int8_from_float(float value) noexcept {
  if (std::isnan(value)) return 0;
  const float nearest = std::nearbyint(std::fmin(std::fmax(value, -128.0F), 127.0F));
  return static_cast<std::int8_t>(nearest);
}

}  // namespace quire::core
