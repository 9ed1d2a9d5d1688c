// SPDX-License-Identifier: Apache-2.0
#include "replay/html_report.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "common/format.hpp"
#include "replay/latency.hpp"
#include "replay/report.hpp"
#include "replay/report_series.hpp"

namespace quire::tool {
namespace {

using nlohmann::json;

constexpr double kPercent = 100;

json tile(std::string value, std::string text, bool bad = false) {
  return json::array({std::move(value), std::move(text), bad});
}

json tiles_of(const ReplayOptions& options, const ReplayReport& report) {
  const BatcherStats& stats = report.batcher;
  const Latencies latencies = latencies_of(report.recorder->ended());
  const double busy = report.busy_s();
  const double rate = busy > 0 ? static_cast<double>(report.tokens()) / busy : 0;
  json tiles = json::array();
  tiles.push_back(tile(human_count(stats.finished), "requests served"));
  tiles.push_back(tile(human_seconds(report.virtual_s),
                       options.attention ? "min:s on the replay's clock" : "min:s simulated"));
  tiles.push_back(tile(human_count(static_cast<std::int64_t>(rate)), "tokens/s while busy"));
  tiles.push_back(
      tile(human_duration(latencies.first_token.p50),
           fmt::format("to first token, p50; p99 {}", human_duration(latencies.first_token.p99))));
  tiles.push_back(
      tile(human_duration(latencies.per_token.p50),
           fmt::format("a token, p50; p99 {}", human_duration(latencies.per_token.p99))));
  tiles.push_back(tile(fmt::format("{:.1f} %", kPercent * stats.peak_used_pages / options.pages),
                       fmt::format("of {} pages in use at most", human_count(options.pages))));
  tiles.push_back(tile(human_count(stats.preemptions), "preemptions"));
  if (options.prefix_cache) {
    tiles.push_back(tile(human_count(stats.hit_tokens), "tokens found and not computed"));
    tiles.push_back(tile(human_bytes(report.bytes_not_read()), "of K and V shared and not read"));
  }
  const bool sound = report.lost_pages == 0 && report.broken_invariant.empty();
  tiles.push_back(tile(sound ? "none" : human_count(report.lost_pages),
                       sound ? "pages lost, invariants hold" : "pages lost", !sound));
  return tiles;
}

std::string losses_text(const RecorderLosses& losses) {
  if (losses == RecorderLosses{}) return "";
  return fmt::format(
      "This run was longer than the recording: its first {} steps, {} events and {} requests are "
      "not shown.",
      human_count(losses.steps), human_count(losses.events), human_count(losses.ended));
}

void replace(std::string& text, std::string_view mark, std::string_view with) {
  text.replace(text.find(mark), mark.size(), with);
}

}  // namespace

json report_data(const ReplayOptions& options, const ReplayReport& report,
                 const std::string& source, const ReportDetail& detail) {
  const Records<StepRecord> steps = report.recorder->steps();
  json waste = json::array();
  for (const TailWaste& tail : report.tail_waste) waste.push_back({tail.page_size, tail.percent});
  bool reuses = false;
  for (std::size_t i = 0; i < steps.size(); ++i) reuses = reuses || steps[i].reused_tokens > 0;
  json data = {{"source", source},
               {"setup", report_setup(options)},
               {"tiles", tiles_of(options, report)},
               {"settings", report_settings(options, report)},
               {"losses", losses_text(report.recorder->losses())},
               {"clock", options.attention ? "measured" : "simulated"},
               {"duration", steps.empty() ? 0.0 : steps.back().end},
               {"numPages", options.pages},
               {"pageSize", options.shape.page_size},
               {"hasCache", reuses},
               {"tailWaste", waste},
               {"steps", step_series(steps, report.step_pages, detail.max_step_groups)},
               {"distributions", distributions(report.recorder->ended())}};
  add_lives(data, *report.recorder, detail);
  add_pages(data, *report.pages, detail.max_cells);
  if (report.tree) add_tree(data, *report.tree, detail.max_runs);
  return data;
}

std::string html_report(const ReplayOptions& options, const ReplayReport& report,
                        const std::string& source) {
  std::string data =
      report_data(options, report, source).dump(-1, ' ', false, json::error_handler_t::replace);
  // What the strings hold must not end the element that they are in.
  std::string safe;
  safe.reserve(data.size());
  for (const char letter : data) safe += letter == '<' ? "\\u003c" : std::string(1, letter);
  std::string page(kReportParts.page);
  replace(page, "{{style}}", kReportParts.style);
  replace(page, "{{script}}", kReportParts.script);
  replace(page, "{{data}}", safe);
  return page;
}

}  // namespace quire::tool
