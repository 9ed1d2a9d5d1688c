// SPDX-License-Identifier: Apache-2.0
/// @file
/// One line of a trace. Fuzzing: `parse_azure_line` and `parse_mooncake_line` take any bytes, never
/// throw and never crash; `read_trace` (trace/reader.hpp) takes any stream, compressed or not.
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "trace/request.hpp"

namespace quire::tool {

/// A request, with `arrival_s` since an epoch of the format's own, or what was expected instead.
using ParsedLine = std::variant<TraceRequest, std::string>;

/// The first line of an Azure LLM inference trace.
inline constexpr std::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// `2023-11-16 18:15:46.6805900,374,44`
ParsedLine parse_azure_line(std::string_view line);

/// `{"timestamp": 27482, "input_length": 6955, "output_length": 52, …}`, the time in milliseconds;
/// `hash_ids` may name the blocks of the prompt.
ParsedLine parse_mooncake_line(std::string_view line);

}  // namespace quire::tool
