// SPDX-License-Identifier: Apache-2.0
/// @file
/// Queries of 16 bits as sums of two e4m3 codes, for products with K of 8 bits as it is.
///
/// A code has 4 significant bits, and what is left of a number that is rounded to them is half of its
/// last bit at most. So the two have 9: a bf16 is such a sum, exactly, and an fp16 within 2^-9 of
/// itself. Rows are multiplied by a power of two that brings their largest component to [2^7, 2^8):
/// components of bf16 down to 2^-9 of the largest are exact, those of fp16 down to 2^-8 as exact as that,
/// and what lies below loses 2^-17 of the largest at most.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/narrow_formats.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/widen.hpp"
#include "cuda/sm90/instructions.cuh"

namespace quire::cuda::sm90 {

template <typename C>
class QuerySplitter {
 public:
  /// Rewrites 16 rows of a tile of queries in place: large terms of all components in the first panel,
  /// small ones in the second. A warp calls it.
  /// @param rows     Address of the tile's row 0.
  /// @param first    Of the 16 rows.
  /// @param factors  Gets what products with a row are to be multiplied by; NaN for a row that is not
  ///   finite. One for each row of the tile.
  static __device__ __forceinline__ void run(std::uint32_t rows, int first, int lane, DType dtype,
                                             __nv_bfloat16* factors) {
#pragma unroll 1
    for (int row = first + lane / kLanesPerRow; row < first + 16; row += kRowsAtOnce) {
      const float factor = split_row(Layout::row(rows, row), lane % kLanesPerRow, dtype);
      if (lane % kLanesPerRow == 0) factors[row] = __float2bfloat16_rn(factor);
    }
  }

 private:
  using Layout = typename C::QueryLayout;
  static_assert(Layout::kPanels == 2);
  static constexpr int kLanesPerRow = 8;
  static constexpr int kRowsAtOnce = kWarpSize / kLanesPerRow;
  static constexpr int kOwn = 16;  // components of a lane, half of them in each panel
  static constexpr int kTop = 7;   // exponent of the largest one
  static constexpr int kBias = 127;

  static __device__ __forceinline__ float split_row(std::uint32_t row, int own, DType dtype) {
    float q[kOwn];
    load(q, row, own, dtype);
    float largest = 0.0F;
#pragma unroll
    for (const float x : q) largest = fmaxf(largest, fabsf(x));
    bool is_finite = true;
#pragma unroll
    for (const float x : q) is_finite = is_finite && fabsf(x) <= FLT_MAX;
#pragma unroll
    for (int distance = 1; distance < kLanesPerRow; distance *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
      is_finite = __shfl_xor_sync(kAllLanes, is_finite ? 1 : 0, distance) != 0 && is_finite;
    }
    const int exponent = static_cast<int>(__float_as_uint(largest) >> 23U) - kBias;
    const int shift = min(kTop - exponent, kBias - 1);
    const float multiplier = power_of_two(shift);
    std::uint32_t large[kOwn / 4];
    std::uint32_t small[kOwn / 4];
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) {
#pragma unroll
      for (int k = 4 * i; k < 4 * i + 4; ++k) q[k] *= multiplier;
      large[i] = pack_e4m3(q[4 * i], q[4 * i + 1], q[4 * i + 2], q[4 * i + 3]);
      const mma::Pairs rounded =
          mma::Widen<core::Float8E4M3, mma::Order::kNeighbours>::pairs(large[i]);
      const float2 first = halves(rounded.first);
      const float2 second = halves(rounded.second);
      small[i] = pack_e4m3(q[4 * i] - first.x, q[4 * i + 1] - first.y, q[4 * i + 2] - second.x,
                           q[4 * i + 3] - second.y);
    }
    __syncwarp();  // all have read what is overwritten
    store(row, own, large, 0);
    store(row, own, small, Layout::kPanelBytes);
    return is_finite ? power_of_two(-shift) : NAN;
  }

  /// Components 8 · own … of each panel.
  static __device__ __forceinline__ void load(float (&q)[kOwn], std::uint32_t row, int own,
                                              DType dtype) {
#pragma unroll
    for (int panel = 0; panel < 2; ++panel) {
      const uint4 chunk = load_shared(Layout::chunk(row, own) +
                                      static_cast<std::uint32_t>(panel * Layout::kPanelBytes));
      const std::uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = dtype == DType::kBFloat16
                                ? make_float2(__uint_as_float(pairs[i] << 16U),
                                              __uint_as_float(pairs[i] & 0xffff0000U))
                                : halves(pairs[i]);
        q[panel * 8 + 2 * i] = pair.x;
        q[panel * 8 + 2 * i + 1] = pair.y;
      }
    }
  }
  /// Codes of the lane's components, which stand in the order of components.
  static __device__ __forceinline__ void store(std::uint32_t row, int own,
                                               const std::uint32_t (&codes)[kOwn / 4],
                                               std::uint32_t panel) {
    const std::uint32_t half = static_cast<std::uint32_t>(own % 2 * 8);
    store_shared(Layout::chunk(row, own / 2) + half + panel, make_uint2(codes[0], codes[1]));
    store_shared(Layout::chunk(row, 4 + own / 2) + half + panel, make_uint2(codes[2], codes[3]));
  }

  static __device__ float2 halves(std::uint32_t pair) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
  static __device__ float power_of_two(int exponent) {
    return __uint_as_float(static_cast<std::uint32_t>(kBias + exponent) << 23U);
  }
};

}  // namespace quire::cuda::sm90
