// SPDX-License-Identifier: Apache-2.0
/// @file
/// The 8-bit formats of K and V, on the host and in kernels: to fp32 exactly, from fp32 rounding to
/// nearest even and saturating. Both sides run this arithmetic, so that a page that one of them has
/// written has the bits that the other would have written.
#pragma once

#include <bit>
#include <cstdint>

#include "quire/tensor.hpp"
#include "schedule/host_device.hpp"

namespace quire::core {

/// Codes of one element, so that kernels can be templates of them.
struct Float8E4M3 {
  std::uint8_t bits;
  static constexpr float kLargest = 448.0F;
};
struct Float8E5M2 {
  std::uint8_t bits;
  static constexpr float kLargest = 57344.0F;
};
struct Int8 {
  std::int8_t value;
  static constexpr float kLargest = 127.0F;  // of a scaled row; −128 is a code too
};

namespace narrow {

inline constexpr std::uint32_t kSign = 0x80000000U;
inline constexpr std::uint32_t kInfinity = 0x7f800000U;

#if defined(__CUDA_ARCH__)
__device__ inline std::uint32_t bits_of(float value) { return __float_as_uint(value); }
__device__ inline float float_of(std::uint32_t bits) { return __uint_as_float(bits); }
#else
inline std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }
#endif

/// Shape of a float of 8 bits.
template <int kMantissaBits_, std::uint32_t kLargestCode_, std::uint32_t kNanCode_>
struct Format {
  static constexpr int kMantissaBits = kMantissaBits_;
  static constexpr int kBias = (1 << (6 - kMantissaBits)) - 1;
  static constexpr std::uint32_t kLargestCode = kLargestCode_;
  static constexpr std::uint32_t kNanCode = kNanCode_;
};
using E4M3 = Format<3, 0x7e, 0x7f>;
using E5M2 = Format<2, 0x7b, 0x7e>;

/// The magnitude of a finite code: its fields are those of a float of a smaller exponent.
template <typename F>
QUIRE_HOST_DEVICE inline float magnitude_of(std::uint32_t code) {
  constexpr std::uint32_t kScaleBits = static_cast<std::uint32_t>(254 - F::kBias) << 23;
  return float_of(code << (23 - F::kMantissaBits)) * float_of(kScaleBits);
}

/// The code of a magnitude that is not NaN.
template <typename F>
QUIRE_HOST_DEVICE inline std::uint32_t code_of(float magnitude) {
  constexpr int kShift = 23 - F::kMantissaBits;
  constexpr std::uint32_t kRebias = static_cast<std::uint32_t>(127 - F::kBias) << F::kMantissaBits;
  // The smallest normal number, and the number whose last bit counts the steps below it.
  constexpr std::uint32_t kNormal = static_cast<std::uint32_t>(128 - F::kBias) << 23;
  constexpr std::uint32_t kSteps = kNormal + (static_cast<std::uint32_t>(kShift) << 23);
  if (magnitude >= magnitude_of<F>(F::kLargestCode)) return F::kLargestCode;
  if (magnitude < float_of(kNormal)) return bits_of(magnitude + float_of(kSteps)) - kSteps;
  const std::uint32_t bits = bits_of(magnitude);
  const std::uint32_t rounded = bits + ((1U << (kShift - 1)) - 1U) + ((bits >> kShift) & 1U);
  return (rounded >> kShift) - kRebias;
}

template <typename F>
QUIRE_HOST_DEVICE inline std::uint8_t from_float(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits & kSign) >> 24;
  const std::uint32_t magnitude = bits & ~kSign;
  const std::uint32_t code = magnitude > kInfinity ? F::kNanCode : code_of<F>(float_of(magnitude));
  return static_cast<std::uint8_t>(sign | code);
}

}  // namespace narrow

QUIRE_HOST_DEVICE inline float to_float(Float8E4M3 value) {
  const std::uint32_t code = value.bits & 0x7fU;
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x80U) << 24;
  if (code == narrow::E4M3::kNanCode) return narrow::float_of(narrow::kInfinity | 0x00400000U);
  return narrow::float_of(sign | narrow::bits_of(narrow::magnitude_of<narrow::E4M3>(code)));
}
QUIRE_HOST_DEVICE inline float to_float(Float8E5M2 value) {
  const std::uint32_t code = value.bits & 0x7fU;
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x80U) << 24;
  if (code >= 0x7cU) return narrow::float_of(sign | narrow::kInfinity | (code & 3U) << 21);
  return narrow::float_of(sign | narrow::bits_of(narrow::magnitude_of<narrow::E5M2>(code)));
}
QUIRE_HOST_DEVICE inline float to_float(Int8 value) { return static_cast<float>(value.value); }

/// Numbers beyond the largest become the largest, infinities too; NaN stays NaN.
QUIRE_HOST_DEVICE inline void from_float(float value, Float8E4M3& to) {
  to.bits = narrow::from_float<narrow::E4M3>(value);
}
QUIRE_HOST_DEVICE inline void from_float(float value, Float8E5M2& to) {
  to.bits = narrow::from_float<narrow::E5M2>(value);
}
/// Numbers beyond −128 and 127 become these; NaN becomes 0.
QUIRE_HOST_DEVICE inline void from_float(float value, Int8& to) {
  constexpr float kSteps = 12582912.0F;  // 1.5 · 2^23: its last bit counts ones
  if (value != value) {
    to.value = 0;
    return;
  }
  constexpr float kLeast = -128.0F;
  const float low = value < kLeast ? kLeast : value;
  const float clamped = low > Int8::kLargest ? Int8::kLargest : low;
  to.value = static_cast<std::int8_t>(
      static_cast<std::int32_t>(narrow::bits_of(clamped + kSteps) - narrow::bits_of(kSteps)));
}

/// @return The largest number of an 8-bit dtype, which the largest of a scaled row becomes.
QUIRE_HOST_DEVICE inline float largest_of(DType dtype) {
  if (dtype == DType::kInt8) return Int8::kLargest;
  return dtype == DType::kFloat8E4M3 ? Float8E4M3::kLargest : Float8E5M2::kLargest;
}

[[nodiscard]] constexpr bool is_narrow(DType dtype) noexcept {
  return dtype == DType::kInt8 || dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2;
}

/// The scale of a row that is quantised by itself: its largest magnitude becomes the largest
/// number. 1 for a row of zeros.
/// @param magnitude  The largest of the row; infinities count as the largest float.
QUIRE_HOST_DEVICE inline float scale_of_row(float magnitude, DType dtype) {
  constexpr float kLargestFloat = 3.402823466e38F;
  const float finite = magnitude < kLargestFloat ? magnitude : kLargestFloat;
  return finite > 0.0F ? finite / largest_of(dtype) : 1.0F;
}

}  // namespace quire::core
