// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the calls of a batcher take memory: all of it before the first change.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cache/failure.hpp"

namespace quire::batching {

/// Room for `more` elements, growing as a vector grows by itself. @throws std::bad_alloc
template <typename T>
void reserve_more(std::vector<T>& vector, std::size_t more) {
  if (vector.capacity() - vector.size() >= more) return;
  vector.reserve(std::max(vector.size() + more, 2 * vector.capacity()));
}

inline Status out_of_memory(const char* call) noexcept {
  return cache::failure(ErrorCode::kOutOfMemory, "[batcher] {}: expected memory, got none", call);
}

}  // namespace quire::batching
