// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quire/tensor.hpp"

namespace quire::tool {

/// Normal-ish values at the speed of a copy: runs of a table of normal samples, each from a place
/// that a key determines. The same key always gives the same values, so that what was written to a
/// cache long ago can be computed again instead of being remembered.
class Noise {
 public:
  /// @param dtype  float32, float16, bfloat16, int8 or an 8-bit float.
  Noise(DType dtype, std::uint64_t seed);

  /// Writes `count` elements.
  void fill(void* to, std::size_t count, std::uint64_t key) const;
  [[nodiscard]] DType dtype() const noexcept { return dtype_; }
  /// @return What a stored value is multiplied by to be normal: not 1 for int8 only.
  [[nodiscard]] float scale() const noexcept;
  /// @return Bound of the magnitude of any value, the scale applied.
  [[nodiscard]] float largest() const noexcept { return largest_; }

 private:
  DType dtype_;
  std::size_t element_bytes_;
  std::uint64_t seed_;
  float largest_ = 2;  // what 8-bit floats stay below
  std::vector<std::byte> table_;
};

enum class NoiseTensor : std::uint8_t { kQ = 0, kK = 1, kV = 2 };

/// @return The key of the row at a position of a request's tensor.
std::uint64_t noise_key(std::uint64_t request, std::int32_t layer, NoiseTensor tensor,
                        std::int64_t position);

}  // namespace quire::tool
