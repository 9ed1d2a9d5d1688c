// SPDX-License-Identifier: Apache-2.0
#include "pages/draw_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <string_view>
#include <vector>

#include "common/format.hpp"
#include "common/table.hpp"

namespace quire::tool {
namespace {

constexpr std::string_view kFreeCell = "·";
constexpr std::string_view kOthersCell = "#";
constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Of the terminal's 256, far apart for neighbours.
constexpr std::array kColours = {39, 208, 41, 170, 220, 51, 203, 105, 155, 213, 69, 173};

/// The requests by what they hold, the largest first.
class Ranking {
 public:
  explicit Ranking(const PageMap& map) : pages_(map.owners.size()), rank_(map.owners.size()) {
    for (const PageMap::Page& page : map.pages) {
      if (page.owner >= 0) ++pages_[static_cast<std::size_t>(page.owner)];
    }
    order_.resize(map.owners.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::ranges::stable_sort(order_, std::ranges::greater(),
                             [this](std::size_t owner) { return pages_[owner]; });
    for (std::size_t rank = 0; rank < order_.size(); ++rank) rank_[order_[rank]] = rank;
  }
  [[nodiscard]] std::size_t rank(std::int32_t owner) const {
    return rank_[static_cast<std::size_t>(owner)];
  }
  [[nodiscard]] const std::vector<std::size_t>& order() const { return order_; }
  [[nodiscard]] std::int64_t pages(std::size_t owner) const { return pages_[owner]; }

 private:
  std::vector<std::int64_t> pages_;
  std::vector<std::size_t> rank_;
  std::vector<std::size_t> order_;
};

std::string cell_text(const PageMap& map, const PageMap::Page& page, const Ranking& ranking,
                      MapShow show) {
  constexpr std::array<std::string_view, 8> kBlocks = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  constexpr std::int32_t kMostDigit = 9;
  constexpr char kToSmall = 'a' - 'A';
  if (page.owner == PageMap::kFree) return std::string(kFreeCell);
  if (show == MapShow::kRefs) {
    return page.refs > kMostDigit ? "+" : fmt::format("{}", page.refs);
  }
  if (page.owner == PageMap::kOthers) return std::string(kOthersCell);
  if (show == MapShow::kFill) {
    const std::int64_t eighths = std::int64_t{page.tokens} * 8 / map.page_size;
    return std::string(
        kBlocks[static_cast<std::size_t>(std::clamp<std::int64_t>(eighths, 1, 8) - 1)]);
  }
  const char letter = kLetters[ranking.rank(page.owner) % kLetters.size()];
  return {page.tokens == map.page_size ? letter : static_cast<char>(letter + kToSmall)};
}

/// The escape that a cell is written with; empty for none. Shared pages are underlined.
std::string cell_colour(const PageMap::Page& page, const Ranking& ranking) {
  if (page.owner == PageMap::kFree) return "\033[2m";
  if (page.owner == PageMap::kOthers) return "";
  return fmt::format("\033[{}38;5;{}m", page.refs > 1 ? "4;" : "",
                     kColours[ranking.rank(page.owner) % kColours.size()]);
}

std::string row_text(const PageMap& map, const Ranking& ranking, const MapStyle& style,
                     std::size_t first) {
  constexpr std::string_view kPlain = "\033[0m";
  const std::size_t last =
      std::min(map.pages.size(), first + static_cast<std::size_t>(style.columns));
  std::string text;
  std::string colour;
  for (std::size_t id = first; id < last; ++id) {
    const std::string wanted = style.colours ? cell_colour(map.pages[id], ranking) : "";
    if (wanted != colour) text.append(colour.empty() ? "" : kPlain).append(wanted);
    colour = wanted;
    text += cell_text(map, map.pages[id], ranking, style.show);
  }
  return text + std::string(colour.empty() ? "" : kPlain);
}

std::string summary(const PageMap& map) {
  constexpr double kPercent = 100;
  const std::int32_t used = map.num_used();
  const auto owned =
      std::ranges::count_if(map.pages, [](const PageMap::Page& page) { return page.owner >= 0; });
  const double positions = static_cast<double>(owned) * map.page_size;
  const double wasted = static_cast<double>(map.wasted_positions());
  return fmt::format(
      "step {}, at {:.3f} s: {} of {} pages of {} tokens in use ({:.1f} %), {} shared,\n"
      "{} requests, {:.2f} % of the positions of their pages without a token\n",
      human_count(static_cast<std::int64_t>(map.step)), map.time_s, human_count(used),
      human_count(static_cast<std::int64_t>(map.pages.size())), map.page_size,
      kPercent * used / static_cast<double>(map.pages.size()), human_count(map.num_shared()),
      human_count(static_cast<std::int64_t>(map.owners.size())),
      positions > 0 ? kPercent * wasted / positions : 0.0);
}

std::string cells(const PageMap& map, const Ranking& ranking, const MapStyle& style) {
  const auto columns = static_cast<std::size_t>(style.columns);
  const std::size_t digits = fmt::format("{}", map.pages.size() - 1).size();
  std::string text;
  bool was_free = false;
  bool skipping = false;
  for (std::size_t first = 0; first < map.pages.size(); first += columns) {
    const auto begin = map.pages.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end =
        begin + static_cast<std::ptrdiff_t>(std::min(columns, map.pages.size() - first));
    const bool is_free = std::all_of(
        begin, end, [](const PageMap::Page& page) { return page.owner == PageMap::kFree; });
    if (is_free && was_free) {
      if (!skipping) text += fmt::format("{:>{}}\n", "*", digits);
      skipping = true;
      continue;
    }
    text += fmt::format("{:>{}} {}\n", first, digits, row_text(map, ranking, style, first));
    was_free = is_free;
    skipping = false;
  }
  return text;
}

std::string legend(const PageMap& map, const Ranking& ranking, const MapStyle& style) {
  const auto shown = std::min(ranking.order().size(), static_cast<std::size_t>(style.most_owners));
  if (shown == 0) return "";
  Table table({"", ">request", ">tokens", ">pages"});
  for (std::size_t rank = 0; rank < shown; ++rank) {
    const std::size_t owner = ranking.order()[rank];
    table.add({std::string(1, kLetters[rank % kLetters.size()]),
               human_count(static_cast<std::int64_t>(map.owners[owner].request)),
               human_count(map.owners[owner].tokens), human_count(ranking.pages(owner))});
  }
  std::string text = table.text();
  const std::size_t more = ranking.order().size() - shown;
  if (more > 0) {
    text += fmt::format("and {} more{}\n", human_count(static_cast<std::int64_t>(more)),
                        ranking.order().size() > kLetters.size() ? "; letters are used again" : "");
  }
  return text;
}

std::string key(MapShow show) {
  std::string rest =
      fmt::format("{} free, {} in use by no running request\n", kFreeCell, kOthersCell);
  switch (show) {
    case MapShow::kOwner:
      return "a letter a request, small for a page that is not full; " + rest;
    case MapShow::kFill:
      return "▁ few tokens … █ full; " + rest;
    case MapShow::kRefs:
      return fmt::format("references to the page, + for 10 and more; {} free\n", kFreeCell);
  }
  return rest;
}

}  // namespace

std::string draw_map(const PageMap& map, const MapStyle& style) {
  const Ranking ranking(map);
  return summary(map) + "\n" + cells(map, ranking, style) + "\n" + key(style.show) +
         (style.show == MapShow::kOwner ? legend(map, ranking, style) : "");
}

}  // namespace quire::tool
