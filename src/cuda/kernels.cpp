// SPDX-License-Identifier: Apache-2.0
// The CUDA rows of the kernel table, and the compiled kernel behind each spec.
#include "cuda/kernels.hpp"

#include <array>
#include <vector>

#include "cuda/mma/instances.hpp"
#include "cuda/simt/instances.hpp"
#include "cuda/sm90/instances.hpp"

namespace quire::cuda {
namespace {

constexpr auto kFloats = core::SetOf<DType>::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16);

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

/// Head dims of the tensor-core kernel's instances for one dtype.
std::vector<core::HeadDims> mma_head_dims(DType dtype) {
  std::vector<core::HeadDims> dims;
  for (const mma::Instance& instance : mma::instances()) {
    if (instance.dtype == dtype) dims.push_back(instance.head_dims);
  }
  return dims;
}

void add_mma_row(std::vector<core::KernelRow>& rows, std::string_view name, DType dtype,
                 const std::vector<core::HeadDims>& dims) {
  if (dims.empty()) return;
  core::KernelRow row = any_batch();
  row.name = name;
  row.summary = "tensor cores, 16-bit K and V, up to 32 rows of a group at a time";
  row.q_dtypes = core::SetOf<DType>::of(dtype);
  row.kv_dtypes = core::SetOf<DType>::of(dtype);
  row.head_dim_list = dims;
  row.max_group_size = mma::kMaxGroupSize;
  rows.push_back(row);
}

std::vector<core::KernelRow> make_rows() {
  static const std::vector<core::HeadDims> bfloat16_dims = mma_head_dims(DType::kBFloat16);
  static const std::vector<core::HeadDims> float16_dims = mma_head_dims(DType::kFloat16);
  std::vector<core::KernelRow> rows;
  add_mma_row(rows, "cuda.mma.bfloat16", DType::kBFloat16, bfloat16_dims);
  add_mma_row(rows, "cuda.mma.float16", DType::kFloat16, float16_dims);
  core::KernelRow simt = any_batch();
  simt.name = kSimtName;
  simt.summary = "fp32 arithmetic on CUDA cores, for what no other kernel takes";
  simt.q_dtypes = kFloats;
  simt.kv_dtypes = kFloats;
  simt.head_dim_multiple = simt::kHeadDimStep;
  simt.head_dim_max = simt::kMaxHeadDim;
  simt.max_group_size = simt::kMaxGroupSize;
  rows.push_back(simt);
  return rows;
}

}  // namespace

std::span<const core::KernelRow> kernel_rows() noexcept {
  static const std::vector<core::KernelRow> rows = make_rows();
  return rows;
}

std::vector<AttendKernel> kernels_for(const core::AttentionConfig& config) {
  const AttentionSpec& spec = config.spec;
  if (config.kernel->name == kSimtName) return {simt::kernel_for(spec.q_dtype, spec.kv_dtype)};
  const auto is_meant = [&](const auto& instance) {
    return instance.dtype == spec.kv_dtype && instance.head_dims.qk == spec.head_dim_qk &&
           instance.head_dims.vo == spec.head_dim_vo;
  };
  std::vector<AttendKernel> kernels;
  for (const sm90::Instance& instance : sm90::instances()) {
    if (is_meant(instance)) kernels.push_back(instance.kernel);
  }
  for (const mma::Instance& instance : mma::instances()) {
    if (!is_meant(instance)) continue;
    kernels.push_back(instance.large);
    kernels.push_back(instance.small);
    return kernels;
  }
  throw Error(ErrorCode::kInternal,
              "[attention] the kernel table names a kernel that is not there");
}

}  // namespace quire::cuda
