// SPDX-License-Identifier: Apache-2.0
#include "trace/reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <variant>

#include "common/exit_code.hpp"
#include "common/format.hpp"
#include "trace/line.hpp"
#include "trace/line_reader.hpp"

namespace quire::tool {
namespace {

using LineParser = ParsedLine (*)(std::string_view);

bool blank(std::string_view line) {
  return line.find_first_not_of(" \t") == std::string_view::npos;
}

/// Recognises the format by the first line that is not blank.
/// @param consumed  Whether that line was a header.
LineParser recognise(std::string_view line, std::string& format, bool& consumed) {
  consumed = line == kAzureHeader;
  if (consumed) {
    format = "Azure LLM inference CSV";
    return parse_azure_line;
  }
  if (line.starts_with('{')) {
    format = "Mooncake JSONL";
    return parse_mooncake_line;
  }
  return nullptr;
}

void order_by_arrival(std::vector<TraceRequest>& requests) {
  if (requests.empty()) return;
  std::stable_sort(requests.begin(), requests.end(),
                   [](const auto& a, const auto& b) { return a.arrival_s < b.arrival_s; });
  const double first = requests.front().arrival_s;
  for (TraceRequest& request : requests) request.arrival_s -= first;
}

}  // namespace

TraceReading read_trace(std::istream& stream, std::string_view name, std::size_t limit) {
  TraceReading trace;
  LineReader reader(stream);
  LineParser parse = nullptr;
  std::string line;
  const auto complain = [&](std::string_view text) {
    trace.errors.push_back(
        fmt::format("{}:{}: {}", name, std::max<std::int64_t>(reader.number(), 1), text));
    return trace.errors.size() < TraceReading::kMostErrors;
  };

  while ((limit == 0 || trace.requests.size() < limit) && reader.next(line)) {
    if (blank(line)) continue;
    if (parse == nullptr) {
      bool consumed = false;
      parse = recognise(line, trace.format, consumed);
      if (parse == nullptr) {
        complain(fmt::format("expected the header {} or a JSON object, got {}", kAzureHeader,
                             in_quotes(line)));
        break;
      }
      if (consumed) continue;
    }
    ParsedLine parsed = parse(line);
    if (const auto* text = std::get_if<std::string>(&parsed)) {
      if (!complain(*text)) break;
      continue;
    }
    if (trace.requests.size() == TraceReading::kMostRequests) {
      complain(fmt::format("expected at most {} requests", TraceReading::kMostRequests));
      break;
    }
    trace.requests.push_back(std::get<TraceRequest>(parsed));
  }
  if (!reader.error().empty()) complain(reader.error());
  order_by_arrival(trace.requests);
  return trace;
}

TraceReading load_trace(const std::string& path, std::size_t limit) {
  const auto fail = [](const std::string& text) -> void {
    throw CommandError(ExitCode::kUsage, text);
  };
  if (std::filesystem::is_directory(path))
    fail(fmt::format("{}: expected a file, got a folder", path));
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  TraceReading trace = read_trace(file, path, limit);
  if (!trace.errors.empty()) {
    std::string text = trace.errors.front();
    for (std::size_t i = 1; i < trace.errors.size(); ++i) text += "\n" + trace.errors[i];
    if (trace.errors.size() == TraceReading::kMostErrors) text += "\n(no more errors are shown)";
    fail(text);
  }
  if (trace.requests.empty())
    fail(fmt::format("{}: expected at least one request, got none", path));
  return trace;
}

}  // namespace quire::tool
