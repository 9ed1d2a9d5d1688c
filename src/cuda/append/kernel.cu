// SPDX-License-Identifier: Apache-2.0
// New keys and values into their pages: a block per row, its threads over heads and columns.
//
//   k, v [num_rows, num_kv_heads, D]  ->  k_cache, v_cache at page slot / page_size, token slot %
//   page_size, in the cache's dtype, divided by the scale
#include "cuda/append/kernel.hpp"

#include <cstdint>

#include "cuda/common/convert.cuh"
#include "schedule/sequence.hpp"

namespace quire::cuda {
namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kNoSlot = -1;

struct AppendParams {
  core::BatchArrays batch;
  core::AppendArrays arrays;
  const CheckRecord* check = nullptr;
};

/// The request that row `row` of q belongs to, or num_seqs.
__device__ std::int32_t seq_of(const core::BatchArrays& batch, std::int64_t row) {
  std::int32_t low = 0;  // the last request that begins at or before `row`
  std::int32_t high = batch.num_seqs + 1;
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    if (batch.qo_indptr[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ std::int64_t slot_of(const AppendParams& params, std::int64_t row) {
  const core::AppendArrays& arrays = params.arrays;
  if (arrays.slot_mapping != nullptr) return arrays.slot_mapping[row];
  const std::int32_t seq = seq_of(params.batch, row);
  if (seq >= params.batch.num_seqs) return kNoSlot;
  core::ProblemShape shape;
  shape.page_size = arrays.page_size;
  const schedule::Lengths lengths = schedule::lengths_of(shape, params.batch, seq);
  const auto query = static_cast<std::int32_t>(row - params.batch.qo_indptr[seq]);
  const std::int32_t position = lengths.position(query);
  if (position < 0) return kNoSlot;
  const std::int64_t page = schedule::page_ids(params.batch, seq)[position / arrays.page_size];
  return page * arrays.page_size + position % arrays.page_size;
}

/// K or V on its way.
struct Stream {
  core::Rows from;
  core::MutablePages to;
  std::int32_t head_dim = 0;
  const float* scale = nullptr;
  std::int32_t scale_head_stride = 0;
};

template <typename Element, int kCount>
struct alignas(sizeof(Element) * kCount > 16 ? 16 : sizeof(Element) * kCount) Vector {
  Element elements[kCount];
};

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
    const float scale =
        stream.scale == nullptr ? 1.0F : stream.scale[head * stream.scale_head_stride];
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
  const Stream k{arrays.k, arrays.k_cache, arrays.head_dim_qk, arrays.k_scale,
                 arrays.k_scale_head_stride};
  const Stream v{arrays.v, arrays.v_cache, arrays.head_dim_vo, arrays.v_scale,
                 arrays.v_scale_head_stride};
  write_row<New, Cache, kCount>(params, k, row, page, token);
  write_row<New, Cache, kCount>(params, v, row, page, token);
}

/// Elements that are read and written at once, where all rows allow it.
constexpr int kVector = 8;

bool is_aligned(const void* data, std::int64_t element_size,
                std::initializer_list<std::int64_t> strides) {
  constexpr std::uintptr_t kBytes = 16;
  if (reinterpret_cast<std::uintptr_t>(data) % kBytes != 0) return false;
  for (const std::int64_t stride : strides) {
    if (stride * element_size % static_cast<std::int64_t>(kBytes) != 0) return false;
  }
  return true;
}

bool takes_vectors(const core::AppendArrays& arrays) {
  const auto new_size = static_cast<std::int64_t>(size_of(arrays.new_dtype));
  const auto cache_size = static_cast<std::int64_t>(size_of(arrays.cache_dtype));
  const auto rows = [&](const core::Rows& x) {
    return is_aligned(x.data, new_size, {x.token_stride, x.head_stride});
  };
  const auto pages = [&](const core::MutablePages& x) {
    return is_aligned(x.data, cache_size, {x.page_stride, x.token_stride, x.head_stride});
  };
  return arrays.head_dim_qk % kVector == 0 && arrays.head_dim_vo % kVector == 0 && rows(arrays.k) &&
         rows(arrays.v) && pages(arrays.k_cache) && pages(arrays.v_cache);
}

using Kernel = void (*)(AppendParams);

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
  const Kernel kernel = kernel_of(arrays.new_dtype, arrays.cache_dtype, takes_vectors(arrays));
  kernel<<<static_cast<unsigned>(arrays.num_rows), kThreads, 0, stream>>>(
      AppendParams{batch, arrays, check});
  return cudaGetLastError();
}

}  // namespace quire::cuda
