// SPDX-License-Identifier: Apache-2.0
/// @file
/// Errors: `Error` is thrown for misuse at construction, `Status` is returned on the step path,
/// `Result<T>` is a value or a `Status` (running out of pages is an ordinary result).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "quire/export.h"

namespace quire {
inline namespace v0 {

/// What went wrong. The values are part of the C ABI and never change.
enum class ErrorCode : std::int32_t {
  kOk = 0,                 ///< No error.
  kInvalidArgument = 1,    ///< A shape, dtype, stride, length, index or flag is wrong.
  kUnsupported = 2,        ///< No kernel serves this; the text names the nearest that is served.
  kOutOfPages = 3,         ///< Not enough free pages. An ordinary outcome; nothing was changed.
  kBadHandle = 4,          ///< A handle is unknown, destroyed or of another owner.
  kTooLong = 5,            ///< A length exceeds a declared maximum.
  kQueueFull = 6,          ///< No room for another sequence or request. Nothing was changed.
  kWorkspaceTooSmall = 7,  ///< A workspace is smaller than its declared size, or misaligned.
  kOutOfMemory = 8,        ///< The host or the device could not allocate.
  kDeviceError = 9,        ///< The device or its driver reported an error.
  kInternal = 10,          ///< A defect in quire; please report it with the text.
};

/// @return The enumerator's name in words, e.g. `"invalid argument"`.
QUIRE_API std::string_view to_string(ErrorCode code) noexcept;

/// Thrown for misuse where an object is constructed or where no step is running. `what()` is one
/// sentence: what was expected, what came, and the nearest supported choice.
class QUIRE_API Error : public std::runtime_error {
 public:
  /// @param message  What `what()` returns.
  Error(ErrorCode code, const std::string& message);
  Error(const Error&) noexcept = default;             ///< Shares the text; does not allocate.
  Error& operator=(const Error&) noexcept = default;  ///< Likewise.
  ~Error() override;

  /// @return The kind of error.
  [[nodiscard]] ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Outcome of a call that does not throw. Ok is one null pointer: copying it costs nothing and
/// only a failure allocates.
class [[nodiscard]] QUIRE_API Status {
 public:
  /// Ok.
  Status() noexcept = default;
  /// A failure. If the text cannot be stored for lack of memory the code alone is kept.
  Status(ErrorCode code, std::string_view message) noexcept;

  /// @return True if the call did what it was asked.
  [[nodiscard]] bool ok() const noexcept { return code_ == ErrorCode::kOk; }
  /// @return The kind of failure, or `kOk`.
  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  /// @return One sentence, empty if ok. Lives as long as any copy of this status.
  [[nodiscard]] std::string_view message() const noexcept;
  /// Throws `Error` with this code and text unless ok.
  void throw_if_error() const;

 private:
  ErrorCode code_ = ErrorCode::kOk;
  std::shared_ptr<const std::string> message_;
};

/// A `T`, or the `Status` that says why there is none (C++20 has no `std::expected`).
template <typename T>
class [[nodiscard]] Result {
 public:
  /// A value.
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  /// A failure: `status` must not be ok.
  Result(Status status) noexcept : status_(std::move(status)) {}  // NOLINT: implicit by design

  /// @return True if there is a value.
  [[nodiscard]] bool ok() const noexcept { return value_.has_value(); }
  /// @return `ok()`.
  explicit operator bool() const noexcept { return ok(); }
  /// @return Why there is no value; ok if there is one.
  [[nodiscard]] const Status& status() const noexcept { return status_; }
  /// @return The value. @throws Error with the status' text if there is none.
  [[nodiscard]] T& value() & { return require(), *value_; }
  /// Likewise, read-only.
  [[nodiscard]] const T& value() const& { return require(), *value_; }
  /// Likewise, to be moved from.
  [[nodiscard]] T&& value() && { return require(), std::move(*value_); }
  /// @return The value, unchecked: only after `ok()`.
  [[nodiscard]] T& operator*() noexcept { return *value_; }
  /// Likewise, read-only.
  [[nodiscard]] const T& operator*() const noexcept { return *value_; }
  /// @return A member of the value, unchecked: only after `ok()`.
  T* operator->() noexcept { return &*value_; }
  /// Likewise, read-only.
  const T* operator->() const noexcept { return &*value_; }

 private:
  void require() const {
    if (!value_) status_.throw_if_error();
  }

  std::optional<T> value_;
  Status status_;
};

/// @return Version of the linked library, e.g. `"0.1.0"`.
QUIRE_API std::string_view version() noexcept;

}  // namespace v0
}  // namespace quire
