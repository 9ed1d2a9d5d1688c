// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace quire::tool {

/// What a run of the built command left behind.
struct CommandResult {
  int exit_code = -1;
  std::string out;
  std::string error;
};

/// Runs `quire` with these arguments; stdout and stderr are files, not terminals.
CommandResult run_quire(const std::vector<std::string>& arguments);

/// A file in the test's own folder, which is made anew for each process. @return Its path.
std::string write_file(const std::string& name, const std::string& content);

}  // namespace quire::tool
