// SPDX-License-Identifier: Apache-2.0
// Step 04: shared prefixes are read once.
//
//   64 requests that begin with the same page ids have the same first keys. 04_find_prefixes.cpp
//   finds them, from the page tables alone, and cuts the work into other segments than step 03:
//
//     prefix, cut into chunks      rows of 16 requests at once     ->  part 1, 2, … of each row
//     what a request has alone     its own 4 rows                  ->  part 0
//
// The kernel is that of step 03. Only the work list is another, and a row's result now comes in
// parts, which are joined here.
#include <cuda_runtime.h>

#include <cmath>

#include "steps.hpp"

namespace ladder {
namespace {

/// A block joins the parts of one row: o = Σ w_p · o_p / Σ w_p with w_p = sum_p · exp2(max_p − max).
/// A part's o is already divided by its own sum, so the sum is part of its weight. The order of the
/// parts is fixed: the same batch gives the same bits in every run.
__global__ void __launch_bounds__(kHeadDim)
    merge_parts(const Problem<__nv_bfloat16> problem, const PlanView plan) {
  const int request = static_cast<int>(blockIdx.y);
  const int qo_head = static_cast<int>(blockIdx.x);
  const int component = static_cast<int>(threadIdx.x);
  const std::int64_t row =
      std::int64_t{problem.requests[request].q_start} * problem.num_qo_heads + qo_head;
  const int num_parts = plan.num_parts[request];
  const std::int64_t stride = problem.num_rows();  // from a row's part to its next

  float max = -INFINITY;
  for (int part = 0; part < num_parts; ++part) {
    max = fmaxf(max, plan.states[part * stride + row].max);
  }
  float sum = 0.0F;
  float total = 0.0F;
  for (int part = 0; part < num_parts; ++part) {
    const SoftmaxState state = plan.states[part * stride + row];
    const float weight = state.sum * part_weight(state.max, max);
    sum += weight;
    total += weight * plan.o[(part * stride + row) * kHeadDim + component];
  }
  problem.o[row * kHeadDim + component] = sum > 0.0F ? total / sum : 0.0F;
}

}  // namespace

void launch_04(const Problem<__nv_bfloat16>& problem, const PlanView& plan, cudaStream_t stream) {
  launch_03(problem, plan, stream);
  const dim3 grid(static_cast<unsigned>(problem.num_qo_heads),
                  static_cast<unsigned>(problem.batch));
  merge_parts<<<grid, kHeadDim, 0, stream>>>(problem, plan);
}

// What is the bottleneck? Before the kernels: the work list, made on the host, which has to see
// page tables that live on the device. Around them: a second launch, and parts that go through
// memory. And in them: blocks that all get the same machine for long and short segments. A library
// makes the list on the device, cuts it into equal work and merges inside the launch. See step 05.

}  // namespace ladder
