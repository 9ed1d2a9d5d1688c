// SPDX-License-Identifier: Apache-2.0
#include "pages/page_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/exit_code.hpp"

namespace quire::tool {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostPages = std::int64_t{1} << 26;
constexpr std::int64_t kMostNumber = std::numeric_limits<std::int32_t>::max();

/// What a snapshot says where something else was expected.
class SnapshotError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

std::int64_t whole(const json& object, const char* what, std::int64_t low, std::int64_t high) {
  const bool fits = object.is_number_integer() &&
                    !(object.is_number_unsigned() && object.get<std::uint64_t>() > INT64_MAX);
  if (!fits || object.get<std::int64_t>() < low || object.get<std::int64_t>() > high) {
    throw SnapshotError(fmt::format("{}: expected a whole number from {} to {}", what, low, high));
  }
  return object.get<std::int64_t>();
}

const json& field(const json& object, const char* name) {
  if (!object.is_object() || !object.contains(name)) {
    throw SnapshotError(fmt::format("expected a field {}", name));
  }
  return object.at(name);
}

const json& rows(const json& object, const char* name) {
  const json& found = field(object, name);
  if (!found.is_array()) throw SnapshotError(fmt::format("{}: expected an array", name));
  return found;
}

const json& cell(const json& row, std::size_t columns, std::size_t column, const char* name) {
  if (!row.is_array() || row.size() != columns) {
    throw SnapshotError(fmt::format("{}: expected rows of {} numbers", name, columns));
  }
  return row[column];
}

void read_pages(const json& object, PageMap& map) {
  constexpr std::size_t kColumns = 4;
  const auto last_owner = static_cast<std::int64_t>(map.owners.size()) - 1;
  const auto last_page = static_cast<std::int64_t>(map.pages.size()) - 1;
  for (const json& row : rows(object, "pages")) {
    const std::int64_t id = whole(cell(row, kColumns, 0, "pages"), "pages, id", 0, last_page);
    PageMap::Page& page = map.pages[static_cast<std::size_t>(id)];
    if (page.refs != 0) throw SnapshotError(fmt::format("pages: expected page {} once", id));
    page.owner =
        static_cast<std::int32_t>(whole(row[1], "pages, owner", PageMap::kOthers, last_owner));
    page.tokens = static_cast<std::int32_t>(whole(row[2], "pages, tokens", 0, map.page_size));
    page.refs = static_cast<std::int32_t>(whole(row[3], "pages, references", 1, kMostNumber));
  }
}

PageMap read(const json& object) {
  constexpr std::size_t kColumns = 2;
  const json& kind = field(object, "kind");
  if (kind != "quire page map") throw SnapshotError("kind: expected \"quire page map\"");
  PageMap map;
  map.step = static_cast<std::uint64_t>(whole(field(object, "step"), "step", 0, INT64_MAX));
  if (!field(object, "time_s").is_number()) throw SnapshotError("time_s: expected a number");
  map.time_s = object.at("time_s").get<double>();
  map.page_size =
      static_cast<std::int32_t>(whole(field(object, "page_size"), "page_size", 1, kMostNumber));
  map.pages.resize(
      static_cast<std::size_t>(whole(field(object, "num_pages"), "num_pages", 1, kMostPages)));
  for (const json& row : rows(object, "owners")) {
    const std::int64_t request =
        whole(cell(row, kColumns, 0, "owners"), "owners, request", 0, INT64_MAX);
    const std::int64_t tokens = whole(row[1], "owners, tokens", 0, kMostNumber);
    map.owners.push_back({static_cast<std::uint64_t>(request), static_cast<std::int32_t>(tokens)});
  }
  read_pages(object, map);
  return map;
}

}  // namespace

std::int32_t PageMap::num_used() const {
  return static_cast<std::int32_t>(
      std::ranges::count_if(pages, [](const Page& page) { return page.refs > 0; }));
}

std::int32_t PageMap::num_shared() const {
  return static_cast<std::int32_t>(
      std::ranges::count_if(pages, [](const Page& page) { return page.refs > 1; }));
}

std::int64_t PageMap::wasted_positions() const {
  std::int64_t wasted = 0;
  for (const Page& page : pages) {
    if (page.owner >= 0) wasted += page_size - page.tokens;
  }
  return wasted;
}

void RunningRequests::committed(const StepPlan& plan) {
  for (const std::uint64_t request : plan.preempted) seqs_.erase(request);
  for (const StepItem& item : plan.items) {
    if (item.admitted) seqs_[item.request] = item.seq;
  }
}

void RunningRequests::finished(std::span<const std::uint64_t> ended) {
  for (const std::uint64_t request : ended) seqs_.erase(request);
}

PageMap RunningRequests::map(const PageTable& table) const {
  PageMap map;
  map.page_size = table.pool_spec().page_size;
  map.pages.resize(static_cast<std::size_t>(table.pool_spec().num_pages));
  for (const auto& [request, seq] : seqs_) map.owners.push_back({request, table.length(seq)});
  std::ranges::sort(map.owners, {}, &PageMap::Owner::request);
  for (std::size_t id = 0; id < map.pages.size(); ++id) {
    PageMap::Page& page = map.pages[id];
    page.refs = table.ref_count(static_cast<PageId>(id));
    if (page.refs > 0) page.owner = PageMap::kOthers;
  }
  for (std::size_t owner = 0; owner < map.owners.size(); ++owner) {
    std::int32_t tokens_left = map.owners[owner].tokens;
    for (const PageId id : table.pages(seqs_.at(map.owners[owner].request))) {
      if (id == kNoPage) {  // given back: its window has moved on
        tokens_left -= map.page_size;
        continue;
      }
      PageMap::Page& page = map.pages[static_cast<std::size_t>(id)];
      if (page.owner == PageMap::kOthers) page.owner = static_cast<std::int32_t>(owner);
      page.tokens = std::max(page.tokens, std::min(tokens_left, map.page_size));
      tokens_left -= map.page_size;
    }
  }
  return map;
}

std::string page_map_json(const PageMap& map) {
  nlohmann::ordered_json out = {{"schema", 1},
                                {"kind", "quire page map"},
                                {"step", map.step},
                                {"time_s", map.time_s},
                                {"page_size", map.page_size},
                                {"num_pages", map.pages.size()},
                                {"owners", json::array()},
                                {"pages", json::array()}};
  for (const PageMap::Owner& owner : map.owners) {
    out["owners"].push_back({owner.request, owner.tokens});
  }
  for (std::size_t id = 0; id < map.pages.size(); ++id) {
    const PageMap::Page& page = map.pages[id];
    if (page.refs > 0) out["pages"].push_back({id, page.owner, page.tokens, page.refs});
  }
  return out.dump();
}

PageMap parse_page_map(std::string_view text, std::string_view name) {
  const auto refuse = [&](const std::string& what) {
    return CommandError(ExitCode::kUsage, fmt::format("{}: {}", name, what));
  };
  const json object = json::parse(text, nullptr, false);
  if (object.is_discarded()) throw refuse("expected a page map in JSON, got something else");
  try {
    return read(object);
  } catch (const SnapshotError& error) {
    throw refuse(error.what());
  }
}

}  // namespace quire::tool
