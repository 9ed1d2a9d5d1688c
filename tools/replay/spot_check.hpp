// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/accuracy.hpp"
#include "common/noise.hpp"
#include "common/random.hpp"
#include "quire/attention.hpp"
#include "quire/batcher.hpp"

namespace quire::tool {

/// Compares rows of a step's output with the oracle. The oracle's keys and values are made anew
/// from the noise and never saw a page, so that a token in the wrong slot or page shows.
class SpotChecker {
 public:
  /// @param spec   Of the layer, defaults filled in.
  /// @param layer  Whose output is compared.
  /// @param kv_noise  Of new keys and values, before they are written to the cache.
  /// @param scales    That are given to `append`, of both K and V; empty if there are none.
  SpotChecker(const AttentionSpec& spec, std::int32_t layer, const Noise& q_noise,
              const Noise& kv_noise, std::span<const float> scales, std::uint64_t seed);

  /// Checks a few rows and heads of a step, chosen at random.
  /// @param output  o_dtype [plan.num_tokens, num_qo_heads, head_dim].
  void check(const StepPlan& plan, const std::byte* output);
  [[nodiscard]] const SpotCheckResult& result() const { return result_; }

 private:
  void check_row(const StepItem& item, std::int32_t query, const std::byte* row);
  void recompute(std::uint64_t request, std::int64_t num_keys);
  /// The keys and values as the cache holds them.
  void store(std::int64_t num_keys, AttentionTensors& tensors);

  AttentionSpec spec_;
  std::int32_t layer_;
  const Noise& q_noise_;
  const Noise& kv_noise_;
  Random random_;
  std::vector<float> scales_;
  std::vector<std::byte> q_, k_, v_;  // k and v before they are written
  std::vector<std::byte> k_cache_, v_cache_;
  std::vector<float> k_token_scale_, v_token_scale_;
  std::vector<std::int64_t> slots_;
  SpotCheckResult result_;
};

}  // namespace quire::tool
