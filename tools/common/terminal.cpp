// SPDX-License-Identifier: Apache-2.0
#include "common/terminal.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "common/format.hpp"

namespace quire::tool {
namespace {

constexpr std::chrono::milliseconds kRedrawEvery{100};
constexpr const char* kWipe = "\r\033[K";

bool is_terminal(int descriptor) {
  const char* term = std::getenv("TERM");
  return isatty(descriptor) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

bool stdout_has_colours() {
  const char* no_color = std::getenv("NO_COLOR");
  return is_terminal(STDOUT_FILENO) && (no_color == nullptr || *no_color == '\0');
}

int terminal_width(int otherwise) {
  winsize size{};
  if (!is_terminal(STDOUT_FILENO) || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return otherwise;
  return size.ws_col > 0 ? size.ws_col : otherwise;
}

std::string painted(std::string_view text, Paint paint) {
  static const bool kColours = stdout_has_colours();
  if (!kColours) return std::string(text);
  const char* code = paint == Paint::kGood ? "32" : paint == Paint::kBad ? "31" : "1";
  return fmt::format("\033[{}m{}\033[0m", code, text);
}

std::string progress_line(std::string_view label, std::int64_t done, std::int64_t total,
                          double elapsed_s, std::string_view note) {
  constexpr std::int64_t kBarWidth = 20;
  constexpr int kPercent = 100;
  if (total <= 0) return fmt::format("{}  {}  {}", label, human_seconds(elapsed_s), note);
  const std::int64_t clamped = std::clamp<std::int64_t>(done, 0, total);
  const double part = static_cast<double>(clamped) / static_cast<double>(total);
  const auto filled = static_cast<std::size_t>(part * kBarWidth);
  std::string bar;
  for (std::size_t i = 0; i < static_cast<std::size_t>(kBarWidth); ++i) {
    bar += i < filled ? "█" : "░";
  }
  const std::string eta =
      clamped == 0 ? "" : fmt::format("  eta {}", human_seconds(elapsed_s * (1 - part) / part));
  return fmt::format("{} ▕{}▏ {:3.0f} %{}  {}", label, bar, part * kPercent, eta, note);
}

Progress::Progress(std::string_view label, std::int64_t total)
    : label_(label),
      total_(total),
      visible_(is_terminal(STDERR_FILENO)),
      start_(std::chrono::steady_clock::now()),
      next_(start_) {}

Progress::~Progress() { wipe(); }

void Progress::update(std::int64_t done, std::string_view note) {
  if (!visible_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + kRedrawEvery;
  const std::string line = progress_line(label_, done, total_, seconds_since(start_), note);
  std::fputs(fmt::format("{}{}", kWipe, line).c_str(), stderr);
  drawn_ = true;
}

void Progress::wipe() {
  if (!drawn_) return;
  std::fputs(kWipe, stderr);
  drawn_ = false;
}

}  // namespace quire::tool
