// SPDX-License-Identifier: Apache-2.0
/// @file
/// From a row of the kernel table to compiled kernels.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/backend.hpp"
#include "cuda/attend/params.hpp"

namespace quire::cuda {

inline constexpr std::string_view kSimtName = "cuda.simt";
inline constexpr std::string_view kNarrowSimtName = "cuda.simt.narrow";

/// Rows (queries × heads of a group) of a request up to which its units are small; those of more rows
/// are large, where there is a Hopper kernel. Measured: notebook of prefill.
inline constexpr std::int32_t kLargeRequestRows = 32;
/// The same where results must not depend on the batch: keys of requests with small units are divided.
inline constexpr std::int32_t kLargeRequestRowsIfInvariant = 64;

/// The kernels that serve a spec, the fastest first; the last one runs on every device.
/// @throws Error `kInternal` if the table and the compiled kernels disagree.
std::vector<AttendKernel> kernels_for(const core::AttentionConfig& config);

}  // namespace quire::cuda
