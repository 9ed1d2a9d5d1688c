// SPDX-License-Identifier: Apache-2.0
#include "c/error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "quire/tensor.hpp"

namespace quire::c {
namespace {

constexpr std::size_t kSentenceBytes = 1024;  // the terminating NUL included

thread_local constinit std::array<char, kSentenceBytes> last_error{};

// The C enumerators are those of the C++ enumerations.
static_assert(static_cast<int>(ErrorCode::kOk) == QUIRE_OK);
static_assert(static_cast<int>(ErrorCode::kInvalidArgument) == QUIRE_INVALID_ARGUMENT);
static_assert(static_cast<int>(ErrorCode::kUnsupported) == QUIRE_UNSUPPORTED);
static_assert(static_cast<int>(ErrorCode::kOutOfPages) == QUIRE_OUT_OF_PAGES);
static_assert(static_cast<int>(ErrorCode::kBadHandle) == QUIRE_BAD_HANDLE);
static_assert(static_cast<int>(ErrorCode::kTooLong) == QUIRE_TOO_LONG);
static_assert(static_cast<int>(ErrorCode::kQueueFull) == QUIRE_QUEUE_FULL);
static_assert(static_cast<int>(ErrorCode::kWorkspaceTooSmall) == QUIRE_WORKSPACE_TOO_SMALL);
static_assert(static_cast<int>(ErrorCode::kOutOfMemory) == QUIRE_OUT_OF_MEMORY);
static_assert(static_cast<int>(ErrorCode::kDeviceError) == QUIRE_DEVICE_ERROR);
static_assert(static_cast<int>(ErrorCode::kInternal) == QUIRE_INTERNAL);

}  // namespace

Status null_argument(const Argument& argument) {
  return {ErrorCode::kInvalidArgument,
          fmt::format("[{}] {}: expected {}, got NULL", argument.function, argument.name,
                      argument.type)};
}

Status other_kind_of_handle(const Argument& argument) {
  return {ErrorCode::kBadHandle, fmt::format("[{}] {}: expected {}, got another kind of handle",
                                             argument.function, argument.name, argument.type)};
}

quire_status finish(const Status& status) noexcept {
  return status.ok() ? QUIRE_OK : finish(status.code(), status.message());
}

quire_status finish(ErrorCode code, std::string_view sentence) noexcept {
  const std::size_t length = std::min(sentence.size(), kSentenceBytes - 1);
  std::memcpy(last_error.data(), sentence.data(), length);
  last_error[length] = '\0';
  return static_cast<quire_status>(code);
}

}  // namespace quire::c

extern "C" {

const char* quire_last_error(void) noexcept { return quire::c::last_error.data(); }

// The names below are string literals, so that they end in NUL.
const char* quire_status_name(quire_status status) noexcept {
  return quire::to_string(static_cast<quire::ErrorCode>(status)).data();
}

const char* quire_version(void) noexcept { return quire::version().data(); }

size_t quire_dtype_size(quire_dtype dtype) noexcept {
  return quire::size_of(static_cast<quire::DType>(dtype));
}

const char* quire_dtype_name(quire_dtype dtype) noexcept {
  return quire::to_string(static_cast<quire::DType>(dtype)).data();
}

}  // extern "C"
