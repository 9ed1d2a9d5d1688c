// SPDX-License-Identifier: Apache-2.0
/// @file
/// Numbers and text as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace quire::tool {

/// @return e.g. `19,366`.
std::string human_count(std::int64_t count);
/// @return e.g. `512 MiB`, `1.50 GiB`.
std::string human_bytes(std::uint64_t bytes);
/// @return e.g. `35 s`, `02:05`.
std::string human_seconds(double seconds);
/// @return e.g. `812 µs`, `73.9 ms`, `1.68 s`: three digits.
std::string human_duration(double seconds);
/// @return The text in double quotes, at most 60 characters of it, nothing unprintable. For texts
/// that come from files.
std::string in_quotes(std::string_view text);

}  // namespace quire::tool
