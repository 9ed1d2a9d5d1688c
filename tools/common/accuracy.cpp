// SPDX-License-Identifier: Apache-2.0
#include "common/accuracy.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/numbers.hpp"

namespace quire::tool {
namespace {

/// Bounds of an arithmetic.
struct Bounds {
  double element;  ///< Of max|V|.
  double row;      ///< Of the row's length (Euclidean).
  double lse;      ///< Of 1 + |LSE|.
};
constexpr Bounds kFloat32Bounds = {2e-6, 1e-4, 1e-5};
constexpr Bounds kNarrowBounds = {1e-3, 6e-3, 5e-3};
/// Codes of K may be multiplied as they are, with sums that are cut off.
constexpr Bounds kCodeBounds = {2e-3, 6e-3, 5e-3};

const Bounds& bounds_of(const AttentionSpec& spec) {
  if (spec.kv_dtype == DType::kFloat8E4M3 || spec.kv_dtype == DType::kFloat8E5M2) {
    return kCodeBounds;
  }
  const bool wide = spec.q_dtype == DType::kFloat32 && spec.kv_dtype == DType::kFloat32;
  return wide ? kFloat32Bounds : kNarrowBounds;
}

/// Largest relative error of rounding to nearest.
double half_unit(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

}  // namespace

void SpotCheckResult::take(const RowComparison& compared, const std::string& where) {
  ++rows;
  max_error = std::max(max_error, compared.max_error);
  if (compared.complaint.empty()) return;
  if (++failed == 1) first_failure = where + ": " + compared.complaint;
}

RowComparison compare_row(const AttentionSpec& spec, std::span<const double> expected,
                          const std::byte* actual, double largest_v) {
  // The length of a shorter row says little: its elements may all be small by chance.
  constexpr std::size_t kFewestForLength = 64;
  const Bounds& bounds = bounds_of(spec);
  const std::size_t element_bytes = size_of(spec.o_dtype);
  RowComparison row;
  const double allowed = bounds.element * largest_v;
  double error_squares = 0;
  double squares = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = load_float(spec.o_dtype, actual + i * element_bytes);
    const double difference = std::fabs(value - expected[i]);
    const double error =
        std::isfinite(difference) ? difference : std::numeric_limits<double>::infinity();
    const double rounding = half_unit(spec.o_dtype) * std::fabs(expected[i]);
    const double before_rounding = std::max(0.0, error - rounding);
    row.max_error = std::max(row.max_error, before_rounding);
    if (before_rounding > allowed && row.complaint.empty()) {
      row.complaint = fmt::format("element {}: expected {:.6g}, got {:.6g}, allowed error {:.1e}",
                                  i, expected[i], value, allowed + rounding);
    }
    error_squares += error * error;
    squares += expected[i] * expected[i];
  }
  const double error_length = std::sqrt(error_squares);
  const double allowed_length = bounds.row * std::sqrt(squares);
  if (row.complaint.empty() && expected.size() >= kFewestForLength &&
      error_length > allowed_length) {
    row.complaint = fmt::format("row: expected an error of length ≤ {:.1e}, got {:.1e}",
                                allowed_length, error_length);
  }
  return row;
}

bool lse_matches(const AttentionSpec& spec, double expected, double actual) {
  if (std::isinf(expected)) return expected == actual;
  return std::fabs(actual - expected) <= bounds_of(spec).lse * (1 + std::fabs(expected));
}

}  // namespace quire::tool
