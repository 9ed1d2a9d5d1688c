// SPDX-License-Identifier: Apache-2.0
/// @file
/// How structs that grow cross the C ABI: a client built against an older header hands in a shorter
/// struct, one built against a newer header a longer one. Fields are only ever added at the end.
#pragma once

#include <cstddef>
#include <string_view>

#include "c/error.hpp"
#include "quire/quire.h"
#include "quire/serving.h"

namespace quire::c {

/// Name and defaults of a struct that begins with `struct_size`.
template <typename Struct>
struct StructInfo {
  std::string_view name;
  std::string_view init;  ///< the macro
  Struct defaults;
};

template <typename Struct>
inline constexpr StructInfo<Struct> kStruct = {};
template <>
inline constexpr StructInfo<quire_executor_callbacks> kStruct<quire_executor_callbacks> = {
    "quire_executor_callbacks", "QUIRE_EXECUTOR_CALLBACKS_INIT", QUIRE_EXECUTOR_CALLBACKS_INIT};
template <>
inline constexpr StructInfo<quire_attention_spec> kStruct<quire_attention_spec> = {
    "quire_attention_spec", "QUIRE_ATTENTION_SPEC_INIT", QUIRE_ATTENTION_SPEC_INIT};
template <>
inline constexpr StructInfo<quire_batch_limits> kStruct<quire_batch_limits> = {
    "quire_batch_limits", "QUIRE_BATCH_LIMITS_INIT", QUIRE_BATCH_LIMITS_INIT};
template <>
inline constexpr StructInfo<quire_attention_options> kStruct<quire_attention_options> = {
    "quire_attention_options", "QUIRE_ATTENTION_OPTIONS_INIT", QUIRE_ATTENTION_OPTIONS_INIT};
template <>
inline constexpr StructInfo<quire_batch> kStruct<quire_batch> = {"quire_batch", "QUIRE_BATCH_INIT",
                                                                 QUIRE_BATCH_INIT};
template <>
inline constexpr StructInfo<quire_attention_tensors> kStruct<quire_attention_tensors> = {
    "quire_attention_tensors", "QUIRE_ATTENTION_TENSORS_INIT", QUIRE_ATTENTION_TENSORS_INIT};
template <>
inline constexpr StructInfo<quire_call_options> kStruct<quire_call_options> = {
    "quire_call_options", "QUIRE_CALL_OPTIONS_INIT", QUIRE_CALL_OPTIONS_INIT};
template <>
inline constexpr StructInfo<quire_append_tensors> kStruct<quire_append_tensors> = {
    "quire_append_tensors", "QUIRE_APPEND_TENSORS_INIT", QUIRE_APPEND_TENSORS_INIT};
template <>
inline constexpr StructInfo<quire_merge_tensors> kStruct<quire_merge_tensors> = {
    "quire_merge_tensors", "QUIRE_MERGE_TENSORS_INIT", QUIRE_MERGE_TENSORS_INIT};
template <>
inline constexpr StructInfo<quire_page_pool_spec> kStruct<quire_page_pool_spec> = {
    "quire_page_pool_spec", "QUIRE_PAGE_POOL_SPEC_INIT", QUIRE_PAGE_POOL_SPEC_INIT};
template <>
inline constexpr StructInfo<quire_page_table_spec> kStruct<quire_page_table_spec> = {
    "quire_page_table_spec", "QUIRE_PAGE_TABLE_SPEC_INIT", QUIRE_PAGE_TABLE_SPEC_INIT};
template <>
inline constexpr StructInfo<quire_kernel_info> kStruct<quire_kernel_info> = {
    "quire_kernel_info", "QUIRE_KERNEL_INFO_INIT", QUIRE_KERNEL_INFO_INIT};
template <>
inline constexpr StructInfo<quire_device_info> kStruct<quire_device_info> = {
    "quire_device_info", "QUIRE_DEVICE_INFO_INIT", QUIRE_DEVICE_INFO_INIT};
template <>
inline constexpr StructInfo<quire_prefix_cache_spec> kStruct<quire_prefix_cache_spec> = {
    "quire_prefix_cache_spec", "QUIRE_PREFIX_CACHE_SPEC_INIT", QUIRE_PREFIX_CACHE_SPEC_INIT};
template <>
inline constexpr StructInfo<quire_retention> kStruct<quire_retention> = {
    "quire_retention", "QUIRE_RETENTION_INIT", QUIRE_RETENTION_INIT};
template <>
inline constexpr StructInfo<quire_prefix_cache_stats> kStruct<quire_prefix_cache_stats> = {
    "quire_prefix_cache_stats", "QUIRE_PREFIX_CACHE_STATS_INIT", QUIRE_PREFIX_CACHE_STATS_INIT};
template <>
inline constexpr StructInfo<quire_staged_batch> kStruct<quire_staged_batch> = {
    "quire_staged_batch", "QUIRE_STAGED_BATCH_INIT", QUIRE_STAGED_BATCH_INIT};
template <>
inline constexpr StructInfo<quire_batcher_spec> kStruct<quire_batcher_spec> = {
    "quire_batcher_spec", "QUIRE_BATCHER_SPEC_INIT", QUIRE_BATCHER_SPEC_INIT};
template <>
inline constexpr StructInfo<quire_request> kStruct<quire_request> = {
    "quire_request", "QUIRE_REQUEST_INIT", QUIRE_REQUEST_INIT};
template <>
inline constexpr StructInfo<quire_step_budget> kStruct<quire_step_budget> = {
    "quire_step_budget", "QUIRE_STEP_BUDGET_INIT", QUIRE_STEP_BUDGET_INIT};
template <>
inline constexpr StructInfo<quire_batcher_stats> kStruct<quire_batcher_stats> = {
    "quire_batcher_stats", "QUIRE_BATCHER_STATS_INIT", QUIRE_BATCHER_STATS_INIT};
template <>
inline constexpr StructInfo<quire_recorder_spec> kStruct<quire_recorder_spec> = {
    "quire_recorder_spec", "QUIRE_RECORDER_SPEC_INIT", QUIRE_RECORDER_SPEC_INIT};

/// A struct as bytes: what is known of it at run time.
struct StructLayout {
  std::string_view name;
  std::string_view init;
  std::size_t size;
  std::size_t alignment;
};

template <typename Struct>
inline constexpr StructLayout kLayoutOf = {kStruct<Struct>.name, kStruct<Struct>.init,
                                           sizeof(Struct), alignof(Struct)};

Status read_bytes(std::string_view function, std::string_view name, const StructLayout& layout,
                  const void* given, void* out);
Status write_bytes(std::string_view function, std::string_view name, const StructLayout& layout,
                   const void* value, void* given);
quire_status init_bytes(const StructLayout& layout, const void* defaults, void* out,
                        std::size_t struct_size) noexcept;

/// Reads a caller's struct over the defaults. @return `kInvalidArgument` if it is NULL, its size
/// cannot be right, or it sets fields that this library does not know.
template <typename Struct>
Status read_struct(std::string_view function, std::string_view name, const Struct* given,
                   Struct& out) {
  out = kStruct<Struct>.defaults;
  return read_bytes(function, name, kLayoutOf<Struct>, given, &out);
}

/// As `read_struct`, where NULL means the defaults.
template <typename Struct>
Status read_optional(std::string_view function, std::string_view name, const Struct* given,
                     Struct& out) {
  out = kStruct<Struct>.defaults;
  return given == nullptr ? Status() : read_bytes(function, name, kLayoutOf<Struct>, given, &out);
}

/// Writes a value into a caller's struct up to the size that it states; what the library does not
/// know becomes zero.
template <typename Struct>
Status write_struct(std::string_view function, std::string_view name, const Struct& value,
                    Struct* given) {
  return write_bytes(function, name, kLayoutOf<Struct>, &value, given);
}

/// The body of `quire_…_init`.
template <typename Struct>
quire_status init_struct(Struct* out, std::size_t struct_size) noexcept {
  return init_bytes(kLayoutOf<Struct>, &kStruct<Struct>.defaults, out, struct_size);
}

}  // namespace quire::c
