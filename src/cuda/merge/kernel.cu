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

/// The parts of one row and head.
struct Parts {
  const core::MergeArrays& arrays;
  std::int64_t row;
  std::int64_t head;

  __device__ float lse(std::int64_t part) const {
    return arrays.lse_parts[part * arrays.lse_part_stride + row * arrays.lse_part_token_stride +
                            head * arrays.lse_part_head_stride];
  }
  __device__ float max_lse() const {
    float max = -INFINITY;
    for (std::int64_t part = 0; part < arrays.num_parts; ++part) max = fmaxf(max, lse(part));
    return max;
  }
  /// Σ exp(lse − max).
  __device__ float sum_of_weights(float max) const {
    float sum = 0.0F;
    for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
      if (lse(part) != -INFINITY) sum += expf(lse(part) - max);
    }
    return sum;
  }
  /// Σ exp(lse − max) · o. What stands in the o of a part without keys means nothing.
  template <typename Part>
  __device__ float weighted_sum(std::int64_t column, float max) const {
    float sum = 0.0F;
    for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
      if (lse(part) == -INFINITY) continue;
      const std::int64_t at = part * arrays.o_part_stride + row * arrays.o_part_token_stride +
                              head * arrays.o_part_head_stride + column;
      sum += expf(lse(part) - max) * to_float(static_cast<const Part*>(arrays.o_parts)[at]);
    }
    return sum;
  }
};

template <typename Part, typename Out>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const __grid_constant__ core::MergeArrays arrays) {
  const Parts parts{arrays, blockIdx.x / arrays.num_heads, blockIdx.x % arrays.num_heads};
  const float max = parts.max_lse();
  const float sum = parts.sum_of_weights(max);
  auto* o = static_cast<Out*>(arrays.o.data) + parts.row * arrays.o.token_stride +
            parts.head * arrays.o.head_stride;
  for (int column = static_cast<int>(threadIdx.x); column < arrays.head_dim; column += kThreads) {
    const float weighted = parts.weighted_sum<Part>(column, max);
    o[column] = from_float<Out>(sum > 0.0F ? weighted / sum : 0.0F);
  }
  if (threadIdx.x == 0 && arrays.lse != nullptr) {
    arrays.lse[parts.row * arrays.lse_token_stride + parts.head * arrays.lse_head_stride] =
        sum > 0.0F ? max + logf(sum) : -INFINITY;
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
