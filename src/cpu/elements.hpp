// SPDX-License-Identifier: Apache-2.0
/// @file
/// Element types of rows, so that kernels can be templates of them.
#pragma once

#include <cstdint>

#include "core/float_formats.hpp"
#include "quire/tensor.hpp"

namespace quire::cpu {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

struct Int8 {
  std::int8_t bits;
};
struct Float8E4M3 {
  std::uint8_t bits;
};
struct Float8E5M2 {
  std::uint8_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return core::float_from_bfloat16(value.bits); }
inline float to_float(Float16 value) { return core::float_from_float16(value.bits); }

inline float to_float(Int8 value) { return value.bits; }
inline float to_float(Float8E4M3 value) { return core::float_from_float8_e4m3(value.bits); }
inline float to_float(Float8E5M2 value) { return core::float_from_float8_e5m2(value.bits); }

inline void from_float(float value, float& to) { to = value; }
inline void from_float(float value, BFloat16& to) { to.bits = core::bfloat16_from_float(value); }
inline void from_float(float value, Float16& to) { to.bits = core::float16_from_float(value); }

inline void from_float(float value, Int8& to) { to.bits = core::int8_from_float(value); }
inline void from_float(float value, Float8E4M3& to) {
  to.bits = core::float8_e4m3_from_float(value);
}
inline void from_float(float value, Float8E5M2& to) {
  to.bits = core::float8_e5m2_from_float(value);
}

/// Calls `f` with a null pointer of the element type that `dtype` names.
template <typename F>
void with_element_type(DType dtype, const F& f) {
  if (dtype == DType::kFloat32) f(static_cast<const float*>(nullptr));
  if (dtype == DType::kFloat16) f(static_cast<const Float16*>(nullptr));
  if (dtype == DType::kBFloat16) f(static_cast<const BFloat16*>(nullptr));
  if (dtype == DType::kInt8) f(static_cast<const Int8*>(nullptr));
  if (dtype == DType::kFloat8E4M3) f(static_cast<const Float8E4M3*>(nullptr));
  if (dtype == DType::kFloat8E5M2) f(static_cast<const Float8E5M2*>(nullptr));
}

}  // namespace quire::cpu
