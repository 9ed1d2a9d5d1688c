// SPDX-License-Identifier: Apache-2.0
/// @file
/// What is supported, as data. Dispatch, `supports()`, error texts, `quire info` and the matrix in
/// the README all read this table.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "quire/attention.hpp"

namespace quire::core {

/// A set of enumerators, one bit each.
template <typename Enum>
struct SetOf {
  std::uint32_t bits = 0;
  template <typename... Values>
  static constexpr SetOf of(Values... values) {
    return {((1U << static_cast<std::uint32_t>(values)) | ...)};
  }
  [[nodiscard]] constexpr bool has(Enum value) const {
    const auto bit = static_cast<std::uint32_t>(value);
    return bit < 32 && ((bits >> bit) & 1U) != 0;
  }
};

/// A pair of head dims that a kernel was compiled for.
struct HeadDims {
  std::int32_t qk = 0;
  std::int32_t vo = 0;
};

/// One kernel and all that it serves: every combination of the columns.
struct KernelRow {
  std::string_view name;  ///< e.g. "cpu.portable"
  DeviceType device = DeviceType::kCpu;
  std::string_view summary;  ///< one line for `quire info`
  SetOf<DType> q_dtypes;
  SetOf<DType> kv_dtypes;
  std::int32_t head_dim_multiple = 0;       ///< any multiple of it …
  std::int32_t head_dim_max = 0;            ///< … up to here, qk and vo independent; or, if 0,
  std::span<const HeadDims> head_dim_list;  ///< one of these
  std::int32_t max_group_size = 0;          ///< query heads per kv head; 0: any
  SetOf<Mask> masks;
  SetOf<KvScale> kv_scales;
  bool window = false;
  bool soft_cap = false;
  bool sinks = false;
  bool alibi = false;
  bool contiguous_kv = false;
  /// Instructions that the kernel needs and this machine lacks, in words. Empty: it can run here.
  std::string_view missing;
};

/// All rows of this build, in the order of preference, those included that this machine cannot run.
std::span<const KernelRow> kernel_table() noexcept;

/// The first row that serves a spec whose defaults are filled in and that this machine can run, or
/// null and the reason.
/// @param forced  Name of the only row to consider. Empty: on the CPU, the one that the environment
///   asks for, if it does; else all.
const KernelRow* find_kernel(DeviceType device, const AttentionSpec& spec, std::string_view forced,
                             std::string& reason);

/// The columns of a row in words, for `quire info` and the README's matrix.
std::string describe_dtypes(SetOf<DType> set);
std::string describe_head_dims(const KernelRow& row);
std::string describe_masks(SetOf<Mask> set);
std::string describe_kv_scales(SetOf<KvScale> set);

}  // namespace quire::core
