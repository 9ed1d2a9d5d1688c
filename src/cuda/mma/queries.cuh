// SPDX-License-Identifier: Apache-2.0
/// @file
/// Queries that are to be multiplied with widened 8-bit keys: fp16, whatever they were, and their
/// components in the order in which those of keys arrive (`widen.hpp`).
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/attend/visibility.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/widen.hpp"

namespace quire::cuda::mma {

/// A row of bf16 as fp16. The row is multiplied by a power of two that brings its largest component
/// to [2^14, 2^15), so that nothing overflows, and what is below 2^-39 of the largest is all that a
/// component can lose.
class RowToHalf {
 public:
  /// @param largest  Bits of the largest magnitude of the row.
  __device__ explicit RowToHalf(std::uint32_t largest)
      : shift_(min(kTop + kBias - static_cast<int>(largest >> 7), kMostShift)),
        multiplier_(power_of_two(shift_)) {}

  /// What products with the row are to be multiplied by.
  [[nodiscard]] __device__ float factor() const { return power_of_two(-shift_); }
  /// Two components.
  [[nodiscard]] __device__ std::uint32_t operator()(std::uint32_t pair) const {
    return pack<__half>(__uint_as_float(pair << 16) * multiplier_,
                        __uint_as_float(pair & 0xffff0000U) * multiplier_);
  }

 private:
  static constexpr int kTop = 14;
  static constexpr int kBias = 127;
  static constexpr int kMostShift = 126;

  static __device__ float power_of_two(int exponent) {
    return __uint_as_float(static_cast<std::uint32_t>(kBias + exponent) << 23);
  }

  const int shift_;
  const float multiplier_;
};

/// Rewrites the rows of `queries`, 16 · `kRowTiles` of them, in place, and says by what products with
/// each are to be multiplied, scales of q included. All computing warps call it, a quarter of the rows each; the others'
/// are there behind the next barrier.
template <typename C, int kRowTiles>
class QueryRewriter {
 public:
  __device__ QueryRewriter(typename C::Shared& shared, int warp, int lane)
      : shared_(shared), warp_(warp), lane_(lane) {}

  __device__ void run(const AttendParams& params, const Unit& unit) const {
    const DType dtype = params.shape.q_dtype;
#pragma unroll 1
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const int row = tile * 16 + warp_ * kRowsAtOnce + lane_ / kLanesPerRow;
      const std::uint32_t at = C::QueryLayout::row(shared_address(shared_.fixed.queries), row);
      float factor = 1.0F;
      if (C::kTakesCodes && dtype == DType::kFloat8E4M3) {
        if constexpr (C::kTakesCodes) widen(at);
        factor = query_scale(params, head_of(params, unit, row));
      } else if (dtype == DType::kBFloat16) {
        const RowToHalf to_half(largest_of_row(at));
        factor = to_half.factor();
        rewrite(at, to_half);
      } else {
        rewrite(at, [](std::uint32_t pair) { return pair; });
      }
      if (lane_ % kLanesPerRow == 0) shared_.fixed.query_factors[row] = factor;
    }
  }

 private:
  static constexpr int kLanesPerRow = 8;
  static constexpr int kRowsAtOnce = kWarpSize / kLanesPerRow;
  static_assert(kConsumerWarps * kRowsAtOnce == 16);
  static constexpr int kSteps = C::kHeadDimQk / 16;  // of 16 components, two chunks

  [[nodiscard]] __device__ std::uint32_t largest_of_row(std::uint32_t row) const {
    std::uint32_t largest = 0;
#pragma unroll 1
    for (int step = lane_ % kLanesPerRow; step < kSteps; step += kLanesPerRow) {
      const uint4 a = load_shared(C::QueryLayout::chunk(row, 2 * step));
      const uint4 b = load_shared(C::QueryLayout::chunk(row, 2 * step + 1));
      for (const std::uint32_t pair : {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}) {
        largest = max(largest, max(pair & 0x7fffU, pair >> 16 & 0x7fffU));
      }
    }
#pragma unroll
    for (int distance = 1; distance < kLanesPerRow; distance *= 2) {
      largest = max(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    }
    return largest;
  }

  /// Codes in the first half of the row become fp16 in all of it.
  __device__ void widen(std::uint32_t row) const {
    using WidenQueries = Widen<typename C::Kv, Order::kNeighbours>;
    constexpr int kOwnSteps = (kSteps + kLanesPerRow - 1) / kLanesPerRow;
    uint4 codes[kOwnSteps] = {};
#pragma unroll
    for (int i = 0; i < kOwnSteps; ++i) {
      const int step = i * kLanesPerRow + lane_ % kLanesPerRow;
      if (step < kSteps) codes[i] = load_shared(C::QueryLayout::chunk(row, step));
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kOwnSteps; ++i) {
      const int step = i * kLanesPerRow + lane_ % kLanesPerRow;
      if (step >= kSteps) continue;
      const Pairs a = WidenQueries::pairs(codes[i].x);
      const Pairs b = WidenQueries::pairs(codes[i].y);
      const Pairs c = WidenQueries::pairs(codes[i].z);
      const Pairs d = WidenQueries::pairs(codes[i].w);
      store_shared(C::QueryLayout::chunk(row, 2 * step),
                   make_uint4(a.first, b.first, c.first, d.first));
      store_shared(C::QueryLayout::chunk(row, 2 * step + 1),
                   make_uint4(a.second, b.second, c.second, d.second));
    }
  }

  template <typename Convert>
  __device__ void rewrite(std::uint32_t row, const Convert& convert) const {
    // Components of words: those of the even ones are the first half of a product's.
    static_assert(word_in_product(1) == 4 && word_in_product(2) == 1 && word_in_product(7) == 7);
#pragma unroll 1
    for (int step = lane_ % kLanesPerRow; step < kSteps; step += kLanesPerRow) {
      const std::uint32_t first = C::QueryLayout::chunk(row, 2 * step);
      const std::uint32_t second = C::QueryLayout::chunk(row, 2 * step + 1);
      const uint4 a = load_shared(first);
      const uint4 b = load_shared(second);
      store_shared(first, make_uint4(convert(a.x), convert(a.z), convert(b.x), convert(b.z)));
      store_shared(second, make_uint4(convert(a.y), convert(a.w), convert(b.y), convert(b.w)));
    }
  }

  typename C::Shared& shared_;
  const int warp_;
  const int lane_;
};

}  // namespace quire::cuda::mma
