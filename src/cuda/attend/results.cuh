// SPDX-License-Identifier: Apache-2.0
/// @file
/// From the states of rows to o and lse: the final division, sinks and scales, rows that see nothing.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"

namespace quire::cuda {

inline constexpr float kNoKey = -INFINITY;

/// What a row's state becomes in the end.
struct RowResult {
  float o_scale = 0.0F;
  float max = kNoKey;  // in units of log 2
  float sum = 1.0F;    // of the weights, relative to it

  /// Not everyone wants it.
  [[nodiscard]] __device__ float lse() const { return (max + __log2f(sum)) * kLn2; }
};

/// Of 8-bit V.
__device__ inline float value_scale(const AttendParams& params, std::int32_t kv_head) {
  const core::LayerTensors& tensors = params.tensors;
  return tensors.v_scale == nullptr ? 1.0F : tensors.v_scale[kv_head * tensors.scale_head_stride];
}

/// @param max  In units of log 2, as `sum` and the state's o are scaled by 2^−max.
__device__ inline RowResult result_of(const AttendParams& params, std::int32_t head, float max,
                                      float sum) {
  if (max == kNoKey) return {};
  const core::LayerTensors& tensors = params.tensors;
  float top = max;
  float denominator = sum;
  float weight = 1.0F;
  if (tensors.sinks != nullptr) {
    const float sink = tensors.sinks[head] * kLog2E;
    top = fmaxf(max, sink);
    weight = exp2f(max - top);
    denominator = sum * weight + exp2f(sink - top);
  }
  return {__fdividef(weight * value_scale(params, head / params.shape.group_size), denominator),
          top, denominator};
}

__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}
template <typename Element>
__device__ __forceinline__ void store_pair(Element* to, float first, float second) {
  *reinterpret_cast<std::uint32_t*>(to) = pack<Element>(first, second);
}

/// Stands for bf16 or fp16, as the dtype of o says at run time.
struct EitherHalf {};

/// Writes neighbouring elements of a row of o: in fp32, if that is the dtype of o, or as `Element`.
template <typename Element, int kCount>
__device__ inline void store_o(const AttendParams& params, RowTarget target, std::int32_t column,
                               const float (&values)[kCount]) {
  static_assert(kCount % 2 == 0);
  const core::MutableRows& o = params.tensors.o;
  const std::int64_t at = target.token * o.token_stride + target.head * o.head_stride + column;
  const auto store_as = [&](auto* to) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) store_pair(to + at + i, values[i], values[i + 1]);
  };
  if (params.shape.o_dtype == DType::kFloat32) {
    store_as(static_cast<float*>(o.data));
  } else if constexpr (std::is_same_v<Element, EitherHalf>) {
    if (params.shape.o_dtype == DType::kFloat16) {
      store_as(static_cast<__half*>(o.data));
    } else {
      store_as(static_cast<__nv_bfloat16*>(o.data));
    }
  } else {
    store_as(static_cast<Element*>(o.data));
  }
}

__device__ inline void store_lse(const AttendParams& params, RowTarget target,
                                 const RowResult& result) {
  const core::LayerTensors& tensors = params.tensors;
  if (tensors.lse == nullptr) return;
  tensors.lse[target.token * tensors.lse_token_stride + target.head * tensors.lse_head_stride] =
      result.lse();
}

/// o = 0, lse = −inf for the rows of q from `first` on. `threads` threads of every block call it.
template <typename Element>
__device__ inline void store_padding(const AttendParams& params, std::int32_t first, int threads) {
  constexpr int kColumns = 2;
  const float zeros[kColumns] = {};
  const std::int32_t heads = params.shape.num_qo_heads;
  const std::int32_t columns = params.shape.head_dim_vo / kColumns;
#pragma unroll 1
  for (std::int64_t token = std::int64_t{first} + blockIdx.x; token < params.tensors.total_q;
       token += gridDim.x) {
#pragma unroll 1
    for (auto i = static_cast<std::int32_t>(threadIdx.x) % threads; i < heads * columns;
         i += threads) {
      const RowTarget target{token, i / columns};
      store_o<Element>(params, target, i % columns * kColumns, zeros);
      if (i % columns == 0) store_lse(params, target, {});
    }
  }
}

/// The rows of a unit that sees no key.
template <typename Element>
__device__ inline void store_empty_unit(const AttendParams& params, const Unit& unit, int thread,
                                        int threads) {
  constexpr int kColumns = 2;
  const float zeros[kColumns] = {};
  const std::int32_t columns = params.shape.head_dim_vo / kColumns;
#pragma unroll 1
  for (std::int32_t i = thread; i < unit.rows * columns; i += threads) {
    const RowTarget target = row_target(params, unit, i / columns);
    const std::int32_t column = i % columns * kColumns;
    store_o<Element>(params, target, column, zeros);
    if (column == 0) store_lse(params, target, {});
  }
}

}  // namespace quire::cuda
