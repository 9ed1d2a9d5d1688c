// SPDX-License-Identifier: Apache-2.0
#include "replay/source.hpp"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "common/exit_code.hpp"
#include "common/format.hpp"
#include "common/options.hpp"
#include "trace/preset.hpp"
#include "trace/reader.hpp"

namespace quire::tool {
namespace {

constexpr std::int32_t kDefaultPresetRequests = 500;
constexpr std::int32_t kSimulatedLayers = 32;

}  // namespace

ReplayOptions ServingOptions::resolved(bool attention) const {
  ReplayOptions filled = replay;
  filled.attention = attention;
  filled.layers = layers > 0 ? layers : attention ? 1 : kSimulatedLayers;
  filled.arrivals = arrivals == "trace" ? Arrivals::kTrace : Arrivals::kAsap;
  return filled;
}

Source load_source(const ServingOptions& options) {
  if (options.preset.empty()) {
    TraceReading trace = load_trace(options.trace, static_cast<std::size_t>(options.requests));
    std::string words = fmt::format("{} ({}, {} requests)", options.trace, trace.format,
                                    human_count(static_cast<std::int64_t>(trace.requests.size())));
    return {std::move(trace.requests), std::move(words)};
  }
  const Preset* preset = find_preset(options.preset);
  if (preset == nullptr) {
    std::string known;
    for (const Preset& each : presets()) {
      known += (known.empty() ? "" : ", ") + std::string(each.name);
    }
    throw CommandError(ExitCode::kUsage, fmt::format("--preset: expected one of {}, got {}", known,
                                                     in_quotes(options.preset)));
  }
  // With a duration alone, requests do not run out before the time does.
  const std::int32_t unnamed = options.replay.duration_s > 0
                                   ? std::numeric_limits<std::int16_t>::max()
                                   : kDefaultPresetRequests;
  const std::int32_t count = options.requests > 0 ? options.requests : unnamed;
  return {
      draw_requests(*preset, static_cast<std::size_t>(count), options.replay.seed),
      fmt::format("preset {}, seed {}: {}", preset->name, options.replay.seed, preset->summary)};
}

void add_source_options(CLI::App& app, ServingOptions& options) {
  constexpr double kLongest = 1e9;
  std::string names;
  for (const Preset& preset : presets())
    names += (names.empty() ? "" : ", ") + std::string(preset.name);
  app.add_option("--preset", options.preset, "Requests drawn as in a trace: " + names)
      ->type_name("NAME");
  add_whole(app, "--requests", options.requests, 0, TraceReading::kMostRequests,
            "At most so many; 0 is all (500 of a preset)");
  add_real(app, "--duration", options.replay.duration_s, 0, kLongest,
           "Take no request in after so many seconds; 0 takes all");
  add_choice(app, "--arrivals", options.arrivals, {"asap", "trace"},
             "asap: all at once; trace: at the trace's times, skipping idleness");
}

void add_engine_options(CLI::App& app, ServingOptions& serving) {
  ReplayOptions& options = serving.replay;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  constexpr std::int64_t kMostLayers = 1000;
  add_shape(app, options.shape);
  add_whole(
      app, "--layers", serving.layers, 0, kMostLayers,
      fmt::format("Attention layers; 0 is 1, or {} where time is simulated", kSimulatedLayers));
  add_whole(app, "--pages", options.pages, 1, kMost, "Pages of the cache of each layer");
  add_whole(app, "--max-tokens-per-step", options.max_tokens_per_step, 1, kMost,
            "New tokens of a step");
  add_whole(app, "--max-seqs", options.max_seqs, 1, kMost, "Requests running at the same time");
  app.add_flag("--prefix-cache", options.prefix_cache,
               "Share the pages of prompts that begin alike (a Mooncake trace, --no-attention)");
  add_whole(app, "--host-pages", options.host_pages, 0, kMost,
            "Pages in memory of the host, where the preempted go and what the prefix cache has no "
            "room for");
  add_seed(app, options.seed);
}

void add_cost_options(CLI::App& app, CostModel& cost) {
  constexpr double kMost = 1e9;
  constexpr double kLeast = 1e-9;
  add_real(app, "--step-overhead", cost.overhead_us, 0, kMost, "Simulated: µs of every step");
  add_real(app, "--bandwidth", cost.bandwidth_gbps, kLeast, kMost, "Simulated: GB/s read");
  add_real(app, "--peak", cost.peak_tflops, kLeast, kMost, "Simulated: TFLOP/s");
  add_real(app, "--weights", cost.params_billion, 0, kMost,
           "Simulated: parameters of the model, in 1e9");
  add_real(app, "--link", cost.link_gbps, kLeast, kMost,
           "GB/s between device and host, by which pages are fetched or computed again");
}

}  // namespace quire::tool
