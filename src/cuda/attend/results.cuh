// SPDX-License-Identifier: Apache-2.0
/// @file
/// From the states of rows to o and lse: the final division, sinks and scales, the merge of split
/// units, rows that see nothing.
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
  return {__fdividef(weight * v_scale, denominator), top, denominator};
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

/// o = 0, lse = −inf for the rows of q beyond the last request. `threads` threads of every block
/// call it.
template <typename Element>
__device__ inline void store_padding(const AttendParams& params, int threads) {
  constexpr int kColumns = 2;
  const float zeros[kColumns] = {};
  const std::int32_t heads = params.shape.num_qo_heads;
  const std::int32_t columns = params.shape.head_dim_vo / kColumns;
  const auto first = static_cast<std::int64_t>(params.batch.qo_indptr[params.batch.num_seqs]);
  for (std::int64_t token = first + blockIdx.x; token < params.tensors.total_q;
       token += gridDim.x) {
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

/// Some rows of a split unit, by one warp, each lane in its columns [column, column + 4). The rows
/// are `row`, `row` + `row_step` and so on; those that the unit does not have are not stored.
/// @tparam kPieces  Of a row, that are on their way at the same time; so are all the rows.
template <typename Element, int kRows, int kPieces>
class RowMerge {
 public:
  __device__ RowMerge(const AttendParams& params, const Unit& unit, std::int32_t row,
                      std::int32_t row_step, int column)
      : params_(params),
        unit_(unit),
        rows_(params, unit),
        row_(row),
        row_step_(row_step),
        column_(column),
        is_in_row_(column < params.shape.head_dim_vo) {
#pragma unroll
    for (float& max : max_) max = kNoKey;
  }

  __device__ void run() {
#pragma unroll 1
    for (std::int32_t first = 0; first < unit_.num_pieces; first += kPieces) add(first);
  }

  __device__ void store() {
#pragma unroll 1
    for (int i = 0; i < kRows && row_ + i * row_step_ < unit_.rows; ++i) {
      const RowTarget target = row_target(params_, unit_, row_ + i * row_step_);
      const RowResult result = result_of(params_, target.head, of_row(max_, i), of_row(sum_, i));
      if (!is_in_row_) continue;
      const float o[4] = {of_row(o_[0], i) * result.o_scale, of_row(o_[1], i) * result.o_scale,
                          of_row(o_[2], i) * result.o_scale, of_row(o_[3], i) * result.o_scale};
      store_o<Element>(params_, target, column_, o);
      if (column_ == 0) store_lse(params_, target, result);
    }
  }

 private:
  /// Pieces [first, first + kPieces), as many of them as there are. Without branches, so that all
  /// loads are on their way before the first of them is waited for.
  __device__ void add(std::int32_t first) {
    float4 parts[kRows][kPieces];
    float2 states[kRows][kPieces];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const std::int32_t row = min(row_ + i * row_step_, unit_.rows - 1);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const std::int32_t from = rows_.at(min(first + piece, unit_.num_pieces - 1), row);
        states[i][piece] = __ldcg(params_.partials.max_and_sum + from);
        parts[i][piece] = __ldcg(reinterpret_cast<const float4*>(
            params_.partials.o + from * params_.shape.head_dim_vo + (is_in_row_ ? column_ : 0)));
      }
    }
    const int count = min(kPieces, unit_.num_pieces - first);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      add(i, states[i], parts[i], count);
    }
  }

  __device__ void add(int i, const float2 (&states)[kPieces], const float4 (&parts)[kPieces],
                      int count) {
    float max = max_[i];
#pragma unroll
    for (const float2& state : states) max = fmaxf(max, state.x);
    const float base = max == kNoKey ? 0.0F : max;
    const float factor = exp2_fast(max_[i] - base);
    max_[i] = max;
    sum_[i] *= factor;
#pragma unroll
    for (auto& of_rows : o_) of_rows[i] *= factor;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const float weight = piece < count ? exp2_fast(states[piece].x - base) : 0.0F;
      sum_[i] += weight * states[piece].y;
      o_[0][i] += weight * parts[piece].x;
      o_[1][i] += weight * parts[piece].y;
      o_[2][i] += weight * parts[piece].z;
      o_[3][i] += weight * parts[piece].w;
    }
  }

  /// The value of a row by a number that only run time knows: registers cannot be indexed.
  static __device__ float of_row(const float (&values)[kRows], int row) {
    float value = values[0];
#pragma unroll
    for (int other = 1; other < kRows; ++other) value = row == other ? values[other] : value;
    return value;
  }

  const AttendParams& params_;
  const Unit& unit_;
  const PartialRows rows_;
  const std::int32_t row_;
  const std::int32_t row_step_;
  const int column_;
  const bool is_in_row_;
  float max_[kRows];
  float sum_[kRows] = {};
  float o_[4][kRows] = {};
};

/// A warp's rows of the unit: `row`, `row` + `row_step` and so on.
template <typename Element, int kRows, int kPieces>
__device__ __forceinline__ void merge_rows(const AttendParams& params, const Unit& unit,
                                           std::int32_t row, std::int32_t row_step) {
  constexpr int kColumns = 4 * kWarpSize;  // of a warp
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll 1
  for (; row < unit.rows; row += kRows * row_step) {
#pragma unroll 1
    for (int column = lane * 4; column - lane * 4 < params.shape.head_dim_vo; column += kColumns) {
      RowMerge<Element, kRows, kPieces> merge(params, unit, row, row_step, column);
      merge.run();
      merge.store();
    }
  }
}

/// Joins the pieces of a split unit in the order of the keys and writes o and lse: many rows of few
/// pieces at a time, or many pieces of a row.
template <typename Element>
__device__ inline void merge_pieces(const AttendParams& params, const Unit& unit, int thread,
                                    int threads) {
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t warps = threads / kWarpSize;
  if (unit.num_pieces <= 4 && unit.rows > warps) {
    merge_rows<Element, 4, 4>(params, unit, warp, warps);
  } else {
    merge_rows<Element, 1, 16>(params, unit, warp, warps);
  }
}

}  // namespace quire::cuda
