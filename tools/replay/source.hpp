// SPDX-License-Identifier: Apache-2.0
/// @file
/// Options of the subcommands that serve requests: where these come from, and what serves them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "replay/options.hpp"
#include "trace/request.hpp"

namespace quire::tool {

/// What the options say, before it is known whether time is simulated.
struct ServingOptions {
  ReplayOptions replay;
  std::string trace;
  std::string preset;
  std::int32_t requests = 0;
  std::int32_t layers = 0;
  std::string arrivals = "asap";

  /// @return `replay` with the rest filled in.
  [[nodiscard]] ReplayOptions resolved(bool attention) const;
};

/// Requests, and where they came from, in words.
struct Source {
  std::vector<TraceRequest> requests;
  std::string words;
};

/// @throws CommandError (usage) if the preset is unknown or the trace cannot be read.
Source load_source(const ServingOptions& options);

/// --preset, --requests, --duration, --arrivals.
void add_source_options(CLI::App& app, ServingOptions& options);
/// Shape, layers, pages, budget, seed.
void add_engine_options(CLI::App& app, ServingOptions& options);
/// The constants of the cost model.
void add_cost_options(CLI::App& app, CostModel& cost);

}  // namespace quire::tool
