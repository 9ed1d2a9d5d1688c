// SPDX-License-Identifier: Apache-2.0
// quire map: who has which page, of a snapshot or of a step of a simulated replay.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>

#include "command.hpp"
#include "common/options.hpp"
#include "common/terminal.hpp"
#include "pages/draw_map.hpp"
#include "pages/page_map.hpp"
#include "replay/engine.hpp"
#include "replay/source.hpp"

namespace quire::tool {
namespace {

constexpr std::int32_t kMostColumns = 4096;

struct MapCommand {
  ServingOptions serving;
  std::string snapshot;
  std::int32_t step = -1;
  std::string show = "owner";
  std::int32_t columns = 0;
  bool json = false;
};

PageMap load_snapshot(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.good() && text.empty()) {
    throw CommandError(ExitCode::kUsage, fmt::format("{}: expected a file, got none", path));
  }
  return parse_page_map(text, path);
}

PageMap simulate(const MapCommand& command) {
  const Source source = load_source(command.serving);
  ReplayOptions options = command.serving.resolved(false);
  options.keep_pages = true;
  options.chosen_step = command.step;
  const ReplayReport report = replay(options, source.requests, [](double, const BatcherStats&) {});
  if (command.step < 0) return report.pages->fullest();
  if (report.chosen_map) return *report.chosen_map;
  throw CommandError(ExitCode::kUsage, fmt::format("--step: expected a step before {}, got {}",
                                                   report.batcher.steps, command.step));
}

MapStyle style_of(const MapCommand& command) {
  constexpr int kUsualWidth = 80;
  constexpr int kMargin = 12;  // page ids
  constexpr int kTidy = 8;
  MapStyle style;
  style.show = command.show == "fill"   ? MapShow::kFill
               : command.show == "refs" ? MapShow::kRefs
                                        : MapShow::kOwner;
  style.columns = command.columns;
  if (style.columns == 0) {
    style.columns = std::max(kTidy, (terminal_width(kUsualWidth) - kMargin) / kTidy * kTidy);
  }
  style.colours = stdout_has_colours();
  return style;
}

void run_map(const MapCommand& command) {
  const ServingOptions& serving = command.serving;
  const int sources = (command.snapshot.empty() ? 0 : 1) + (serving.trace.empty() ? 0 : 1) +
                      (serving.preset.empty() ? 0 : 1);
  if (sources != 1) {
    throw CommandError(ExitCode::kUsage,
                       "expected a SNAPSHOT file, --trace FILE or --preset NAME\n"
                       "Try quire map --help");
  }
  const PageMap map =
      command.snapshot.empty() ? simulate(command) : load_snapshot(command.snapshot);
  if (map.pages.empty()) {
    throw CommandError(ExitCode::kUsage, "expected at least one step to look at, got none");
  }
  fmt::print("{}", command.json ? page_map_json(map) + "\n" : draw_map(map, style_of(command)));
}

}  // namespace

void add_map(CLI::App& app, Session& /*session*/) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const auto command = std::make_shared<MapCommand>();
  CLI::App* sub = app.add_subcommand(
      "map", "Draw who has which page: of a snapshot, or of a step of a simulated replay");
  sub->add_option("SNAPSHOT", command->snapshot, "What quire replay --snapshot wrote")
      ->type_name("FILE");
  sub->add_option("--trace", command->serving.trace,
                  "Simulate: Azure LLM inference CSV or Mooncake JSONL, .gz or not")
      ->type_name("FILE");
  add_source_options(*sub, command->serving);
  add_whole(*sub, "--step", command->step, -1, kMost,
            "Of the simulation; -1 is the fullest that was looked at");
  add_choice(*sub, "--show", command->show, {"owner", "fill", "refs"},
             "What a cell says of its page");
  add_whole(*sub, "--columns", command->columns, 0, kMostColumns,
            "Pages in a row; 0 is what the terminal holds");
  add_engine_options(*sub, command->serving);
  add_cost_options(*sub, command->serving.replay.cost);
  add_json(*sub, command->json, "Print the snapshot as one JSON object");
  sub->callback([command] { run_map(*command); });
}

}  // namespace quire::tool
