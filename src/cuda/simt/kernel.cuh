// SPDX-License-Identifier: Apache-2.0
/// @file
/// Attention in fp32 on CUDA cores, for what no tensor-core kernel takes: fp32, mixed dtypes, any
/// head dim that is a multiple of 8 up to 512.
///
///   q [total_q, num_qo_heads, D], K and V pages  ->  o [total_q, num_qo_heads, Dv], lse
///
/// A block takes one share of the schedule. Its warps take a unit's rows in turn; a warp scores 32
/// keys at a time, one a lane, and accumulates their values with its lanes over the columns.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit_end.cuh"
#include "cuda/attend/visibility.cuh"
#include "cuda/common/convert.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/simt/instances.hpp"
#include "schedule/schedule.hpp"

namespace quire::cuda::simt {

inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * kWarpSize;
inline constexpr int kTileRows = 16;
inline constexpr int kTileKeys = 32;
inline constexpr int kChunk = 8;  // elements that a lane reads at once
inline constexpr int kChunksPerLane = kMaxHeadDim / kChunk / kWarpSize;

struct Shared {
  float queries[kWarps][kMaxHeadDim];  // a warp's row
  std::uint32_t complete[4];           // queries, or a split unit
};

template <typename Element>
struct alignas(sizeof(Element) * kChunk > 16 ? 16 : sizeof(Element) * kChunk) Chunk {
  Element elements[kChunk];
};

template <typename Element>
__device__ Chunk<Element> load_chunk(const void* base, std::int64_t element) {
  return *reinterpret_cast<const Chunk<Element>*>(static_cast<const Element*>(base) + element);
}

/// Of o, where it is not fp32.
template <typename QueryElement>
using OutputOf = std::conditional_t<sizeof(QueryElement) == 1, EitherHalf, QueryElement>;

/// One row of a unit, in one warp.
template <typename QueryElement, typename KvElement>
class RowAttention {
 public:
  __device__ RowAttention(const AttendParams& params, const Unit& unit, std::int32_t row,
                          float* query, int lane)
      : params_(params),
        unit_(unit),
        visibility_(params, unit),
        logits_(params, unit.kv_head_begin),
        row_(row),
        query_(unit.q_begin + params.group_size.quotient(row)),
        q_(query),
        lane_(lane) {}

  __device__ void run() {
    load_query();
    for (std::int32_t key = unit_.kv_begin; key < unit_.kv_end; key += kTileKeys) attend(key);
    sum_ = warp_sum(sum_);
  }

  __device__ void store() const {
    if (unit_.num_pieces == 1 && !unit_.leaves_states()) {
      store_result();
    } else {
      store_partial();
    }
  }

 private:
  __device__ void load_query() {
    const RowTarget row = row_of_q(params_, unit_, row_);
    const core::Rows& q = params_.tensors.q;
    const std::int64_t first = row.token * q.token_stride + row.head * q.head_stride;
    const float scale = query_scale(params_, row.head);
    __syncwarp();
    for (int i = lane_; i < params_.shape.head_dim_qk; i += kWarpSize) {
      q_[i] = scale * to_float(static_cast<const QueryElement*>(q.data)[first + i]);
    }
    __syncwarp();
  }

  /// Where a key lies in a cache, in elements.
  __device__ std::int64_t offset_of(const core::Pages& cache, std::int32_t key) const {
    const schedule::KeyRun run =
        schedule::key_run(params_.shape, params_.batch, unit_.seq, key, key + 1);
    return run.page * cache.page_stride + run.token * cache.token_stride +
           unit_.kv_head_begin * cache.head_stride;
  }

  /// Of a key that the row sees; 1 if scales are not per token.
  __device__ float token_scale(const core::TokenScales& scales, std::int32_t key) const {
    if (scales.data == nullptr) return 1.0F;
    const schedule::KeyRun run =
        schedule::key_run(params_.shape, params_.batch, unit_.seq, key, key + 1);
    return scales.data[run.page * scales.page_stride + run.token * scales.token_stride +
                       unit_.kv_head_begin * scales.head_stride];
  }

  __device__ void attend(std::int32_t first_key) {
    const std::int32_t key = first_key + lane_;
    const bool seen = visibility_.sees(query_, key);
    const float logit = seen ? logit_of(key) : kNoKey;
    float max = warp_max(logit);
    if (max == kNoKey) return;
    max = fmaxf(max, max_);
    const float factor = exp2f(max_ - max);
    const float weight = exp2f(logit - max);
    max_ = max;
    sum_ = sum_ * factor + weight;
    const float v_weight = seen ? weight * token_scale(params_.tensors.v_token_scale, key) : 0.0F;
    accumulate(seen ? offset_of(params_.tensors.v, key) : 0, v_weight, factor);
  }

  __device__ float logit_of(std::int32_t key) const {
    const std::int64_t first = offset_of(params_.tensors.k, key);
    float product = 0.0F;
    for (int at = 0; at < params_.shape.head_dim_qk; at += kChunk) {
      const auto chunk = load_chunk<KvElement>(params_.tensors.k.data, first + at);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) product += q_[at + i] * to_float(chunk.elements[i]);
    }
    product *= token_scale(params_.tensors.k_token_scale, key);
    if (logits_.is_linear()) return product * logits_.scale();
    const std::int32_t head =
        unit_.kv_head_begin * params_.shape.group_size + row_ % params_.shape.group_size;
    const float logit = logits_.capped<true>(product);
    if (params_.tensors.alibi_slopes == nullptr) return logit;
    const std::int32_t distance = unit_.lengths.position(query_) - key;
    return logit - LogitTransform::alibi(params_.tensors.alibi_slopes[head], distance);
  }

  /// o = o · factor + Σ weight · v over the lanes' keys; a key of weight 0 is not read.
  __device__ void accumulate(std::int64_t offset, float weight, float factor) {
#pragma unroll
    for (int chunk = 0; chunk < kChunksPerLane; ++chunk) {
      const int column = (chunk * kWarpSize + lane_) * kChunk;
      const bool in_row = column < params_.shape.head_dim_vo;
#pragma unroll
      for (float& x : o_[chunk]) x *= factor;
      for (int source = 0; source < kWarpSize; ++source) {
        const float w = __shfl_sync(kAllLanes, weight, source);
        const std::int64_t first = __shfl_sync(kAllLanes, offset, source);
        if (w == 0.0F || !in_row) continue;
        const auto values = load_chunk<KvElement>(params_.tensors.v.data, first + column);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) o_[chunk][i] += w * to_float(values.elements[i]);
      }
    }
  }

  __device__ void store_result() const {
    const RowTarget target = row_target(params_, unit_, row_);
    const RowResult result = result_of(params_, target.head, max_, sum_);
#pragma unroll
    for (int chunk = 0; chunk < kChunksPerLane; ++chunk) {
      const int column = (chunk * kWarpSize + lane_) * kChunk;
      if (column >= params_.shape.head_dim_vo) continue;
      float values[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) values[i] = o_[chunk][i] * result.o_scale;
      store_o<OutputOf<QueryElement>>(params_, target, column, values);
    }
    if (lane_ == 0) store_lse(params_, target, result);
  }

  __device__ void store_partial() const {
    const std::int32_t to = partial_row<schedule::kSmallUnits>(params_, unit_, row_);
    float* o = params_.partials.o + to * params_.shape.head_dim_vo;
#pragma unroll
    for (int chunk = 0; chunk < kChunksPerLane; ++chunk) {
      const int column = (chunk * kWarpSize + lane_) * kChunk;
      if (column >= params_.shape.head_dim_vo) continue;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) o[column + i] = o_[chunk][i];
    }
    if (lane_ == 0) params_.partials.max_and_sum[to] = make_float2(max_, sum_);
  }

  const AttendParams& params_;
  const Unit& unit_;
  const Visibility visibility_;
  const LogitTransform logits_;
  const std::int32_t row_;
  const std::int32_t query_;  // of the request
  float* const q_;            // [head_dim_qk], shared by the warp
  const int lane_;
  float o_[kChunksPerLane][kChunk] = {};
  float max_ = kNoKey;
  float sum_ = 0.0F;  // of this lane's keys, until the end
};

template <typename QueryElement, typename KvElement>
__device__ void attend_unit(const AttendParams& params, const Unit& unit, Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  if (unit.sees_nothing()) {
    store_empty_unit<OutputOf<QueryElement>>(params, unit, thread, kThreads);
    return;
  }
  for (std::int32_t row = warp; row < unit.rows; row += kWarps) {
    RowAttention<QueryElement, KvElement> attention(params, unit, row, shared.queries[warp], lane);
    attention.run();
    attention.store();
  }
  if (unit.num_pieces == 1 && !unit.leaves_states()) return;
  finish_partial<schedule::kSmallUnits, OutputOf<QueryElement>>(
      params, unit, shared.complete, thread, kThreads, [] { __syncthreads(); });
}

template <typename QueryElement, typename KvElement>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    attend_kernel(const __grid_constant__ AttendParams params) {
  __shared__ Shared shared;
  if (params.check != nullptr && params.check->what != 0) return;
  const auto range = static_cast<std::int32_t>(blockIdx.x);
  UnitCursor<schedule::kSmallUnits> units(params, range);
  for (Unit unit = units.next(); unit.rows > 0; unit = units.next()) {
    attend_unit<QueryElement, KvElement>(params, unit, shared);
  }
  store_padding<OutputOf<QueryElement>>(params, params.schedule.header->overview.num_queries,
                                        kThreads);
}

template <typename QueryElement, typename KvElement>
AttendKernel describe_kernel() {
  AttendKernel kernel;
  kernel.function = reinterpret_cast<const void*>(&attend_kernel<QueryElement, KvElement>);
  kernel.threads = kThreads;
  kernel.blocks_per_multiprocessor = kBlocksPerMultiprocessor;
  kernel.tile_rows = kTileRows;
  kernel.tile_keys = kTileKeys;
  return kernel;
}

}  // namespace quire::cuda::simt
