// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/shape.hpp"
#include "quire/batcher.hpp"

namespace quire::tool {

/// What a device does in a second, and what a model asks of it: enough to give a step a plausible
/// length without computing it. Nothing overlaps in this model:
///
///     seconds = overhead + bytes / bandwidth + FLOP / peak + bytes to and from the host / link
///
/// with bytes = weights (2 bytes each, once a step) + K and V of the keys that each request's new
/// tokens see (once a request) + K and V that are written, and FLOP = 2 a weight and new token +
/// 4 · head_dim a pair of query and visible key, for each query head and layer.
struct CostModel {
  double overhead_us = 200;      ///< Of a step whatever is in it.
  double bandwidth_gbps = 4536;  ///< GB/s; the default was measured on an H200.
  double peak_tflops = 767;      ///< TFLOP/s; likewise (docs/benchmarks/2026-11-26-h200).
  double params_billion = 8;     ///< Weights, in 1e9.
  double link_gbps = 25;         ///< GB/s between device and host: half of what PCIe 5 promises.
};

/// What a step moves and computes.
struct StepCost {
  double bytes = 0;
  double flop = 0;
  double link_bytes = 0;  ///< Whole pages that go to the host or come from there.
};

/// @param layers  Attention layers, each with the heads of `shape`.
StepCost step_cost(const CostModel& model, const Shape& shape, std::int32_t layers,
                   const StepPlan& plan);
/// @return Simulated seconds of a step.
double step_seconds(const CostModel& model, const Shape& shape, std::int32_t layers,
                    const StepPlan& plan);

/// @return What the same model says of moving tokens against computing them, attention left out.
TierCosts tier_costs(const CostModel& model, const Shape& shape, std::int32_t layers);

/// @param window  Keys to the left that a query sees; −1 is all.
/// @return Pairs of a query and a key that it sees: queries at `position`, … of `n` new tokens.
std::int64_t visible_pairs(std::int64_t position, std::int64_t n, std::int64_t window);

}  // namespace quire::tool
