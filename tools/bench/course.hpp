// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/measurement.hpp"
#include "common/page_layout.hpp"
#include "common/shape.hpp"
#include "quire/attention.hpp"

namespace quire::tool {

enum class Operation { kAttention, kAppend, kSchedule };

/// Another library's figure.
struct Peer {
  std::string name;
  double us = 0;
};

/// One batch of the course.
struct Workload {
  std::string name;
  Operation operation = Operation::kAttention;
  bool first_course = false;  ///< Run when nothing is asked for in particular.
  Heads heads;
  std::int32_t head_dim = 0;
  std::int32_t page_size = 0;
  DType q_dtype = DType::kNone;   ///< Of queries; kNone: as outputs.
  DType kv_dtype = DType::kNone;  ///< Of the cache; kNone: as queries and outputs.
  Mask mask = Mask::kCausal;
  std::int32_t window_left = -1;
  std::vector<std::int32_t> qo_len;
  std::vector<std::int32_t> kv_len;
  std::vector<SharedPrefix> shared;  ///< From the longest group to the most special one.
  std::vector<Peer> peers;           ///< As published, on the course's machine.

  /// @return Pairs of a query and a key that it sees, of one head.
  [[nodiscard]] std::int64_t visible_pairs() const;
  /// @return Operations: two for each multiply-add of both products.
  [[nodiscard]] double flop() const;
  /// @return Bytes that must move at least once: q, o, and each distinct key and value that a query
  ///   sees; of an append, what is read and what is written.
  [[nodiscard]] double bytes(DType dtype, DType dtype_of_cache) const;
  /// @return The fastest peer that does the same work: with pages of the same size.
  [[nodiscard]] std::optional<Peer> best_peer() const;
};

/// Trees of new tokens are binary: a node sees earlier keys, itself, its parent, its parent's, ….
/// @return Below 0 for the root.
constexpr std::int32_t tree_parent(std::int32_t node) { return node == 0 ? -1 : (node - 1) / 2; }

/// The batches that kernels are measured with.
struct Course {
  std::int32_t cpu_scale = 1;  ///< What a CPU divides lengths by.
  Ceilings published;          ///< Of the machine that the peers ran on, as `quire bench` has them.
  std::vector<Workload> workloads;
};

/// @throws CommandError (usage) with what was expected where.
Course parse_course(std::string_view json);

/// @return The workload with lengths divided by `factor`: those of at least `kShortest` tokens, so
///   that a decode stays a decode. Shared prefixes stay whole pages.
Workload scaled(Workload workload, std::int32_t factor);
inline constexpr std::int32_t kShortest = 64;

}  // namespace quire::tool
