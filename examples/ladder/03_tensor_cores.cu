// SPDX-License-Identifier: Apache-2.0
// Step 03: tensor cores, on tiles that CuTe gathers from the pages (03_paged_tiles.cuh; read it
// first).
//
//   q, k_pages, v_pages as before, in bf16  ->  o and the softmax state of each row, in fp32
//
// A tensor core multiplies small matrices: 16 × 16 by 16 × 8 in one instruction of a warp. Which lane
// holds which elements is fixed by the hardware and not pretty; CuTe's partitions know it.
//
// A block takes a segment (plan.hpp): up to 64 rows (query, head) against keys that they share. In
// this step a segment is one request, so 4 of the 64 rows are real. Tensor cores are so fast that
// this does not matter: three warps only help to copy, and 12 of the fourth's 16 rows are zeros.
#include <cmath>
#include <cute/atom/mma_atom.hpp>

#include "03_paged_tiles.cuh"
#include "steps.hpp"

namespace ladder {
namespace {

using namespace tiles;  // NOLINT: one lesson in two files

constexpr int kRowsPerWarp = 16;
constexpr int kRowsPerLane = 2;  // of a warp's 16: eight groups of four lanes hold two rows each

// Four warps, one above the other, 16 rows each.
using Mma = decltype(make_tiled_mma(SM80_16x8x16_F32BF16BF16F32_TN{}, Layout<Shape<_4, _1, _1>>{},
                                    Tile<Int<kSegmentRows>, _16, _16>{}));
// How a warp's operands come from shared memory: four 8 × 8 matrices an instruction, as they lie
// (a row of Q, a key) or transposed (V, whose components become rows).
using LoadMatrices = Copy_Atom<SM75_U32x4_LDSM_N, Element>;
using LoadTransposed = Copy_Atom<SM75_U16x8_LDSM_T, Element>;
// V's tile with tokens and components exchanged: the same elements, other coordinates.
using Exchanged = Layout<Shape<Int<kHeadDim>, Int<kTileTokens>>, Stride<Int<kTileTokens>, _1>>;

// A lane's share of a result (rows of 16, columns by the eight), as its two rows.
template <int kColumns>
using LaneRows = Layout<Shape<_2, Shape<_2, Int<kColumns / 8>>>, Stride<_2, Stride<_1, _4>>>;
// Its share of the weights as the left-hand matrix of the next product: the registers stay where
// they are, as two 16 × 8 results side by side are one 16 × 16 operand.
using Operand =
    Layout<Shape<Shape<_2, _2, _2>, _1, Int<kTileTokens / 16>>, Stride<Stride<_1, _2, _4>, _0, _8>>;

/// Row of Q and O of a segment's row.
__device__ int row_of(const Bf16Problem& problem, const PlanView& plan, const Segment& segment,
                      int kv_head, int row) {
  const int member = plan.members[segment.first_member + row / kGroup];
  return problem.requests[member].q_start * problem.num_qo_heads + kv_head * kGroup + row % kGroup;
}

/// Rows without a query become zeros.
template <typename Tile>
__device__ void load_q(const Bf16Problem& problem, const PlanView& plan, const Segment& segment,
                       int kv_head, Tile& tile) {
  constexpr int kPieces = kHeadDim / 8;  // of 16 bytes in a row
  for (int i = static_cast<int>(threadIdx.x); i < kSegmentRows * kPieces; i += kThreads) {
    const int row = i / kPieces;
    const int column = i % kPieces * 8;
    uint4 piece{};
    if (row < segment.num_members * kGroup) {
      const auto at =
          std::int64_t{row_of(problem, plan, segment, kv_head, row)} * kHeadDim + column;
      piece = *reinterpret_cast<const uint4*>(problem.q + at);
    }
    *reinterpret_cast<uint4*>(&tile(row, column)) = piece;
  }
}

/// Online softmax of a tile: scores (row, column) become weights, o is scaled. Four lanes share a
/// row. `sum` is over this lane's columns only, until the end.
template <typename Scores, typename Output>
__device__ void online_softmax(Scores& scores, Output& o, float (&max)[kRowsPerLane],
                               float (&sum)[kRowsPerLane]) {
#pragma unroll
  for (int row = 0; row < kRowsPerLane; ++row) {
    float now = max[row];
    for (int i = 0; i < size<1>(scores); ++i) now = fmaxf(now, scores(row, i));
    now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, 1));
    now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, 2));
    const float keep = part_weight(max[row], now);
    max[row] = now;
    sum[row] *= keep;
    for (int i = 0; i < size<1>(o); ++i) o(row, i) *= keep;
    for (int i = 0; i < size<1>(scores); ++i) {
      scores(row, i) = exp2f(scores(row, i) - now);  // a tile has a key: now is not −inf
      sum[row] += scores(row, i);
    }
  }
}

/// A row's o, divided by its sum, and its state.
template <typename LaneMma, typename Output>
__device__ void store(const Bf16Problem& problem, const PlanView& plan, const Segment& segment,
                      int kv_head, const LaneMma& lane_mma, const Output& o,
                      const float (&max)[kRowsPerLane], const float (&sum)[kRowsPerLane]) {
  const Tensor at =  // (row, component) of each of this lane's registers
      lane_mma.partition_C(make_identity_tensor(Shape<Int<kSegmentRows>, Int<kHeadDim>>{}));
#pragma unroll
  for (int i = 0; i < kRowsPerLane; ++i) {
    float total = sum[i];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const int row = get<0>(at(o.layout()(i, 0)));
    if (row >= segment.num_members * kGroup) continue;  // zeros that filled the tile
    const auto result = std::int64_t{segment.part} * problem.num_rows() +
                        row_of(problem, plan, segment, kv_head, row);
    const float scale = total > 0.0F ? 1.0F / total : 0.0F;
    for (int j = 0; j < size<1>(o); ++j) {
      plan.o[result * kHeadDim + get<1>(at(o.layout()(i, j)))] = o(i, j) * scale;
    }
    if (threadIdx.x % 4 == 0) plan.states[result] = {max[i], total};
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    attend_segments(const Bf16Problem problem, const PlanView plan) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  const Segment segment = plan.segments[blockIdx.y];
  const int kv_head = static_cast<int>(blockIdx.x);
  const int num_rows = segment.num_members * kGroup;
  const bool has_rows = static_cast<int>(threadIdx.x) / kWarpSize * kRowsPerWarp < num_rows;
  const Tensor k_tiles = make_tensor(make_smem_ptr(shared.k), Tiles{});
  const Tensor v_tiles = make_tensor(make_smem_ptr(shared.v), Tiles{});

  TileLoader loader{problem, segment, problem.requests[plan.members[segment.first_member]], kv_head,
                    shared};
  for (int tile = 0; tile < kStages - 1; ++tile) {
    loader.load(tile);
    cp_async_fence();
  }

  // Q goes into registers, through the stage that is not on its way yet.
  const Mma mma;
  const auto lane_mma = mma.get_slice(threadIdx.x);
  Tensor q_tile = k_tiles(_, _, kStages - 1);
  load_q(problem, plan, segment, kv_head, q_tile);
  __syncthreads();
  Tensor q = lane_mma.partition_fragment_A(q_tile);
  const auto load_a = make_tiled_copy_A(LoadMatrices{}, mma);
  const auto lane_a = load_a.get_slice(threadIdx.x);
  copy(load_a, lane_a.partition_S(q_tile), lane_a.retile_D(q));

  // Which lane reads which piece of a tile, and where it goes among its registers.
  const auto load_k = make_tiled_copy_B(LoadMatrices{}, mma);
  const auto lane_k = load_k.get_slice(threadIdx.x);
  const auto load_v = make_tiled_copy_B(LoadTransposed{}, mma);
  const auto lane_v = load_v.get_slice(threadIdx.x);
  Tensor k = lane_mma.partition_fragment_B(k_tiles(_, _, 0));
  Tensor v = lane_mma.partition_fragment_B(make_tensor(make_smem_ptr(shared.v), Exchanged{}));
  Tensor scores = partition_fragment_C(mma, Shape<Int<kSegmentRows>, Int<kTileTokens>>{});
  Tensor o = partition_fragment_C(mma, Shape<Int<kSegmentRows>, Int<kHeadDim>>{});
  const Tensor score_at = lane_mma.partition_C(  // (row, token of the tile) of each of the scores
      make_identity_tensor(Shape<Int<kSegmentRows>, Int<kTileTokens>>{}));
  Tensor score_rows = make_tensor(scores.data(), LaneRows<kTileTokens>{});
  Tensor o_rows = make_tensor(o.data(), LaneRows<kHeadDim>{});
  float max[kRowsPerLane] = {-INFINITY, -INFINITY};
  float sum[kRowsPerLane] = {0.0F, 0.0F};
  clear(o);

  const int num_tiles = (segment.kv_end - segment.kv_begin + kTileTokens - 1) / kTileTokens;
  for (int tile = 0; tile < num_tiles; ++tile) {
    cp_async_wait<kStages - 2>();  // as in step 02
    __syncthreads();
    loader.load(tile + kStages - 1);
    cp_async_fence();
    if (!has_rows) continue;

    const Tensor k_tile = k_tiles(_, _, tile % kStages);
    const Tensor v_tile = v_tiles(_, _, tile % kStages).compose(Exchanged{});
    clear(scores);
#pragma unroll
    for (int step = 0; step < size<2>(k); ++step) {  // 16 components a step
      copy(load_k, lane_k.partition_S(k_tile)(_, _, step), lane_k.retile_D(k)(_, _, step));
      gemm(mma, q(_, _, step), k(_, _, step), scores);
    }
    const int num_tokens = segment.kv_end - segment.kv_begin - tile * kTileTokens;
    for (int i = 0; i < size(scores); ++i) {
      scores(i) = get<1>(score_at(i)) < num_tokens ? scores(i) * kScoreScale : -INFINITY;
    }
    online_softmax(score_rows, o_rows, max, sum);

    Tensor weights = make_tensor_like<Element>(scores);
    for (int i = 0; i < size(scores); ++i) weights(i) = Element(scores(i));
    const Tensor operand = make_tensor(weights.data(), Operand{});
#pragma unroll
    for (int step = 0; step < size<2>(v); ++step) {  // 16 tokens a step
      copy(load_v, lane_v.partition_S(v_tile)(_, _, step), lane_v.retile_D(v)(_, _, step));
      gemm(mma, operand(_, _, step), v(_, _, step), o);
    }
  }
  if (has_rows) store(problem, plan, segment, kv_head, lane_mma, o_rows, max, sum);
}

}  // namespace

void launch_03(const Bf16Problem& problem, const PlanView& plan, cudaStream_t stream) {
  cudaFuncSetAttribute(attend_segments, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       sizeof(Shared));
  const dim3 grid(static_cast<unsigned>(problem.num_kv_heads),
                  static_cast<unsigned>(plan.num_segments));
  attend_segments<<<grid, kThreads, sizeof(Shared), stream>>>(problem, plan);
}

// What is the bottleneck? For requests that have nothing in common, the memory: each byte is read
// once, and the rest hides behind the reading. But 64 requests behind one system prompt read that
// prompt 64 times, for 4 rows each, where a block has room for 64. The next file packs them.

}  // namespace ladder
