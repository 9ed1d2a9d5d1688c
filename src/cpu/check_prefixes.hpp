// SPDX-License-Identifier: Apache-2.0
/// @file
/// Shared prefixes of a schedule against the batch that it is run with.
#pragma once

#include "core/problem.hpp"
#include "schedule/schedule.hpp"

namespace quire::cpu {

/// @param schedule  Made for a batch of the same lengths.
/// @return False if some request does not begin with the pages of a prefix that it is said to share,
///   e.g. since tables were changed. O(pages of prefixes, for each request that shares them).
bool shares_prefixes(const core::ProblemShape& shape, const core::BatchArrays& batch,
                     const schedule::ScheduleView& schedule);

}  // namespace quire::cpu
