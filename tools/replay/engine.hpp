// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/batcher.hpp"
#include "replay/layers.hpp"
#include "replay/options.hpp"
#include "replay/spot_check.hpp"
#include "trace/request.hpp"

namespace quire::tool {

/// KV positions that a step needed, in three ways of keeping them.
struct Positions {
  double used = 0;    ///< Tokens in cache.
  double paged = 0;   ///< In whole pages.
  double padded = 0;  ///< Every running request as long as the longest.
};

/// What a replay did.
struct ReplayReport {
  std::int64_t requests = 0;  ///< Taken in.
  std::int64_t refused = 0;   ///< Could never fit into the pool.
  std::int64_t left_out = 0;  ///< Not taken in before the duration was over.
  std::string first_refusal;
  BatcherStats batcher;
  std::vector<double> step_seconds;
  StepTimes times;    ///< Sums over all steps.
  double wall_s = 0;  ///< Everything, the spot checks included.
  double checking_s = 0;
  double virtual_s = 0;              ///< The clock that arrivals are held against.
  Positions mean;                    ///< Over all steps.
  Positions peak;                    ///< Of the step with the most tokens in cache.
  std::uint64_t position_bytes = 0;  ///< K and V of all layers.
  std::string kernel;                ///< Empty without attention.
  SpotCheckResult checks;
  std::int32_t lost_pages = 0;
  std::string broken_invariant;  ///< What `PageTable::check` said at the end; empty if all is well.

  [[nodiscard]] std::int64_t tokens() const {
    return batcher.prefill_tokens + batcher.decode_tokens;
  }
  [[nodiscard]] bool passed() const {
    return checks.failed == 0 && lost_pages == 0 && broken_invariant.empty();
  }
};

/// Called after each step with the part that is done, 0…1, and the state.
using ReplayProgress = std::function<void(double part, const BatcherStats& stats)>;

/// Serves the requests: page allocation, continuous batching, attention on pages.
/// @throws Error, CommandError if the options do not go together or memory is short.
ReplayReport replay(const ReplayOptions& options, std::span<const TraceRequest> requests,
                    const ReplayProgress& progress);

}  // namespace quire::tool
