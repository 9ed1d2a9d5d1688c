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

/// Row of `PartialStates` of a unit that leaves states.
__device__ __forceinline__ std::int32_t state_row(const AttendParams& params, const Unit& unit,
                                                  std::int32_t row) {
  const std::int32_t query = params.group_size.quotient(row);
  return params.partials.first_state + (unit.queries.state + query) * params.shape.num_qo_heads +
         unit.kv_head_begin * params.shape.group_size + params.group_size.remainder(row, query);
}

/// Row of `PartialStates` where a piece, or a unit that leaves states, leaves its row `row`.
__device__ __forceinline__ std::int32_t partial_row(const AttendParams& params, const Unit& unit,
                                                    std::int32_t row) {
  return unit.num_pieces > 1 ? PartialRows(params, unit).at(unit.piece, row)
                             : state_row(params, unit, row);
}

/// Where a part of a row lies.
struct RowPart {
  std::int32_t at;  // row of `PartialStates`; of another part if there is none
  bool is_there;
};

/// Neighbouring elements [column, column + 4) of a row that has been merged.
struct MergedRow {
  std::int32_t column;
  float o[4];
  float max;
  float sum;
};

template <typename Element>
__device__ __forceinline__ void store_merged(const AttendParams& params, RowTarget target,
                                             const MergedRow& merged) {
  const RowResult result = result_of(params, target.head, merged.max, merged.sum);
  const float o[4] = {merged.o[0] * result.o_scale, merged.o[1] * result.o_scale,
                      merged.o[2] * result.o_scale, merged.o[3] * result.o_scale};
  store_o<Element>(params, target, merged.column, o);
  if (merged.column == 0) store_lse(params, target, result);
}

/// The rows of a split unit, in parts: its pieces, in the order of the keys.
template <typename Element>
class SplitRows {
 public:
  __device__ SplitRows(const AttendParams& params, const Unit& unit)
      : params_(params), unit_(unit), rows_(params, unit) {}

  [[nodiscard]] __device__ std::int32_t num_rows() const { return unit_.rows; }
  [[nodiscard]] __device__ std::int32_t num_parts() const { return unit_.num_pieces; }
  [[nodiscard]] __device__ RowPart part_of(std::int32_t row, std::int32_t part) const {
    return {rows_.at(min(part, unit_.num_pieces - 1), row), part < unit_.num_pieces};
  }
  __device__ void store(std::int32_t row, const MergedRow& merged) const {
    if (!unit_.leaves_states()) {
      store_merged<Element>(params_, row_target(params_, unit_, row), merged);
      return;
    }
    const std::int32_t to = state_row(params_, unit_, row);
    *reinterpret_cast<float4*>(params_.partials.o + to * params_.shape.head_dim_vo +
                               merged.column) =
        make_float4(merged.o[0], merged.o[1], merged.o[2], merged.o[3]);
    if (merged.column == 0) params_.partials.max_and_sum[to] = make_float2(merged.max, merged.sum);
  }

 private:
  const AttendParams& params_;
  const Unit& unit_;
  const PartialRows rows_;
};

/// Rows of some listed queries of a unit for its kv head, in parts: the results of the shared
/// prefixes, upper levels first, and that of the request's own keys.
template <typename Element>
class ListedRows {
 public:
  /// @param first    Place in the list of the query of bit 0.
  /// @param step     From one bit's query to the next one's.
  /// @param queries  Bits of those that are meant.
  __device__ ListedRows(const AttendParams& params, const Unit& unit, std::int32_t first,
                        std::int32_t step, unsigned queries)
      : params_(params),
        first_head_(unit.kv_head_begin * params.shape.group_size),
        first_(first),
        step_(step),
        queries_(queries),
        num_listed_(params.schedule.header->num_listed),
        levels_(params.schedule.header->levels) {}

  [[nodiscard]] __device__ std::int32_t num_rows() const {
    return __popc(queries_) * params_.shape.group_size;
  }
  [[nodiscard]] __device__ std::int32_t num_parts() const { return schedule::kOwnLevel + 1; }
  [[nodiscard]] __device__ RowPart part_of(std::int32_t row, std::int32_t part) const {
    const std::int32_t listed = listed_of(params_.group_size.quotient(row));
    const unsigned levels = params_.schedule.listed[listed].levels;
    const bool is_there = (levels >> static_cast<unsigned>(part) & 1U) != 0;
    const auto level = static_cast<unsigned>(is_there ? part : schedule::kOwnLevel);
    const std::int32_t above = __popc(levels_ & ((1U << level) - 1U));
    return {params_.partials.first_state +
                (above * num_listed_ + listed) * params_.shape.num_qo_heads + head_of(row),
            is_there};
  }
  __device__ void store(std::int32_t row, const MergedRow& merged) const {
    const std::int32_t listed = listed_of(params_.group_size.quotient(row));
    store_merged<Element>(params_, {params_.schedule.listed[listed].token, head_of(row)}, merged);
  }

 private:
  [[nodiscard]] __device__ std::int32_t head_of(std::int32_t row) const {
    return first_head_ + params_.group_size.remainder(row, params_.group_size.quotient(row));
  }
  /// Place in the list of the `index`th query that is meant.
  [[nodiscard]] __device__ std::int32_t listed_of(std::int32_t index) const {
    unsigned queries = queries_;
    for (; index > 0; --index) queries &= queries - 1U;
    return first_ + (__ffs(static_cast<int>(queries)) - 1) * step_;
  }

  const AttendParams& params_;
  const std::int32_t first_head_;
  const std::int32_t first_;
  const std::int32_t step_;
  const unsigned queries_;
  const std::int32_t num_listed_;
  const unsigned levels_;
};

/// Some rows that lie in parts, by one warp, each lane in its columns [column, column + 4). The rows
/// are `row`, `row` + `row_step` and so on; those that are not there are not stored.
/// @tparam Rows    `SplitRows` or `ListedRows`.
/// @tparam kParts  Of a row, that are on their way at the same time; so are all the rows.
template <typename Rows, int kRows, int kParts>
class RowMerge {
 public:
  __device__ RowMerge(const AttendParams& params, const Rows& rows, std::int32_t row,
                      std::int32_t row_step, int column)
      : params_(params),
        rows_(rows),
        row_(row),
        row_step_(row_step),
        column_(column),
        is_in_row_(column < params.shape.head_dim_vo) {
#pragma unroll
    for (float& max : max_) max = kNoKey;
  }

  __device__ void run() {
#pragma unroll 1
    for (std::int32_t first = 0; first < rows_.num_parts(); first += kParts) add(first);
  }

  __device__ void store() {
#pragma unroll 1
    for (int i = 0; i < kRows && row_ + i * row_step_ < rows_.num_rows(); ++i) {
      if (!is_in_row_) continue;
      rows_.store(row_ + i * row_step_,
                  {column_,
                   {of_row(o_[0], i), of_row(o_[1], i), of_row(o_[2], i), of_row(o_[3], i)},
                   of_row(max_, i),
                   of_row(sum_, i)});
    }
  }

 private:
  /// Parts [first, first + kParts); those that are not there weigh nothing. Without branches, so that
  /// all loads are on their way before the first of them is waited for.
  __device__ void add(std::int32_t first) {
    float4 parts[kRows][kParts];
    float2 states[kRows][kParts];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const std::int32_t row = min(row_ + i * row_step_, rows_.num_rows() - 1);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const RowPart from = rows_.part_of(row, first + part);
        states[i][part] = __ldcg(params_.partials.max_and_sum + from.at);
        parts[i][part] = __ldcg(reinterpret_cast<const float4*>(
            params_.partials.o + from.at * params_.shape.head_dim_vo + (is_in_row_ ? column_ : 0)));
        if (!from.is_there) states[i][part].x = kNoKey;
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) add(i, states[i], parts[i]);
  }

  __device__ void add(int i, const float2 (&states)[kParts], const float4 (&parts)[kParts]) {
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
    for (int part = 0; part < kParts; ++part) {
      const float weight = exp2_fast(states[part].x - base);
      sum_[i] += weight * states[part].y;
      o_[0][i] += weight * parts[part].x;
      o_[1][i] += weight * parts[part].y;
      o_[2][i] += weight * parts[part].z;
      o_[3][i] += weight * parts[part].w;
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
  const Rows& rows_;
  const std::int32_t row_;
  const std::int32_t row_step_;
  const int column_;
  const bool is_in_row_;
  float max_[kRows];
  float sum_[kRows] = {};
  float o_[4][kRows] = {};
};

/// A warp's rows: `row`, `row` + `row_step` and so on.
template <int kRows, int kParts, typename Rows>
__device__ __forceinline__ void merge_rows(const AttendParams& params, const Rows& rows,
                                           std::int32_t row, std::int32_t row_step) {
  constexpr int kColumns = 4 * kWarpSize;  // of a warp
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll 1
  for (; row < rows.num_rows(); row += kRows * row_step) {
#pragma unroll 1
    for (int column = lane * 4; column - lane * 4 < params.shape.head_dim_vo; column += kColumns) {
      RowMerge<Rows, kRows, kParts> merge(params, rows, row, row_step, column);
      merge.run();
      merge.store();
    }
  }
}

/// Joins the pieces of a split unit in the order of the keys: many rows of few pieces at a time, or
/// many pieces of a row.
template <typename Element>
__device__ inline void merge_pieces(const AttendParams& params, const Unit& unit, int thread,
                                    int threads) {
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t warps = threads / kWarpSize;
  const SplitRows<Element> rows(params, unit);
  if (unit.num_pieces <= 4 && unit.rows > warps) {
    merge_rows<4, 4>(params, rows, warp, warps);
  } else if (unit.num_pieces <= 8 && unit.rows > warps) {
    merge_rows<2, 8>(params, rows, warp, warps);
  } else {
    merge_rows<1, 16>(params, rows, warp, warps);
  }
}

/// Counts a result of a listed query for the unit's kv head. @return True for the last one; the
/// counter is 0 again then.
__device__ inline bool arrive_last_of_query(const AttendParams& params, const Unit& unit,
                                            std::int32_t listed) {
  std::uint32_t* const counter =
      params.schedule.listed_arrivals + listed * params.shape.num_kv_heads + unit.kv_head_begin;
  __threadfence();
  const std::uint32_t before = atomicAdd(counter, 1U);
  if (before + 1 < static_cast<std::uint32_t>(__popc(params.schedule.listed[listed].levels))) {
    return false;
  }
  *counter = 0;
  __threadfence();
  return true;
}

/// Counts the results that a unit has left, and joins those of the queries of which nothing is
/// missing any more. A lane counts for a query; then the warp joins.
template <typename Element>
__device__ inline void join_states(const AttendParams& params, const Unit& unit, int thread,
                                   int threads) {
  const std::int32_t warps = threads / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const std::int32_t queries = unit.q_end - unit.q_begin;
#pragma unroll 1
  for (std::int32_t first = thread / kWarpSize; first < queries; first += warps * kWarpSize) {
    const std::int32_t query = first + lane * warps;
    const bool is_last =
        query < queries && arrive_last_of_query(params, unit, unit.queries.first + query);
    const unsigned complete = __ballot_sync(kAllLanes, is_last);
    if (complete == 0) continue;
    __threadfence();
    const ListedRows<Element> rows(params, unit, unit.queries.first + first, warps, complete);
    merge_rows<4, schedule::kOwnLevel + 1>(params, rows, 0, 1);
  }
}

/// What follows when a unit, or a piece of one, has left results that are not final: whoever is the
/// last one joins them. `threads` threads call it.
/// @param is_last  In shared memory.
/// @param wait     A barrier of these threads.
template <typename Element, typename Barrier>
__device__ inline void finish_partial(const AttendParams& params, const Unit& unit, bool& is_last,
                                      int thread, int threads, const Barrier& wait) {
  wait();
  if (unit.num_pieces > 1) {
    if (thread == 0) is_last = arrive_last(params, unit);
    wait();
    if (!is_last) return;
    merge_pieces<Element>(params, unit, thread, threads);
    if (!unit.leaves_states()) return;
    wait();
  }
  join_states<Element>(params, unit, thread, threads);
}

}  // namespace quire::cuda
