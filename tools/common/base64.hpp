// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace quire::tool {

/// @return The bytes as base64 (RFC 4648), padded.
std::string base64(std::span<const std::byte> bytes);

/// @return The numbers' own bytes as base64; a reader on a little-endian machine finds an array.
template <typename T>
std::string base64_of(const std::vector<T>& numbers) {
  return base64(std::as_bytes(std::span<const T>(numbers)));
}

}  // namespace quire::tool
