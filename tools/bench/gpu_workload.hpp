// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bench/arrays.hpp"
#include "bench/cold_timer.hpp"
#include "bench/course.hpp"
#include "bench/measurement.hpp"

namespace quire::tool {

/// @return The limits of an engine that captures its steps once, or a larger batch's own: 1,024
///   requests of 131,072 keys and 32,768 query tokens.
BatchLimits engine_limits(const BatchLimits& batch);

/// Measures a workload on a GPU: `run()`, `schedule()` above an empty kernel, and both in one
/// graph; an append or a schedule by itself.
Measurement measure_on_gpu(const Workload& workload, const MeasureOptions& options,
                           ColdTimer& timer);

}  // namespace quire::tool
