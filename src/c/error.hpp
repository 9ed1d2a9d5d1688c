// SPDX-License-Identifier: Apache-2.0
/// @file
/// How outcomes leave through the C ABI: a code, and a sentence kept for `quire_last_error()`.
#pragma once

#include <exception>
#include <new>
#include <string_view>
#include <utility>

#include "quire/error.hpp"
#include "quire/quire.h"

namespace quire::c {

/// A parameter of a C function, for error texts: `[function] name: expected a type, …`.
struct Argument {
  std::string_view function;
  std::string_view name;
  std::string_view type;
};

/// `[function] name: expected a type, got NULL`.
Status null_argument(const Argument& argument);
/// `[function] name: expected a type, got another kind of handle`.
Status other_kind_of_handle(const Argument& argument);

/// Keeps the sentence of a failure for this thread. @return The status' code. Does not allocate.
quire_status finish(const Status& status) noexcept;
quire_status finish(ErrorCode code, std::string_view sentence) noexcept;

/// Runs the body of a C function, a callable that returns a `Status`, so that no exception leaves.
template <typename Body>
quire_status guarded(Body&& body) noexcept {
  try {
    return finish(std::forward<Body>(body)());
  } catch (const Error& error) {
    return finish(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return finish(ErrorCode::kOutOfMemory, "[quire] host memory: expected more of it, got none");
  } catch (const std::exception& error) {
    return finish(ErrorCode::kInternal, error.what());
  } catch (...) {
    return finish(ErrorCode::kInternal, "[quire] expected no exception, got one of unknown type");
  }
}

}  // namespace quire::c
