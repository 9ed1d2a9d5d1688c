// SPDX-License-Identifier: Apache-2.0
/// @file
/// Scalar conversions between float and the narrow formats, exact or rounding to nearest even.
#pragma once

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

/// Value of a small IEEE-like format: `kExponentBits` and `kMantissaBits`, subnormals included,
/// no special codes.
template <int kExponentBits, int kMantissaBits>
inline float float_from_fields(std::uint32_t bits) noexcept {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  const auto mantissa = static_cast<int>(bits & ((1U << kMantissaBits) - 1U));
  const auto exponent = static_cast<int>((bits >> kMantissaBits) & ((1U << kExponentBits) - 1U));
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), 1 - kBias - kMantissaBits)
                              : std::ldexp(static_cast<float>(mantissa + (1 << kMantissaBits)),
                                           exponent - kBias - kMantissaBits);
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

}  // namespace quire::core
