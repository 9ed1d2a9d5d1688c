// SPDX-License-Identifier: Apache-2.0
/// @file
/// From a caller's spec to the kernel that serves it.
#pragma once

#include "core/backend.hpp"
#include "quire/attention.hpp"

namespace quire::core {

/// @return The spec with its defaults filled in. @throws Error if it contradicts itself.
AttentionSpec resolve_spec(const AttentionSpec& spec);

/// Chooses the kernel. @throws Error as `Attention`'s constructor.
AttentionConfig resolve(Device device, const AttentionSpec& spec, const BatchLimits& limits,
                        const AttentionOptions& options);

}  // namespace quire::core
