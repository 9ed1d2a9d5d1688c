// SPDX-License-Identifier: Apache-2.0
/// @file
/// Checked mode: kernels that look for the first offence and write it to the caller's record,
/// before the kernels that would trip over it. A record that holds an offence already is left
/// alone.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.hpp"
#include "quire/attention.hpp"

namespace quire::cuda {

/// Lengths and offsets, and what is said of shared prefixes, before `schedule()`.
cudaError_t launch_check_step(const core::ProblemShape& shape, const BatchLimits& limits,
                              const core::BatchArrays& batch, const core::PrefixGroups& groups,
                              CheckRecord* record, cudaStream_t stream) noexcept;

/// Lengths, rows and page ids, before `run()`.
cudaError_t launch_check_layer(const core::ProblemShape& shape, const BatchLimits& limits,
                               const core::BatchArrays& batch, const core::LayerTensors& tensors,
                               CheckRecord* record, cudaStream_t stream) noexcept;

/// Slots, given or derived, before `append()`.
cudaError_t launch_check_append(const core::BatchArrays& batch, const core::AppendArrays& arrays,
                                CheckRecord* record, cudaStream_t stream) noexcept;

}  // namespace quire::cuda
