// SPDX-License-Identifier: Apache-2.0
// New keys and values into their pages: a block per row, its threads over heads and columns.
//
//   k, v [num_rows, num_kv_heads, D]  ->  k_cache, v_cache at page slot / page_size, token slot %
//   page_size, in the cache's dtype, divided by the scale
#include "cuda/append/kernel.hpp"

#include <cstdint>

#include "core/narrow_formats.hpp"
#include "cuda/append/narrow.hpp"
#include "cuda/append/rows.cuh"
#include "cuda/common/convert.cuh"

namespace quire::cuda {
namespace {

using namespace append_rows;

template <typename New, typename Cache, int kCount>
__device__ void write_row(const AppendParams& params, const Stream& stream, std::int64_t row,
                          std::int64_t page, std::int64_t token) {
  const std::int32_t pieces = stream.head_dim / kCount;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < params.arrays.num_kv_heads * pieces;
       i += kThreads) {
    const std::int32_t head = i / pieces;
    const std::int32_t column = i % pieces * kCount;
    const auto* from = static_cast<const New*>(stream.from.data) + row * stream.from.token_stride +
                       head * stream.from.head_stride + column;
    auto* to = static_cast<Cache*>(stream.to.data) + page * stream.to.page_stride +
               token * stream.to.token_stride + head * stream.to.head_stride + column;
    const float scale = stream.given_scale(head);
    const auto values = *reinterpret_cast<const Vector<New, kCount>*>(from);
    Vector<Cache, kCount> converted;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float value = to_float(values.elements[j]);
      converted.elements[j] = from_float<Cache>(scale == 1.0F ? value : value / scale);
    }
    *reinterpret_cast<Vector<Cache, kCount>*>(to) = converted;
  }
}

template <typename New, typename Cache, int kCount>
__global__ void __launch_bounds__(kThreads)
    append_kernel(const __grid_constant__ AppendParams params) {
  if (params.check != nullptr && params.check->what != 0) return;
  const core::AppendArrays& arrays = params.arrays;
  const std::int64_t row = blockIdx.x;
  const std::int64_t slot = slot_of(params, row);
  if (slot < 0) return;
  const std::int64_t page = slot / arrays.page_size;
  const std::int64_t token = slot % arrays.page_size;
  write_row<New, Cache, kCount>(params, keys_of(arrays), row, page, token);
  write_row<New, Cache, kCount>(params, values_of(arrays), row, page, token);
}

template <typename New, typename Cache>
Kernel kernel_of(bool vectors) {
  return vectors ? append_kernel<New, Cache, kVector> : append_kernel<New, Cache, 1>;
}

template <typename New>
Kernel kernel_of(DType cache, bool vectors) {
  if (cache == DType::kFloat32) return kernel_of<New, float>(vectors);
  return cache == DType::kFloat16 ? kernel_of<New, __half>(vectors)
                                  : kernel_of<New, __nv_bfloat16>(vectors);
}

Kernel kernel_of(DType input, DType cache, bool vectors) {
  if (input == DType::kFloat32) return kernel_of<float>(cache, vectors);
  return input == DType::kFloat16 ? kernel_of<__half>(cache, vectors)
                                  : kernel_of<__nv_bfloat16>(cache, vectors);
}

}  // namespace

cudaError_t launch_append(const core::BatchArrays& batch, const core::AppendArrays& arrays,
                          const CheckRecord* check, cudaStream_t stream) noexcept {
  if (arrays.num_rows == 0) return cudaSuccess;
  const bool vectors = takes_vectors(arrays);
  const Kernel kernel = core::is_narrow(arrays.cache_dtype)
                            ? narrow_append_kernel(arrays, vectors)
                            : kernel_of(arrays.new_dtype, arrays.cache_dtype, vectors);
  kernel<<<static_cast<unsigned>(arrays.num_rows), kThreads, 0, stream>>>(
      AppendParams{batch, arrays, check});
  return cudaGetLastError();
}

}  // namespace quire::cuda
