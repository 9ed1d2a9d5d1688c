// SPDX-License-Identifier: Apache-2.0
#include "core/kernel_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/backend.hpp"
#include "quire/info.hpp"

namespace quire::core {
namespace {

constexpr std::array kAllDTypes = {DType::kFloat32, DType::kFloat16,    DType::kBFloat16,
                                   DType::kInt8,    DType::kFloat8E4M3, DType::kFloat8E5M2};

struct NamedMask {
  Mask mask;
  std::string_view name;
};
constexpr std::array kMasks = {NamedMask{Mask::kNone, "none"}, NamedMask{Mask::kCausal, "causal"},
                               NamedMask{Mask::kTree, "tree"}, NamedMask{Mask::kFull, "full"}};

struct NamedScale {
  KvScale scale;
  std::string_view name;
};
constexpr std::array kScales = {
    NamedScale{KvScale::kNone, "none"}, NamedScale{KvScale::kPerTensor, "per tensor"},
    NamedScale{KvScale::kPerHead, "per head"}, NamedScale{KvScale::kPerToken, "per token"}};

/// The enumerators of `all` that are in the set, by name.
template <typename Enum, typename Range, typename Key, typename Name>
std::string list_of(SetOf<Enum> set, const Range& all, Key key, Name name) {
  std::string text;
  for (const auto& entry : all) {
    if (!set.has(key(entry))) continue;
    if (!text.empty()) text += ", ";
    text += name(entry);
  }
  return text;
}

std::string_view mask_name(Mask mask) {
  for (const NamedMask& entry : kMasks) {
    if (entry.mask == mask) return entry.name;
  }
  return "unknown";
}

std::string_view scale_name(KvScale scale) {
  for (const NamedScale& entry : kScales) {
    if (entry.scale == scale) return entry.name;
  }
  return "unknown";
}

bool fits(const KernelRow& row, std::int32_t head_dim) {
  return head_dim > 0 && head_dim % row.head_dim_multiple == 0 && head_dim <= row.head_dim_max;
}

/// A column of the table that does not take the spec, in words.
struct Mismatch {
  std::string_view field;
  std::string expected;
  std::string got;
  std::string nearest;
};

void match_head_dim_rule(const KernelRow& row, std::string_view field, std::int32_t head_dim,
                         std::vector<Mismatch>& out) {
  if (fits(row, head_dim)) return;
  const std::int32_t step = row.head_dim_multiple;
  const std::int32_t steps = std::min(head_dim, row.head_dim_max) / step;
  const std::int32_t below = std::clamp(steps * step, step, row.head_dim_max);
  const std::int32_t above = std::clamp((steps + 1) * step, step, row.head_dim_max);
  out.push_back({field, fmt::format("a multiple of {} up to {}", step, row.head_dim_max),
                 fmt::format("{}", head_dim),
                 below == above ? fmt::format("{}", below) : fmt::format("{}, {}", below, above)});
}

void match_head_dims(const KernelRow& row, const AttentionSpec& spec, std::vector<Mismatch>& out) {
  if (row.head_dim_max > 0) {
    match_head_dim_rule(row, "head_dim_qk", spec.head_dim_qk, out);
    match_head_dim_rule(row, "head_dim_vo", spec.head_dim_vo, out);
    return;
  }
  const auto distance = [&](const HeadDims& dims) {
    return std::abs(dims.qk - spec.head_dim_qk) + std::abs(dims.vo - spec.head_dim_vo);
  };
  const auto nearest = std::min_element(
      row.head_dim_list.begin(), row.head_dim_list.end(),
      [&](const HeadDims& a, const HeadDims& b) { return distance(a) < distance(b); });
  if (nearest != row.head_dim_list.end() && distance(*nearest) == 0) return;
  out.push_back({"head_dim_qk/head_dim_vo", "one of " + describe_head_dims(row),
                 fmt::format("{}/{}", spec.head_dim_qk, spec.head_dim_vo),
                 nearest == row.head_dim_list.end()
                     ? std::string("none")
                     : fmt::format("{}/{}", nearest->qk, nearest->vo)});
}

void match_flag(bool wanted, bool offered, std::string_view field, std::string_view off,
                std::string_view on, std::vector<Mismatch>& out) {
  if (wanted && !offered)
    out.push_back({field, std::string(off), std::string(on), std::string(off)});
}

/// Every column that does not take the spec.
std::vector<Mismatch> mismatches(const KernelRow& row, const AttentionSpec& spec) {
  std::vector<Mismatch> out;
  const auto match_dtype = [&](std::string_view field, SetOf<DType> offered, DType wanted) {
    if (offered.has(wanted)) return;
    const std::string names = describe_dtypes(offered);
    out.push_back({field, "one of " + names, std::string(to_string(wanted)), names});
  };
  match_dtype("q_dtype", row.q_dtypes, spec.q_dtype);
  match_dtype("kv_dtype", row.kv_dtypes, spec.kv_dtype);
  match_head_dims(row, spec, out);
  const std::int32_t group_size = spec.num_qo_heads / spec.num_kv_heads;
  if (row.max_group_size > 0 && group_size > row.max_group_size) {
    out.push_back({"num_qo_heads / num_kv_heads", fmt::format("at most {}", row.max_group_size),
                   fmt::format("{}", group_size), fmt::format("{}", row.max_group_size)});
  }
  if (!row.masks.has(spec.mask)) {
    const std::string names = describe_masks(row.masks);
    out.push_back({"mask", "one of " + names, std::string(mask_name(spec.mask)), names});
  }
  if (!row.kv_scales.has(spec.kv_scale)) {
    const std::string names = describe_kv_scales(row.kv_scales);
    out.push_back({"kv_scale", "one of " + names, std::string(scale_name(spec.kv_scale)), names});
  }
  match_flag(spec.window_left >= 0, row.window, "window_left", "-1", "a window", out);
  match_flag(spec.logits_soft_cap > 0.0F, row.soft_cap, "logits_soft_cap", "0", "a soft cap", out);
  match_flag(spec.sinks, row.sinks, "sinks", "false", "true", out);
  match_flag(spec.alibi, row.alibi, "alibi", "false", "true", out);
  match_flag(spec.page_size == kContiguousKv, row.contiguous_kv, "page_size", "at least 1",
             "contiguous K/V", out);
  return out;
}

std::vector<KernelRow> collect_rows() {
  std::vector<KernelRow> rows;
  for (const KernelRow& row : cuda::kernel_rows()) rows.push_back(row);
  for (const KernelRow& row : cpu::kernel_rows()) rows.push_back(row);
  return rows;
}

std::string_view device_name(DeviceType device) {
  return device == DeviceType::kCuda ? "cuda" : "cpu";
}

std::string no_rows_reason(DeviceType device, std::string_view forced) {
  if (forced.empty()) {
    return fmt::format(
        "[attention] device: expected one that this build has kernels for, got {}; "
        "nearest: cpu",
        device_name(device));
  }
  std::string names;
  for (const KernelRow& row : kernel_table()) {
    if (row.device != device) continue;
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  return fmt::format("[attention] kernel: expected one of {} on {}, got {}",
                     names.empty() ? "none" : names, device_name(device), forced);
}

std::string options_of(const KernelRow& row) {
  std::string text;
  const auto add = [&](bool offered, std::string_view name) {
    if (offered) text += (text.empty() ? "" : ", ") + std::string(name);
  };
  add(row.window, "window");
  add(row.soft_cap, "soft cap");
  add(row.sinks, "sinks");
  add(row.alibi, "ALiBi");
  add(row.contiguous_kv, "contiguous K/V");
  return text;
}

/// Why the kernel of this name cannot be forced on this machine.
std::string not_runnable_reason(const KernelRow& forced) {
  std::string_view nearest = "none";
  for (const KernelRow& row : kernel_table()) {
    if (row.device != forced.device || !row.missing.empty()) continue;
    nearest = row.name;
    break;
  }
  return fmt::format(
      "[attention] kernel: expected one that this processor can run, got {}, which needs {}; "
      "nearest: {}",
      forced.name, forced.missing, nearest);
}

/// The first row that serves the spec, of those whose name is `forced` or, if it is empty, of all.
const KernelRow* find_row(DeviceType device, const AttentionSpec& spec, std::string_view forced,
                          std::string& reason) {
  const KernelRow* nearest = nullptr;  // of equally near ones the last, which serves most
  std::vector<Mismatch> fewest;
  for (const KernelRow& row : kernel_table()) {
    if (row.device != device || (!forced.empty() && row.name != forced)) continue;
    if (!row.missing.empty()) {
      if (forced.empty()) continue;
      reason = not_runnable_reason(row);
      return nullptr;
    }
    std::vector<Mismatch> found = mismatches(row, spec);
    if (found.empty()) return &row;
    if (nearest == nullptr || found.size() <= fewest.size()) {
      nearest = &row;
      fewest = std::move(found);
    }
  }
  if (nearest == nullptr) {
    reason = no_rows_reason(device, forced);
  } else {
    const Mismatch& first = fewest.front();
    reason = fmt::format("[attention] {}: expected {} ({}), got {}; nearest: {}", first.field,
                         first.expected, nearest->name, first.got, first.nearest);
  }
  return nullptr;
}

}  // namespace

std::span<const KernelRow> kernel_table() noexcept {
  static const std::vector<KernelRow> rows = collect_rows();
  return rows;
}

const KernelRow* find_kernel(DeviceType device, const AttentionSpec& spec, std::string_view forced,
                             std::string& reason) {
  if (device != DeviceType::kCpu || !forced.empty()) {
    return find_row(device, spec, forced, reason);
  }
  const std::string wanted = cpu::forced_kernel();
  const KernelRow* row = find_row(device, spec, wanted, reason);
  if (row == nullptr && !wanted.empty()) reason += " (forced by QUIRE_CPU_TIER)";
  return row;
}

std::string describe_dtypes(SetOf<DType> set) {
  return list_of(
      set, kAllDTypes, [](DType dtype) { return dtype; },
      [](DType dtype) { return to_string(dtype); });
}

std::string describe_masks(SetOf<Mask> set) {
  return list_of(
      set, kMasks, [](const NamedMask& entry) { return entry.mask; },
      [](const NamedMask& entry) { return entry.name; });
}

std::string describe_kv_scales(SetOf<KvScale> set) {
  return list_of(
      set, kScales, [](const NamedScale& entry) { return entry.scale; },
      [](const NamedScale& entry) { return entry.name; });
}

std::string describe_head_dims(const KernelRow& row) {
  if (row.head_dim_max > 0) {
    return fmt::format("multiples of {} up to {}, qk ≠ vo allowed", row.head_dim_multiple,
                       row.head_dim_max);
  }
  std::string text;
  for (const HeadDims& dims : row.head_dim_list) {
    if (!text.empty()) text += ", ";
    text +=
        dims.qk == dims.vo ? fmt::format("{}", dims.qk) : fmt::format("{}/{}", dims.qk, dims.vo);
  }
  return text;
}

}  // namespace quire::core

namespace quire {
inline namespace v0 {

std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> list;
  for (const core::KernelRow& row : core::kernel_table()) {
    list.push_back({std::string(row.name), row.device, std::string(row.summary),
                    core::describe_dtypes(row.q_dtypes), core::describe_dtypes(row.kv_dtypes),
                    core::describe_head_dims(row), core::describe_masks(row.masks),
                    core::options_of(row), core::describe_kv_scales(row.kv_scales)});
  }
  return list;
}

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> list = cpu::devices();
  for (DeviceInfo& device : cuda::devices()) list.push_back(std::move(device));
  return list;
}

}  // namespace v0
}  // namespace quire
