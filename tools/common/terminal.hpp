// SPDX-License-Identifier: Apache-2.0
/// @file
/// What is only done on a terminal: colours and progress.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quire::tool {

/// How a word is painted on stdout. The word alone always says the same.
enum class Paint { kGood, kBad, kStrong };

/// @return The text, painted if stdout is a terminal and NO_COLOR is not set.
std::string painted(std::string_view text, Paint paint);

/// @return True if stdout is a terminal and NO_COLOR is not set.
bool stdout_has_colours();
/// @return Columns of the terminal on stdout; `otherwise` if it is none.
int terminal_width(int otherwise);

/// One line on stderr that says how far the work is and when it will end. Draws nothing unless
/// stderr is a terminal; wipes its line when destroyed, so that results stand alone.
class Progress {
 public:
  /// @param total  Units of work; 0 if unknown.
  Progress(std::string_view label, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// @param note  A few words behind the bar.
  void update(std::int64_t done, std::string_view note = {});
  /// Wipes the line, so that something else can be printed.
  void wipe();

 private:
  std::string label_;
  std::int64_t total_;
  bool visible_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point next_;
};

/// @return The line that `Progress` draws.
std::string progress_line(std::string_view label, std::int64_t done, std::int64_t total,
                          double elapsed_s, std::string_view note);

}  // namespace quire::tool
