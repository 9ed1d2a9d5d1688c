// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "quire/attention.hpp"

namespace quire::tool {

/// The scales of a made-up cache: any two that a kernel could mix up differ.
class CacheScales {
 public:
  /// @param step  What a unit of the cache stands for where there is one scale.
  CacheScales(const AttentionSpec& spec, std::int64_t num_pages, float step);

  /// @return The scale of a token in one head.
  [[nodiscard]] float at(std::int64_t page, std::int32_t head, std::int32_t token) const;
  /// @return float32 values of the shape that `view` gives; empty if there are none.
  [[nodiscard]] const std::vector<float>& values() const { return values_; }
  /// @return Of `values()`, or of a copy of them on a device. Nothing if there are none.
  [[nodiscard]] MutableTensorView view(void* data, Device device = {}) const;

 private:
  KvScale kind_;
  std::int64_t num_pages_;
  std::int32_t num_heads_;
  bool is_contiguous_;
  std::int32_t page_size_;
  float step_;
  std::vector<float> values_;
};

}  // namespace quire::tool
