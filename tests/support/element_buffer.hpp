// SPDX-License-Identifier: Apache-2.0
/// @file
/// Elements of a floating-point dtype or int8 on the host, and views of them. Where a float is NaN,
/// int8 is −128, which nothing in quire writes.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <span>
#include <vector>

#include "core/float_formats.hpp"
#include "core/narrow_formats.hpp"
#include "quire/tensor.hpp"

namespace quire::testing {

inline float decode(const std::byte* from, DType dtype) {
  if (dtype == DType::kFloat8E4M3) {
    return core::float_from_float8_e4m3(static_cast<std::uint8_t>(*from));
  }
  if (dtype == DType::kFloat8E5M2) {
    return core::float_from_float8_e5m2(static_cast<std::uint8_t>(*from));
  }
  if (dtype == DType::kInt8) {
    const auto value = static_cast<std::int8_t>(*from);
    return value == -128 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(value);
  }
  std::uint16_t half = 0;
  if (dtype == DType::kFloat32) {
    float value = 0;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  std::memcpy(&half, from, sizeof(half));
  return dtype == DType::kBFloat16 ? core::float_from_bfloat16(half)
                                   : core::float_from_float16(half);
}

/// The code of `value` as an 8-bit element of type `Narrow`.
template <typename Narrow>
std::byte code_of(float value) {
  Narrow code{};
  core::from_float(value, code);
  return std::bit_cast<std::byte>(code);
}

inline void encode(float value, std::byte* to, DType dtype) {
  if (dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2) {
    *to = dtype == DType::kFloat8E4M3 ? code_of<core::Float8E4M3>(value)
                                      : code_of<core::Float8E5M2>(value);
    return;
  }
  if (dtype == DType::kInt8) {
    *to = std::isnan(value) ? std::byte{0x80} : code_of<core::Int8>(value);
    return;
  }
  if (dtype == DType::kFloat32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const std::uint16_t half = dtype == DType::kBFloat16 ? core::bfloat16_from_float(value)
                                                       : core::float16_from_float(value);
  std::memcpy(to, &half, sizeof(half));
}

/// Elements of one dtype, NaN to begin with.
class ElementBuffer {
 public:
  ElementBuffer() = default;
  ElementBuffer(DType dtype, std::int64_t count)
      : dtype_(dtype), bytes_(static_cast<std::size_t>(count) * size_of(dtype)) {
    for (std::int64_t i = 0; i < count; ++i) set(i, std::numeric_limits<float>::quiet_NaN());
  }

  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] std::int64_t size() const {
    return bytes_.empty() ? 0 : static_cast<std::int64_t>(bytes_.size() / size_of(dtype_));
  }
  [[nodiscard]] float get(std::int64_t index) const { return decode(at(index), dtype_); }
  void set(std::int64_t index, float value) { encode(value, at(index), dtype_); }
  [[nodiscard]] std::byte* at(std::int64_t index) {
    return bytes_.data() + static_cast<std::size_t>(index) * size_of(dtype_);
  }
  [[nodiscard]] const std::byte* at(std::int64_t index) const {
    return bytes_.data() + static_cast<std::size_t>(index) * size_of(dtype_);
  }
  [[nodiscard]] std::span<std::byte> bytes() { return bytes_; }

 private:
  DType dtype_ = DType::kNone;
  std::vector<std::byte> bytes_;
};

/// A view of `elements` from element `offset` on.
inline MutableTensorView view_of(ElementBuffer& elements, std::int64_t offset,
                                 std::initializer_list<std::int64_t> shape,
                                 std::initializer_list<std::int64_t> strides) {
  return {elements.bytes().empty() ? nullptr : elements.at(offset), elements.dtype(), shape,
          strides};
}

}  // namespace quire::testing
