// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace quire::tool {

/// A request as traces have it: when it came, how long its prompt was and how much it was answered.
struct TraceRequest {
  double arrival_s = 0;  ///< Since the first request of the trace.
  std::int32_t input_tokens = 0;
  std::int32_t output_tokens = 0;
  /// Names of the prompt's blocks of `kHashBlockTokens`, the last perhaps partial: equal names, equal
  /// beginnings of prompts. Empty where the trace has none or another number of them.
  std::vector<std::int32_t> hash_ids = {};

  friend bool operator==(const TraceRequest&, const TraceRequest&) = default;
};

/// What a line may say. Traces come from anywhere; nothing in them is trusted.
inline constexpr std::int64_t kMostTokens = 16'777'216;

/// Tokens of a block of the Mooncake traces.
inline constexpr std::int32_t kHashBlockTokens = 512;

}  // namespace quire::tool
