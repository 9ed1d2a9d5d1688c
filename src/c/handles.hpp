// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the opaque handles hold. Each begins with its kind, so that a handle of another kind,
/// easily passed from languages that see only pointers, is told apart.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "c/error.hpp"
#include "quire/attention.hpp"
#include "quire/executor.hpp"
#include "quire/fence.hpp"
#include "quire/page_pool.hpp"
#include "quire/page_table.hpp"
#include "quire/quire.h"

namespace quire::c {

/// A text as a template argument.
template <std::size_t N>
struct Words {
  consteval Words(const char (&words)[N]) { std::copy_n(words, N, text); }  // NOLINT: implicit
  char text[N] = {};
};

/// What every handle begins with: a number that no pointer, length or counter is likely to be, the
/// FNV-1a hash of its description.
template <Words kWords>
struct Kind {
  static constexpr std::string_view kDescription = kWords.text;
  static constexpr std::uint64_t kNumber = [] {
    std::uint64_t hash = 0xcbf2'9ce4'8422'2325;
    constexpr std::uint64_t kPrime = 0x100'0000'01b3;
    for (const char letter : kDescription) {
      hash = (hash ^ static_cast<unsigned char>(letter)) * kPrime;
    }
    return hash;
  }();
  std::uint64_t number = kNumber;
};

}  // namespace quire::c

struct quire_executor {
  quire::c::Kind<"a quire_executor"> kind = {};
  std::shared_ptr<quire::Executor> executor;
};

struct quire_attention {
  quire::c::Kind<"a quire_attention"> kind = {};
  std::shared_ptr<quire::Executor> executor;  ///< kept alive for `attention`; null for the default
  quire::Attention attention;
};

struct quire_page_pool {
  quire::c::Kind<"a quire_page_pool"> kind = {};
  quire::PagePool pool;
};

struct quire_page_table {
  quire::c::Kind<"a quire_page_table"> kind = {};
  quire::PageTable table;
};

struct quire_copy_plan {
  quire::c::Kind<"a quire_copy_plan"> kind = {};
  std::vector<quire::CopyOp> ops;
};

struct quire_fence {
  quire::c::Kind<"a quire_fence"> kind = {};
  quire::Fence fence;
};

namespace quire::c {

/// @return `kInvalidArgument` for NULL, `kBadHandle` for a handle of another kind.
template <typename H>
Status check_handle(std::string_view function, std::string_view name, const H* handle) {
  using Expected = decltype(H::kind);
  const Argument argument{function, name, Expected::kDescription};
  if (handle == nullptr) return null_argument(argument);
  std::uint64_t number = 0;
  std::memcpy(&number, static_cast<const void*>(handle), sizeof(number));
  return number == Expected::kNumber ? Status() : other_kind_of_handle(argument);
}

/// The body of `quire_…_destroy`. A handle of another kind is left alone.
template <typename H>
void release(H* handle) noexcept {
  if (handle == nullptr) return;
  guarded([&] {
    Status status = check_handle("destroy", "handle", handle);
    if (status.ok()) delete handle;
    return status;
  });
}

/// Checks the handle of a function that returns a number, then asks `value` for it.
template <typename H, typename Number, typename Value>
Number number_of(std::string_view function, std::string_view name, const H* handle,
                 Number otherwise, Value value) noexcept {
  Number number = otherwise;
  guarded([&] {
    Status status = check_handle(function, name, handle);
    if (status.ok()) number = value();
    return status;
  });
  return number;
}

inline constexpr std::int32_t kNone = -1;  ///< stands for an error where a count is returned

/// Where a new handle is to be stored: checked, and NULL until there is one.
template <typename H>
Status check_result_handle(std::string_view function, std::string_view name, H** out) {
  if (out == nullptr) return null_argument({function, name, "a place for the handle"});
  *out = nullptr;
  return {};
}

}  // namespace quire::c
