// SPDX-License-Identifier: Apache-2.0
#include "replay/cost_model.hpp"

#include <algorithm>

#include "quire/tensor.hpp"

namespace quire::tool {
namespace {

constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;
constexpr double kFlopPerWeight = 2;

/// K and V of a token in all layers.
double position_bytes(const Shape& shape, std::int32_t layers) {
  constexpr double kKeyAndValue = 2;
  return kKeyAndValue * layers * shape.heads.kv * shape.head_dim *
         static_cast<double>(size_of(shape.cache_dtype()));
}

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
  constexpr double kWeightBytes = 2;
  constexpr double kFlopPerPairAndElement = 4;  // scores and values, multiply and add
  const double token_bytes = position_bytes(shape, layers);
  const double weights = model.params_billion * kGiga;
  std::int64_t pairs = 0;
  std::int64_t keys = 0;
  for (const StepItem& item : plan.items) {
    pairs += visible_pairs(item.position, item.num_new_tokens, shape.window);
    keys += visible_keys(item.position, item.num_new_tokens, shape.window);
  }
  StepCost cost;
  cost.bytes = weights * kWeightBytes + token_bytes * static_cast<double>(keys + plan.num_tokens);
  cost.flop = kFlopPerWeight * weights * plan.num_tokens + kFlopPerPairAndElement * layers *
                                                               shape.heads.qo * shape.head_dim *
                                                               static_cast<double>(pairs);
  const std::size_t moved = plan.transfers.offloads.size() + plan.transfers.fetches.size();
  cost.link_bytes = token_bytes * shape.page_size * static_cast<double>(moved);
  return cost;
}

double step_seconds(const CostModel& model, const Shape& shape, std::int32_t layers,
                    const StepPlan& plan) {
  constexpr double kMicrosecond = 1e-6;
  const StepCost cost = step_cost(model, shape, layers, plan);
  return model.overhead_us * kMicrosecond + cost.bytes / (model.bandwidth_gbps * kGiga) +
         cost.flop / (model.peak_tflops * kTera) + cost.link_bytes / (model.link_gbps * kGiga);
}

TierCosts tier_costs(const CostModel& model, const Shape& shape, std::int32_t layers) {
  TierCosts costs;
  costs.bytes_per_token = position_bytes(shape, layers);
  costs.link_bytes_per_second = model.link_gbps * kGiga;
  costs.prefill_tokens_per_second =
      model.peak_tflops * kTera / (kFlopPerWeight * model.params_billion * kGiga);
  return costs;
}

}  // namespace quire::tool
