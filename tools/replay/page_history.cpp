// SPDX-License-Identifier: Apache-2.0
#include "replay/page_history.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace quire::tool {
namespace {

/// Pages of all maps together.
constexpr std::size_t kMostPages = std::size_t{400'000};
constexpr std::size_t kFewestMaps = 4;
constexpr std::size_t kMostMaps = 60;

/// Keeps those of every second turn. Their steps are multiples of `every` before and after.
template <typename T>
void thin_out(std::vector<T>& samples, std::size_t most, std::uint64_t& every) {
  if (samples.size() < most) return;
  every *= 2;
  std::erase_if(samples, [&](const T& sample) { return sample.step % every != 0; });
}

}  // namespace

PageHistory::PageHistory(std::int32_t num_pages)
    : pages_per_row_((num_pages + kMostRows - 1) / kMostRows),
      most_maps_(
          std::clamp(kMostPages / static_cast<std::size_t>(num_pages), kFewestMaps, kMostMaps)) {}

PageHistory::Column PageHistory::column_of(const PageMap& map) const {
  Column column{map.step, map.time_s, {}};
  for (std::size_t id = 0; id < map.pages.size(); id += static_cast<std::size_t>(pages_per_row_)) {
    const std::int32_t owner = map.pages[id].owner;
    std::uint32_t value = owner == PageMap::kFree ? Column::kFree : Column::kOthers;
    if (owner >= 0) {
      value = static_cast<std::uint32_t>(map.owners[static_cast<std::size_t>(owner)].request + 1);
    }
    column.owners.push_back(value);
  }
  return column;
}

PageMap PageHistory::now(const StepPlan& plan, const PageTable& table, double time_s) const {
  PageMap map = running_.map(table);
  map.step = plan.step;
  map.time_s = time_s;
  return map;
}

void PageHistory::committed(const StepPlan& plan, const PageTable& table, double time_s) {
  running_.committed(plan);
  const bool wants_column = plan.step % column_every_ == 0;
  const bool wants_map = plan.step % map_every_ == 0;
  if (!wants_column && !wants_map) return;
  PageMap map = now(plan, table, time_s);
  if (const std::int32_t used = map.num_used(); used > most_used_) {
    most_used_ = used;
    fullest_ = map;
  }
  if (wants_column) {
    columns_.push_back(column_of(map));
    thin_out(columns_, kMostColumns, column_every_);
  }
  if (wants_map) {
    maps_.push_back(std::move(map));
    thin_out(maps_, most_maps_, map_every_);
  }
}

}  // namespace quire::tool
