// SPDX-License-Identifier: Apache-2.0
/// @file
/// The narrow number formats, one value at a time.
#pragma once

#include <cstddef>

#include "quire/tensor.hpp"

namespace quire::tool {

/// @return True for float32, float16 and bfloat16.
bool is_float(DType dtype) noexcept;

/// Writes a value, rounded to nearest even. A float16 that would be subnormal becomes zero.
/// @param dtype  `is_float`.
void store_float(DType dtype, float value, std::byte* to) noexcept;

/// @param dtype  `is_float`.
float load_float(DType dtype, const std::byte* from) noexcept;

}  // namespace quire::tool
