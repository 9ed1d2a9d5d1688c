// SPDX-License-Identifier: Apache-2.0
// How the CPU wants a batch cut. Measured on AVX-512 and AVX2 cores; costs are in the time of one
// row against one tile of keys.
#include <algorithm>
#include <cstdint>

#include "cpu/tier.hpp"

namespace quire::cpu {
namespace {

constexpr std::int32_t kMinTileRows = 48;
constexpr std::int32_t kMinRowElements = 192;  // rows of short heads cost as those of 96 elements

/// Ranges per thread: enough for the last ones to even out, few enough for splits to stay rare.
constexpr std::int32_t kRangesPerThread = 4;
constexpr std::int32_t kMaxRanges = 256;  // but one per thread at least

/// Rows of a request for one kv head; those with more make enough of keys that they read alone.
constexpr std::int32_t kMostRowsToShare = 32;
/// What a query costs for each kv head, beside a row's 1, if a prefix is taken from its keys: the first
/// of what is left has not been asked for when it is needed. Measured on AVX2 (notebook of shared
/// prefixes); elsewhere rows are cheaper and a prefix saves more.
constexpr std::int32_t kCostOfQuery = 4;
/// Bytes for results that wait to be joined with those of shared prefixes.
constexpr std::int64_t kStateBytes = 32 << 20;

schedule::TilePolicy tile_policy(const Tier& tier, const core::ProblemShape& shape,
                                 std::int32_t concurrency) {
  const std::int32_t row_elements =
      std::max(kMinRowElements, padded(shape.head_dim_qk) + padded(shape.head_dim_vo));
  const std::int32_t rows = std::max(kMinTileRows, tier.item_elements / row_elements);
  schedule::TilePolicy policy;
  policy.keys_per_tile = kKvTile;
  policy.tile_rows = rows;
  // Few rows use keys where they lie, so all heads of a page are worth reading together.
  policy.all_heads_rows =
      std::max(shape.num_qo_heads, std::min(rows, tier.few_rows * shape.num_kv_heads));
  policy.num_ranges =
      concurrency == 1
          ? 1
          : std::max(concurrency, std::min(concurrency * kRangesPerThread, kMaxRanges));
  policy.min_split_tiles = 4;
  policy.cost_of_unit = 8;
  policy.cost_of_tile = 6;
  policy.cost_of_row = 1;
  policy.min_range_cost = 64;
  return policy;
}

/// When shared prefixes are read once for all who share them.
schedule::PrefixPolicy prefix_policy(const core::AttentionConfig& config) {
  const core::ProblemShape& shape = config.shape;
  const bool all_see_earlier_keys = shape.mask != Mask::kFull && shape.window_left < 0;
  schedule::PrefixPolicy prefixes;
  if (!config.spec.share_prefixes || !all_see_earlier_keys || config.spec.alibi ||
      shape.page_size == kContiguousKv || config.limits.max_num_seqs < 2) {
    return prefixes;
  }
  const std::int64_t state_bytes = static_cast<std::int64_t>(shape.num_qo_heads) *
                                   (padded(shape.head_dim_vo) + 2) *
                                   static_cast<std::int64_t>(sizeof(float));
  const std::int64_t most_queries = std::min<std::int64_t>(
      config.limits.max_total_q,
      std::int64_t{config.limits.max_num_seqs} * std::max(1, kMostRowsToShare / shape.group_size));
  prefixes.max_states = static_cast<std::int32_t>(
      std::min(most_queries * (schedule::kPrefixLevels + 1), kStateBytes / state_bytes));
  prefixes.num_kv_heads = shape.num_kv_heads;
  prefixes.most_rows = kMostRowsToShare;
  prefixes.cost_of_queries = kCostOfQuery + shape.group_size;
  return prefixes;
}

}  // namespace

schedule::Policy policy_for(const Tier& tier, const core::AttentionConfig& config) {
  schedule::Policy policy(tile_policy(tier, config.shape, config.executor->concurrency()));
  if (config.spec.batch_invariant) {
    schedule::TilePolicy& units = policy.lines[schedule::kSmallUnits];
    units.min_split_tiles = INT32_MAX;
    units.all_heads_rows = 0;  // more units, since none is split
  } else {
    policy.prefixes = prefix_policy(config);
  }
  return policy;
}

}  // namespace quire::cpu
