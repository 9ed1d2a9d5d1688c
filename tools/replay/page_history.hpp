// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pages/page_map.hpp"
#include "quire/batcher.hpp"
#include "quire/page_table.hpp"

namespace quire::tool {

/// Page maps of a run of unknown length, evenly spaced and of bounded size: when there are too many
/// every second one goes and they are taken half as often.
class PageHistory {
 public:
  /// Owners of every so many pages at a step.
  struct Column {
    static constexpr std::uint32_t kFree = 0;
    static constexpr std::uint32_t kOthers = ~std::uint32_t{0};

    std::uint64_t step = 0;
    double time_s = 0;
    std::vector<std::uint32_t> owners;  ///< Request + 1, by row.
  };
  static constexpr std::size_t kMostColumns = 640;
  static constexpr std::int32_t kMostRows = 192;

  explicit PageHistory(std::int32_t num_pages);

  /// After the commit of a plan.
  void committed(const StepPlan& plan, const PageTable& table, double time_s);
  /// @return The map after `committed`.
  [[nodiscard]] PageMap now(const StepPlan& plan, const PageTable& table, double time_s) const;
  /// After the finish of its step.
  void finished(std::span<const std::uint64_t> ended) { running_.finished(ended); }

  /// @return Row r is page r · pages_per_row().
  [[nodiscard]] std::int32_t pages_per_row() const { return pages_per_row_; }
  [[nodiscard]] const std::vector<Column>& columns() const { return columns_; }
  [[nodiscard]] const std::vector<PageMap>& maps() const { return maps_; }
  /// @return The map with the most pages in use among those that were looked at.
  [[nodiscard]] const PageMap& fullest() const { return fullest_; }

 private:
  [[nodiscard]] Column column_of(const PageMap& map) const;

  std::int32_t pages_per_row_;
  std::size_t most_maps_;
  std::uint64_t column_every_ = 1;  ///< steps
  std::uint64_t map_every_ = 1;
  std::int32_t most_used_ = -1;
  RunningRequests running_;
  std::vector<Column> columns_;
  std::vector<PageMap> maps_;
  PageMap fullest_;
};

}  // namespace quire::tool
