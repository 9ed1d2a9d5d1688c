// SPDX-License-Identifier: Apache-2.0
#include "tools/run_quire.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace quire::tool {
namespace {

const std::filesystem::path& folder() {
  static const std::filesystem::path kFolder = [] {
    std::string pattern = std::filesystem::temp_directory_path() / "quire-test-XXXXXX";
    return std::filesystem::path(mkdtemp(pattern.data()));
  }();
  return kFolder;
}

std::string read_file(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string in_shell_quotes(const std::string& text) {
  std::string out;
  out += '\'';
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  out += '\'';
  return out;
}

}  // namespace

std::string write_file(const std::string& name, const std::string& content) {
  const std::string path = folder() / name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

CommandResult run_quire(const std::vector<std::string>& arguments) {
  const std::string out = folder() / "out";
  const std::string error = folder() / "error";
  std::string line = in_shell_quotes(QUIRE_COMMAND);
  for (const std::string& argument : arguments) line.append(" ").append(in_shell_quotes(argument));
  line.append(" >").append(in_shell_quotes(out)).append(" 2>").append(in_shell_quotes(error));
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(error)};
}

}  // namespace quire::tool
