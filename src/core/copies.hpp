// SPDX-License-Identifier: Apache-2.0
/// @file
/// Copy plans, checked and in bytes: what every backend needs to execute them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "quire/copies.hpp"

namespace quire::core {

/// Rows of the pages of a cache: those of a token's head begin at
/// page · page_stride + token · token_stride + head · head_stride. Strides count bytes; that of an
/// axis of one element is 0.
template <typename Byte>
struct RowsOfPages {
  Byte* data = nullptr;
  std::int64_t page_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

/// One cache, or the two that pages move between, without dtypes.
struct CopyRows {
  RowsOfPages<const std::byte> src;
  RowsOfPages<std::byte> dst;
  std::int64_t page_size = 0;
  std::int64_t num_heads = 0;
  std::int64_t row_bytes = 0;

  /// Whether there is nothing to copy, ever.
  [[nodiscard]] bool empty() const { return page_size == 0 || num_heads == 0 || row_bytes == 0; }
};

/// Whether everything is as `execute_copies` says; that host memory is pinned is the backend's to
/// check.
Status check_copies(Device device, KvLayout layout, std::span<const CopyOp> copies,
                    std::span<const CopyTensors> caches);

/// @param tensors  Checked.
CopyRows rows_of(const CopyTensors& tensors, KvLayout layout) noexcept;

/// Where ops read: in the pages that they write too.
bool is_one_cache(const CopyTensors& tensors) noexcept;

/// How many of the first ops give the same result in any order, or at the same time. O(result · its
/// ops): give it no more than are executed at once.
/// @param one_cache  Whether ops read the pages that they write.
std::size_t independent_prefix(std::span<const CopyOp> copies, bool one_cache) noexcept;

}  // namespace quire::core
