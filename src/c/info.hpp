// SPDX-License-Identifier: Apache-2.0
/// @file
/// Names that outlive the call that returned them.
#pragma once

#include <string_view>

namespace quire::c {

/// @return The kernel's name as a string that lives forever; null if there is no such kernel.
const char* kernel_name(std::string_view name);

}  // namespace quire::c
