// SPDX-License-Identifier: Apache-2.0
/// @file
/// A failed `Status` with a formatted sentence, also when memory has run out.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <variant>

#include "quire/error.hpp"

namespace quire::cache {

/// A number or a word of an error text.
class TextPart {
 public:
  template <std::signed_integral T>
  TextPart(T number) noexcept : value_(std::int64_t{number}) {}  // NOLINT: implicit by design
  template <std::unsigned_integral T>
  TextPart(T number) noexcept : value_(std::uint64_t{number}) {}  // NOLINT: implicit by design
  TextPart(const char* word) noexcept : value_(std::string_view(word)) {}  // NOLINT: likewise

  using Value = std::variant<std::int64_t, std::uint64_t, std::string_view>;
  [[nodiscard]] const Value& value() const noexcept { return value_; }

 private:
  Value value_;
};

/// @return A failure whose text is `format` with a part in place of each `{}`; without memory for
///   the text, the name of the code.
[[nodiscard]] Status failure_of_parts(ErrorCode code, std::string_view format,
                                      std::initializer_list<TextPart> parts) noexcept;

template <typename... Parts>
[[nodiscard]] Status failure(ErrorCode code, std::string_view format,
                             const Parts&... parts) noexcept {
  return failure_of_parts(code, format, {TextPart(parts)...});
}

}  // namespace quire::cache
