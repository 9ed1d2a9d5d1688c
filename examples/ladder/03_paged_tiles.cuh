// SPDX-License-Identifier: Apache-2.0
// Step 03, first half: CuTe layouts over the paged tensor.
//
// A layout is a function from coordinates to an offset, given by a shape and strides. From layouts
// follow here the paged cache, a tile in shared memory, and what each thread copies; in the second
// half, 03_tensor_cores.cu, which element of a matrix a lane holds. CuTe computes with them at
// compile time, so that what remains is the address arithmetic that one would have written by hand.
#pragma once

#include <cstdint>
#include <cute/atom/copy_atom.hpp>
#include <cute/tensor.hpp>

#include "plan.hpp"
#include "problem.hpp"

namespace ladder::tiles {

using namespace cute;  // NOLINT: CuTe's algebra is a language of its own

using Element = bfloat16_t;
using Bf16Problem = Problem<__nv_bfloat16>;

constexpr int kThreads = 128;
constexpr int kStages = 3;
constexpr int kTileTokens = 64;
constexpr int kTilePages = kTileTokens / kPageSize;
constexpr int kTilesPerLookUp = kWarpSize / kTilePages;

// A tile in shared memory: 64 tokens of 128 components. Matrices are read from it as 8 rows of 16
// bytes; were rows simply 256 bytes apart, all 8 would lie in the same banks and be read one after
// the other. The swizzle permutes the 16-byte pieces of a row by the row's number.
using TileAtom =
    decltype(composition(Swizzle<3, 3, 3>{}, Layout<Shape<_8, _64>, Stride<_64, _1>>{}));
using Tiles =
    decltype(tile_to_shape(TileAtom{}, Shape<Int<kTileTokens>, Int<kHeadDim>, Int<kStages>>{}));
struct Shared {
  alignas(128) Element k[cosize_v<Tiles>];
  alignas(128) Element v[cosize_v<Tiles>];
};

// 128 threads copy 8 rows at once: 16 threads of 16 bytes a row.
using RowCopyAtom = Copy_Atom<SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>, Element>;
using RowCopy = decltype(make_tiled_copy(RowCopyAtom{}, Layout<Shape<_8, _16>, Stride<_16, _1>>{},
                                         Layout<Shape<_1, _8>>{}));
// Four warps, one above the other, 16 rows each.
using Mma = decltype(make_tiled_mma(SM80_16x8x16_F32BF16BF16F32_TN{}, Layout<Shape<_4, _1, _1>>{},
                                    Tile<Int<kSegmentRows>, _16, _16>{}));

/// The cache as a tensor (token, component, head, page): page ids are its last coordinate.
__device__ auto paged_tensor(const __nv_bfloat16* pages, const Bf16Problem& problem) {
  const int token_stride = problem.num_kv_heads * kHeadDim;
  return make_tensor(
      make_gmem_ptr(reinterpret_cast<const Element*>(pages)),
      make_shape(Int<kPageSize>{}, Int<kHeadDim>{}, problem.num_kv_heads, problem.num_pages),
      make_stride(token_stride, _1{}, Int<kHeadDim>{}, int64_t{kPageSize} * token_stride));
}

/// Gathers a segment's pages into tiles, one tile a call, in order.
struct TileLoader {
  const Bf16Problem& problem;
  const Segment segment;
  const RequestInfo request;  // the first member's: its table says where the segment's keys lie
  const int kv_head;
  Shared& shared;
  int page_id = kNoPage;  // of this lane's page among the 32 that the warp looked up last

  __device__ void load(int tile) {
    const int first = segment.kv_begin + tile * kTileTokens;
    if (first >= segment.kv_end) return;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    if (tile % kTilesPerLookUp == 0) {
      const int page = first / kPageSize + lane;
      page_id =
          page < pages_of(segment.kv_end) ? get_physical_page(problem, request, page) : kNoPage;
    }
    const auto copier = RowCopy{}.get_slice(threadIdx.x);
    const Tensor token = copier.partition_S(
        make_identity_tensor(Shape<Int<kPageSize>, Int<kHeadDim>>{}));  // this thread's, of a page
    const Tensor to_k =
        copier.partition_D(make_tensor(make_smem_ptr(shared.k), Tiles{})(_, _, tile % kStages));
    const Tensor to_v =
        copier.partition_D(make_tensor(make_smem_ptr(shared.v), Tiles{})(_, _, tile % kStages));
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      const int id = __shfl_sync(kAllLanes, page_id, tile % kTilesPerLookUp * kTilePages + page);
      const int safe = id == kNoPage ? 0 : id;
      const Tensor from_k =
          copier.partition_S(paged_tensor(problem.k_pages, problem)(_, _, kv_head, safe));
      const Tensor from_v =
          copier.partition_S(paged_tensor(problem.v_pages, problem)(_, _, kv_head, safe));
      constexpr int kCopies = kPageSize / 8;  // rows of a page that a thread has a piece of
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        // Nothing beyond the last key is read; zeros take its place, as 0 · NaN is NaN.
        const bool exists =
            id != kNoPage && first + page * kPageSize + get<0>(token(0, i, 0)) < segment.kv_end;
        copy(RowCopyAtom{}.with(exists), from_k(_, i, _), to_k(_, page * kCopies + i, _));
        copy(RowCopyAtom{}.with(exists), from_v(_, i, _), to_v(_, page * kCopies + i, _));
      }
    }
  }
};

}  // namespace ladder::tiles
