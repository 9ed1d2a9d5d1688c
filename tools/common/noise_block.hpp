// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "common/buffer.hpp"
#include "common/noise.hpp"
#include "device/place.hpp"

namespace quire::tool {

/// Random elements of any number, made of one block over and over: gigabytes are laid out on a
/// device in milliseconds, and what stands where is known without looking.
class NoiseBlock {
 public:
  /// @param count  Elements that `fill` will need.
  NoiseBlock(const Noise& noise, std::size_t count, std::uint64_t key);

  /// Fills all of the memory.
  void fill(Place& place, const DeviceMemory& memory) const;
  /// Writes what `fill` put at an element and behind it.
  /// @param to  A whole number of elements.
  void tell(std::size_t element, std::span<std::byte> to) const;

 private:
  /// A prime: no two pages hold the same, whatever their size.
  static constexpr std::size_t kMostElements = 33'554'393;

  std::size_t element_bytes_;
  Buffer block_;
};

}  // namespace quire::tool
