// SPDX-License-Identifier: Apache-2.0
/// @file
/// Decisions out of a fuzzer's bytes. When they run out, every decision is the first choice, so
/// that short inputs are small problems.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <source_location>
#include <span>

namespace quire::fuzz {

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : left_(data, size) {}

  [[nodiscard]] bool empty() const { return left_.empty(); }

  /// The next bytes as a number.
  template <typename Number>
  Number take() {
    Number number{};
    const std::size_t bytes = left_.size() < sizeof(number) ? left_.size() : sizeof(number);
    if (bytes > 0) std::memcpy(&number, left_.data(), bytes);
    left_ = left_.subspan(bytes);
    return number;
  }

  /// A number in [low, high], out of one byte.
  std::int32_t between(std::int32_t low, std::int32_t high) {
    return low + take<std::uint8_t>() % (high - low + 1);
  }

  /// True once in `odds` times.
  bool once_in(std::int32_t odds) { return between(0, odds - 1) == odds - 1; }

  template <typename T, std::size_t N>
  T one_of(const T (&choices)[N]) {
    return choices[take<std::uint8_t>() % N];
  }

  /// Numbers that programs get wrong.
  std::int32_t edge() {
    return one_of<std::int32_t>(
        {0, 1, -1, 2, INT32_MAX, INT32_MIN, INT32_MAX - 1, 1 << 16, 1 << 30, -2});
  }

 private:
  std::span<const std::uint8_t> left_;
};

/// Ends the program where the fuzzer sees it if a promise does not hold.
inline void require(bool holds,
                    const std::source_location& where = std::source_location::current()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%u: a promise does not hold\n", where.file_name(),
               static_cast<unsigned>(where.line()));
  std::abort();
}

}  // namespace quire::fuzz
