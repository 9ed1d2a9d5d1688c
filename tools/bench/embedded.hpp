// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace quire::tool {

extern const std::string_view kCourse;       ///< bench/course.json
extern const std::string_view kBuildCommit;  ///< `git describe` at configuration; may be empty.

}  // namespace quire::tool
