// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bench/arrays.hpp"
#include "bench/ceilings.hpp"
#include "bench/course.hpp"
#include "bench/measurement.hpp"
#include "device/place.hpp"

namespace quire::tool {

/// Measures a workload on the CPU. Before each repetition the caches are emptied by a stream.
/// @param memory  Of the batch; its executor computes.
Measurement measure(const Workload& workload, const MeasureOptions& options,
                    const HostMemory& memory, Stream& stream);

}  // namespace quire::tool
