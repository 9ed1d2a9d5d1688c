// SPDX-License-Identifier: Apache-2.0
/// @file
/// The steps of the ladder, one file each. Every function puts its kernels on a stream.
#pragma once

#include "plan.hpp"
#include "problem.hpp"

namespace ladder {

/// num_qo_heads = num_kv_heads = 1.
void launch_01_one_head(const Problem<float>& problem, cudaStream_t stream);
/// From here on num_qo_heads = kGroup · num_kv_heads.
void launch_01_heads(const Problem<float>& problem, cudaStream_t stream);
void launch_02(const Problem<float>& problem, cudaStream_t stream);
/// @param plan  `plan_requests`; its `o` is the problem's, as there is one part.
void launch_03(const Problem<__nv_bfloat16>& problem, const PlanView& plan, cudaStream_t stream);
/// @param plan  `plan_shared_prefixes`.
void launch_04(const Problem<__nv_bfloat16>& problem, const PlanView& plan, cudaStream_t stream);

}  // namespace ladder
