// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <istream>
#include <string>
#include <string_view>
#include <vector>

#include "trace/request.hpp"

namespace quire::tool {

/// What a trace held.
struct TraceReading {
  std::string format;  ///< "Azure LLM inference CSV" or "Mooncake JSONL"; empty if neither.
  std::vector<TraceRequest> requests;  ///< In order of arrival; the first arrives at 0.
  /// `file:line: expected …, got …`, one a bad line, at most `kMostErrors`. Empty for a good trace.
  std::vector<std::string> errors;

  static constexpr std::size_t kMostErrors = 20;
  static constexpr std::size_t kMostRequests = 10'000'000;
};

/// Reads a trace of either format, gzip-compressed or not. Does not throw for anything that the
/// stream may hold; takes memory in proportion to the requests and their blocks alone.
/// @param name   Of the file, for the errors.
/// @param limit  Stops after that many requests; 0 reads all.
TraceReading read_trace(std::istream& stream, std::string_view name, std::size_t limit = 0);

/// @throws CommandError (usage) if the file cannot be read, holds a bad line or no request.
TraceReading load_trace(const std::string& path, std::size_t limit = 0);

}  // namespace quire::tool
