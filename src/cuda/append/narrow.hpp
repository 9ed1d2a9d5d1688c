// SPDX-License-Identifier: Apache-2.0
/// @file
/// The kernels that quantise new keys and values on their way into a cache of 8 bits.
#pragma once

#include "cuda/append/rows.cuh"

namespace quire::cuda {

/// @return The kernel for these rows: with the scales that are given, or one that computes a scale
/// for each token and head and writes it.
append_rows::Kernel narrow_append_kernel(const core::AppendArrays& arrays, bool vectors);

}  // namespace quire::cuda
