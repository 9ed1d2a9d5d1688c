// SPDX-License-Identifier: Apache-2.0
// The CPU's rows of the kernel table, the tier behind each, and what a machine needs to run it. This
// is the only place that chooses.
#include <hwy/highway.h>

#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend.hpp"
#include "cpu/processor.hpp"
#include "cpu/tier.hpp"

namespace quire::cpu {
namespace {

using DTypes = core::SetOf<DType>;

/// Of queries; those of float8_e4m3 are for K and V of the same (`core::resolve_spec`).
constexpr auto kQueries =
    DTypes::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3);
constexpr auto kAll = DTypes::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                                 DType::kFloat8E4M3, DType::kFloat8E5M2);

/// What every tier serves.
constexpr core::KernelRow row_of(std::string_view name, std::string_view summary, DTypes q_dtypes,
                                 DTypes kv_dtypes) {
  core::KernelRow row;
  row.name = name;
  row.device = DeviceType::kCpu;
  row.summary = summary;
  row.q_dtypes = q_dtypes;
  row.kv_dtypes = kv_dtypes;
  row.head_dim_multiple = kHeadDimStep;
  row.head_dim_max = kMaxHeadDim;
  row.masks = core::SetOf<Mask>::of(Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull);
  row.kv_scales = core::SetOf<KvScale>::of(KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead,
                                           KvScale::kPerToken);
  row.window = row.soft_cap = row.sinks = row.alibi = row.contiguous_kv = true;
  return row;
}

/// A tier and what it needs.
struct Entry {
  core::KernelRow row;
  const Tier* tier = nullptr;
};

/// Whether this machine can run what was compiled for one of Highway's targets.
[[nodiscard]] bool has_target(std::int64_t target) {
  return (hwy::SupportedTargets() & target) != 0;
}

/// The dispatch table, in the order of preference.
std::vector<Entry> make_entries() {
  std::vector<Entry> entries;
  const auto add = [&](core::KernelRow row, const Tier& tier, bool can_run,
                       std::string_view needs) {
    if (!can_run) row.missing = needs;
    entries.push_back({row, &tier});
  };
#if HWY_ARCH_X86
  constexpr auto kBFloat16 = DTypes::of(DType::kBFloat16);
  constexpr auto kExactInBFloat16 =
      DTypes::of(DType::kBFloat16, DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2);
  add(row_of("cpu.amx_bf16", "bf16 products in tiles (TDPBF16PS), of few rows in pairs; fp32 sums",
             kBFloat16, kExactInBFloat16),
      amx_bf16_tier(), processor().amx_bf16, "AMX-BF16 and AVX-512 with BF16 and VBMI");
  // Before fp32, though cores with AMX do VDPBF16PS at half the rate of fp32: they take AMX.
  add(row_of("cpu.avx512_bf16", "bf16 products in pairs (VDPBF16PS), fp32 sums", kBFloat16,
             kExactInBFloat16),
      avx512_bf16_tier(), processor().avx512_bf16, "AVX-512 with BF16 and VBMI");
  add(row_of("cpu.avx512", "fp32 multiply-adds, vectors of 512 bits", kQueries, kAll),
      fp32_tier(HWY_AVX3), has_target(HWY_AVX3), "AVX-512 (F, BW, DQ, VL)");
  add(row_of("cpu.avx2", "fp32 multiply-adds, vectors of 256 bits", kQueries, kAll),
      fp32_tier(HWY_AVX2), has_target(HWY_AVX2), "AVX2, FMA and F16C");
  const std::int64_t baseline = has_target(HWY_SSE4) ? HWY_SSE4 : HWY_STATIC_TARGET;
#elif HWY_ARCH_ARM
  add(row_of("cpu.neon", "fp32 multiply-adds, vectors of 128 bits", kQueries, kAll),
      fp32_tier(HWY_NEON), has_target(HWY_NEON), "NEON");
  const std::int64_t baseline = HWY_STATIC_TARGET;
#else
  const std::int64_t baseline = HWY_STATIC_TARGET;
#endif
  add(row_of("cpu.portable", "fp32 arithmetic on any core", kQueries, kAll), fp32_tier(baseline),
      true, {});
  return entries;
}

const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = make_entries();
  return list;
}

}  // namespace

std::span<const core::KernelRow> kernel_rows() noexcept {
  static const std::vector<core::KernelRow> rows = [] {
    std::vector<core::KernelRow> list;
    for (const Entry& entry : entries()) list.push_back(entry.row);
    return list;
  }();
  return rows;
}

std::string forced_kernel() {
  const char* tier = std::getenv("QUIRE_CPU_TIER");
  return tier == nullptr || *tier == '\0' ? std::string() : std::string("cpu.") + tier;
}

const Tier& tier_of(const core::KernelRow& kernel) noexcept {
  for (const Entry& entry : entries()) {
    if (entry.row.name == kernel.name) return *entry.tier;
  }
  return *entries().back().tier;
}

const Tier& row_tier() noexcept {
  for (const Entry& entry : entries()) {
    if (entry.row.missing.empty()) return *entry.tier;
  }
  return *entries().back().tier;
}

}  // namespace quire::cpu
