// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/attention.hpp"
#include "quire/batcher.hpp"
#include "quire/recorder.hpp"
#include "replay/layers.hpp"
#include "replay/options.hpp"
#include "replay/page_history.hpp"
#include "replay/prefix_tree.hpp"
#include "replay/spot_check.hpp"
#include "trace/request.hpp"

namespace quire::tool {

/// KV positions that a step needed, in three ways of keeping them.
struct Positions {
  double used = 0;    ///< Tokens in cache.
  double paged = 0;   ///< In whole pages.
  double padded = 0;  ///< Every running request as long as the longest.
};

/// What a step had in the pages of the pool.
struct StepPages {
  float tokens = 0;     ///< Of running requests, shared ones as often as they are shared.
  float positions = 0;  ///< Of the pages that hold these, likewise.
  float idle = 0;       ///< Pages that only the prefix cache holds.
};

/// What the last pages of all requests leave empty at their final length, prompt and answer.
struct TailWaste {
  std::int32_t page_size = 0;
  double percent = 0;  ///< Of the positions of all their pages.
};

/// What a replay did.
struct ReplayReport {
  std::int64_t requests = 0;  ///< Taken in.
  std::int64_t refused = 0;   ///< Could never fit into the pool.
  std::int64_t left_out = 0;  ///< Not taken in before the duration was over.
  std::string first_refusal;
  BatcherStats batcher;
  PrefixCacheStats cache;             ///< Without a cache all zero.
  std::vector<double> step_seconds;   ///< On the clock that arrivals are held against.
  std::vector<StepPages> step_pages;  ///< Likewise by step, if steps were to be kept.
  StepTimes times;                    ///< Sums over all steps.
  double wall_s = 0;                  ///< Everything, the spot checks included.
  double checking_s = 0;
  double virtual_s = 0;               ///< That clock at the end.
  std::optional<Recorder> recorder;   ///< Its times are of that clock.
  std::optional<PageHistory> pages;   ///< If they were to be kept.
  std::optional<PageMap> chosen_map;  ///< Of the chosen step, if there was such a step.
  std::unique_ptr<PrefixTree> tree;   ///< At the end, of a prefix cache if pages were to be kept.
  std::vector<TailWaste> tail_waste;
  Positions mean;                    ///< Over all steps.
  Positions peak;                    ///< Of the step with the most tokens in cache.
  KeyReads key_reads;                ///< Sums over all steps, if there is a prefix cache.
  std::uint64_t position_bytes = 0;  ///< K and V of all layers.
  std::string kernel;                ///< Empty without attention.
  SpotCheckResult checks;
  std::int32_t lost_pages = 0;
  std::string broken_invariant;  ///< What `Batcher::check` said at the end; empty if all is well.

  /// @return Bytes of K and V, of all layers, that attention did not read since requests of a step
  ///   shared a prefix.
  [[nodiscard]] std::uint64_t bytes_not_read() const {
    return static_cast<std::uint64_t>(key_reads.apart - key_reads.grouped) * position_bytes;
  }
  [[nodiscard]] std::int64_t tokens() const {
    return batcher.prefill_tokens + batcher.decode_tokens;
  }
  /// @return Time of all steps, on the clock that arrivals are held against.
  [[nodiscard]] double busy_s() const {
    return std::accumulate(step_seconds.begin(), step_seconds.end(), 0.0);
  }
  [[nodiscard]] bool passed() const {
    return checks.failed == 0 && lost_pages == 0 && broken_invariant.empty();
  }
};

/// Called after each step with the part that is done, 0…1, and the state.
using ReplayProgress = std::function<void(double part, const BatcherStats& stats)>;

/// Serves the requests: page allocation, continuous batching, attention on pages. Without attention
/// the steps take the time that the cost model says, and the result depends on the options alone.
/// @throws Error, CommandError if the options do not go together or memory is short.
ReplayReport replay(const ReplayOptions& options, std::span<const TraceRequest> requests,
                    const ReplayProgress& progress);

}  // namespace quire::tool
