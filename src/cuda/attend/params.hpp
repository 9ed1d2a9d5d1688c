// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the attention kernels are given, and how a backend finds and launches one of them.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>

#include "core/problem.hpp"
#include "cuda/common/fast_divisor.hpp"
#include "cuda/timeline/events.hpp"
#include "quire/attention.hpp"
#include "schedule/schedule.hpp"

namespace quire::cuda {

/// Where the results of a unit that falls into pieces lie, of its first row: rows of `PartialStates`.
struct alignas(16) PieceRows {
  std::int32_t base = 0;  // of piece 0, but for `skip`
  std::int32_t step = 0;  // from piece to piece
  std::int32_t skip = 0;  // piece 0 lies so many rows behind its place
  std::int32_t count = 0;
};

/// Results that wait to be joined with others. First those of pieces of split units, a slot each
/// (`schedule::partial_slot`) of the line's max_rows rows, small units' and then large ones': a row is
/// a query of one head of the unit's group; rows are ordered by query, then head. Behind them, from
/// row `first_state` on, those of whole units that attend to shared prefixes or to parts of a request's
/// keys: [states, num_qo_heads] rows (`schedule::QueryPlace::state`).
struct PartialStates {
  float* o = nullptr;             // [rows, head_dim_vo]: Σ 2^(x − max) · v
  float2* max_and_sum = nullptr;  // [rows]: max of the logits x, in units of log 2 (−inf:
                                  // no key seen), and Σ 2^(x − max)
  std::int32_t first_row[schedule::kLines] = {};  // of the lines' slots
  std::int32_t max_rows[schedule::kLines] = {};   // of a slot
  std::int32_t first_state = 0;
  PieceRows* pieces = nullptr;  // [listed queries, kPrefixLevels + 1, num_kv_heads]
};

/// Everything that a kernel reads, in constant memory.
struct AttendParams {
  schedule::Policy policy;
  core::ProblemShape shape;
  core::BatchArrays batch;
  core::LayerTensors tensors;
  schedule::ScheduleView schedule;
  PartialStates partials;
  FastDivisor group_size;
  FastDivisor page_size;               ///< 1 for contiguous K/V
  std::int32_t has_linear_logits = 0;  ///< neither soft cap nor ALiBi; found by a thread, it would
                                       ///< be kept in a predicate, and spilled
  const CheckRecord* check = nullptr;  ///< an offence in it: do nothing
  timeline::Recorder<timeline::kIsBuilt> timeline;
};

/// A compiled kernel. Takes `AttendParams`, and perhaps `sm90::TileMaps` behind them.
struct AttendKernel {
  const void* function = nullptr;  ///< __global__
  std::int32_t threads = 0;
  std::size_t shared_bytes = 0;
  std::int32_t blocks_per_multiprocessor = 0;
  std::int32_t compute_capability = 0;  ///< 10 · major + minor that it is for; 0: any
  std::int32_t shares_per_block = 1;    ///< of either line
  std::int32_t tile_rows = 0;           ///< rows of a unit at most
  std::int32_t large_tile_rows = 0;     ///< of a large unit; 0: it has none
  std::int32_t tile_keys = 0;
  std::int32_t large_tile_keys = 0;
  bool takes_tile_maps = false;

  /// Shares that a multiprocessor works on at the same time.
  [[nodiscard]] std::int32_t shares_per_multiprocessor() const {
    return blocks_per_multiprocessor * shares_per_block;
  }
};

}  // namespace quire::cuda
