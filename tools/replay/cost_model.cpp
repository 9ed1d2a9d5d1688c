// SPDX-License-Identifier: Apache-2.0
#include "replay/cost_model.hpp"

#include <algorithm>

#include "quire/tensor.hpp"

namespace quire::tool {
namespace {

/// Keys that at least one of the new tokens sees.
std::int64_t visible_keys(std::int64_t position, std::int64_t n, std::int64_t window) {
  const std::int64_t before = window < 0 ? position : std::min(position, window);
  return before + n;
}

}  // namespace

std::int64_t visible_pairs(std::int64_t position, std::int64_t n, std::int64_t window) {
  const auto up_to = [](std::int64_t k) { return k * (k + 1) / 2; };
  const std::int64_t last = position + n;
  if (window < 0) return up_to(last) - up_to(position);
  // Queries before `full` see all keys up to their own, the others window + 1.
  const std::int64_t full = std::clamp(window, position, last);
  return up_to(full) - up_to(position) + (last - full) * (window + 1);
}

StepCost step_cost(const CostModel& model, const Shape& shape, std::int32_t layers,
                   const StepPlan& plan) {
  constexpr double kBillion = 1e9;
  constexpr double kWeightBytes = 2;
  constexpr double kFlopPerWeight = 2;
  constexpr double kFlopPerPairAndElement = 4;  // scores and values, multiply and add
  constexpr double kKeyAndValue = 2;
  const double position_bytes = kKeyAndValue * layers * shape.heads.kv * shape.head_dim *
                                static_cast<double>(size_of(shape.cache_dtype()));
  const double weights = model.params_billion * kBillion;
  std::int64_t pairs = 0;
  std::int64_t keys = 0;
  for (const StepItem& item : plan.items) {
    pairs += visible_pairs(item.position, item.num_new_tokens, shape.window);
    keys += visible_keys(item.position, item.num_new_tokens, shape.window);
  }
  StepCost cost;
  cost.bytes =
      weights * kWeightBytes + position_bytes * static_cast<double>(keys + plan.num_tokens);
  cost.flop = kFlopPerWeight * weights * plan.num_tokens + kFlopPerPairAndElement * layers *
                                                               shape.heads.qo * shape.head_dim *
                                                               static_cast<double>(pairs);
  return cost;
}

double step_seconds(const CostModel& model, const Shape& shape, std::int32_t layers,
                    const StepPlan& plan) {
  constexpr double kMicrosecond = 1e-6;
  constexpr double kGiga = 1e9;
  constexpr double kTera = 1e12;
  const StepCost cost = step_cost(model, shape, layers, plan);
  return model.overhead_us * kMicrosecond + cost.bytes / (model.bandwidth_gbps * kGiga) +
         cost.flop / (model.peak_tflops * kTera);
}

}  // namespace quire::tool
