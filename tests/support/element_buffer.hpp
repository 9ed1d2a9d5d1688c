// SPDX-License-Identifier: Apache-2.0
/// @file
/// Elements of a dtype on the host, and views of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <span>
#include <vector>

#include "core/float_formats.hpp"
#include "quire/tensor.hpp"

namespace quire::testing {

/// @param from  As many bytes as the dtype has.
inline float decode(const std::byte* from, DType dtype) {
  float value = 0;
  std::uint16_t half = 0;
  const auto byte = std::to_integer<std::uint8_t>(*from);
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(&value, from, sizeof(value));
      return value;
    case DType::kInt8:
      return static_cast<float>(static_cast<std::int8_t>(byte));
    case DType::kFloat8E4M3:
      return core::float_from_float8_e4m3(byte);
    case DType::kFloat8E5M2:
      return core::float_from_float8_e5m2(byte);
    default:
      std::memcpy(&half, from, sizeof(half));
      return dtype == DType::kBFloat16 ? core::float_from_bfloat16(half)
                                       : core::float_from_float16(half);
  }
}

inline void encode(float value, std::byte* to, DType dtype) {
  std::uint16_t half = 0;
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(to, &value, sizeof(value));
      return;
    case DType::kInt8:
      *to = static_cast<std::byte>(core::int8_from_float(value));
      return;
    case DType::kFloat8E4M3:
      *to = static_cast<std::byte>(core::float8_e4m3_from_float(value));
      return;
    case DType::kFloat8E5M2:
      *to = static_cast<std::byte>(core::float8_e5m2_from_float(value));
      return;
    default:
      half = dtype == DType::kBFloat16 ? core::bfloat16_from_float(value)
                                       : core::float16_from_float(value);
      std::memcpy(to, &half, sizeof(half));
  }
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
