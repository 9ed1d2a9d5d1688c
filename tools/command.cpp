// SPDX-License-Identifier: Apache-2.0
#include "command.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "common/format.hpp"
#include "quire/error.hpp"
#include "quire/version.h"

namespace quire::tool {
namespace {

void add_subcommands(CLI::App& app, Session& session) {
  app.name("quire");
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.set_version_flag("--version", "quire " QUIRE_VERSION_STRING, "Print the version and exit");
  app.get_formatter()->column_width(34);
  add_info(app, session);
  add_check(app, session);
  add_memory(app, session);
  add_bench(app, session);
  add_replay(app, session);
  // After the subcommands, which would inherit it.
  app.footer(
      "Results go to stdout, errors to stderr; every subcommand has --json and --help.\n"
      "Exit codes: 0 ok, 1 a check failed, 2 wrong usage or input, 3 no such device.\n\n"
      "First steps:\n"
      "  quire check                       is the arithmetic right on this machine?\n"
      "  quire memory 100 50 75 200        what do pages save?\n"
      "  quire replay --preset azure-conv  serve a day's kind of requests\n");
}

ExitCode report(ExitCode code, std::string_view text) {
  std::fputs(fmt::format("quire: error: {}\n", text).c_str(), stderr);
  return code;
}

ExitCode exit_code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
    case ErrorCode::kTooLong:
      return ExitCode::kUsage;
    case ErrorCode::kDeviceError:
      return ExitCode::kNoDevice;
    default:
      return ExitCode::kFailed;
  }
}

/// Help and version go to stdout; what is wrong gets a sentence and where to read on.
ExitCode report_parsing(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
    app.exit(error);
    return ExitCode::kOk;
  }
  const auto chosen = app.get_subcommands();
  const std::string name = chosen.empty() ? "quire" : "quire " + chosen.front()->get_name();
  return report(ExitCode::kUsage, fmt::format("{}\nTry {} --help", error.what(), name));
}

/// The first argument has to be a subcommand, if it is not an option.
void require_subcommand(const CLI::App& app, int argc, const char* const* argv) {
  if (argc > 1 && argv[1][0] == '-') return;
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    if (argc > 1 && command->get_name() == argv[1]) return;
    names.push_back(command->get_name());
  }
  throw CommandError(ExitCode::kUsage, fmt::format("expected one of {}, got {}\nTry quire --help",
                                                   fmt::join(names, ", "),
                                                   argc > 1 ? in_quotes(argv[1]) : "nothing"));
}

}  // namespace

int run_command(int argc, const char* const* argv) {
  Session session;
  CLI::App app("Attention over paged KV caches for ragged batches.");
  add_subcommands(app, session);
  try {
    require_subcommand(app, argc, argv);
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    session.exit_code = report_parsing(app, error);
  } catch (const CommandError& error) {
    session.exit_code = report(error.exit_code(), error.what());
  } catch (const Error& error) {
    session.exit_code = report(exit_code_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    session.exit_code = report(ExitCode::kFailed, "out of memory");
  } catch (const std::exception& error) {
    session.exit_code = report(ExitCode::kFailed, error.what());
  }
  return static_cast<int>(session.exit_code);
}

}  // namespace quire::tool
