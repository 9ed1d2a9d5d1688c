// SPDX-License-Identifier: Apache-2.0
/// @file
/// The command: one file per subcommand, each with an `add_…` that declares its options.
#pragma once

#include <CLI/CLI.hpp>

#include "common/exit_code.hpp"

namespace quire::tool {

/// What a subcommand leaves behind for `run_command`.
struct Session {
  ExitCode exit_code = ExitCode::kOk;
};

void add_info(CLI::App& app, Session& session);
void add_check(CLI::App& app, Session& session);
void add_map(CLI::App& app, Session& session);
void add_memory(CLI::App& app, Session& session);
void add_bench(CLI::App& app, Session& session);
void add_prefixes(CLI::App& app, Session& session);
void add_replay(CLI::App& app, Session& session);

/// Runs the command line. Results go to stdout, errors and progress to stderr. @return `ExitCode`.
int run_command(int argc, const char* const* argv);

}  // namespace quire::tool
