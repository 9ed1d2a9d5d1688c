// SPDX-License-Identifier: Apache-2.0
/// @file
/// From the states of rows to o and lse: the final division, sinks and scales, the merge of split
/// units, rows that see nothing.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"

namespace quire::cuda {

inline constexpr float kNoKey = -INFINITY;

/// What a row's state becomes in the end.
struct RowResult {
  float o_scale = 0.0F;
  float lse = kNoKey;
};

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
  const float v_scale =
      tensors.v_scale == nullptr
          ? 1.0F
          : tensors.v_scale[head / params.shape.group_size * tensors.scale_head_stride];
  return {weight * v_scale / denominator, (top + log2f(denominator)) * kLn2};
}

__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}
template <typename Element>
__device__ __forceinline__ void store_pair(Element* to, float first, float second) {
  *reinterpret_cast<std::uint32_t*>(to) = pack<Element>(first, second);
}

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
  } else {
    store_as(static_cast<Element*>(o.data));
  }
}

__device__ inline void store_lse(const AttendParams& params, RowTarget target, float lse) {
  const core::LayerTensors& tensors = params.tensors;
  if (tensors.lse == nullptr) return;
  tensors.lse[target.token * tensors.lse_token_stride + target.head * tensors.lse_head_stride] =
      lse;
}

/// o = 0, lse = −inf for the rows of q beyond the last request. The first `threads` threads of
/// every block call it.
template <typename Element>
__device__ inline void store_padding(const AttendParams& params, int threads) {
  constexpr int kColumns = 2;
  const float zeros[kColumns] = {};
  const std::int32_t heads = params.shape.num_qo_heads;
  const std::int32_t columns = params.shape.head_dim_vo / kColumns;
  const auto first = static_cast<std::int64_t>(params.batch.qo_indptr[params.batch.num_seqs]);
  for (std::int64_t token = first + blockIdx.x; token < params.tensors.total_q;
       token += gridDim.x) {
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < heads * columns; i += threads) {
      const RowTarget target{token, i / columns};
      store_o<Element>(params, target, i % columns * kColumns, zeros);
      if (i % columns == 0) store_lse(params, target, kNoKey);
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
    if (column == 0) store_lse(params, target, kNoKey);
  }
}

/// Where the pieces of a split unit leave their partial results: rows of `PartialStates`, of which
/// there are few enough that 32 bits count their elements.
class PartialRows {
 public:
  __device__ PartialRows(const AttendParams& params, const Unit& unit)
      : heads_(params.policy.heads_abreast),
        max_rows_(params.max_rows),
        head_(unit.kv_head_begin % heads_),
        first_range_(unit.first_range) {}

  __device__ std::int32_t at(std::int32_t piece, std::int32_t row) const {
    const std::int32_t slot = schedule::partial_slot(first_range_, piece);
    return (slot * heads_ + head_) * max_rows_ + row;
  }
  /// Index of the unit's arrival counter.
  __device__ std::int32_t counter() const { return first_range_ * heads_ + head_; }

 private:
  const std::int32_t heads_;
  const std::int32_t max_rows_;
  const std::int32_t head_;  // of those that go abreast
  const std::int32_t first_range_;
};

/// Counts a finished piece. One thread calls it, between two barriers of all that wrote the piece
/// and may read the others'. @return True for the last piece; the counter is 0 again then.
__device__ inline bool arrive_last(const AttendParams& params, const Unit& unit) {
  std::uint32_t* counter = params.schedule.arrivals + PartialRows(params, unit).counter();
  __threadfence();  // what the barrier has gathered becomes visible before the count does
  const std::uint32_t before = atomicAdd(counter, 1U);
  if (before + 1 < static_cast<std::uint32_t>(unit.num_pieces)) return false;
  *counter = 0;
  __threadfence();
  return true;
}

/// One row of a split unit, by one warp, each lane in its columns [column, column + 4).
template <typename Element>
class RowMerge {
 public:
  __device__ RowMerge(const AttendParams& params, const Unit& unit, std::int32_t row, int column)
      : params_(params),
        unit_(unit),
        rows_(params, unit),
        row_(row),
        column_(column),
        is_in_row_(column < params.shape.head_dim_vo) {}

  __device__ void run() {
#pragma unroll 1
    for (std::int32_t first = 0; first < unit_.num_pieces; first += kBatch) add(first);
  }

  __device__ void store() {
    const RowTarget target = row_target(params_, unit_, row_);
    const RowResult result = result_of(params_, target.head, max_, sum_);
    for (float& value : o_) value *= result.o_scale;
    if (!is_in_row_) return;
    store_o<Element>(params_, target, column_, o_);
    if (column_ == 0) store_lse(params_, target, result.lse);
  }

 private:
  static constexpr int kBatch = 16;  // pieces that are on their way at the same time

  /// Pieces [first, first + kBatch), as many of them as there are. Without branches, so that all
  /// loads are on their way before the first of them is waited for.
  __device__ void add(std::int32_t first) {
    float4 parts[kBatch];
    float2 states[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::int32_t from = rows_.at(min(first + i, unit_.num_pieces - 1), row_);
      states[i] = __ldcg(params_.partials.max_and_sum + from);
      parts[i] = __ldcg(reinterpret_cast<const float4*>(
          params_.partials.o + from * params_.shape.head_dim_vo + (is_in_row_ ? column_ : 0)));
    }
    float max = max_;
#pragma unroll
    for (const float2& state : states) max = fmaxf(max, state.x);
    const float base = max == kNoKey ? 0.0F : max;
    const float factor = exp2_fast(max_ - base);
    max_ = max;
    sum_ *= factor;
    for (float& value : o_) value *= factor;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = first + i < unit_.num_pieces ? exp2_fast(states[i].x - base) : 0.0F;
      sum_ += weight * states[i].y;
      o_[0] += weight * parts[i].x;
      o_[1] += weight * parts[i].y;
      o_[2] += weight * parts[i].z;
      o_[3] += weight * parts[i].w;
    }
  }

  const AttendParams& params_;
  const Unit& unit_;
  const PartialRows rows_;
  const std::int32_t row_;
  const int column_;
  const bool is_in_row_;
  float max_ = kNoKey;
  float sum_ = 0.0F;
  float o_[4] = {};
};

/// Joins the pieces of a split unit in the order of the keys and writes o and lse.
template <typename Element>
__device__ inline void merge_pieces(const AttendParams& params, const Unit& unit, int thread,
                                    int threads) {
  constexpr int kColumns = 4 * kWarpSize;  // of a warp
  const int lane = thread % kWarpSize;
#pragma unroll 1
  for (std::int32_t row = thread / kWarpSize; row < unit.rows; row += threads / kWarpSize) {
#pragma unroll 1
    for (int column = lane * 4; column - lane * 4 < params.shape.head_dim_vo; column += kColumns) {
      RowMerge<Element> merge(params, unit, row, column);
      merge.run();
      merge.store();
    }
  }
}

}  // namespace quire::cuda
