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
  /// What stands in each block of `kBlockTokens` tokens of the prompt and before it, as a number;
  /// the last block may be partial. Empty if the trace does not say.
  std::vector<std::uint32_t> blocks{};

  friend bool operator==(const TraceRequest&, const TraceRequest&) = default;
};

inline constexpr std::int32_t kBlockTokens = 512;  ///< Of a block of `TraceRequest::blocks`.

/// What a line may say. Traces come from anywhere; nothing in them is trusted.
inline constexpr std::int64_t kMostTokens = 16'777'216;

}  // namespace quire::tool
