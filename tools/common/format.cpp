// SPDX-License-Identifier: Apache-2.0
#include "common/format.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

namespace quire::tool {

std::string human_count(std::int64_t count) {
  constexpr std::size_t kGroup = 3;
  std::string digits = fmt::format("{}", count);
  const std::size_t first = count < 0 ? 1 : 0;
  for (std::size_t at = digits.size(); at > first + kGroup;) {
    at -= kGroup;
    digits.insert(at, 1, ',');
  }
  return digits;
}

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  constexpr double kStep = 1024;
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= kStep && unit + 1 < kUnits.size()) {
    value /= kStep;
    ++unit;
  }
  const bool whole = value == std::floor(value);
  return fmt::format("{:.{}f} {}", value, whole ? 0 : 2, kUnits[unit]);
}

std::string human_seconds(double seconds) {
  constexpr std::int64_t kMinute = 60;
  constexpr double kMost = 1e9;
  const auto whole = static_cast<std::int64_t>(std::clamp(std::ceil(seconds), 0.0, kMost));
  if (whole < kMinute) return fmt::format("{} s", whole);
  return fmt::format("{:02}:{:02}", whole / kMinute, whole % kMinute);
}

std::string human_duration(double seconds) {
  constexpr double kStep = 1000;
  constexpr std::array<const char*, 3> kUnits = {"µs", "ms", "s"};
  double value = seconds * kStep * kStep;
  std::size_t unit = 0;
  while (value >= kStep && unit + 1 < kUnits.size()) {
    value /= kStep;
    ++unit;
  }
  const int decimals = value < 10 ? 2 : value < 100 ? 1 : 0;
  return fmt::format("{:.{}f} {}", value, decimals, kUnits[unit]);
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  constexpr char kFirstPrintable = 0x20;
  constexpr char kLastPrintable = 0x7e;
  std::string out = "\"";
  for (const char c : text.substr(0, kLongest)) {
    const bool printable = c >= kFirstPrintable && c <= kLastPrintable;
    out += printable ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return out + (text.size() > kLongest ? "…\"" : "\"");
}

}  // namespace quire::tool
