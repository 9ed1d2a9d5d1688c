// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/format.hpp"
#include "trace/line.hpp"

namespace quire::tool {
namespace {

using Json = nlohmann::json;

/// @return What was expected of a member and what came, or nothing if it is a whole number between.
std::string complaint(const Json& object, const char* name, std::int64_t low, std::int64_t high) {
  const std::string expected =
      fmt::format("{}: expected a whole number from {} to {}", name, low, high);
  const auto member = object.find(name);
  if (member == object.end()) return expected + ", got nothing";
  // Unsigned values beyond 2^63 would wrap around; as doubles they do not.
  if (member->is_number_integer() && member->get<double>() >= static_cast<double>(low) &&
      member->get<double>() <= static_cast<double>(high)) {
    return {};
  }
  const auto replace = Json::error_handler_t::replace;
  return fmt::format("{}, got {}", expected, in_quotes(member->dump(-1, ' ', false, replace)));
}

/// Reads `hash_ids`, which may be missing. @return What was expected and what came.
std::string read_blocks(const Json& object, std::vector<std::uint32_t>& blocks) {
  const auto ids = object.find("hash_ids");
  if (ids == object.end()) return {};
  constexpr const char* kExpected =
      "hash_ids: expected a list of whole numbers from 0 to 4294967295";
  if (!ids->is_array()) return fmt::format("{}, got {}", kExpected, ids->type_name());
  blocks.reserve(ids->size());
  for (const Json& id : *ids) {
    const double value = id.is_number_integer() ? id.get<double>() : -1;
    if (value < 0 || value > static_cast<double>(std::numeric_limits<std::uint32_t>::max())) {
      const auto replace = Json::error_handler_t::replace;
      return fmt::format("{}, got {} among them", kExpected,
                         in_quotes(id.dump(-1, ' ', false, replace)));
    }
    blocks.push_back(id.get<std::uint32_t>());
  }
  return {};
}

}  // namespace

ParsedLine parse_mooncake_line(std::string_view line) {
  constexpr std::int64_t kMostMilliseconds = 1'000'000'000'000'000;
  constexpr double kMillisecond = 1e-3;
  const Json object = Json::parse(line, nullptr, false);
  if (object.is_discarded() || !object.is_object()) {
    return fmt::format(
        "expected a JSON object with timestamp, input_length and output_length, got {}",
        in_quotes(line));
  }
  for (std::string text : {complaint(object, "timestamp", 0, kMostMilliseconds),
                           complaint(object, "input_length", 1, kMostTokens),
                           complaint(object, "output_length", 0, kMostTokens)}) {
    if (!text.empty()) return text;
  }
  TraceRequest request;
  request.arrival_s = object["timestamp"].get<double>() * kMillisecond;
  request.input_tokens = object["input_length"].get<std::int32_t>();
  request.output_tokens = object["output_length"].get<std::int32_t>();
  if (std::string text = read_blocks(object, request.blocks); !text.empty()) return text;
  return request;
}

}  // namespace quire::tool
