// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

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

/// @return What was expected of the blocks' names and what came, or nothing; fills `ids`.
std::string read_hash_ids(const Json& object, std::int32_t input_tokens,
                          std::vector<std::int32_t>& ids) {
  constexpr std::int64_t kMostBlocks = std::numeric_limits<std::int32_t>::max();
  const auto member = object.find("hash_ids");
  if (member == object.end()) return {};
  if (!member->is_array()) return "hash_ids: expected an array of whole numbers";
  const std::int32_t blocks = (input_tokens + kHashBlockTokens - 1) / kHashBlockTokens;
  if (std::cmp_not_equal(member->size(), blocks)) return {};
  ids.reserve(member->size());
  for (const Json& id : *member) {
    const bool whole = id.is_number_integer() && id.get<double>() >= 0 &&
                       id.get<double>() <= static_cast<double>(kMostBlocks);
    if (!whole) {
      return fmt::format("hash_ids: expected whole numbers from 0 to {}, got {}", kMostBlocks,
                         in_quotes(id.dump(-1, ' ', false, Json::error_handler_t::replace)));
    }
    ids.push_back(id.get<std::int32_t>());
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
  std::string text = read_hash_ids(object, request.input_tokens, request.hash_ids);
  if (!text.empty()) return text;
  return request;
}

}  // namespace quire::tool
