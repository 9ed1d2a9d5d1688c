// SPDX-License-Identifier: Apache-2.0
/// @file
/// Whether what was measured was also right: a few rows of the output, so that a kernel that is
/// fast and wrong shows.
#pragma once

#include <cstdint>

#include "bench/arrays.hpp"
#include "common/accuracy.hpp"

namespace quire::tool {

/// Holds rows of the longest request and of some others against the oracle, whose keys and values
/// are told by the noise and never saw a page.
/// @param spec  As the attention has it, defaults filled in.
SpotCheckResult check_attention(const Arrays& arrays, const AttentionSpec& spec,
                                std::uint64_t seed);

/// Looks for new keys and values in their pages. Nothing is looked for in a cache of another dtype.
SpotCheckResult check_append(const Arrays& arrays, std::uint64_t seed);

}  // namespace quire::tool
