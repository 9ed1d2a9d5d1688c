// SPDX-License-Identifier: Apache-2.0
/// @file
/// The two matrix products of a tile, Q · Kᵀ and P · V, from shared memory through `ldmatrix` to
/// `mma.sync`. K and V of 8 bits are widened to fp16 on that way.
#pragma once

#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/widen.hpp"

namespace quire::cuda::mma {

/// Shapes of what a warp holds of a unit of 16 · kRowTiles_ rows.
template <typename C, int kRowTiles_>
struct Fragments {
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kKeyTiles = kWarpKeys / 8;         // of 8 keys
  static constexpr int kQuerySteps = C::kHeadDimQk / 16;  // of 16 components
  static constexpr int kKeySteps = kTileKeys / 16;        // of 16 keys
  static constexpr int kColumnTiles = C::kColumns / 8;
  static constexpr bool kQueriesInRegisters = kRowTiles * kQuerySteps <= 8;
  /// Of the loops over steps: what keeps the registers of all bodies within a block's share.
  static constexpr int kUnroll = kQueriesInRegisters ? kQuerySteps : 2;

  using Scores = float[kRowTiles][kKeyTiles][4];  // a fragment: 16 rows × 8 keys
  using Columns = float[kRowTiles][kColumnTiles][4];
};

/// Products with K and V of 16 bits.
template <typename C, int kRowTiles>
struct WideProducts : Fragments<C, kRowTiles> {
  using F = Fragments<C, kRowTiles>;
  using Element = typename C::Element;

  /// scores += Q · Kᵀ over the warp's keys of the tile at `slot`.
  /// @param load_query  (registers, row tile, step): operand A.
  template <typename LoadQuery>
  static __device__ __forceinline__ void score(typename F::Scores& scores, std::uint32_t slot,
                                               int warp, int lane, const LoadQuery& load_query) {
    using Layout = typename C::KeyLayout;
    const std::uint32_t key =
        Layout::chunk(Layout::row(slot, warp * kWarpKeys + lane % 8 + lane / 16 * 8), lane / 8 % 2);
#pragma unroll F::kUnroll
    for (int step = 0; step < F::kQuerySteps; ++step) {
      std::uint32_t keys[4];
      load_matrices(keys, Layout::chunk(key, step * 2));
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        std::uint32_t query[4];
        load_query(query, tile, step);
        multiply_add<Element>(scores[tile][0], query, keys[0], keys[1]);
        multiply_add<Element>(scores[tile][1], query, keys[2], keys[3]);
      }
    }
  }

  /// o += P · V over all keys of the tile at `slot`, the warp's columns.
  /// @param weights  Address of P.
  static __device__ __forceinline__ void accumulate(typename F::Columns& o, std::uint32_t slot,
                                                    std::uint32_t weights_tile, int warp,
                                                    int lane) {
    using Layout = typename C::ValueLayout;
    using WeightLayout = Swizzle<C::kWeightBytes>;
    const int low = lane % 16;
    const int high = lane / 16;
    const int first_chunk = warp * F::kColumnTiles;
    const std::uint32_t weights = WeightLayout::chunk(WeightLayout::row(weights_tile, low), high);
    const std::uint32_t value = Layout::row(slot, low);
#pragma unroll F::kUnroll
    for (int step = 0; step < F::kKeySteps; ++step) {
      std::uint32_t p[kRowTiles][4];
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        load_matrices(p[tile],
                      WeightLayout::chunk(weights, step * 2) + tile * 16 * C::kWeightBytes);
      }
#pragma unroll
      for (int column = 0; column + 1 < F::kColumnTiles; column += 2) {
        std::uint32_t values[4];
        load_matrices_transposed(
            values, Layout::chunk(value, first_chunk + column + high) + Layout::below(step * 16));
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          multiply_add<Element>(o[tile][column], p[tile], values[0], values[1]);
          multiply_add<Element>(o[tile][column + 1], p[tile], values[2], values[3]);
        }
      }
      if constexpr (F::kColumnTiles % 2 == 1) {
        constexpr int kLast = F::kColumnTiles - 1;
        std::uint32_t values[2];
        load_matrices_transposed(
            values, Layout::chunk(value, first_chunk + kLast) + Layout::below(step * 16));
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          multiply_add<Element>(o[tile][kLast], p[tile], values[0], values[1]);
        }
      }
    }
  }

  /// Calls `store(column, first, second)` for the pairs of neighbouring columns of o, counted from
  /// the warp's first, that the thread holds of half a row tile. `element(column tile, i)` is one of
  /// the two of the fragment there.
  template <typename Element, typename Store>
  static __device__ __forceinline__ void for_columns(int lane, const Element& element,
                                                     const Store& store) {
#pragma unroll
    for (int tile = 0; tile < F::kColumnTiles; ++tile) {
      store(tile * 8 + lane % 4 * 2, element(tile, 0), element(tile, 1));
    }
  }
};

/// Products with K and V of 8 bits. Of 16 neighbouring columns of o, column tile 2i holds the even
/// ones and 2i + 1 the odd ones.
template <typename C, int kRowTiles>
struct NarrowProducts : Fragments<C, kRowTiles> {
  using F = Fragments<C, kRowTiles>;

  /// As `WideProducts::score`; components of q stand where `product_component` says.
  template <typename LoadQuery>
  static __device__ __forceinline__ void score(typename F::Scores& scores, std::uint32_t slot,
                                               int warp, int lane, const LoadQuery& load_query) {
    using Layout = typename C::KeyLayout;
    using WidenKeys = Widen<typename C::Kv, Order::kNeighbours>;
    const int of_warp = known_below<kConsumerWarps>(warp);
    const int of_lane = known_below<kWarpSize>(lane);
    const std::uint32_t key = Layout::chunk(
        Layout::row(slot, of_warp * kWarpKeys + of_lane % 8 + of_lane / 16 * 8), of_lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < F::kQuerySteps; step += 2) {
      std::uint32_t codes[4];  // of keys 0…7 in two steps, of keys 8…15 in both
      load_matrices(codes, Layout::chunk(key, step));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Pairs first = WidenKeys::pairs(codes[i]);
        const Pairs second = WidenKeys::pairs(codes[2 + i]);
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          std::uint32_t query[4];
          load_query(query, tile, step + i);
          multiply_add<__half>(scores[tile][0], query, first.first, first.second);
          multiply_add<__half>(scores[tile][1], query, second.first, second.second);
        }
      }
    }
  }

  /// As `WideProducts::accumulate`.
  static __device__ __forceinline__ void accumulate(typename F::Columns& o, std::uint32_t slot,
                                                    std::uint32_t weights_tile, int warp,
                                                    int lane) {
    using Layout = typename C::ValueLayout;
    using WeightLayout = Swizzle<C::kWeightBytes>;
    using WidenValues = Widen<typename C::Kv, Order::kEvenOdd>;
    const int of_warp = known_below<kConsumerWarps>(warp);
    const int of_lane = known_below<kWarpSize>(lane);
    if (kConsumerWarps * C::kColumns > C::kHeadDimVo && of_warp * C::kColumns >= C::kHeadDimVo) {
      return;
    }
    const int first_chunk = of_warp * (C::kColumns / 16);
    const std::uint32_t weights =
        WeightLayout::chunk(WeightLayout::row(weights_tile, of_lane % 16), of_lane / 16);
    const std::uint32_t value = Layout::row(slot, of_lane);
#pragma unroll
    for (int step = 0; step < F::kKeySteps; step += 2) {
      std::uint32_t p[2][kRowTiles][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          load_matrices(p[i][tile],
                        WeightLayout::chunk(weights, (step + i) * 2) + tile * 16 * C::kWeightBytes);
        }
      }
#pragma unroll
      for (int column = 0; column < F::kColumnTiles; column += 2) {
        std::uint32_t codes[4];  // of 8 keys each
        load_matrices_transposed(
            codes, Layout::chunk(value, first_chunk + column / 2) + Layout::below(step * 16));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Pairs low = WidenValues::pairs(codes[2 * i]);
          const Pairs high = WidenValues::pairs(codes[2 * i + 1]);
#pragma unroll
          for (int tile = 0; tile < kRowTiles; ++tile) {
            multiply_add<__half>(o[tile][column], p[i][tile], low.first, high.first);
            multiply_add<__half>(o[tile][column + 1], p[i][tile], low.second, high.second);
          }
        }
      }
    }
  }

 private:
  /// The same number, of which the compiler knows that it is none below 0: divisions are shifts.
  template <int kBound>
  static __device__ __forceinline__ int known_below(int value) {
    static_assert((kBound & (kBound - 1)) == 0);
    return value & (kBound - 1);
  }

 public:
  /// As `WideProducts::for_columns`.
  template <typename Element, typename Store>
  static __device__ __forceinline__ void for_columns(int lane, const Element& element,
                                                     const Store& store) {
#pragma unroll
    for (int tile = 0; tile < F::kColumnTiles; tile += 2) {
      const int column = tile * 8 + lane % 4 * 4;
      store(column, element(tile, 0), element(tile + 1, 0));
      store(column + 2, element(tile, 1), element(tile + 1, 1));
    }
  }
};

template <typename C, int kRowTiles>
using Products =
    std::conditional_t<C::kIsNarrow, NarrowProducts<C, kRowTiles>, WideProducts<C, kRowTiles>>;

}  // namespace quire::cuda::mma
