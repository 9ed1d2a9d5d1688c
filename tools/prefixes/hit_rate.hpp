// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "trace/request.hpp"

namespace quire::tool {

/// How much of the prompts of a trace a `PrefixCache` had when they came, one after the other.
struct HitRate {
  std::int32_t capacity = 0;  ///< Pages that may be cached; 0 is all.
  std::int64_t pages = 0;     ///< Of all prompts, partial last ones included.
  std::int64_t hit_pages = 0;
  std::int64_t tokens = 0;
  std::int64_t hit_tokens = 0;
  std::int64_t evicted = 0;  ///< Pages.

  [[nodiscard]] double page_percent() const;
  [[nodiscard]] double token_percent() const;
};

/// Looks each prompt up and publishes it, in the order given. Where the pool is too small the least
/// recently used pages are evicted, of one prompt the tail before the head.
/// @param requests   With `blocks`, from which the tokens of the prompts are made.
/// @param capacity   Pages of the pool; 0 is as many as all prompts have.
/// @throws CommandError (usage) if a prompt does not name all its `blocks` or does not fit into the pool; Error.
HitRate hit_rate(std::span<const TraceRequest> requests, std::int32_t page_size,
                 std::int32_t capacity);

}  // namespace quire::tool
