// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the command ends.
#pragma once

#include <stdexcept>
#include <string>

namespace quire::tool {

/// Exit codes of the command. Part of its interface.
enum class ExitCode : int {
  kOk = 0,
  kFailed = 1,    ///< A check failed, or the work could not be done.
  kUsage = 2,     ///< Wrong options or a wrong input file.
  kNoDevice = 3,  ///< The device that was asked for is not there.
};

/// Ends the command: the text goes to stderr.
class CommandError : public std::runtime_error {
 public:
  CommandError(ExitCode exit_code, const std::string& text)
      : std::runtime_error(text), exit_code_(exit_code) {}
  [[nodiscard]] ExitCode exit_code() const noexcept { return exit_code_; }

 private:
  ExitCode exit_code_;
};

}  // namespace quire::tool
