// SPDX-License-Identifier: Apache-2.0
// The CPU's rows of the kernel table, and the tier behind each.
#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <string>

#include "core/backend.hpp"
#include "cpu/tier.hpp"

namespace quire::cpu {
namespace {

constexpr auto kFloats = core::SetOf<DType>::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16);

constexpr std::array kRows = {
    core::KernelRow{
        .name = "cpu.portable",
        .device = DeviceType::kCpu,
        .summary = "fp32 arithmetic with the widest vectors of the core",
        .q_dtypes = kFloats,
        .kv_dtypes = kFloats,
        .head_dim_multiple = kHeadDimStep,
        .head_dim_max = kMaxHeadDim,
        .head_dim_list = {},
        .masks = core::SetOf<Mask>::of(Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull),
        .kv_scales =
            core::SetOf<KvScale>::of(KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead),
        .window = true,
        .soft_cap = true,
        .sinks = true,
        .alibi = true,
        .contiguous_kv = true,
    },
};

}  // namespace

std::span<const core::KernelRow> kernel_rows() noexcept { return kRows; }

const core::KernelRow& choose_kernel(const core::AttentionConfig& config) {
  const char* forced = std::getenv("QUIRE_CPU_TIER");
  if (forced == nullptr) return *config.kernel;
  std::string reason;
  const core::KernelRow* row =
      core::find_kernel(DeviceType::kCpu, config.spec, fmt::format("cpu.{}", forced), reason);
  if (row != nullptr) return *row;
  throw Error(ErrorCode::kUnsupported, fmt::format("{} (forced by QUIRE_CPU_TIER)", reason));
}

const Tier& tier_of(const core::KernelRow&) noexcept { return portable_tier(); }

}  // namespace quire::cpu
