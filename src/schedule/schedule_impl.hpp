// SPDX-License-Identifier: Apache-2.0
/// @file
/// Bodies of schedule.hpp: inline, because kernels need them. Include schedule.hpp instead.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schedule/schedule.hpp"

namespace quire::schedule {
namespace detail {

QUIRE_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

template <typename T>
QUIRE_HOST_DEVICE constexpr T min_of(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
QUIRE_HOST_DEVICE constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}

/// Σ ⌊(a·i + b) / m⌋ over i in [0, n), for a, b ≥ 0 and m > 0. O(log m), by Euclid's algorithm on
/// the lattice points under the line.
QUIRE_HOST_DEVICE constexpr std::int64_t floor_sum(std::int64_t n, std::int64_t m, std::int64_t a,
                                                   std::int64_t b) {
  std::int64_t sum = 0;
  while (n > 0) {
    sum += (n - 1) * n / 2 * (a / m) + n * (b / m);
    a %= m;
    b %= m;
    const std::int64_t top = a * n + b;
    if (top < m) break;
    n = top / m;
    b = top % m;
    const std::int64_t swapped = m;
    m = a;
    a = swapped;
  }
  return sum;
}

/// Σ ⌊max(0, a·i + b) / m⌋ over i in [0, n), for a, m > 0 and any b.
QUIRE_HOST_DEVICE constexpr std::int64_t clamped_floor_sum(std::int64_t n, std::int64_t m,
                                                           std::int64_t a, std::int64_t b) {
  const std::int64_t zeros = b < 0 ? min_of(n, ceil_div(-b, a)) : 0;
  return floor_sum(n - zeros, m, a, b + a * zeros);
}

/// The units of one request, with the running sums that place cuts among them.
class UnitLine {
 public:
  QUIRE_HOST_DEVICE UnitLine(const TilePolicy& policy, const core::ProblemShape& shape,
                             const SequenceUnits& units)
      : policy_(policy), shape_(shape), units_(units) {}

  QUIRE_HOST_DEVICE std::int32_t queries_in_tile(std::int32_t q_tile) const {
    const std::int32_t begin = q_tile * units_.tokens_per_tile;
    return min_of(units_.tokens_per_tile, units_.lengths.qo_len - begin);
  }

  QUIRE_HOST_DEVICE KeyRange keys(std::int32_t q_tile) const {
    const std::int32_t begin = q_tile * units_.tokens_per_tile;
    return visible_keys(shape_, units_.lengths, begin, begin + queries_in_tile(q_tile));
  }

  QUIRE_HOST_DEVICE std::int32_t first_kv_tile(std::int32_t q_tile) const {
    return keys(q_tile).begin / policy_.kv_tile;
  }

  /// Key tiles of a unit; 0 if its queries see nothing.
  QUIRE_HOST_DEVICE std::int32_t kv_tiles(std::int32_t q_tile) const {
    const KeyRange range = keys(q_tile);
    if (range.begin >= range.end) return 0;
    return static_cast<std::int32_t>(ceil_div(range.end, policy_.kv_tile)) -
           range.begin / policy_.kv_tile;
  }

  QUIRE_HOST_DEVICE std::int64_t cost_of_kv_tile(std::int32_t q_tile) const {
    const std::int64_t kv_heads = units_.head_units == 1 ? shape_.num_kv_heads : 1;
    const std::int64_t rows = queries_in_tile(q_tile) * kv_heads * shape_.group_size;
    return kv_heads * policy_.cost_of_tile + rows * policy_.cost_of_row;
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

  /// The unit that holds offset `cost` of a head unit.
  QUIRE_HOST_DEVICE std::int32_t q_tile_at(std::int64_t cost) const {
    std::int32_t low = 0;
    std::int32_t high = units_.q_tiles;  // cost_before(low) ≤ cost < cost_before(high)
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
    const std::int64_t at = (cost - policy_.cost_of_unit) / cost_of_kv_tile(q_tile);
    if (cost <= policy_.cost_of_unit || at < policy_.min_split_tiles) return 0;
    if (tiles - at < policy_.min_split_tiles) return static_cast<std::int32_t>(tiles);
    return static_cast<std::int32_t>(at);
  }

 private:
  QUIRE_HOST_DEVICE std::int64_t full_kv_tiles_before(std::int32_t q_tile) const {
    const std::int64_t step = units_.tokens_per_tile;
    const std::int64_t tile = policy_.kv_tile;
    const std::int64_t base = units_.lengths.position(0);
    std::int64_t ends = q_tile * ceil_div(units_.lengths.kv_len, tile);
    if (shape_.mask == Mask::kCausal) {
      ends = clamped_floor_sum(q_tile, tile, step, base + step + tile - 1);
    }
    std::int64_t begins = 0;
    if (shape_.window_left >= 0) {
      begins = clamped_floor_sum(q_tile, tile, step, base - shape_.window_left);
    }
    return ends - begins;
  }

  const TilePolicy& policy_;
  const core::ProblemShape& shape_;
  const SequenceUnits& units_;
};

/// The request that holds `cost` of the line: the last one whose running cost is ≤ `cost`.
QUIRE_HOST_DEVICE inline std::int32_t seq_at(ScheduleView schedule, std::int64_t cost) {
  std::int32_t low = 0;
  std::int32_t high = schedule.header->num_seqs;
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    if (schedule.cost_before[middle] <= cost) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Start of worker `worker`'s range on the line, before snapping to tiles.
QUIRE_HOST_DEVICE inline std::int64_t raw_cut(ScheduleView schedule, std::int32_t worker) {
  return schedule.header->total_cost * worker / schedule.header->num_workers;
}

/// Steps over the end of a unit, of a head unit, of a request and over requests without queries.
QUIRE_HOST_DEVICE inline Cut next_unit(ScheduleView schedule, const SequenceUnits& units, Cut cut) {
  cut.kv_tile = 0;
  if (++cut.q_tile < units.q_tiles) return cut;
  cut.q_tile = 0;
  if (++cut.head_unit < units.head_units) return cut;
  cut.head_unit = 0;
  const std::int64_t end = schedule.cost_before[cut.seq + 1];
  cut.seq = end < schedule.header->total_cost ? seq_at(schedule, end) : schedule.header->num_seqs;
  return cut;
}

QUIRE_HOST_DEVICE inline Cut cut_of(const TilePolicy& policy, const core::ProblemShape& shape,
                                    const core::BatchArrays& batch, ScheduleView schedule,
                                    std::int32_t worker) {
  if (worker >= schedule.header->num_workers) return {schedule.header->num_seqs, 0, 0, 0};
  std::int64_t cost = raw_cut(schedule, worker);
  Cut cut;
  cut.seq = seq_at(schedule, cost);
  cost -= schedule.cost_before[cut.seq];
  const SequenceUnits units = units_of(policy, shape, lengths_of(shape, batch, cut.seq));
  cut.head_unit = static_cast<std::int32_t>(cost / units.cost_per_head_unit);
  cost %= units.cost_per_head_unit;
  const UnitLine line(policy, shape, units);
  cut.q_tile = line.q_tile_at(cost);
  cut.kv_tile = line.snap(cut.q_tile, cost - line.cost_before(cut.q_tile));
  if (cut.kv_tile != 0 && cut.kv_tile == line.kv_tiles(cut.q_tile)) {
    return next_unit(schedule, units, cut);
  }
  return cut;
}

/// The workers whose ranges start inside a unit, past its first tile.
struct InnerCuts {
  std::int32_t first = 0;
  std::int32_t last = -1;
};

QUIRE_HOST_DEVICE inline InnerCuts inner_cuts(ScheduleView schedule, const UnitLine& line,
                                              std::int32_t q_tile, std::int64_t unit_begin) {
  const std::int64_t total = schedule.header->total_cost;
  const std::int64_t workers = schedule.header->num_workers;
  const std::int64_t unit_end = unit_begin + line.cost_of_unit(q_tile);
  const std::int32_t tiles = line.kv_tiles(q_tile);
  const auto is_inner = [&](std::int32_t worker) {
    const std::int32_t at = line.snap(q_tile, raw_cut(schedule, worker) - unit_begin);
    return at > 0 && at < tiles;
  };
  // raw_cut rounds down, so start one early and let is_inner decide.
  InnerCuts cuts{
      static_cast<std::int32_t>(ceil_div(unit_begin * workers, total)),
      static_cast<std::int32_t>(min_of(ceil_div(unit_end * workers, total), workers - 1))};
  while (cuts.last >= cuts.first &&
         (raw_cut(schedule, cuts.last) >= unit_end || !is_inner(cuts.last))) {
    --cuts.last;
  }
  while (cuts.first <= cuts.last && !is_inner(cuts.first)) ++cuts.first;
  return cuts;
}

}  // namespace detail

QUIRE_HOST_DEVICE inline std::size_t schedule_bytes(std::int32_t max_num_seqs,
                                                    std::int32_t num_workers) {
  return sizeof(Header) + (static_cast<std::size_t>(max_num_seqs) + 1) * sizeof(std::int64_t) +
         static_cast<std::size_t>(num_workers) * sizeof(std::uint32_t);
}

QUIRE_HOST_DEVICE inline ScheduleView view_of(void* workspace, std::int32_t max_num_seqs) {
  ScheduleView view;
  view.header = static_cast<Header*>(workspace);
  view.cost_before = reinterpret_cast<std::int64_t*>(view.header + 1);
  view.arrivals = reinterpret_cast<std::uint32_t*>(view.cost_before + max_num_seqs + 1);
  return view;
}

QUIRE_HOST_DEVICE inline std::int32_t tokens_per_tile(const TilePolicy& policy,
                                                      const core::ProblemShape& shape) {
  return detail::max_of(1, policy.tile_rows / shape.group_size);
}

QUIRE_HOST_DEVICE inline std::int32_t max_item_rows(const TilePolicy& policy,
                                                    const core::ProblemShape& shape) {
  return detail::max_of(policy.all_heads_rows, tokens_per_tile(policy, shape) * shape.group_size);
}

/// No tile of any unit costs more.
QUIRE_HOST_DEVICE inline std::int64_t max_cost_of_kv_tile(const TilePolicy& policy,
                                                          const core::ProblemShape& shape) {
  const std::int64_t kv_heads = policy.all_heads_rows > 0 ? shape.num_kv_heads : 1;
  return kv_heads * policy.cost_of_tile +
         static_cast<std::int64_t>(max_item_rows(policy, shape)) * policy.cost_of_row;
}

QUIRE_HOST_DEVICE inline SequenceUnits units_of(const TilePolicy& policy,
                                                const core::ProblemShape& shape, Lengths lengths) {
  SequenceUnits units;
  units.lengths = lengths;
  if (lengths.qo_len <= 0) return units;
  const bool all_heads =
      static_cast<std::int64_t>(lengths.qo_len) * shape.num_qo_heads <= policy.all_heads_rows;
  units.head_units = all_heads ? 1 : shape.num_kv_heads;
  units.tokens_per_tile = all_heads ? lengths.qo_len : tokens_per_tile(policy, shape);
  units.q_tiles =
      static_cast<std::int32_t>(detail::ceil_div(lengths.qo_len, units.tokens_per_tile));
  const detail::UnitLine line(policy, shape, units);
  const std::int32_t last = units.q_tiles - 1;
  units.cost_per_head_unit = line.cost_before(last) + line.cost_of_unit(last);
  return units;
}

/// Ranges in use for a batch of `total_cost`: as many as pay, and never so many that two cuts could
/// fall into one tile.
QUIRE_HOST_DEVICE inline std::int32_t workers_for(const TilePolicy& policy,
                                                  const core::ProblemShape& shape,
                                                  std::int64_t total_cost) {
  if (total_cost == 0) return 0;
  const std::int64_t share =
      detail::max_of(policy.min_worker_cost, 2 * max_cost_of_kv_tile(policy, shape));
  return static_cast<std::int32_t>(detail::max_of<std::int64_t>(
      1, detail::min_of<std::int64_t>(policy.num_workers, total_cost / share)));
}

inline void build(const TilePolicy& policy, const core::ProblemShape& shape,
                  const core::BatchArrays& batch, ScheduleView schedule) {
  std::int64_t cost = 0;
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    schedule.cost_before[seq] = cost;
    const SequenceUnits units = units_of(policy, shape, lengths_of(shape, batch, seq));
    cost += units.head_units * units.cost_per_head_unit;
  }
  schedule.cost_before[batch.num_seqs] = cost;
  *schedule.header = {batch.num_seqs, workers_for(policy, shape, cost), cost};
  for (std::int32_t worker = 0; worker < policy.num_workers; ++worker)
    schedule.arrivals[worker] = 0;
}

QUIRE_HOST_DEVICE inline WorkCursor::WorkCursor(const TilePolicy& policy,
                                                const core::ProblemShape& shape,
                                                const core::BatchArrays& batch,
                                                ScheduleView schedule, std::int32_t worker)
    : policy_(policy), shape_(shape), batch_(batch), schedule_(schedule), worker_(worker) {
  at_ = detail::cut_of(policy, shape, batch, schedule, worker);
  end_ = detail::cut_of(policy, shape, batch, schedule, worker + 1);
  if (at_.seq < batch.num_seqs) units_ = units_of(policy, shape, lengths_of(shape, batch, at_.seq));
}

QUIRE_HOST_DEVICE inline bool WorkCursor::next(WorkItem& item) {
  const bool in_last_unit =
      at_.seq == end_.seq && at_.head_unit == end_.head_unit && at_.q_tile == end_.q_tile;
  if (at_.seq >= schedule_.header->num_seqs || (in_last_unit && at_.kv_tile >= end_.kv_tile)) {
    return false;
  }
  const detail::UnitLine line(policy_, shape_, units_);
  const std::int32_t tiles = line.kv_tiles(at_.q_tile);
  const std::int32_t tile_end = in_last_unit ? end_.kv_tile : tiles;
  const std::int32_t first_tile = line.first_kv_tile(at_.q_tile);
  const KeyRange keys = line.keys(at_.q_tile);

  item.seq = at_.seq;
  item.kv_head_begin = units_.head_units == 1 ? 0 : at_.head_unit;
  item.kv_head_end = units_.head_units == 1 ? shape_.num_kv_heads : at_.head_unit + 1;
  item.q_begin = at_.q_tile * units_.tokens_per_tile;
  item.q_end = item.q_begin + line.queries_in_tile(at_.q_tile);
  const auto key_at = [&](std::int32_t tile) {
    return static_cast<std::int64_t>(first_tile + tile) * policy_.kv_tile;
  };
  item.kv_begin =
      static_cast<std::int32_t>(detail::max_of<std::int64_t>(keys.begin, key_at(at_.kv_tile)));
  item.kv_end = static_cast<std::int32_t>(detail::min_of<std::int64_t>(keys.end, key_at(tile_end)));
  item.piece = 0;
  item.num_pieces = 1;
  item.first_worker = worker_;
  if (at_.kv_tile > 0 || tile_end < tiles) {
    const std::int64_t unit_begin = schedule_.cost_before[at_.seq] +
                                    at_.head_unit * units_.cost_per_head_unit +
                                    line.cost_before(at_.q_tile);
    const detail::InnerCuts cuts = detail::inner_cuts(schedule_, line, at_.q_tile, unit_begin);
    item.first_worker = cuts.first - 1;
    item.piece = worker_ - item.first_worker;
    item.num_pieces = cuts.last - cuts.first + 2;
  }

  if (tile_end < tiles) {
    at_ = end_;
    return true;
  }
  const std::int32_t seq = at_.seq;
  at_ = detail::next_unit(schedule_, units_, at_);
  if (at_.seq != seq && at_.seq < schedule_.header->num_seqs) {
    units_ = units_of(policy_, shape_, lengths_of(shape_, batch_, at_.seq));
  }
  return true;
}

}  // namespace quire::schedule
