// SPDX-License-Identifier: Apache-2.0
// The CPU's rows of the kernel table, and the tier behind each.
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

std::string forced_kernel() {
  const char* tier = std::getenv("QUIRE_CPU_TIER");
  return tier == nullptr || *tier == '\0' ? std::string() : std::string("cpu.") + tier;
}

const Tier& tier_of(const core::KernelRow&) noexcept { return portable_tier(); }

}  // namespace quire::cpu
