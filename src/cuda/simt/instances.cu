// SPDX-License-Identifier: Apache-2.0
#include "cuda/simt/instances.hpp"

#include "core/narrow_formats.hpp"
#include "cuda/simt/kernel.cuh"

namespace quire::cuda::simt {
namespace {

template <typename QueryElement>
AttendKernel kernel_for_kv(DType kv_dtype) {
  if (kv_dtype == DType::kFloat32) return describe_kernel<QueryElement, float>();
  return kv_dtype == DType::kFloat16 ? describe_kernel<QueryElement, __half>()
                                     : describe_kernel<QueryElement, __nv_bfloat16>();
}

}  // namespace

AttendKernel kernel_for(DType q_dtype, DType kv_dtype) {
  if (core::is_narrow(kv_dtype)) return narrow_kernel_for(q_dtype, kv_dtype);
  if (q_dtype == DType::kFloat32) return kernel_for_kv<float>(kv_dtype);
  return q_dtype == DType::kFloat16 ? kernel_for_kv<__half>(kv_dtype)
                                    : kernel_for_kv<__nv_bfloat16>(kv_dtype);
}

}  // namespace quire::cuda::simt
