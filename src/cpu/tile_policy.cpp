// SPDX-License-Identifier: Apache-2.0
// How the CPU wants a batch cut. Measured on AVX-512 and AVX2 cores; costs are in the time of one
// row against one tile of keys.
#include <algorithm>

#include "cpu/tier.hpp"

namespace quire::cpu {
namespace {

constexpr std::int32_t kMinTileRows = 48;
constexpr std::int32_t kMinRowElements = 192;  // rows of short heads cost as those of 96 elements

/// Ranges per thread: enough for the last ones to even out, few enough for splits to stay rare.
constexpr std::int32_t kRangesPerThread = 4;
constexpr std::int32_t kMaxRanges = 256;  // beyond, one per thread

}  // namespace

schedule::TilePolicy tile_policy(const Tier& tier, const core::ProblemShape& shape,
                                 std::int32_t concurrency, bool batch_invariant) {
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
  policy.min_split_tiles = batch_invariant ? INT32_MAX : 4;  // never, or pieces of so many
  policy.cost_of_unit = 8;
  policy.cost_of_tile = 6;
  policy.cost_of_row = 1;
  policy.min_range_cost = 64;
  return policy;
}

}  // namespace quire::cpu
