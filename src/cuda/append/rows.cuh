// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where new rows go, and how they may be read and written: what the appending kernels share.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/problem.hpp"
#include "quire/attention.hpp"
#include "schedule/sequence.hpp"

namespace quire::cuda::append_rows {

inline constexpr int kThreads = 128;
inline constexpr std::int64_t kNoSlot = -1;

struct AppendParams {
  core::BatchArrays batch;
  core::AppendArrays arrays;
  const CheckRecord* check = nullptr;
};

/// The request that row `row` of q belongs to, or num_seqs.
__device__ inline std::int32_t seq_of(const core::BatchArrays& batch, std::int64_t row) {
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

__device__ inline std::int64_t slot_of(const AppendParams& params, std::int64_t row) {
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
  core::MutableTokenScales token_scale;

  /// The scale that is given for a head.
  [[nodiscard]] __device__ float given_scale(std::int32_t head) const {
    return scale == nullptr ? 1.0F : scale[head * scale_head_stride];
  }
};

__device__ inline Stream keys_of(const core::AppendArrays& arrays) {
  return {arrays.k,
          arrays.k_cache,
          arrays.head_dim_qk,
          arrays.k_scale,
          arrays.k_scale_head_stride,
          arrays.k_token_scale};
}
__device__ inline Stream values_of(const core::AppendArrays& arrays) {
  return {arrays.v,
          arrays.v_cache,
          arrays.head_dim_vo,
          arrays.v_scale,
          arrays.v_scale_head_stride,
          arrays.v_token_scale};
}

template <typename Element, int kCount>
struct alignas(sizeof(Element) * kCount > 16 ? 16 : sizeof(Element) * kCount) Vector {
  Element elements[kCount];
};

/// Elements that are read and written at once, where all rows allow it.
inline constexpr int kVector = 8;

inline bool is_aligned(const void* data, std::int64_t element_size,
                       std::initializer_list<std::int64_t> strides) {
  constexpr std::uintptr_t kBytes = 16;
  if (reinterpret_cast<std::uintptr_t>(data) % kBytes != 0) return false;
  for (const std::int64_t stride : strides) {
    if (stride * element_size % static_cast<std::int64_t>(kBytes) != 0) return false;
  }
  return true;
}

inline bool takes_vectors(const core::AppendArrays& arrays) {
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

}  // namespace quire::cuda::append_rows
