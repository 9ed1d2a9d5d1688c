// SPDX-License-Identifier: Apache-2.0
#include "cuda/walk_kernel.hpp"

namespace quire::testing {
namespace {

constexpr int kThreads = 128;

struct Arguments {
  schedule::Policy policy;
  core::ProblemShape shape;
  core::BatchArrays batch;
  schedule::ScheduleView schedule;
  int line;
  Walk walk;
};

__global__ void walk_kernel(const __grid_constant__ Arguments arguments) {
  const auto range = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (range >= arguments.policy.lines[arguments.line].num_ranges) return;
  const Walk& walk = arguments.walk;
  const std::int32_t room = walk.item_begin[range + 1] - walk.item_begin[range];
  schedule::WorkCursor cursor(arguments.policy, arguments.shape, arguments.batch,
                              arguments.schedule, arguments.line, range);
  schedule::WorkItem item;
  std::int32_t found = 0;
  for (; cursor.next(item); ++found) {
    if (found < room) walk.items[walk.item_begin[range] + found] = item;
  }
  walk.num_items[range] = found;
}

}  // namespace

cudaError_t launch_walk(const schedule::Policy& policy, const core::ProblemShape& shape,
                        const core::BatchArrays& batch, schedule::ScheduleView schedule, int line,
                        const Walk& walk) noexcept {
  const int blocks = (policy.lines[line].num_ranges + kThreads - 1) / kThreads;
  walk_kernel<<<blocks, kThreads>>>(Arguments{policy, shape, batch, schedule, line, walk});
  return cudaGetLastError();
}

}  // namespace quire::testing
