// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of new keys and values to the codes of an 8-bit cache, as every backend makes them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/narrow_formats.hpp"
#include "cpu/portable/elements.hpp"

namespace quire::cpu {

/// The scale of a row that is quantised by itself. @param n  Elements.
inline float find_row_scale(const std::byte* from, DType dtype, std::int64_t n, DType cache) {
  float largest = 0.0F;
  with_element_type(dtype, [&](const auto* type) {
    const auto* row = reinterpret_cast<decltype(type)>(from);
    for (std::int64_t i = 0; i < n; ++i) {
      const float magnitude = std::fabs(to_float(row[i]));
      if (magnitude > largest) largest = magnitude;
    }
  });
  return core::scale_of_row(largest, cache);
}

/// to = from / scale. @param n  Elements.
inline void quantise_row(std::byte* to, DType cache, const std::byte* from, DType dtype,
                         std::int64_t n, float scale) {
  with_element_type(dtype, [&](const auto* type) {
    const auto* row = reinterpret_cast<decltype(type)>(from);
    const auto write = [&](auto* codes) {
      for (std::int64_t i = 0; i < n; ++i) core::from_float(to_float(row[i]) / scale, codes[i]);
    };
    if (cache == DType::kInt8) {
      write(reinterpret_cast<core::Int8*>(to));
    } else if (cache == DType::kFloat8E4M3) {
      write(reinterpret_cast<core::Float8E4M3*>(to));
    } else {
      write(reinterpret_cast<core::Float8E5M2*>(to));
    }
  });
}

}  // namespace quire::cpu
