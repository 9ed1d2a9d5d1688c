// SPDX-License-Identifier: Apache-2.0
/// @file
/// Runs of the course on each kind of device.
#pragma once

#include <vector>

#include "bench/course.hpp"
#include "bench/options.hpp"
#include "common/exit_code.hpp"

namespace quire::tool {

/// Measures the workloads and prints them. @return Whether the rows that were checked are right.
ExitCode bench_on_cpu(const BenchOptions& options, const Course& course,
                      const std::vector<Workload>& workloads);
ExitCode bench_on_gpu(const BenchOptions& options, const Course& course,
                      const std::vector<Workload>& workloads);

}  // namespace quire::tool
