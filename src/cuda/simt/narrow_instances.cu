// SPDX-License-Identifier: Apache-2.0
#include "core/narrow_formats.hpp"
#include "cuda/simt/instances.hpp"
#include "cuda/simt/kernel.cuh"

namespace quire::cuda::simt {
namespace {

template <typename QueryElement>
AttendKernel kernel_for_kv(DType kv_dtype) {
  if (kv_dtype == DType::kInt8) return describe_kernel<QueryElement, core::Int8>();
  return kv_dtype == DType::kFloat8E4M3 ? describe_kernel<QueryElement, core::Float8E4M3>()
                                        : describe_kernel<QueryElement, core::Float8E5M2>();
}

}  // namespace

AttendKernel narrow_kernel_for(DType q_dtype, DType kv_dtype) {
  if (q_dtype == DType::kFloat8E4M3) {
    return describe_kernel<core::Float8E4M3, core::Float8E4M3>();
  }
  if (q_dtype == DType::kFloat32) return kernel_for_kv<float>(kv_dtype);
  return q_dtype == DType::kFloat16 ? kernel_for_kv<__half>(kv_dtype)
                                    : kernel_for_kv<__nv_bfloat16>(kv_dtype);
}

}  // namespace quire::cuda::simt
