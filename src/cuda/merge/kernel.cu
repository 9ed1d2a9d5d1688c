// SPDX-License-Identifier: Apache-2.0
// merge_states: a block per row and head, its threads over the columns, parts in their order.
//
//   o_parts [num_parts, num_rows, num_heads, D], lse_parts  ->  o [num_rows, num_heads, D], lse
#include "cuda/merge/kernel.hpp"

#include <cmath>
#include <cstdint>

#include "cuda/common/convert.cuh"
#include "cuda/common/ptx.cuh"

namespace quire::cuda {
namespace {

constexpr int kThreads = 128;

template <typename Part>
__device__ float merged_column(const core::MergeArrays& arrays, std::int64_t row, std::int64_t head,
                               std::int64_t column, float lse) {
  float sum = 0.0F;
  for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
    const float part_lse =
        arrays.lse_parts[part * arrays.lse_part_stride + row * arrays.lse_part_token_stride +
                         head * arrays.lse_part_head_stride];
    if (part_lse == -INFINITY) continue;  // what stands in its o means nothing
    const std::int64_t at = part * arrays.o_part_stride + row * arrays.o_part_token_stride +
                            head * arrays.o_part_head_stride + column;
    sum += expf(part_lse - lse) * to_float(static_cast<const Part*>(arrays.o_parts)[at]);
  }
  return sum;
}

__device__ float merged_lse(const core::MergeArrays& arrays, std::int64_t row, std::int64_t head) {
  const float* parts =
      arrays.lse_parts + row * arrays.lse_part_token_stride + head * arrays.lse_part_head_stride;
  float max = -INFINITY;
  for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
    max = fmaxf(max, parts[part * arrays.lse_part_stride]);
  }
  if (max == -INFINITY) return max;
  float sum = 0.0F;
  for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
    sum += expf(parts[part * arrays.lse_part_stride] - max);
  }
  return max + logf(sum);
}

template <typename Part, typename Out>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const __grid_constant__ core::MergeArrays arrays) {
  const std::int64_t row = blockIdx.x / arrays.num_heads;
  const std::int64_t head = blockIdx.x % arrays.num_heads;
  const float lse = merged_lse(arrays, row, head);
  auto* o =
      static_cast<Out*>(arrays.o.data) + row * arrays.o.token_stride + head * arrays.o.head_stride;
  for (int column = static_cast<int>(threadIdx.x); column < arrays.head_dim; column += kThreads) {
    o[column] = from_float<Out>(merged_column<Part>(arrays, row, head, column, lse));
  }
  if (threadIdx.x == 0 && arrays.lse != nullptr) {
    arrays.lse[row * arrays.lse_token_stride + head * arrays.lse_head_stride] = lse;
  }
}

using Kernel = void (*)(core::MergeArrays);

template <typename Part>
Kernel kernel_of(DType out) {
  if (out == DType::kFloat32) return merge_kernel<Part, float>;
  return out == DType::kFloat16 ? merge_kernel<Part, __half> : merge_kernel<Part, __nv_bfloat16>;
}

Kernel kernel_of(DType part, DType out) {
  if (part == DType::kFloat32) return kernel_of<float>(out);
  return part == DType::kFloat16 ? kernel_of<__half>(out) : kernel_of<__nv_bfloat16>(out);
}

}  // namespace

cudaError_t launch_merge(const core::MergeArrays& arrays, cudaStream_t stream) noexcept {
  const std::int64_t blocks = arrays.num_rows * arrays.num_heads;
  if (blocks == 0) return cudaSuccess;
  kernel_of(arrays.part_dtype,
            arrays.o_dtype)<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arrays);
  return cudaGetLastError();
}

}  // namespace quire::cuda
