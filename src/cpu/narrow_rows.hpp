// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of new keys and values to the codes of an 8-bit cache, as every backend makes them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/float_formats.hpp"
#include "core/narrow_formats.hpp"

namespace quire::cpu {

/// Calls `visit(i, element)` for the elements of a row of float32, float16 or bfloat16.
template <typename Visit>
void for_elements(const std::byte* row, DType dtype, std::int64_t n, const Visit& visit) {
  const auto* wide = reinterpret_cast<const float*>(row);
  const auto* half = reinterpret_cast<const std::uint16_t*>(row);
  if (dtype == DType::kFloat32) {
    for (std::int64_t i = 0; i < n; ++i) visit(i, wide[i]);
  } else if (dtype == DType::kFloat16) {
    for (std::int64_t i = 0; i < n; ++i) visit(i, core::float_from_float16(half[i]));
  } else {
    for (std::int64_t i = 0; i < n; ++i) visit(i, core::float_from_bfloat16(half[i]));
  }
}

/// The scale of a row that is quantised by itself. @param n  Elements.
inline float find_row_scale(const std::byte* from, DType dtype, std::int64_t n, DType cache) {
  float largest = 0.0F;
  for_elements(from, dtype, n, [&](std::int64_t, float element) {
    const float magnitude = std::fabs(element);
    if (magnitude > largest) largest = magnitude;
  });
  return core::scale_of_row(largest, cache);
}

/// to = from / scale. @param n  Elements.
inline void quantise_row(std::byte* to, DType cache, const std::byte* from, DType dtype,
                         std::int64_t n, float scale) {
  const auto write = [&](auto* codes) {
    for_elements(from, dtype, n, [&](std::int64_t i, float element) {
      core::from_float(element / scale, codes[i]);
    });
  };
  if (cache == DType::kInt8) {
    write(reinterpret_cast<core::Int8*>(to));
  } else if (cache == DType::kFloat8E4M3) {
    write(reinterpret_cast<core::Float8E4M3*>(to));
  } else {
    write(reinterpret_cast<core::Float8E5M2*>(to));
  }
}

}  // namespace quire::cpu
