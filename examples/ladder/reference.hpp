// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the steps are checked against: attention in double precision on the CPU, one key after the
/// other, nothing clever.
#pragma once

#include <vector>

#include "workloads.hpp"

namespace ladder {

/// Of every row (query, head).
struct Reference {
  std::vector<double> o;  ///< [num_rows, d]
  /// [num_rows] √(Σ p²) / Σ p, from 1 for a single key down to 1/√keys for equal weights: how far
  /// independent errors of the weights average out.
  std::vector<double> concentration;
};

/// Uses all cores. @param workload  Any group size.
Reference compute_reference(const Workload& workload);

/// How far a step's o may be from the reference.
///
/// In fp32: 128 roundings of 2⁻²⁴ of the largest value (d products a score, then the sums over the
/// keys, whose roundings mostly cancel). Steps on tensor cores also round each weight to bf16, to
/// 2⁻⁹ of itself: that moves o by 2⁻⁹ of the largest value at most, and by three times the
/// concentration of that in practice (nine standard deviations, were the roundings random).
double error_bound(bool weights_are_bf16, double concentration);

}  // namespace ladder
