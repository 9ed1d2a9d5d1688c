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

/// How the computing warps divide a tile: each scores a quarter of the keys for all rows, and
/// accumulates all keys into a quarter of the columns of o. Weights go through shared memory.
template <typename C, int kRowTiles_>
struct ByColumns {
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kScoredKeys = kWarpKeys;
  static constexpr int kWeightedKeys = kTileKeys;
  static constexpr int kColumns = C::kColumns;
  static __device__ int first_row(int /*warp*/) { return 0; }
  static __device__ int first_scored_key(int warp) { return warp * kScoredKeys; }
};

/// Each has keys to itself, a part of the tile's, with all columns of o: its weights stay in registers.
/// With two parts each has half of the rows, too.
template <typename C, int kParts>
struct ByKeys {
  static constexpr int kRowTiles = 1;
  static constexpr int kScoredKeys = kTileKeys / kParts;
  static constexpr int kWeightedKeys = kScoredKeys;
  static constexpr int kColumns = C::kHeadDimVo;
  static __device__ int first_row(int warp) { return warp / kParts * 16; }
  static __device__ int first_scored_key(int warp) { return warp % kParts * kScoredKeys; }
};

/// Shapes of what a warp holds of a unit.
template <typename C, typename Division>
struct Fragments {
  static constexpr int kRowTiles = Division::kRowTiles;           // of 16 rows
  static constexpr int kKeyTiles = Division::kScoredKeys / 8;     // of 8 keys
  static constexpr int kQuerySteps = C::kHeadDimQk / 16;          // of 16 components
  static constexpr int kKeySteps = Division::kWeightedKeys / 16;  // of 16 keys
  static constexpr int kColumns = Division::kColumns;
  static constexpr int kColumnTiles = kColumns / 8;
  static constexpr bool kHasAllColumns = kColumns == C::kHeadDimVo;
  static constexpr bool kQueriesInRegisters = kRowTiles * kQuerySteps <= 8;
  /// Of the loops over steps: what keeps the registers of all bodies within a block's share.
  static constexpr int kUnroll = kQueriesInRegisters ? kQuerySteps : 2;
  static constexpr int kKeyUnroll = kHasAllColumns ? 1 : kUnroll;  // V of a step is many registers

  using Scores = float[kRowTiles][kKeyTiles][4];  // a fragment: 16 rows × 8 keys
  using Weights = std::uint32_t[kRowTiles][4];    // of 16 keys, as operand A
  using Columns = float[kRowTiles][kColumnTiles][4];
};

/// The same number, of which the compiler knows that it is none below 0: divisions are shifts.
template <int kBound>
__device__ __forceinline__ int known_below(int value) {
  static_assert((kBound & (kBound - 1)) == 0);
  return value & (kBound - 1);
}

/// Products with K and V of 16 bits.
template <typename C, typename Division>
struct WideProducts : Fragments<C, Division> {
  using F = Fragments<C, Division>;
  using Element = typename C::Element;

  /// scores += Q · Kᵀ over the keys from `first_key` on of the tile at `slot`.
  /// @param load_query  (registers, row tile, step): operand A.
  template <typename LoadQuery>
  static __device__ __forceinline__ void score(typename F::Scores& scores, std::uint32_t slot,
                                               int first_key, int lane,
                                               const LoadQuery& load_query) {
    using Layout = typename C::KeyLayout;
    const int of_tile = known_below<kTileKeys>(first_key);
    const int of_lane = known_below<kWarpSize>(lane);
    const std::uint32_t key =
        Layout::chunk(Layout::row(slot, of_tile + of_lane % 8 + of_lane / 16 * 8), of_lane / 8 % 2);
#pragma unroll F::kUnroll
    for (int step = 0; step < F::kQuerySteps; ++step) {
      std::uint32_t keys[F::kKeyTiles / 2][4];
#pragma unroll
      for (int pair = 0; pair < F::kKeyTiles / 2; ++pair) {
        load_matrices(keys[pair], Layout::chunk(key, step * 2) + Layout::below(pair * 16));
      }
#pragma unroll
      for (int tile = 0; tile < F::kRowTiles; ++tile) {
        std::uint32_t query[4];
        load_query(query, tile, step);
#pragma unroll
        for (int pair = 0; pair < F::kKeyTiles / 2; ++pair) {
          multiply_add<Element>(scores[tile][2 * pair], query, keys[pair][0], keys[pair][1]);
          multiply_add<Element>(scores[tile][2 * pair + 1], query, keys[pair][2], keys[pair][3]);
        }
      }
    }
  }

  /// o += P · V over the keys from `first_key` on of the tile at `slot`, columns from `first_column`
  /// on.
  /// @param load_weights  (registers, step): operand A.
  template <typename LoadWeights>
  static __device__ __forceinline__ void accumulate(typename F::Columns& o, std::uint32_t slot,
                                                    int first_key, int first_column, int lane,
                                                    const LoadWeights& load_weights) {
    using Layout = typename C::ValueLayout;
    const int of_lane = known_below<kWarpSize>(lane);
    const int high = of_lane / 16;
    const int first_chunk = static_cast<int>(static_cast<unsigned>(first_column) / 8U);
    const std::uint32_t value = Layout::row(slot, known_below<kTileKeys>(first_key) + of_lane % 16);
#pragma unroll F::kKeyUnroll
    for (int step = 0; step < F::kKeySteps; ++step) {
      typename F::Weights p;
      load_weights(p, step);
#pragma unroll
      for (int column = 0; column + 1 < F::kColumnTiles; column += 2) {
        std::uint32_t values[4];
        const std::uint32_t place = F::kHasAllColumns
                                        ? Layout::chunk(Layout::chunk(value, high), column)
                                        : Layout::chunk(value, first_chunk + column + high);
        load_matrices_transposed(values, place + Layout::below(step * 16));
#pragma unroll
        for (int tile = 0; tile < F::kRowTiles; ++tile) {
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
        for (int tile = 0; tile < F::kRowTiles; ++tile) {
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
template <typename C, typename Division>
struct NarrowProducts : Fragments<C, Division> {
  using F = Fragments<C, Division>;
  static_assert(F::kKeyTiles == 2);

  /// As `WideProducts::score`; components of q stand where `product_component` says.
  template <typename LoadQuery>
  static __device__ __forceinline__ void score(typename F::Scores& scores, std::uint32_t slot,
                                               int first_key, int lane,
                                               const LoadQuery& load_query) {
    using Layout = typename C::KeyLayout;
    using WidenKeys = Widen<typename C::Kv, Order::kNeighbours>;
    const int of_tile = known_below<kTileKeys>(first_key);
    const int of_lane = known_below<kWarpSize>(lane);
    const std::uint32_t key =
        Layout::chunk(Layout::row(slot, of_tile + of_lane % 8 + of_lane / 16 * 8), of_lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < F::kQuerySteps; step += 2) {
      std::uint32_t codes[4];  // of keys 0…7 in two steps, of keys 8…15 in both
      load_matrices(codes, Layout::chunk(key, step));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Pairs first = WidenKeys::pairs(codes[i]);
        const Pairs second = WidenKeys::pairs(codes[2 + i]);
#pragma unroll
        for (int tile = 0; tile < F::kRowTiles; ++tile) {
          std::uint32_t query[4];
          load_query(query, tile, step + i);
          multiply_add<__half>(scores[tile][0], query, first.first, first.second);
          multiply_add<__half>(scores[tile][1], query, second.first, second.second);
        }
      }
    }
  }

  /// As `WideProducts::accumulate`.
  template <typename LoadWeights>
  static __device__ __forceinline__ void accumulate(typename F::Columns& o, std::uint32_t slot,
                                                    int first_key, int first_column, int lane,
                                                    const LoadWeights& load_weights) {
    using Layout = typename C::ValueLayout;
    using WidenValues = Widen<typename C::Kv, Order::kEvenOdd>;
    const int of_lane = known_below<kWarpSize>(lane);
    if (kConsumerWarps * C::kColumns > C::kHeadDimVo && first_column >= C::kHeadDimVo) return;
    const int first_chunk = static_cast<int>(static_cast<unsigned>(first_column) / 16U);
    // A lane's place among those of which matrices are read at once: 8 keys each of 16 columns.
    constexpr int kKeysAtOnce = F::kKeySteps == 1 ? 16 : 32;
    constexpr int kChunksAtOnce = kWarpSize / kKeysAtOnce;
    constexpr int kStepsAtOnce = kKeysAtOnce / 16;
    const std::uint32_t value =
        Layout::chunk(Layout::row(slot, first_key + of_lane % kKeysAtOnce), of_lane / kKeysAtOnce);
#pragma unroll
    for (int step = 0; step < F::kKeySteps; step += kStepsAtOnce) {
      typename F::Weights p[kStepsAtOnce];
#pragma unroll
      for (int i = 0; i < kStepsAtOnce; ++i) load_weights(p[i], step + i);
#pragma unroll
      for (int first = 0; first < F::kColumnTiles; first += 2 * kChunksAtOnce) {
        std::uint32_t codes[4];
        load_matrices_transposed(
            codes, Layout::chunk(value, first_chunk + first / 2) + Layout::below(step * 16));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Pairs low = WidenValues::pairs(codes[2 * i]);
          const Pairs high = WidenValues::pairs(codes[2 * i + 1]);
          const int column = first + i / kStepsAtOnce * 2;
#pragma unroll
          for (int tile = 0; tile < F::kRowTiles; ++tile) {
            const auto& weights = p[i % kStepsAtOnce][tile];
            multiply_add<__half>(o[tile][column], weights, low.first, high.first);
            multiply_add<__half>(o[tile][column + 1], weights, low.second, high.second);
          }
        }
      }
    }
  }

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

template <typename C, typename Division>
using Products =
    std::conditional_t<C::kIsNarrow, NarrowProducts<C, Division>, WideProducts<C, Division>>;

}  // namespace quire::cuda::mma
