// SPDX-License-Identifier: Apache-2.0
// quire replay: serves a request trace with real attention on real pages, or on a simulated clock.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "command.hpp"
#include "common/format.hpp"
#include "common/numbers.hpp"
#include "common/options.hpp"
#include "common/terminal.hpp"
#include "replay/engine.hpp"
#include "replay/html_report.hpp"
#include "replay/options.hpp"
#include "replay/perfetto.hpp"
#include "replay/report.hpp"
#include "trace/preset.hpp"
#include "trace/reader.hpp"

namespace quire::tool {
namespace {

constexpr std::int32_t kDefaultPresetRequests = 500;
constexpr std::int32_t kSimulatedLayers = 32;

struct ReplayCommand {
  ReplayOptions replay;
  std::string trace;
  std::string preset;
  std::int32_t requests = 0;
  std::int32_t layers = 0;
  std::string arrivals = "asap";
  bool no_attention = false;
  std::string report;
  std::string timeline;
  bool json = false;
};

struct Source {
  std::vector<TraceRequest> requests;
  std::string words;
};

Source source_of(const ReplayCommand& command) {
  if (command.preset.empty()) {
    TraceReading trace = load_trace(command.trace, static_cast<std::size_t>(command.requests));
    std::string words = fmt::format("{} ({}, {} requests)", command.trace, trace.format,
                                    human_count(static_cast<std::int64_t>(trace.requests.size())));
    return {std::move(trace.requests), std::move(words)};
  }
  const Preset* preset = find_preset(command.preset);
  if (preset == nullptr) {
    std::string known;
    for (const Preset& each : presets()) {
      known += (known.empty() ? "" : ", ") + std::string(each.name);
    }
    throw CommandError(ExitCode::kUsage, fmt::format("--preset: expected one of {}, got {}", known,
                                                     in_quotes(command.preset)));
  }
  // With a duration alone, requests do not run out before the time does.
  const std::int32_t unnamed = command.replay.duration_s > 0
                                   ? std::numeric_limits<std::int16_t>::max()
                                   : kDefaultPresetRequests;
  const std::int32_t count = command.requests > 0 ? command.requests : unnamed;
  return {
      draw_requests(*preset, static_cast<std::size_t>(count), command.replay.seed),
      fmt::format("preset {}, seed {}: {}", preset->name, command.replay.seed, preset->summary)};
}

void check_options(const ReplayCommand& command) {
  const auto refuse = [](const std::string& text) { throw CommandError(ExitCode::kUsage, text); };
  if (command.trace.empty() == command.preset.empty()) {
    refuse("expected a TRACE file or --preset NAME\nTry quire replay --help");
  }
  if (!is_float(command.replay.shape.dtype)) refuse("--dtype: expected fp32, fp16 or bf16");
  if (!is_float(command.replay.shape.cache_dtype())) {
    refuse("--kv-dtype: expected fp32, fp16 or bf16");
  }
}

/// @param write  Writes the content to a stream.
template <typename Write>
void write_file(const std::string& path, Write write) {
  std::ofstream file(path, std::ios::binary);
  write(file);
  file.close();
  if (!file) {
    throw CommandError(ExitCode::kFailed, fmt::format("{}: could not be written", path));
  }
}

void run_replay(ReplayCommand command, Session& session) {
  check_options(command);
  const Source source = source_of(command);
  command.replay.attention = !command.no_attention;
  if (command.layers > 0) {
    command.replay.layers = command.layers;
  } else if (command.no_attention) {
    command.replay.layers = kSimulatedLayers;
  }
  command.replay.arrivals = command.arrivals == "trace" ? Arrivals::kTrace : Arrivals::kAsap;
  command.replay.keep_steps = !command.report.empty() || !command.timeline.empty();
  command.replay.keep_pages = !command.report.empty();
  constexpr std::int64_t kSteps = 1000;
  Progress progress("replay", kSteps);
  const ReplayReport report =
      replay(command.replay, source.requests, [&](double part, const BatcherStats& stats) {
        progress.update(static_cast<std::int64_t>(part * kSteps),
                        fmt::format("{} served, {} running, {} pages", stats.finished,
                                    stats.running, stats.used_pages));
      });
  progress.wipe();
  if (!command.report.empty()) {
    write_file(command.report, [&](std::ostream& file) {
      file << html_report(command.replay, report, source.words);
    });
  }
  if (!command.timeline.empty()) {
    write_file(command.timeline,
               [&](std::ostream& file) { write_perfetto(file, *report.recorder); });
  }
  if (command.json) {
    fmt::print("{}\n", report_json(command.replay, report, source.words).dump());
  } else {
    fmt::print("{}", report_text(command.replay, report, source.words));
  }
  if (!report.passed()) session.exit_code = ExitCode::kFailed;
}

void add_source_options(CLI::App& app, ReplayCommand& command) {
  constexpr double kLongest = 1e9;
  app.add_option("TRACE", command.trace, "Azure LLM inference CSV or Mooncake JSONL, .gz or not")
      ->type_name("FILE");
  std::string names;
  for (const Preset& preset : presets())
    names += (names.empty() ? "" : ", ") + std::string(preset.name);
  app.add_option("--preset", command.preset, "Requests drawn as in a trace: " + names)
      ->type_name("NAME");
  add_whole(app, "--requests", command.requests, 0, TraceReading::kMostRequests,
            "At most so many; 0 is all (500 of a preset)");
  add_real(app, "--duration", command.replay.duration_s, 0, kLongest,
           "Take no request in after so many seconds; 0 takes all");
  add_choice(app, "--arrivals", command.arrivals, {"asap", "trace"},
             "asap: all at once; trace: at the trace's times, skipping idleness");
}

void add_engine_options(CLI::App& app, ReplayCommand& command) {
  ReplayOptions& options = command.replay;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  constexpr std::int64_t kMostLayers = 1000;
  add_device(app, options.device);
  add_shape(app, options.shape);
  add_whole(app, "--layers", command.layers, 0, kMostLayers,
            fmt::format("Attention layers; 0 is 1, or {} with --no-attention", kSimulatedLayers));
  add_whole(app, "--pages", options.pages, 1, kMost, "Pages of the cache of each layer");
  add_whole(app, "--max-tokens-per-step", options.max_tokens_per_step, 1, kMost,
            "New tokens of a step");
  add_whole(app, "--max-seqs", options.max_seqs, 1, kMost, "Requests running at the same time");
  add_whole(app, "--check-every", options.check_every, 0, kMost,
            "Steps between spot checks against the oracle; 0 is never");
  add_whole(app, "--threads", options.threads, 0, kMostThreads, "0 is the default (quire info)");
  add_seed(app, options.seed);
}

void add_simulation_options(CLI::App& app, ReplayCommand& command) {
  constexpr double kMost = 1e9;
  constexpr double kLeast = 1e-9;
  CostModel& cost = command.replay.cost;
  app.add_flag("--no-attention", command.no_attention,
               "Pages and batching only, on a simulated clock");
  add_real(app, "--step-overhead", cost.overhead_us, 0, kMost, "Simulated: µs of every step");
  add_real(app, "--bandwidth", cost.bandwidth_gbps, kLeast, kMost, "Simulated: GB/s read");
  add_real(app, "--peak", cost.peak_tflops, kLeast, kMost, "Simulated: TFLOP/s");
  add_real(app, "--weights", cost.params_billion, 0, kMost,
           "Simulated: parameters of the model, in 1e9");
}

constexpr const char* kFooter =
    "Simulated time (--no-attention): a step takes overhead + bytes / bandwidth + FLOP / peak.\n"
    "  bytes  weights (2 each, once a step), K and V of the keys that a request's new tokens see\n"
    "         (once a request), K and V that are written\n"
    "  FLOP   2 a weight and new token; 4 x head dim a query head, layer, query and key it sees\n"
    "The defaults of bandwidth and peak were measured on an H200 "
    "(docs/benchmarks/2026-11-26-h200).";

}  // namespace

void add_replay(CLI::App& app, Session& session) {
  const auto command = std::make_shared<ReplayCommand>();
  CLI::App* sub = app.add_subcommand(
      "replay",
      "Serve a request trace with attention on pages, or simulate that; report what was done");
  add_source_options(*sub, *command);
  add_engine_options(*sub, *command);
  add_simulation_options(*sub, *command);
  sub->add_option("--report", command->report, "Write what happened as an HTML page to look at")
      ->type_name("FILE");
  sub->add_option("--timeline", command->timeline,
                  "Write steps, requests and counters as a trace for ui.perfetto.dev")
      ->type_name("FILE");
  add_json(*sub, command->json, "Print one JSON object");
  sub->footer(kFooter);
  sub->callback([command, &session] { run_replay(*command, session); });
}

}  // namespace quire::tool
