// SPDX-License-Identifier: Apache-2.0
// The trace readers: any bytes are a trace, plain or compressed, or a list of what was expected.
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <variant>

#include "fuzz/bytes.hpp"
#include "trace/line.hpp"
#include "trace/reader.hpp"

namespace quire::fuzz {
namespace {

/// What a request may be, whoever wrote it.
void expect(const tool::TraceRequest& request) {
  require(request.input_tokens >= 0 && request.input_tokens <= tool::kMostTokens);
  require(request.output_tokens >= 0 && request.output_tokens <= tool::kMostTokens);
}

void expect(const tool::ParsedLine& line) {
  if (const auto* request = std::get_if<tool::TraceRequest>(&line)) {
    expect(*request);
  } else {
    require(!std::get<std::string>(line).empty());
  }
}

void expect(const tool::TraceReading& reading) {
  require(reading.errors.size() <= tool::TraceReading::kMostErrors);
  double last = 0;
  for (const tool::TraceRequest& request : reading.requests) {
    expect(request);
    require(request.arrival_s >= last);
    last = request.arrival_s;
  }
}

}  // namespace
}  // namespace quire::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  quire::fuzz::expect(quire::tool::parse_azure_line(text));
  quire::fuzz::expect(quire::tool::parse_mooncake_line(text));
  std::istringstream stream(text);
  quire::fuzz::expect(quire::tool::read_trace(stream, "trace"));
  return 0;
}
