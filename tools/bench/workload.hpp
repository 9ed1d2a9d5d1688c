// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bench/arrays.hpp"
#include "bench/ceilings.hpp"
#include "bench/course.hpp"
#include "bench/measurement.hpp"
#include "quire/executor.hpp"

namespace quire::tool {

/// Measures a workload on the CPU. Before each repetition the caches are emptied by a stream.
Measurement measure(const Workload& workload, const MeasureOptions& options, Executor& executor,
                    Stream& stream);

}  // namespace quire::tool
