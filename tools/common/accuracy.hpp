// SPDX-License-Identifier: Apache-2.0
/// @file
/// When a result is right: bounds of the error against the oracle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "quire/attention.hpp"

namespace quire::tool {

/// How an output row of one head compares with the oracle's.
struct RowComparison {
  /// Largest absolute error before the output was rounded, as far as it can be told: the difference
  /// beyond half a unit of the output's rounding. Infinite if a value is not finite.
  double max_error = 0;
  std::string complaint;  ///< Why the row is wrong; empty if it is right.
};

/// What holding some rows against the oracle found.
struct SpotCheckResult {
  std::int64_t rows = 0;  ///< Rows of one head that were compared.
  std::int64_t failed = 0;
  double max_error = 0;
  std::string first_failure;

  /// Counts a row. @param where  Which one it is.
  void take(const RowComparison& compared, const std::string& where);
};

/// Compares a row with the oracle's. Before rounding of the output, each element may differ by
/// 2e-6 · max|V| in float32, else by 1e-3 · max|V|; the row as a whole may differ by a small part
/// of its length, so that a single wrong key shows in a long context too.
/// @param spec        Defaults filled in.
/// @param actual      o_dtype [head_dim_vo].
/// @param largest_v   Bound of |V|.
RowComparison compare_row(const AttentionSpec& spec, std::span<const double> expected,
                          const std::byte* actual, double largest_v);

/// @return Whether a row's LSE is right.
bool lse_matches(const AttentionSpec& spec, double expected, double actual);

}  // namespace quire::tool
