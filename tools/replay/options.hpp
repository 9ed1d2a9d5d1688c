// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/buffer.hpp"
#include "common/shape.hpp"
#include "replay/cost_model.hpp"

namespace quire::tool {

/// When requests come to the batcher.
enum class Arrivals {
  kAsap,   ///< All are there from the start, in the trace's order.
  kTrace,  ///< At the trace's times, on a clock that counts the work done and jumps over idleness.
};

struct ReplayOptions {
  Device device;  ///< Where the attention is computed.
  Shape shape;
  std::int32_t layers = 1;
  std::int32_t pages = 8192;
  std::int32_t max_tokens_per_step = 2048;
  std::int32_t max_seqs = 256;
  std::int32_t check_every = 50;  ///< Steps between spot checks; 0 checks nothing.
  double duration_s = 0;          ///< No request is taken in after that; 0 takes all.
  Arrivals arrivals = Arrivals::kAsap;
  bool prefix_cache = false;  ///< Prompts that begin alike share pages; needs `blocks`.
  /// Pages of a host tier, where the preempted go, and all that the prefix cache has no room for.
  std::int32_t host_pages = 0;
  bool attention = true;          ///< Computed and timed; else time is simulated.
  CostModel cost;                 ///< Of the simulation.
  bool keep_steps = false;        ///< The recording has steps and events, not only latencies.
  bool keep_pages = false;        ///< Page maps are kept.
  std::int64_t chosen_step = -1;  ///< Its page map is kept; −1 is none.
  std::uint64_t seed = 1;
  std::int32_t threads = 0;
  PageKind pages_of_memory = PageKind::kHuge;  ///< On the CPU.
};

}  // namespace quire::tool
