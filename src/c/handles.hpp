// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the opaque handles hold. Each begins with its kind, so that a handle of another kind,
/// easily passed from languages that see only pointers, is told apart.
#pragma once

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

/// A number for a kind of handle that no pointer, length or counter is likely to be: the FNV-1a
/// hash of its name.
constexpr std::uint64_t kind_of(std::string_view name) {
  constexpr std::uint64_t kOffset = 0xcbf2'9ce4'8422'2325;
  constexpr std::uint64_t kPrime = 0x100'0000'01b3;
  std::uint64_t hash = kOffset;
  for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * kPrime;
  return hash;
}

}  // namespace quire::c

struct quire_executor {
  static constexpr std::string_view kDescription = "a quire_executor";
  static constexpr std::uint64_t kKind = quire::c::kind_of("executor");
  std::uint64_t kind = kKind;
  std::shared_ptr<quire::Executor> executor;
};

struct quire_attention {
  static constexpr std::string_view kDescription = "a quire_attention";
  static constexpr std::uint64_t kKind = quire::c::kind_of("attention");
  std::uint64_t kind = kKind;
  std::shared_ptr<quire::Executor> executor;  ///< kept alive for `attention`; null for the default
  quire::Attention attention;
};

struct quire_page_pool {
  static constexpr std::string_view kDescription = "a quire_page_pool";
  static constexpr std::uint64_t kKind = quire::c::kind_of("page_pool");
  std::uint64_t kind = kKind;
  quire::PagePool pool;
};

struct quire_page_table {
  static constexpr std::string_view kDescription = "a quire_page_table";
  static constexpr std::uint64_t kKind = quire::c::kind_of("page_table");
  std::uint64_t kind = kKind;
  quire::PageTable table;
};

struct quire_copy_plan {
  static constexpr std::string_view kDescription = "a quire_copy_plan";
  static constexpr std::uint64_t kKind = quire::c::kind_of("copy_plan");
  std::uint64_t kind = kKind;
  std::vector<quire::CopyOp> ops;
};

struct quire_fence {
  static constexpr std::string_view kDescription = "a quire_fence";
  static constexpr std::uint64_t kKind = quire::c::kind_of("fence");
  std::uint64_t kind = kKind;
  quire::Fence fence;
};

namespace quire::c {

/// @return `kInvalidArgument` for NULL, `kBadHandle` for a handle of another kind.
template <typename Handle>
Status check_handle(std::string_view function, std::string_view name, const Handle* handle) {
  const Argument argument{function, name, Handle::kDescription};
  if (handle == nullptr) return null_argument(argument);
  std::uint64_t kind = 0;
  std::memcpy(&kind, static_cast<const void*>(handle), sizeof(kind));
  return kind == Handle::kKind ? Status() : other_kind_of_handle(argument);
}

/// The body of `quire_…_destroy`. A handle of another kind is left alone.
template <typename Handle>
void release(Handle* handle) noexcept {
  if (handle == nullptr) return;
  guarded([&] {
    Status status = check_handle("destroy", "handle", handle);
    if (status.ok()) delete handle;
    return status;
  });
}

/// Checks the handle of a function that returns a number, then asks `value` for it.
template <typename Handle, typename Number, typename Value>
Number number_of(std::string_view function, std::string_view name, const Handle* handle,
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
template <typename Handle>
Status check_result_handle(std::string_view function, std::string_view name, Handle** out) {
  if (out == nullptr) return null_argument({function, name, "a place for the handle"});
  *out = nullptr;
  return {};
}

}  // namespace quire::c
