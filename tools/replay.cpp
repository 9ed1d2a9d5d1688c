// SPDX-License-Identifier: Apache-2.0
// quire replay: serves a request trace with real attention on real pages, or on a simulated clock.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "command.hpp"
#include "common/numbers.hpp"
#include "common/options.hpp"
#include "common/terminal.hpp"
#include "replay/engine.hpp"
#include "replay/html_report.hpp"
#include "replay/options.hpp"
#include "replay/perfetto.hpp"
#include "replay/report.hpp"
#include "replay/source.hpp"

namespace quire::tool {
namespace {

struct ReplayCommand {
  ServingOptions serving;
  bool no_attention = false;
  std::string report;
  std::string timeline;
  std::string snapshot;
  std::int32_t snapshot_step = -1;
  bool json = false;
};

void check_options(const ReplayCommand& command) {
  const auto refuse = [](const std::string& text) { throw CommandError(ExitCode::kUsage, text); };
  const ServingOptions& serving = command.serving;
  if (serving.trace.empty() == serving.preset.empty()) {
    refuse("expected a TRACE file or --preset NAME\nTry quire replay --help");
  }
  if (!is_float(serving.replay.shape.dtype)) refuse("--dtype: expected fp32, fp16 or bf16");
  if (command.snapshot_step >= 0 && command.snapshot.empty()) {
    refuse("--snapshot-step: expected --snapshot FILE with it");
  }
}

void check_prefixes(const ReplayCommand& command, const Source& source) {
  if (!command.serving.replay.prefix_cache) return;
  if (!command.no_attention) {
    throw CommandError(ExitCode::kUsage, "--prefix-cache: expected --no-attention with it");
  }
  const bool told = std::ranges::any_of(
      source.requests, [](const TraceRequest& request) { return !request.blocks.empty(); });
  if (told) return;
  throw CommandError(ExitCode::kUsage,
                     "--prefix-cache: expected a Mooncake trace with hash_ids, which say what "
                     "prompts have in common");
}

/// A file that is opened before the work and written after it. Nothing without a path.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path) : path_(path) {
    if (path.empty()) return;
    file_.emplace(path, std::ios::binary);
    check("could not be opened for writing");
  }
  /// @param write  Writes the content to a stream.
  template <typename Write>
  void fill(Write write) {
    if (!file_) return;
    write(*file_);
    file_->close();
    check("could not be written");
  }

 private:
  void check(const char* what) const {
    if (!*file_) throw CommandError(ExitCode::kFailed, fmt::format("{}: {}", path_, what));
  }

  std::string path_;
  std::optional<std::ofstream> file_;
};

void write_snapshot(const ReplayCommand& command, const ReplayReport& report, std::ostream& file) {
  if (command.snapshot_step >= 0 && !report.chosen_map) {
    throw CommandError(ExitCode::kUsage,
                       fmt::format("--snapshot-step: expected a step before {}, got {}",
                                   report.batcher.steps, command.snapshot_step));
  }
  file << page_map_json(report.chosen_map ? *report.chosen_map : report.pages->fullest()) << "\n";
}

void run_replay(const ReplayCommand& command, Session& session) {
  check_options(command);
  const Source source = load_source(command.serving);
  check_prefixes(command, source);
  ReplayOptions options = command.serving.resolved(!command.no_attention);
  options.keep_steps = !command.report.empty() || !command.timeline.empty();
  options.keep_pages = !command.report.empty() || !command.snapshot.empty();
  options.chosen_step = command.snapshot_step;
  OutputFile page(command.report);
  OutputFile timeline(command.timeline);
  OutputFile snapshot(command.snapshot);
  constexpr std::int64_t kSteps = 1000;
  Progress progress("replay", kSteps);
  const ReplayReport report =
      replay(options, source.requests, [&](double part, const BatcherStats& stats) {
        progress.update(static_cast<std::int64_t>(part * kSteps),
                        fmt::format("{} served, {} running, {} pages", stats.finished,
                                    stats.running, stats.used_pages));
      });
  progress.wipe();
  page.fill([&](std::ostream& file) { file << html_report(options, report, source.words); });
  timeline.fill([&](std::ostream& file) { write_perfetto(file, *report.recorder); });
  snapshot.fill([&](std::ostream& file) { write_snapshot(command, report, file); });
  if (command.json) {
    fmt::print("{}\n", report_json(options, report, source.words).dump());
  } else {
    fmt::print("{}", report_text(options, report, source.words));
  }
  if (!report.passed()) session.exit_code = ExitCode::kFailed;
}

void add_computing_options(CLI::App& app, ReplayOptions& options) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  add_device(app, options.device);
  add_whole(app, "--check-every", options.check_every, 0, kMost,
            "Steps between spot checks against the oracle; 0 is never");
  add_whole(app, "--threads", options.threads, 0, kMostThreads, "0 is the default (quire info)");
  add_page_kind(app, options.pages_of_memory);
}

void add_output_options(CLI::App& app, ReplayCommand& command) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  app.add_option("--report", command.report, "Write what happened as an HTML page to look at")
      ->type_name("FILE");
  app.add_option("--timeline", command.timeline,
                 "Write steps, requests and counters as a trace for ui.perfetto.dev")
      ->type_name("FILE");
  app.add_option("--snapshot", command.snapshot,
                 "Write the pages of a step for quire map: of the fullest step that was looked at")
      ->type_name("FILE");
  add_whole(app, "--snapshot-step", command.snapshot_step, -1, kMost, "… of this step instead");
  add_json(app, command.json, "Print one JSON object");
}

constexpr const char* kFooter =
    "Simulated time (--no-attention): a step takes overhead + bytes / bandwidth + FLOP / peak.\n"
    "  bytes  weights (2 each, once a step), K and V of the keys that a request's new tokens see\n"
    "         (once a request), K and V that are written\n"
    "  FLOP   2 a weight and new token; 4 x head dim a query head, layer, query and key it sees\n"
    "Shared prefixes (--prefix-cache): the K and V of all layers that requests of a step see,\n"
    "  against what is read if a prefix that several have is read once for all of them, where the\n"
    "  CPU's schedule finds that faster. Simulated time does not know of it.\n"
    "The defaults of bandwidth and peak were measured on an H200 "
    "(docs/benchmarks/2026-11-26-h200).";

}  // namespace

void add_replay(CLI::App& app, Session& session) {
  const auto command = std::make_shared<ReplayCommand>();
  CLI::App* sub = app.add_subcommand(
      "replay",
      "Serve a request trace with attention on pages, or simulate that; report what was done");
  sub->add_option("TRACE", command->serving.trace,
                  "Azure LLM inference CSV or Mooncake JSONL, .gz or not")
      ->type_name("FILE");
  add_source_options(*sub, command->serving);
  add_engine_options(*sub, command->serving);
  add_computing_options(*sub, command->serving.replay);
  sub->add_flag("--no-attention", command->no_attention,
                "Pages and batching only, on a simulated clock");
  add_cost_options(*sub, command->serving.replay.cost);
  add_output_options(*sub, *command);
  sub->footer(kFooter);
  sub->callback([command, &session] { run_replay(*command, session); });
}

}  // namespace quire::tool
