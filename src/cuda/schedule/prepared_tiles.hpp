// SPDX-License-Identifier: Apache-2.0
/// @file
/// A line's policy made ready for a problem: what `TilePolicy` divides for is known or a
/// multiplication.
#pragma once

#include <cstdint>

#include "cuda/common/fast_divisor.hpp"
#include "schedule/schedule.hpp"

namespace quire::cuda {

/// Stands for `schedule::TilePolicy` where functions of the schedule take `Tiles`.
class PreparedTiles : public schedule::TilePolicy {
 public:
  PreparedTiles() = default;
  PreparedTiles(const schedule::TilePolicy& policy, const core::ProblemShape& shape)
      : TilePolicy(policy),
        by_keys_(policy.keys_per_tile),
        by_tokens_(policy.tokens_per_tile(shape)),
        by_ranges_(policy.num_ranges > 0 ? policy.num_ranges : 1),
        over_queries_(policy.over_rows / shape.group_size),
        up_to_queries_(policy.up_to_rows / shape.group_size),
        all_heads_queries_(policy.all_heads_rows / shape.num_qo_heads),
        tokens_(policy.tokens_per_tile(shape)),
        head_turns_(policy.head_turns(shape)) {}

  [[nodiscard]] QUIRE_HOST_DEVICE bool is_over(std::int32_t queries,
                                               const core::ProblemShape&) const {
    return queries > over_queries_;
  }
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_beyond(std::int32_t queries,
                                                 const core::ProblemShape&) const {
    return queries > up_to_queries_;
  }
  [[nodiscard]] QUIRE_HOST_DEVICE bool takes_all_heads(std::int32_t queries,
                                                       const core::ProblemShape&) const {
    return queries <= all_heads_queries_;
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t key_tiles(std::int32_t keys) const {
    return by_keys_.quotient(keys);
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t tokens_per_tile(const core::ProblemShape&) const {
    return tokens_;
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t query_tiles(std::int32_t queries,
                                                           const core::ProblemShape&) const {
    return by_tokens_.quotient(queries);
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int64_t range_length(std::int64_t total_cost,
                                                            std::int32_t ranges) const {
    if (ranges == num_ranges && total_cost >> 31 == 0) {
      return by_ranges_.quotient(static_cast<std::int32_t>(total_cost));
    }
    return schedule::detail::quotient(total_cost, ranges);
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t head_turns(const core::ProblemShape&) const {
    return head_turns_;
  }

 private:
  FastDivisor by_keys_;
  FastDivisor by_tokens_;
  FastDivisor by_ranges_;
  std::int32_t over_queries_ = 0;
  std::int32_t up_to_queries_ = INT32_MAX;
  std::int32_t all_heads_queries_ = 0;
  std::int32_t tokens_ = 1;
  std::int32_t head_turns_ = 1;
};

}  // namespace quire::cuda
