// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>
#include <charconv>
#include <chrono>
#include <optional>
#include <system_error>

#include "common/format.hpp"
#include "trace/line.hpp"

namespace quire::tool {
namespace {

template <typename T>
std::optional<T> whole(std::string_view text, T low, T high) {
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  if (value < low || value > high) return std::nullopt;
  return value;
}

/// `YYYY-MM-DD HH:MM:SS`, with or without a fraction, `Z` or `+00:00`. @return Unix seconds.
std::optional<double> timestamp(std::string_view text) {
  constexpr std::string_view kPattern = "dddd-dd-dd dd:dd:dd";
  for (const std::string_view zone : {"Z", "+00:00"}) {
    if (text.ends_with(zone)) text.remove_suffix(zone.size());
  }
  if (text.size() < kPattern.size()) return std::nullopt;
  for (std::size_t i = 0; i < kPattern.size(); ++i) {
    const bool digit = text[i] >= '0' && text[i] <= '9';
    const bool fits = kPattern[i] == 'd' ? digit : text[i] == kPattern[i];
    if (!fits) return std::nullopt;
  }
  const auto field = [&](std::size_t at, std::size_t length, int high) {
    return whole<int>(text.substr(at, length), 0, high);
  };
  const auto year = field(0, 4, 9999);
  const auto month = field(5, 2, 12);
  const auto day = field(8, 2, 31);
  const auto hour = field(11, 2, 23);
  const auto minute = field(14, 2, 59);
  const auto second = field(17, 2, 60);
  if (!year || !month || !day || !hour || !minute || !second) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(*year),
                                         std::chrono::month(static_cast<unsigned>(*month)),
                                         std::chrono::day(static_cast<unsigned>(*day))};
  if (!date.ok()) return std::nullopt;

  double fraction = 0;
  const std::string_view rest = text.substr(kPattern.size());
  if (!rest.empty()) {
    constexpr std::size_t kMostDigits = 9;
    if (rest[0] != '.' || rest.size() < 2 || rest.size() > kMostDigits + 1) return std::nullopt;
    double unit = 0.1;
    for (const char c : rest.substr(1)) {
      if (c < '0' || c > '9') return std::nullopt;
      fraction += unit * (c - '0');
      unit /= 10;
    }
  }
  const std::chrono::seconds whole_seconds =
      std::chrono::sys_days(date).time_since_epoch() + std::chrono::hours(*hour) +
      std::chrono::minutes(*minute) + std::chrono::seconds(*second);
  return static_cast<double>(whole_seconds.count()) + fraction;
}

}  // namespace

ParsedLine parse_azure_line(std::string_view line) {
  constexpr std::size_t kFields = 3;
  std::array<std::string_view, kFields> fields;
  std::size_t count = 0;
  for (std::string_view rest = line;; ++count) {
    const std::size_t comma = rest.find(',');
    if (count < kFields) fields[count] = rest.substr(0, comma);
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  if (++count != kFields) {
    return fmt::format("expected {} fields {}, got {}: {}", kFields, kAzureHeader, count,
                       in_quotes(line));
  }
  TraceRequest request;
  const auto arrival = timestamp(fields[0]);
  if (!arrival) {
    return fmt::format("TIMESTAMP: expected YYYY-MM-DD HH:MM:SS.fraction, got {}",
                       in_quotes(fields[0]));
  }
  request.arrival_s = *arrival;
  const auto input = whole<std::int64_t>(fields[1], 1, kMostTokens);
  if (!input) {
    return fmt::format("ContextTokens: expected a whole number from 1 to {}, got {}", kMostTokens,
                       in_quotes(fields[1]));
  }
  const auto output = whole<std::int64_t>(fields[2], 0, kMostTokens);
  if (!output) {
    return fmt::format("GeneratedTokens: expected a whole number from 0 to {}, got {}", kMostTokens,
                       in_quotes(fields[2]));
  }
  request.input_tokens = static_cast<std::int32_t>(*input);
  request.output_tokens = static_cast<std::int32_t>(*output);
  return request;
}

}  // namespace quire::tool
