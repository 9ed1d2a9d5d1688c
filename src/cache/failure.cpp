// SPDX-License-Identifier: Apache-2.0
#include "cache/failure.hpp"

#include <fmt/args.h>
#include <fmt/format.h>

#include <exception>

namespace quire::cache {

Status failure_of_parts(ErrorCode code, std::string_view format,
                        std::initializer_list<TextPart> parts) noexcept {
  try {
    fmt::dynamic_format_arg_store<fmt::format_context> arguments;
    for (const TextPart& part : parts) {
      std::visit([&arguments](auto value) { arguments.push_back(value); }, part.value());
    }
    return {code, fmt::vformat(fmt::string_view(format.data(), format.size()), arguments)};
  } catch (const std::exception&) {
    return {code, to_string(code)};
  }
}

}  // namespace quire::cache
