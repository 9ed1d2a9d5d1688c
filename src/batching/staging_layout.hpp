// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where the arrays of a batch are in their block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "quire/batch_builder.hpp"

namespace quire::batching {

/// One array of the block, in bytes.
struct Section {
  std::size_t offset = 0;
  std::size_t size = 0;
};

/// The short arrays first, the dense table, the largest, last.
struct Layout {
  Section qo_indptr;
  Section kv_len;
  Section kv_page_indptr;
  Section kv_last_page_len;
  Section positions;
  Section slot_mapping;
  Section kv_page_indices;
  Section page_table;
  std::size_t total = 0;
};

/// @return Every array begins and ends at a multiple of the alignment; nothing if a size is out of range
///   or cannot be counted.
[[nodiscard]] std::optional<Layout> layout_of(const BatchShape& shape) noexcept;

/// The arrays while they are written.
struct Arrays {
  /// Sets what lies between the arrays to zero.
  Arrays(std::span<std::byte> staging, const Layout& layout) noexcept;

  std::span<std::int32_t> qo_indptr;
  std::span<std::int32_t> kv_len;
  std::span<std::int32_t> kv_page_indptr;
  std::span<std::int32_t> kv_last_page_len;
  std::span<std::int32_t> positions;
  std::span<std::int64_t> slot_mapping;
  std::span<PageId> kv_page_indices;
  std::span<PageId> page_table;
};

}  // namespace quire::batching
