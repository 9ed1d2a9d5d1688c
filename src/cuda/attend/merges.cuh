// SPDX-License-Identifier: Apache-2.0
/// @file
/// Results that are not final: where they lie, and how rows that lie in parts are joined in one order,
/// so that the bits do not depend on who does it. Parts are the pieces of a split unit, or what shared
/// prefixes and a request's own keys, or its fixed parts, have left.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"

namespace quire::cuda {

/// Where the results of a unit of a line that are not final lie: those of a split unit's pieces in slots of
/// the line, all others (whole units beside prefixes, fixed parts) with those of their queries. There
/// are few enough rows that 32 bits count their elements (`ScratchLayout`).
template <schedule::Line kLine>
__device__ inline PieceRows rows_of_pieces(const AttendParams& params, const Unit& unit) {
  if (unit.lies_with_states()) {
    const std::int32_t first = params.partials.first_state +
                               unit.queries.state * params.shape.num_qo_heads +
                               unit.kv_head_begin * params.shape.group_size;
    return {first, unit.lengths.qo_len * params.shape.num_qo_heads, 0, unit.num_pieces};
  }
  const std::int32_t heads = params.policy.lines[kLine].heads_abreast;
  const std::int32_t max_rows = params.partials.max_rows[kLine];
  const std::int32_t slot = 2 * unit.first_range;
  static_assert(schedule::partial_slot(3, 0) == 2 * 3 + 1 && schedule::partial_slot(3, 2) == 2 * 5);
  return {params.partials.first_row[kLine] + (slot * heads + unit.kv_head_begin % heads) * max_rows,
          2 * heads * max_rows, heads * max_rows, unit.num_pieces};
}

/// Row of `PartialStates` of a piece.
__device__ __forceinline__ std::int32_t row_of_piece(const PieceRows& rows, std::int32_t piece) {
  return rows.base + piece * rows.step + (piece == 0 ? rows.skip : 0);
}

/// From one query's rows to the next one's.
__device__ __forceinline__ std::int32_t row_stride_of_queries(const AttendParams& params,
                                                              const Unit& unit) {
  return unit.lies_with_states() ? params.shape.num_qo_heads : params.shape.group_size;
}

/// Row of `PartialStates` where a unit, or a piece of one, leaves its row `row`.
template <schedule::Line kLine>
__device__ __forceinline__ std::int32_t partial_row(const AttendParams& params, const Unit& unit,
                                                    std::int32_t row) {
  const std::int32_t query = params.group_size.quotient(row);
  return row_of_piece(rows_of_pieces<kLine>(params, unit), unit.piece) +
         query * row_stride_of_queries(params, unit) + params.group_size.remainder(row, query);
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

/// Index of `PartialStates::pieces`.
__device__ __forceinline__ std::int32_t index_of_pieces(const AttendParams& params,
                                                        std::int32_t listed, std::int32_t level,
                                                        std::int32_t kv_head) {
  return (listed * (schedule::kPrefixLevels + 1) + level) * params.shape.num_kv_heads + kv_head;
}

/// The last part of a row, which whoever joins it has in registers.
struct OwnPart {
  float4 o;
  float2 max_and_sum;
};

/// The rows of a listed query for a kv head, in parts: the pieces of the shared prefixes, upper levels
/// first, and those of the request's own keys.
/// @tparam kHasOwn  The own keys are one part, and the caller has it.
template <typename Element, bool kHasOwn = false>
class ListedRows {
 public:
  __device__ ListedRows(const AttendParams& params, std::int32_t kv_head, std::int32_t listed,
                        const OwnPart& own = {})
      : params_(params),
        first_head_(kv_head * params.shape.group_size),
        query_(params.schedule.listed[listed]),
        own_(own) {
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      if (kHasOwn && level == schedule::kOwnLevel) {
        pieces_[level] = {0, 0, 0, 1};
        ++num_parts_;
        continue;
      }
      const int4 pieces = __ldcg(reinterpret_cast<const int4*>(
          params.partials.pieces + index_of_pieces(params, listed, level, kv_head)));
      const bool is_there = (query_.levels >> static_cast<unsigned>(level) & 1U) != 0;
      pieces_[level] = {pieces.x, pieces.y, pieces.z, is_there ? pieces.w : 0};
      num_parts_ += pieces_[level].count;
    }
  }

  [[nodiscard]] __device__ std::int32_t num_rows() const { return params_.shape.group_size; }
  [[nodiscard]] __device__ std::int32_t num_parts() const { return num_parts_; }
  [[nodiscard]] __device__ RowPart part_of(std::int32_t row, std::int32_t part) const {
    std::int32_t at = 0;
    std::int32_t left = min(part, num_parts_ - (kHasOwn ? 2 : 1));  // of those in memory
#pragma unroll
    for (const PieceRows& rows : pieces_) {
      if (left >= 0 && left < rows.count) at = row_of_piece(rows, left);
      left -= rows.count;
    }
    return {at + row, part < num_parts_};
  }
  __device__ __forceinline__ void replace_own(std::int32_t part, float2& state, float4& o) const {
    if (!kHasOwn || part != num_parts_ - 1) return;
    state = own_.max_and_sum;
    o = own_.o;
  }
  __device__ void store(std::int32_t row, const MergedRow& merged) const {
    store_merged<Element>(params_, {query_.token, first_head_ + row}, merged);
  }

 private:
  static constexpr int kLevels = schedule::kPrefixLevels + 1;

  const AttendParams& params_;
  const std::int32_t first_head_;
  const schedule::ListedQuery query_;
  PieceRows pieces_[kLevels];
  std::int32_t num_parts_ = 0;
  const OwnPart own_;
};

/// Merges rows that lie in parts. One warp does it, each lane columns [column, column + 4). The rows
/// are `row`, `row` + `row_step` and so on; those that are not there are not stored.
/// @tparam Rows    Such as `ListedRows`.
/// @tparam kParts  Of a row, that are on their way at the same time; so are all the rows.
/// @tparam kTogether  Parts that are added up at a time, after o has been lowered once, to the largest
///   maximum among them. It decides the bits: the same wherever the same bits are wanted.
template <typename Rows, int kRows, int kParts, int kTogether>
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
        rows_.replace_own(first + part, states[i][part], parts[i][part]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int part = 0; part < kParts; part += kTogether)
        add(i, states[i] + part, parts[i] + part);
    }
  }

  static_assert(kParts % kTogether == 0);
  __device__ __forceinline__ void add(int i, const float2* states, const float4* parts) {
    float max = max_[i];
#pragma unroll
    for (int part = 0; part < kTogether; ++part) max = fmaxf(max, states[part].x);
    const float base = max == kNoKey ? 0.0F : max;
    const float factor = exp2_fast(max_[i] - base);
    max_[i] = max;
    sum_[i] *= factor;
#pragma unroll
    for (auto& of_rows : o_) of_rows[i] *= factor;
#pragma unroll
    for (int part = 0; part < kTogether; ++part) {
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
template <int kRows, int kParts, int kTogether = kParts, typename Rows>
__device__ __forceinline__ void merge_rows(const AttendParams& params, const Rows& rows,
                                           std::int32_t row, std::int32_t row_step) {
  constexpr int kColumns = 4 * kWarpSize;  // of a warp
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll 1
  for (; row < rows.num_rows(); row += kRows * row_step) {
#pragma unroll 1
    for (int column = lane * 4; column - lane * 4 < params.shape.head_dim_vo; column += kColumns) {
      RowMerge<Rows, kRows, kParts, kTogether> merge(params, rows, row, row_step, column);
      merge.run();
      merge.store();
    }
  }
}

/// A row of many pieces, joined by a warp: lane i finds the weights of pieces i and i + 32, then o is
/// summed up. There is little code, since most who come here run it once and wait for it to come from
/// memory.
class ManyPieces {
 public:
  __device__ ManyPieces(const AttendParams& params, const PieceRows& pieces, std::int32_t row,
                        int column)
      : params_(params),
        pieces_(pieces),
        row_(row),
        merged_{column, {}, kNoKey, 0.0F},
        from_(params.partials.o + (column < params.shape.head_dim_vo ? column : 0)) {}

  __device__ const MergedRow& run() {
#pragma unroll 1
    for (std::int32_t first = 0; first < pieces_.count; first += 2 * kWarpSize) add(first);
    return merged_;
  }

 private:
  static constexpr int kAtOnce = 8;

  [[nodiscard]] __device__ std::int32_t row_of(std::int32_t piece) const {
    return row_of_piece(pieces_, piece) + row_;
  }

  /// Pieces [first, first + 64).
  __device__ void add(std::int32_t first) {
    const float2 low = state_of(first + lane());
    const float2 high = state_of(first + lane() + kWarpSize);
    float4 next[kAtOnce];
    load(next, first);
    const float max = fmaxf(merged_.max, warp_max(fmaxf(low.x, high.x)));
    const float base = max == kNoKey ? 0.0F : max;
    const float factor = exp2_fast(merged_.max - base);
    const float low_weight = exp2_fast(low.x - base);
    const float high_weight = exp2_fast(high.x - base);
    merged_.max = max;
    merged_.sum = merged_.sum * factor + warp_sum(low_weight * low.y + high_weight * high.y);
    for (float& x : merged_.o) x *= factor;
    const int count = min(2 * kWarpSize, pieces_.count - first);
#pragma unroll 1
    for (int i = 0; i < count; i += kAtOnce) {
      const float weight = i < kWarpSize ? low_weight : high_weight;
      float4 now[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) now[j] = next[j];
      load(next, first + i + kAtOnce);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float of_piece = __shfl_sync(kAllLanes, weight, (i + j) % kWarpSize);
        merged_.o[0] += of_piece * now[j].x;
        merged_.o[1] += of_piece * now[j].y;
        merged_.o[2] += of_piece * now[j].z;
        merged_.o[3] += of_piece * now[j].w;
      }
    }
  }

  [[nodiscard]] __device__ float2 state_of(std::int32_t piece) const {
    if (piece >= pieces_.count) return make_float2(kNoKey, 0.0F);
    return __ldcg(params_.partials.max_and_sum + row_of(piece));
  }

  /// Of pieces that are not there, which weigh nothing, others are loaded.
  __device__ __forceinline__ void load(float4 (&to)[kAtOnce], std::int32_t first) const {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const std::int32_t row = row_of(min(first + j, pieces_.count - 1));
      to[j] = __ldcg(reinterpret_cast<const float4*>(from_ + row * params_.shape.head_dim_vo));
    }
  }

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  const AttendParams& params_;
  const PieceRows& pieces_;
  const std::int32_t row_;
  MergedRow merged_;
  const float* const from_;
};

template <typename Element>
__device__ inline void merge_many_pieces(const AttendParams& params, const Unit& unit,
                                         const PieceRows& pieces, int warp, int warps) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll 1
  for (std::int32_t row = warp; row < unit.rows; row += warps) {
#pragma unroll 1
    for (int begin = 0; begin < params.shape.head_dim_vo; begin += 4 * kWarpSize) {
      ManyPieces row_pieces(params, pieces, row, begin + lane * 4);
      const MergedRow& merged = row_pieces.run();
      if (merged.column >= params.shape.head_dim_vo) continue;
      store_merged<Element>(params, row_target(params, unit, row), merged);
    }
  }
}

/// Rows of up to 32 pieces, as many at a time as there are lanes for their pieces: each lane finds the
/// weight of one, then rows are summed up one after another, with the next pieces on their way.
template <typename Element>
class FewPieces {
 public:
  /// @param rows_at_once  At most 32 / count of pieces.
  __device__ FewPieces(const AttendParams& params, const Unit& unit, const PieceRows& pieces,
                       int rows_at_once, int column)
      : params_(params),
        unit_(unit),
        pieces_(pieces),
        rows_at_once_(rows_at_once),
        column_(column),
        own_row_(lane() / pieces.count),
        own_piece_(lane() - own_row_ * pieces.count),
        from_(params.partials.o + (column < params.shape.head_dim_vo ? column : 0)) {}

  /// Rows [first, first + rows_at_once).
  __device__ void run(std::int32_t first) {
    const std::int32_t row = first + own_row_;
    const bool is_there = own_row_ < rows_at_once_ && row < unit_.rows;
    float2 state = make_float2(kNoKey, 0.0F);
    if (is_there) state = __ldcg(params_.partials.max_and_sum + place(own_piece_, row));
    begin_loading(first);
    float4 next[kAtOnce];
    load(next);
    const float weight = weigh(state, min(row, unit_.rows - 1), is_there);
    const std::int32_t end = min(first + rows_at_once_, unit_.rows);
    const int pairs = (end - first) * pieces_.count;
    float o[4] = {};
    int piece = 0;
    std::int32_t to = first;
#pragma unroll 1
    for (int i = 0; i < pairs; i += kAtOnce) {
      float4 now[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) now[j] = next[j];
      load(next);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float of_piece = __shfl_sync(kAllLanes, weight, (i + j) % kWarpSize);
        o[0] += of_piece * now[j].x;
        o[1] += of_piece * now[j].y;
        o[2] += of_piece * now[j].z;
        o[3] += of_piece * now[j].w;
        if (++piece < pieces_.count) continue;
        if (to < end && column_ < params_.shape.head_dim_vo) {
          store_o<Element>(params_, row_target(params_, unit_, to), column_, o);
        }
        o[0] = o[1] = o[2] = o[3] = 0.0F;
        piece = 0;
        ++to;
      }
    }
  }

 private:
  static constexpr int kAtOnce = 8;

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  [[nodiscard]] __device__ std::int32_t place(std::int32_t piece, std::int32_t row) const {
    return row_of_piece(pieces_, piece) + row;
  }

  /// What the lane's piece is to be multiplied by for the row's result. Writes lse.
  __device__ float weigh(float2 state, std::int32_t row, bool is_there) const {
    const int first = own_row_ * pieces_.count;
    float max = kNoKey;
#pragma unroll 1
    for (int i = 0; i < pieces_.count; ++i) {
      max = fmaxf(max, __shfl_sync(kAllLanes, state.x, first + i));
    }
    const float weight = exp2_fast(state.x - (max == kNoKey ? 0.0F : max));
    float sum = 0.0F;
#pragma unroll 1
    for (int i = 0; i < pieces_.count; ++i) {
      sum += __shfl_sync(kAllLanes, weight * state.y, first + i);
    }
    const RowTarget target = row_target(params_, unit_, row);
    const RowResult result = result_of(params_, target.head, max, sum);
    if (is_there && own_piece_ == 0 && column_ < 4 * kWarpSize) {
      store_lse(params_, target, result);
    }
    return weight * result.o_scale;
  }

  __device__ void begin_loading(std::int32_t first) {
    loaded_piece_ = 0;
    loaded_row_ = first;
  }
  /// The next pieces; of rows that are not there, others.
  __device__ __forceinline__ void load(float4 (&to)[kAtOnce]) {
#pragma unroll
    for (float4& part : to) {
      const std::int32_t row = place(loaded_piece_, min(loaded_row_, unit_.rows - 1));
      part = __ldcg(reinterpret_cast<const float4*>(from_ + row * params_.shape.head_dim_vo));
      if (++loaded_piece_ < pieces_.count) continue;
      loaded_piece_ = 0;
      ++loaded_row_;
    }
  }

  const AttendParams& params_;
  const Unit& unit_;
  const PieceRows& pieces_;
  const int rows_at_once_;
  const int column_;
  const int own_row_;
  const int own_piece_;
  const float* const from_;
  std::int32_t loaded_piece_ = 0;
  std::int32_t loaded_row_ = 0;
};

/// Joins the pieces of a split unit in the order of the keys. If there is a row for each warp at most, or
/// more pieces than lanes, by the shorter code: it has to come from memory.
template <typename Element>
__device__ inline void merge_pieces(const AttendParams& params, const Unit& unit,
                                    const PieceRows& pieces, int thread, int threads) {
  const int warp = thread / kWarpSize;
  const int warps = threads / kWarpSize;
  if (pieces.count > kWarpSize || unit.rows <= warps) {
    merge_many_pieces<Element>(params, unit, pieces, warp, warps);
    return;
  }
#pragma unroll 1
  for (int begin = 0; begin < params.shape.head_dim_vo; begin += 4 * kWarpSize) {
    const int column = begin + thread % kWarpSize * 4;
    const int rows_at_once = min(kWarpSize / pieces.count, (unit.rows + warps - 1) / warps);
    FewPieces<Element> merge(params, unit, pieces, rows_at_once, column);
#pragma unroll 1
    for (int row = warp * rows_at_once; row < unit.rows; row += warps * rows_at_once) {
      merge.run(row);
    }
  }
}

/// Parts of a listed query that are added up at a time: the same for all who may join it, so that the
/// bits are the same.
inline constexpr int kJoinTogether = 8;

}  // namespace quire::cuda
