// SPDX-License-Identifier: Apache-2.0
/// @file
/// A failed `Status` from a format string, also when memory has run out.
#pragma once

#include <fmt/format.h>

#include <exception>
#include <utility>

#include "quire/error.hpp"

namespace quire::cache {

template <typename... Args>
[[nodiscard]] Status failure(ErrorCode code, fmt::format_string<Args...> format,
                             Args&&... args) noexcept {
  try {
    return Status(code, fmt::format(format, std::forward<Args>(args)...));
  } catch (const std::exception&) {
    return Status(code, to_string(code));
  }
}

}  // namespace quire::cache
