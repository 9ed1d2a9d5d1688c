// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace quire::tool {

/// Positions of a KV cache that a batch takes.
struct MemoryFigures {
  std::int64_t used = 0;    ///< Tokens that are there.
  std::int64_t padded = 0;  ///< A rectangle: every request as long as the longest.
  std::int64_t pages = 0;   ///< Every request in whole pages.
  std::int64_t paged = 0;   ///< Positions of those pages.

  /// @return What the tokens alone leave of the rectangle, in per cent; 0 for an empty batch.
  [[nodiscard]] double saved_percent() const { return saved(used); }
  /// @return What pages leave of it.
  [[nodiscard]] double saved_by_pages_percent() const { return saved(paged); }

 private:
  [[nodiscard]] double saved(std::int64_t positions) const {
    constexpr double kPercent = 100;
    if (padded == 0) return 0;
    return kPercent * (1 - static_cast<double>(positions) / static_cast<double>(padded));
  }
};

MemoryFigures memory_figures(std::span<const std::int32_t> lengths, std::int32_t page_size);

}  // namespace quire::tool
