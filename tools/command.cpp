// SPDX-License-Identifier: Apache-2.0
#include "command.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <numeric>
#include <string>
#include <string_view>
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
  add_map(app, session);
  add_prefixes(app, session);
  // After the subcommands, which would inherit it.
  app.footer(
      "Results go to stdout, errors to stderr; every subcommand has --json and --help.\n"
      "Exit codes: 0 ok, 1 a check failed, 2 wrong usage or input, 3 no such device.\n\n"
      "First steps:\n"
      "  quire check                       is the arithmetic right on this machine?\n"
      "  quire memory 100 50 75 200        what do pages save?\n"
      "  quire replay --preset azure-conv  serve a day's kind of requests\n"
      "  quire map --preset azure-conv     who has which page?\n");
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

/// Insertions, deletions and replacements that make one word of the other.
std::size_t edits_between(std::string_view from, std::string_view to) {
  std::vector<std::size_t> edits(to.size() + 1);  // from the letters of `from` so far to to[0, i)
  std::iota(edits.begin(), edits.end(), std::size_t{0});
  for (const char letter : from) {
    std::size_t diagonal = edits[0]++;
    for (std::size_t i = 1; i <= to.size(); ++i) {
      const std::size_t replaced = diagonal + (letter == to[i - 1] ? 0 : 1);
      diagonal = edits[i];
      edits[i] = std::min({edits[i] + 1, edits[i - 1] + 1, replaced});
    }
  }
  return edits.back();
}

/// @return The name that was probably meant, empty if none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& names) {
  constexpr std::size_t kMostEdits = 2;
  std::string nearest;
  std::size_t fewest = kMostEdits + 1;
  for (const std::string& name : names) {
    const bool shortened = !word.empty() && name.starts_with(word);
    const std::size_t edits = shortened ? 0 : edits_between(word, name);
    if (edits >= fewest) continue;
    fewest = edits;
    nearest = name;
  }
  return nearest;
}

/// The first argument has to be a subcommand, if it is not an option.
void require_subcommand(const CLI::App& app, int argc, const char* const* argv) {
  if (argc > 1 && argv[1][0] == '-') return;
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    if (argc > 1 && command->get_name() == argv[1]) return;
    names.push_back(command->get_name());
  }
  const std::string nearest = argc > 1 ? nearest_name(argv[1], names) : "";
  throw CommandError(ExitCode::kUsage,
                     fmt::format("expected one of {}, got {}{}{}\nTry quire --help",
                                 fmt::join(names, ", "), argc > 1 ? in_quotes(argv[1]) : "nothing",
                                 nearest.empty() ? "" : "; nearest: ", nearest));
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
