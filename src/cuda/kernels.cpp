// SPDX-License-Identifier: Apache-2.0
// The CUDA rows of the kernel table, and the compiled kernel behind each spec.
#include "cuda/kernels.hpp"

#include <fmt/format.h>

#include <map>
#include <string>
#include <vector>

#include "core/narrow_formats.hpp"
#include "cuda/mma/instances.hpp"
#include "cuda/simt/instances.hpp"
#include "cuda/sm90/instances.hpp"

namespace quire::cuda {
namespace {

constexpr auto kFloats = core::SetOf<DType>::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16);

constexpr auto kAllScales = core::SetOf<KvScale>::of(KvScale::kNone, KvScale::kPerTensor,
                                                     KvScale::kPerHead, KvScale::kPerToken);

/// Everything but dtypes and head dims is a run-time argument of every kernel.
core::KernelRow any_batch() {
  core::KernelRow row;
  row.device = DeviceType::kCuda;
  row.masks = core::SetOf<Mask>::of(Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull);
  row.kv_scales = core::SetOf<KvScale>::of(KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead);
  row.window = true;
  row.soft_cap = true;
  row.sinks = true;
  row.alibi = true;
  row.contiguous_kv = true;
  return row;
}

constexpr auto kNarrow =
    core::SetOf<DType>::of(DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2);

/// Dtypes of q with K and V of one of 8 bits.
constexpr core::SetOf<DType> queries_of_narrow(DType kv_dtype) {
  return kv_dtype == DType::kFloat8E4M3
             ? core::SetOf<DType>::of(DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3)
             : core::SetOf<DType>::of(DType::kBFloat16, DType::kFloat16);
}

/// Head dims of the tensor-core kernel's instances for one dtype of K and V.
std::vector<core::HeadDims> mma_head_dims(DType kv_dtype) {
  std::vector<core::HeadDims> dims;
  for (const mma::Instance& instance : mma::instances()) {
    if (instance.kv_dtype == kv_dtype) dims.push_back(instance.head_dims);
  }
  return dims;
}

constexpr std::int32_t kUsualLargeRows = 128;  // of a unit

/// Head dims of the Hopper kernel's instances for one dtype of K and V, with the rows of a unit where
/// those are others.
/// @param of_codes  Those for queries of codes, or all others.
std::string large_head_dims(DType kv_dtype, bool of_codes) {
  std::string dims;
  for (const sm90::Instance& instance : sm90::instances()) {
    const bool takes_codes = instance.q_dtypes.bits == core::SetOf<DType>::of(kv_dtype).bits &&
                             core::is_narrow(kv_dtype);
    if (instance.kv_dtype != kv_dtype || takes_codes != of_codes) continue;
    const core::HeadDims head = instance.head_dims;
    dims += fmt::format("{}{}", dims.empty() ? "" : ", ", head.qk);
    if (head.vo != head.qk) dims += fmt::format("/{}", head.vo);
    const std::int32_t rows = instance.kernel.large_tile_rows;
    if (rows != kUsualLargeRows) dims += fmt::format(" with {}", rows);
  }
  return dims;
}

/// With the head dims and the rows from which on requests are attended with wgmma.
std::string summary_of(DType dtype) {
  const bool is_narrow = core::is_narrow(dtype);
  const std::string small = fmt::format("tensor cores, {}32 rows of a group at a time",
                                        is_narrow ? "8-bit K and V widened to fp16, " : "");
  const std::string dims = large_head_dims(dtype, false);
  if (dims.empty()) return small;
  std::string more = is_narrow ? "; not with scales of tokens" : "";
  if (const std::string codes = large_head_dims(dtype, true); !codes.empty()) {
    more += fmt::format("; with 8-bit queries: {}", codes);
  }
  return fmt::format("{}; on sm_90, requests of more than {} rows {} at a time (head dims {}{})",
                     small, kLargeRequestRows, kUsualLargeRows, dims, more);
}

void add_mma_row(std::vector<core::KernelRow>& rows, std::string_view name, DType dtype) {
  static std::map<DType, std::string> summaries;                // rows point into it
  static std::map<DType, std::vector<core::HeadDims>> dims_of;  // rows point into it
  const std::vector<core::HeadDims>& dims = dims_of[dtype] = mma_head_dims(dtype);
  if (dims.empty()) return;
  core::KernelRow row = any_batch();
  row.name = name;
  row.kv_dtypes = core::SetOf<DType>::of(dtype);
  row.head_dim_list = dims;
  row.max_group_size = mma::kMaxGroupSize;
  row.summary = summaries[dtype] = summary_of(dtype);
  if (core::is_narrow(dtype)) {
    row.q_dtypes = queries_of_narrow(dtype);
    row.kv_scales = kAllScales;
  } else {
    row.q_dtypes = row.kv_dtypes;
  }
  rows.push_back(row);
}

/// On CUDA cores: what no other kernel takes.
core::KernelRow simt_row(std::string_view name, std::string_view summary) {
  core::KernelRow row = any_batch();
  row.name = name;
  row.summary = summary;
  row.q_dtypes = kFloats;
  row.head_dim_multiple = simt::kHeadDimStep;
  row.head_dim_max = simt::kMaxHeadDim;
  row.max_group_size = simt::kMaxGroupSize;
  return row;
}

std::vector<core::KernelRow> make_rows() {
  std::vector<core::KernelRow> rows;
  add_mma_row(rows, "cuda.mma.bfloat16", DType::kBFloat16);
  add_mma_row(rows, "cuda.mma.float16", DType::kFloat16);
  add_mma_row(rows, "cuda.mma.float8_e4m3", DType::kFloat8E4M3);
  add_mma_row(rows, "cuda.mma.float8_e5m2", DType::kFloat8E5M2);
  add_mma_row(rows, "cuda.mma.int8", DType::kInt8);
  core::KernelRow simt =
      simt_row(kSimtName, "fp32 arithmetic on CUDA cores, for what no other kernel takes");
  simt.kv_dtypes = kFloats;
  rows.push_back(simt);
  core::KernelRow narrow = simt_row(kNarrowSimtName, "the same for 8-bit K and V");
  narrow.q_dtypes = core::SetOf<DType>::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                           DType::kFloat8E4M3);
  narrow.head_dim_multiple = simt::kNarrowHeadDimStep;
  narrow.kv_dtypes = kNarrow;
  narrow.kv_scales = kAllScales;
  rows.push_back(narrow);
  return rows;
}

}  // namespace

std::span<const core::KernelRow> kernel_rows() noexcept {
  static const std::vector<core::KernelRow> rows = make_rows();
  return rows;
}

std::vector<AttendKernel> kernels_for(const core::AttentionConfig& config) {
  const AttentionSpec& spec = config.spec;
  if (config.kernel->name == kSimtName || config.kernel->name == kNarrowSimtName) {
    return {simt::kernel_for(spec.q_dtype, spec.kv_dtype)};
  }
  const auto has_head_dims = [&](const auto& instance) {
    return instance.head_dims.qk == spec.head_dim_qk && instance.head_dims.vo == spec.head_dim_vo;
  };
  std::vector<AttendKernel> kernels;
  for (const sm90::Instance& instance : sm90::instances()) {
    // A scale for each token is for small units.
    if (instance.kv_dtype == spec.kv_dtype && instance.q_dtypes.has(spec.q_dtype) &&
        has_head_dims(instance) && spec.kv_scale != KvScale::kPerToken) {
      kernels.push_back(instance.kernel);
    }
  }
  for (const mma::Instance& instance : mma::instances()) {
    if (instance.kv_dtype != spec.kv_dtype || !instance.q_dtypes.has(spec.q_dtype) ||
        !has_head_dims(instance)) {
      continue;
    }
    kernels.push_back(instance.large);
    kernels.push_back(instance.small);
    return kernels;
  }
  throw Error(ErrorCode::kInternal,
              "[attention] the kernel table names a kernel that is not there");
}

}  // namespace quire::cuda
