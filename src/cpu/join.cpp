// SPDX-License-Identifier: Apache-2.0
#include "cpu/join.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "cpu/finish.hpp"

namespace quire::cpu {
namespace {

constexpr float kNoKey = -std::numeric_limits<float>::infinity();
constexpr int kLevels = schedule::kPrefixLevels + 1;

/// A row after each of its segments, in the order in which they are joined.
struct RowParts {
  RowState parts[kLevels];
  std::int32_t count = 0;

  [[nodiscard]] float top() const {
    float top = kNoKey;
    for (std::int32_t i = 0; i < count; ++i) top = std::max(top, parts[i].max);
    return top;
  }
};

/// @param o  [padded(head_dim)], where the sum is made.
RowState joined(const Tier& tier, const RowParts& row, std::int32_t head_dim, float* o) {
  RowState sum{o, row.top(), 0.0F};
  std::fill_n(o, head_dim, 0.0F);
  for (std::int32_t i = 0; i < row.count; ++i) {
    const RowState& part = row.parts[i];
    if (part.max == kNoKey) continue;
    const float weight = std::exp2(part.max - sum.max);
    sum.sum += part.sum * weight;
    tier.add_row(o, part.o, DType::kFloat32, head_dim, weight);
  }
  return sum;
}

}  // namespace

void Join::take(const ItemTask& task) const {
  const std::int32_t group = task.shape.group_size;
  Place place;
  for (place.kv_head = task.item.kv_head_begin; place.kv_head < task.item.kv_head_end;
       ++place.kv_head) {
    for (std::int32_t query = 0; query < task.num_queries(); ++query, place.own_row += group) {
      place.listed = task.queries.first + query;
      take(task, query, place);
    }
  }
}

void Join::take(const ItemTask& task, std::int32_t query, const Place& place) const {
  const std::atomic_ref<std::uint32_t> arrivals(
      schedule_.listed_arrivals[place.listed * task.shape.num_kv_heads + place.kv_head]);
  const auto others =
      static_cast<std::uint32_t>(std::popcount(schedule_.listed[place.listed].levels)) - 1;
  if (arrivals.load(std::memory_order_acquire) != others) {
    keep(task, task.queries.state + query, place);
    if (arrivals.fetch_add(1, std::memory_order_acq_rel) != others) return;
  }
  write(task, task.token_of(query), place);
  arrivals.store(0, std::memory_order_relaxed);
}

void Join::keep(const ItemTask& task, std::int32_t state, const Place& place) const {
  const core::ProblemShape& shape = task.shape;
  const std::ptrdiff_t stride = padded(shape.head_dim_vo);
  const std::ptrdiff_t to =
      static_cast<std::ptrdiff_t>(state) * shape.num_qo_heads + place.kv_head * shape.group_size;
  std::copy_n(task.states.o + place.own_row * stride, shape.group_size * stride,
              states_.o + to * stride);
  std::copy_n(task.states.max + place.own_row, shape.group_size, states_.max + to);
  std::copy_n(task.states.sum + place.own_row, shape.group_size, states_.sum + to);
}

void Join::write(const ItemTask& task, std::int64_t token, const Place& place) const {
  const core::ProblemShape& shape = task.shape;
  const std::ptrdiff_t stride = padded(shape.head_dim_vo);
  const std::int32_t first_head = place.kv_head * shape.group_size;
  const std::uint32_t levels = schedule_.listed[place.listed].levels;
  alignas(kBufferAlignment) float o[kMaxHeadDim];
  for (std::int32_t member = 0; member < shape.group_size; ++member) {
    RowParts row;
    for (std::int32_t level = 0; level < kLevels; ++level) {
      if ((levels >> static_cast<unsigned>(level) & 1U) == 0) continue;
      const bool is_own = level == task.queries.level;
      const RowStates& states = is_own ? task.states : states_;
      const std::ptrdiff_t at =
          is_own ? place.own_row + member
                 : static_cast<std::ptrdiff_t>(state_of(level, place.listed)) * shape.num_qo_heads +
                       first_head + member;
      row.parts[row.count++] = {states.o + at * stride, states.max[at], states.sum[at]};
    }
    write_row(tier_, task, token, first_head + member, joined(tier_, row, shape.head_dim_vo, o));
  }
}

std::int32_t Join::state_of(std::int32_t level, std::int32_t listed) const {
  const std::uint32_t above = schedule_.header->levels & ((1U << static_cast<unsigned>(level)) - 1);
  return std::popcount(above) * schedule_.header->num_listed + listed;
}

}  // namespace quire::cpu
