// SPDX-License-Identifier: Apache-2.0
#include "quire/error.hpp"

#include "quire/version.h"

namespace quire {
inline namespace v0 {

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kOk:
      return "ok";
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kOutOfPages:
      return "out of pages";
    case ErrorCode::kBadHandle:
      return "bad handle";
    case ErrorCode::kTooLong:
      return "too long";
    case ErrorCode::kQueueFull:
      return "queue full";
    case ErrorCode::kWorkspaceTooSmall:
      return "workspace too small";
    case ErrorCode::kOutOfMemory:
      return "out of memory";
    case ErrorCode::kDeviceError:
      return "device error";
    case ErrorCode::kInternal:
      return "internal error";
  }
  return "unknown error";
}

Error::Error(ErrorCode code, const std::string& message)
    : std::runtime_error(message), code_(code) {}

Error::~Error() = default;

Status::Status(ErrorCode code, std::string_view message) noexcept : code_(code) {
  try {
    message_ = std::make_shared<const std::string>(message);
  } catch (const std::bad_alloc&) {
    message_.reset();  // message() then names the code
  }
}

std::string_view Status::message() const noexcept {
  if (ok()) return {};
  return message_ != nullptr ? std::string_view(*message_) : to_string(code_);
}

void Status::throw_if_error() const {
  if (!ok()) throw Error(code_, std::string(message()));
}

std::string_view version() noexcept { return QUIRE_VERSION_STRING; }

}  // namespace v0
}  // namespace quire
