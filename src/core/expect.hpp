// SPDX-License-Identifier: Apache-2.0
/// @file
/// Checks of tensor views with the sentence that goes with each:
/// `[attention] page_table: expected int32 [8, ≥17], got int64 [8, 16]`.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "core/kernel_table.hpp"
#include "quire/error.hpp"
#include "quire/tensor.hpp"

namespace quire::core {

/// What a dimension must be.
struct Extent {
  std::int64_t value = 0;
  bool at_least = false;

  [[nodiscard]] bool takes(std::int64_t got) const {
    return at_least ? got >= value : got == value;
  }
};
constexpr Extent exactly(std::int64_t value) { return {value, false}; }
constexpr Extent at_least(std::int64_t value) { return {value, true}; }
constexpr Extent any_extent() { return {0, true}; }

/// What a tensor must be.
struct Expected {
  std::string_view operation;  ///< e.g. "attention"
  std::string_view name;       ///< e.g. "page_table"
  SetOf<DType> dtypes;
  std::initializer_list<Extent> shape;
  Device device;
  bool dense_last_axis = true;  ///< false for tensors without a head_dim axis
};

/// Checks dtype, shape, device, null pointer, alignment and the stride of the last axis.
Status expect(const TensorView& tensor, const Expected& expected) noexcept;
/// As `expect`, and that no two elements share an address.
Status expect_writable(const MutableTensorView& tensor, const Expected& expected) noexcept;

/// A failure of `operation` with a formatted sentence; never throws.
Status invalid(std::string_view operation, std::string_view name,
               std::string_view sentence) noexcept;

std::string describe(Device device);

}  // namespace quire::core
