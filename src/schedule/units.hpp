// SPDX-License-Identifier: Apache-2.0
/// @file
/// The units of a segment: how many, which keys, what they cost, in closed form. Include schedule.hpp
/// instead.
#pragma once

#include <cstdint>

#include "schedule/arithmetic.hpp"
#include "schedule/schedule.hpp"

namespace quire::schedule {
namespace detail {

/// Key tiles of the first `q_tile` units of a head unit, all of which are full. Outlined: only
/// requests with several tiles of queries need it.
QUIRE_OUTLINED std::int64_t full_kv_tiles_before(std::int32_t q_tile, std::int32_t tokens_per_tile,
                                                 std::int32_t keys_per_tile, Mask mask,
                                                 std::int32_t window_left, Lengths lengths,
                                                 std::int32_t key_begin) {
  const std::int64_t step = tokens_per_tile;
  const std::int64_t tile = keys_per_tile;
  const std::int64_t base = lengths.position(0);
  std::int64_t ends = q_tile * ceil_div(lengths.kv_len, tile);
  if (mask == Mask::kCausal) {
    ends = clamped_floor_sum(q_tile, tile, step, base + step + tile - 1);
  }
  std::int64_t begins = std::int64_t{q_tile} * (key_begin / keys_per_tile);  // without a window
  if (window_left >= 0) begins = clamped_floor_sum(q_tile, tile, step, base - window_left);
  return ends - begins;
}

/// The units of one segment, with the running sums that place cuts among them.
template <typename Tiles>
class UnitLine {
 public:
  QUIRE_HOST_DEVICE UnitLine(const Tiles& policy, const core::ProblemShape& shape,
                             const Segment& segment, const SegmentUnits& units)
      : policy_(policy), shape_(shape), segment_(segment), units_(units) {}

  QUIRE_HOST_DEVICE std::int32_t queries_in_tile(std::int32_t q_tile) const {
    const std::int32_t begin = q_tile * units_.tokens_per_tile;
    return min_of(units_.tokens_per_tile, segment_.lengths.qo_len - begin);
  }

  QUIRE_HOST_DEVICE KeyRange keys(std::int32_t q_tile) const {
    const std::int32_t begin = q_tile * units_.tokens_per_tile;
    return visible_keys(shape_, segment_, begin, begin + queries_in_tile(q_tile));
  }

  /// Key tiles of a unit; 0 if its queries see nothing.
  QUIRE_HOST_DEVICE std::int32_t kv_tiles(std::int32_t q_tile) const {
    const KeyRange range = keys(q_tile);
    if (range.begin >= range.end) return 0;
    return policy_.key_tiles(range.end - 1) + 1 - policy_.key_tiles(range.begin);
  }

  QUIRE_HOST_DEVICE std::int64_t cost_of_kv_tile(std::int32_t q_tile) const {
    const std::int32_t kv_heads =
        units_.kv_heads == policy_.heads_abreast ? 1 : policy_.head_turns(shape_);
    const std::int32_t rows = queries_in_tile(q_tile) * kv_heads * shape_.group_size;
    return std::int64_t{kv_heads} * policy_.cost_of_tile + std::int64_t{rows} * policy_.cost_of_row;
  }

  QUIRE_HOST_DEVICE std::int64_t cost_of_unit(std::int32_t q_tile) const {
    return policy_.cost_of_unit + kv_tiles(q_tile) * cost_of_kv_tile(q_tile);
  }

  /// Cost of the units before `q_tile` of one head unit. O(log) by closed form: all of them are
  /// full.
  QUIRE_HOST_DEVICE std::int64_t cost_before(std::int32_t q_tile) const {
    if (q_tile == 0) return 0;
    return static_cast<std::int64_t>(q_tile) * policy_.cost_of_unit +
           full_kv_tiles_before(q_tile) * cost_of_kv_tile(0);
  }

  /// Cost of all units of one head unit.
  QUIRE_HOST_DEVICE std::int64_t cost() const {
    const std::int32_t last = units_.q_tiles - 1;
    return cost_before(last) + cost_of_unit(last);
  }

  /// The unit that holds offset `cost` of a head unit.
  QUIRE_HOST_DEVICE std::int32_t q_tile_at(std::int64_t cost) const {
    std::int32_t low = 0;
    std::int32_t high = units_.q_tiles;  // cost_before(low) ≤ cost < cost_before(high)
    QUIRE_ROLLED
    while (high - low > 1) {
      const std::int32_t middle = low + (high - low) / 2;
      if (cost_before(middle) <= cost) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }

  /// Where a cut at `cost` from the unit's start falls: a tile in [0, kv_tiles], 0 and kv_tiles
  /// being the unit's ends. Pieces shorter than `min_split_tiles` are not made.
  QUIRE_HOST_DEVICE std::int32_t snap(std::int32_t q_tile, std::int64_t cost) const {
    const std::int64_t tiles = kv_tiles(q_tile);
    if (cost <= policy_.cost_of_unit) return 0;
    const std::int64_t at = quotient(cost - policy_.cost_of_unit, cost_of_kv_tile(q_tile));
    if (at < policy_.min_split_tiles) return 0;
    if (tiles - at < policy_.min_split_tiles) return static_cast<std::int32_t>(tiles);
    return static_cast<std::int32_t>(at);
  }

 private:
  QUIRE_HOST_DEVICE std::int64_t full_kv_tiles_before(std::int32_t q_tile) const {
    if (segment_.is_seen_by_all()) return static_cast<std::int64_t>(q_tile) * kv_tiles(0);
    return detail::full_kv_tiles_before(q_tile, units_.tokens_per_tile, policy_.keys_per_tile,
                                        shape_.mask, shape_.window_left, segment_.lengths,
                                        segment_.key_begin);
  }

  const Tiles& policy_;
  const core::ProblemShape& shape_;
  const Segment& segment_;
  const SegmentUnits& units_;
};

}  // namespace detail

QUIRE_HOST_DEVICE inline std::int32_t max_item_rows(const TilePolicy& policy,
                                                    const core::ProblemShape& shape) {
  if (policy.num_ranges == 0) return 0;
  return detail::max_of(policy.all_heads_rows, policy.tokens_per_tile(shape) * shape.group_size);
}

/// No tile of any unit of the line costs more.
QUIRE_HOST_DEVICE inline std::int64_t max_cost_of_kv_tile(const TilePolicy& policy,
                                                          const core::ProblemShape& shape) {
  const std::int64_t kv_heads = policy.all_heads_rows > 0 ? shape.num_kv_heads : 1;
  return kv_heads * policy.cost_of_tile +
         static_cast<std::int64_t>(max_item_rows(policy, shape)) * policy.cost_of_row;
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline Line line_of(const Tiles& large, const core::ProblemShape& shape,
                                      Lengths lengths) {
  const bool is_large = large.num_ranges > 0 && large.is_over(lengths.qo_len, shape);
  return is_large ? kLargeUnits : kSmallUnits;
}

QUIRE_HOST_DEVICE inline Line line_of(const Policy& policy, const core::ProblemShape& shape,
                                      Lengths lengths) {
  return line_of<TilePolicy>(policy.lines[kLargeUnits], shape, lengths);
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline SegmentUnits units_of(const Tiles& policy, const core::ProblemShape& shape,
                                               Lengths lengths) {
  SegmentUnits units;
  if (!policy.is_over(lengths.qo_len, shape) || policy.is_beyond(lengths.qo_len, shape))
    return units;
  if (policy.takes_all_heads(lengths.qo_len, shape)) {
    return {1, shape.num_kv_heads, 1, lengths.qo_len};
  }
  units.kv_heads = policy.heads_abreast;
  units.head_units = policy.head_turns(shape);
  units.tokens_per_tile = policy.tokens_per_tile(shape);
  units.q_tiles = policy.query_tiles(lengths.qo_len - 1, shape) + 1;
  return units;
}

template <typename Tiles>
QUIRE_HOST_DEVICE inline std::int64_t cost_of(const Tiles& policy, const core::ProblemShape& shape,
                                              const Segment& segment, const SegmentUnits& units) {
  if (units.q_tiles == 0) return 0;
  return units.head_units * detail::UnitLine(policy, shape, segment, units).cost();
}

}  // namespace quire::schedule
