// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "quire/attention.hpp"
#include "quire/executor.hpp"

namespace quire::tool {

/// Numbers of query and key/value heads.
struct Heads {
  std::int32_t qo = 32;
  std::int32_t kv = 8;
  friend bool operator==(const Heads&, const Heads&) = default;
};

/// The shape of a model's attention, as far as several subcommands ask for it.
struct Shape {
  Heads heads;
  std::int32_t head_dim = 128;
  DType dtype = DType::kBFloat16;
  DType q_dtype = DType::kNone;       ///< kNone takes dtype.
  DType kv_dtype = DType::kNone;      ///< kNone takes dtype.
  std::optional<KvScale> kv_scale{};  ///< Without: per tensor for int8, none for floats.
  std::int32_t page_size = 16;
  std::int32_t window = -1;
  double soft_cap = 0;

  [[nodiscard]] DType query_dtype() const { return q_dtype == DType::kNone ? dtype : q_dtype; }
  [[nodiscard]] DType cache_dtype() const { return kv_dtype == DType::kNone ? dtype : kv_dtype; }
  /// @return The spec, causal, with the scale that the cache's noise needs.
  [[nodiscard]] AttentionSpec spec() const;
};

/// @return A pool of that many threads, or null for 0: the default executor.
std::unique_ptr<Executor> make_threads(std::int32_t num_threads);

}  // namespace quire::tool
