// SPDX-License-Identifier: Apache-2.0
/// @file
/// Non-owning views of the caller's memory: element type, shape, 64-bit strides, device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <type_traits>

#include "quire/export.h"

namespace quire {
inline namespace v0 {

/// Element types. The values are part of the C ABI and never change.
enum class DType : std::int32_t {
  kNone = 0,      ///< Marks a view that is not given.
  kFloat32 = 1,   ///< IEEE 754 binary32.
  kFloat16 = 2,   ///< IEEE 754 binary16.
  kBFloat16 = 3,  ///< 1-8-7: the upper half of a float32.
  kInt8 = 4,
  kFloat8E4M3 = 5,  ///< 1-4-3 with NaN and without infinity (OCP E4M3, "fn").
  kFloat8E5M2 = 6,  ///< 1-5-2 with NaN and infinity (OCP E5M2).
  kInt32 = 7,
  kInt64 = 8,
  kUInt8 = 9,
  kUInt32 = 10,
};

/// @return Bytes per element; 0 for `kNone` and for unknown values.
QUIRE_API std::size_t size_of(DType dtype) noexcept;
/// @return The name used in error texts and on the command line, e.g. `"bfloat16"`.
QUIRE_API std::string_view to_string(DType dtype) noexcept;

/// Where memory lives and where work runs. The values are part of the C ABI and never change.
enum class DeviceType : std::int32_t {
  kCpu = 0,   ///< The host.
  kCuda = 1,  ///< An NVIDIA GPU.
};

/// One device of a kind.
struct Device {
  DeviceType type = DeviceType::kCpu;  ///< Its kind.
  std::int32_t index = 0;              ///< CUDA ordinal; 0 for the CPU.

  /// @return The CPU.
  [[nodiscard]] static constexpr Device cpu() noexcept { return {}; }
  /// @return The CUDA device of this ordinal.
  [[nodiscard]] static constexpr Device cuda(std::int32_t index = 0) noexcept {
    return {DeviceType::kCuda, index};
  }
  /// Equal in every field.
  friend constexpr bool operator==(const Device&, const Device&) = default;
};

/// A view of up to four dimensions. Strides count elements, not bytes, and may be anything for a
/// dimension of size 0 or 1. A default-constructed view means "not given".
/// @tparam Void `void` or `const void`.
template <typename Void>
struct BasicTensorView {
  static constexpr std::int32_t kMaxRank = 4;  ///< Dimensions at most.

  Void* data = nullptr;                          ///< First element, on `device`.
  DType dtype = DType::kNone;                    ///< Of an element; `kNone` if not given.
  std::int32_t rank = 0;                         ///< Dimensions, 0…kMaxRank.
  Device device;                                 ///< Where `data` lies.
  std::array<std::int64_t, kMaxRank> shape{};    ///< Entries beyond `rank` are ignored.
  std::array<std::int64_t, kMaxRank> strides{};  ///< In elements; likewise.

  /// A view that is not given.
  constexpr BasicTensorView() noexcept = default;

  /// A view with explicit strides. `extents` and `steps` have the same length, at most 4.
  constexpr BasicTensorView(Void* memory, DType element,
                            std::initializer_list<std::int64_t> extents,
                            std::initializer_list<std::int64_t> steps, Device where = {}) noexcept
      : data(memory),
        dtype(element),
        rank(static_cast<std::int32_t>(extents.size())),
        device(where) {
    assign(shape, extents);
    assign(strides, steps);
  }

  /// A packed (contiguous, row-major) view. `extents` has at most 4 entries.
  constexpr BasicTensorView(Void* memory, DType element,
                            std::initializer_list<std::int64_t> extents, Device where = {}) noexcept
      : data(memory),
        dtype(element),
        rank(static_cast<std::int32_t>(extents.size())),
        device(where) {
    assign(shape, extents);
    std::int64_t step = 1;
    for (std::int32_t axis = rank < kMaxRank ? rank : kMaxRank; axis-- > 0;) {
      strides[static_cast<std::size_t>(axis)] = step;
      step *= shape[static_cast<std::size_t>(axis)];
    }
  }

  /// A mutable view is also a view.
  template <typename Other>
    requires(std::is_const_v<Void> && std::is_void_v<Other> && !std::is_const_v<Other>)
  constexpr BasicTensorView(const BasicTensorView<Other>& other) noexcept  // NOLINT: implicit
      : data(other.data),
        dtype(other.dtype),
        rank(other.rank),
        device(other.device),
        shape(other.shape),
        strides(other.strides) {}

  /// @return False for a default-constructed view. An empty tensor (a dimension of 0) is given.
  [[nodiscard]] constexpr bool given() const noexcept { return dtype != DType::kNone; }
  /// @return Size of a dimension, in elements. `axis` is in [0, kMaxRank); unchecked.
  [[nodiscard]] constexpr std::int64_t size(std::int32_t axis) const noexcept {
    return shape[static_cast<std::size_t>(axis)];
  }
  /// @return Distance of neighbours along a dimension, in elements. `axis` likewise.
  [[nodiscard]] constexpr std::int64_t stride(std::int32_t axis) const noexcept {
    return strides[static_cast<std::size_t>(axis)];
  }

 private:
  static constexpr void assign(std::array<std::int64_t, kMaxRank>& to,
                               std::initializer_list<std::int64_t> from) noexcept {
    std::size_t axis = 0;
    for (const std::int64_t value : from) {
      if (axis < to.size()) to[axis++] = value;
    }
  }
};

using TensorView = BasicTensorView<const void>;   ///< Read by quire.
using MutableTensorView = BasicTensorView<void>;  ///< Written by quire.

}  // namespace v0
}  // namespace quire
