// SPDX-License-Identifier: Apache-2.0
/// @file
/// Sentences about groups of requests that share prefixes.
#pragma once

#include <string>

#include "quire/attention.hpp"

namespace quire::core {

/// @return What is wrong with the groups, as `schedule::RequestChecks::prefixes` found it; empty if the
///   record is of something else.
std::string describe_group_offence(const CheckRecord& found);

}  // namespace quire::core
