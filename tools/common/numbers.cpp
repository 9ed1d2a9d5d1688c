// SPDX-License-Identifier: Apache-2.0
#include "common/numbers.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace quire::tool {
namespace {

constexpr std::uint32_t kHalfRebias = (127U - 15U) << 10;
constexpr float kSmallestNormalHalf = 6.103515625e-05F;
constexpr float kHalfOverflow = 65520.0F;

std::uint16_t bfloat16_bits(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

std::uint16_t float16_bits(float value) noexcept {
  const std::uint32_t sign = std::signbit(value) ? 0x8000U : 0U;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude >= kHalfOverflow) return static_cast<std::uint16_t>(sign | 0x7c00U);
  if (magnitude < kSmallestNormalHalf) return static_cast<std::uint16_t>(sign);
  const auto bits = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t rounded = (bits + 0x0fffU + ((bits >> 13) & 1U)) >> 13;
  return static_cast<std::uint16_t>(sign | (rounded - kHalfRebias));
}

float float_of_float16(std::uint16_t half) noexcept {
  constexpr float kSubnormalStep = 5.9604644775390625e-08F;  // 2^-24
  const std::uint32_t exponent = (half >> 10) & 0x1fU;
  const std::uint32_t mantissa = half & 0x3ffU;
  float magnitude = static_cast<float>(mantissa) * kSubnormalStep;
  if (exponent == 0x1fU) {
    magnitude = mantissa != 0 ? std::numeric_limits<float>::quiet_NaN()
                              : std::numeric_limits<float>::infinity();
  } else if (exponent != 0) {
    magnitude = std::bit_cast<float>(((half & 0x7fffU) + kHalfRebias) << 13);
  }
  return (half & 0x8000U) != 0 ? -magnitude : magnitude;
}

template <typename T>
T load(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

bool is_float(DType dtype) noexcept {
  return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
}

void store_float(DType dtype, float value, std::byte* to) noexcept {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, &value, sizeof value);
    return;
  }
  const std::uint16_t bits = dtype == DType::kFloat16 ? float16_bits(value) : bfloat16_bits(value);
  std::memcpy(to, &bits, sizeof bits);
}

float load_float(DType dtype, const std::byte* from) noexcept {
  if (dtype == DType::kFloat32) return load<float>(from);
  const auto bits = load<std::uint16_t>(from);
  if (dtype == DType::kFloat16) return float_of_float16(bits);
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace quire::tool
