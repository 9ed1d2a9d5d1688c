// SPDX-License-Identifier: Apache-2.0
/// @file
/// The seam between the CPU backend and its kernels. A tier is a set of kernels for one kind of
/// core; everything above this header (schedule, split KV, merge, executor) is common to all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/backend.hpp"
#include "core/problem.hpp"
#include "schedule/schedule.hpp"

namespace quire::cpu {

/// Keys per tile: which of them a query sees is one 64-bit word.
inline constexpr std::int32_t kKvTile = 64;
inline constexpr std::int32_t kHeadDimStep = 8;
inline constexpr std::int32_t kMaxHeadDim = 512;
/// Up to so many rows of a kv head, keys and values are used where they lie; more pay for a copy.
inline constexpr std::int32_t kFewRows = 8;
/// Rows of fp32 buffers are padded to so many elements and aligned to as many bytes as they take.
inline constexpr std::int32_t kRowPadding = 16;
inline constexpr std::size_t kBufferAlignment = kRowPadding * sizeof(float);

constexpr std::int32_t padded(std::int32_t head_dim) {
  return (head_dim + kRowPadding - 1) / kRowPadding * kRowPadding;
}

/// What is known of an item's rows after some of their keys. A row is a query of one head; rows are
/// ordered by kv head, then query, then head of the group.
struct RowStates {
  float* o = nullptr;  // [rows, padded(head_dim_vo)]: Σ 2^(x − max) · v
  // [rows]: of the logits x, in units of log 2, or a number that is not far below; −inf: no key seen
  float* max = nullptr;
  float* sum = nullptr;  // [rows]: Σ 2^(x − max)
};

/// One piece of work for `Tier::attend`.
struct ItemTask {
  const core::ProblemShape& shape;
  const core::BatchArrays& batch;
  const core::LayerTensors& tensors;
  schedule::WorkItem item;
  schedule::Lengths lengths;                      // of the item's segment
  schedule::QueryPlace queries;                   // of the item's first query
  const schedule::ListedQuery* listed = nullptr;  // if there are shared prefixes
  RowStates states;                               // written
  std::byte* buffers = nullptr;                   // Tier::buffer_bytes, this thread's own

  [[nodiscard]] std::int32_t num_queries() const { return item.q_end - item.q_begin; }
  [[nodiscard]] std::int32_t num_kv_heads() const { return item.kv_head_end - item.kv_head_begin; }
  [[nodiscard]] std::int32_t rows_per_kv_head() const { return num_queries() * shape.group_size; }
  [[nodiscard]] std::int32_t rows() const { return num_kv_heads() * rows_per_kv_head(); }
  /// Whether results wait to be joined with those of other segments.
  [[nodiscard]] bool leaves_states() const { return queries.state != schedule::QueryPlace::kFinal; }
  /// Row of q and o of the item's query `query`.
  [[nodiscard]] std::int64_t token_of(std::int32_t query) const {
    const std::int32_t place = queries.first + query;
    return leaves_states() ? listed[place].token : place;
  }
};

/// Kernels for one kind of core. `n` elements of a row, any n ≥ 0.
struct Tier {
  /// Bytes that `attend` needs for items of at most `max_rows` rows.
  std::size_t (*buffer_bytes)(const core::ProblemShape& shape, std::int32_t max_rows) noexcept;
  /// Computes the states of all rows over the item's keys.
  void (*attend)(const ItemTask& task) noexcept;

  /// to[i] = scale · from[i], rounded to nearest even; 8-bit dtypes saturate.
  void (*store_row)(void* to, DType dtype, const float* from, std::int64_t n, float scale) noexcept;
  /// to[i] += weight · from[i].
  void (*add_row)(float* to, const void* from, DType dtype, std::int64_t n, float weight) noexcept;

  /// Elements of q and o that an item of many rows is cut to: what the core's second-level cache
  /// holds beside a block of keys, and enough for packing the keys to cost little.
  std::int32_t item_elements = 98304;
  /// Up to so many rows of a kv head, the heads of a page are worth reading together, since keys and
  /// values are used where they lie.
  std::int32_t few_rows = kFewRows;
};

/// @param target  One of Highway's. @return Its fp32 kernels; the baseline's if it has none.
const Tier& fp32_tier(std::int64_t target) noexcept;

/// @return Kernels of VDPBF16PS, on x86 only.
const Tier& avx512_bf16_tier() noexcept;
/// @return The same with tiles of AMX for many rows, on x86 only.
const Tier& amx_bf16_tier() noexcept;

/// @return The tier behind a row of the kernel table, which this machine must be able to run.
const Tier& tier_of(const core::KernelRow& kernel) noexcept;

/// @return The tier for work on rows that no kernel of the table names: append and merge.
const Tier& row_tier() noexcept;

/// How this backend wants a batch cut, and when a shared prefix is read once for all who share it.
schedule::Policy policy_for(const Tier& tier, const core::AttentionConfig& config);

}  // namespace quire::cpu
