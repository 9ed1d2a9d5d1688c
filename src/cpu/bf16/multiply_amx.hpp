// SPDX-License-Identifier: Apache-2.0
/// @file
/// Products of blocks of rows with a panel of pairs, by the tiles of AMX: 16 rows of 32 elements of
/// bf16 with 16 pairs of 16 columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/bf16/multiply.hpp"
#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/target.hpp"
#include "cpu/bf16/tiles.hpp"

QUIRE_BEGIN_AMX
namespace quire::cpu::HWY_NAMESPACE {

inline constexpr std::int32_t kTilePairs = kDepthPadding / 2;

inline bool all_are(float value, const float* factors, std::int32_t count) {
  const __m512 wanted = _mm512_set1_ps(value);
  for (std::int32_t i = 0; i < count; i += kRowPadding) {
    const auto lanes = static_cast<__mmask16>(first_lanes(count - i));
    const __m512 found = _mm512_maskz_loadu_ps(lanes, factors + i);
    if (_mm512_mask_cmp_ps_mask(lanes, found, wanted, _CMP_NEQ_UQ) != 0) return false;
  }
  return true;
}

/// Multiplies rows of o by their factors, before sums are added to them. A factor of 0 stands where
/// there is nothing yet.
inline void rescale_rows(float* o, std::ptrdiff_t stride, const float* factors, std::int32_t rows,
                         std::int32_t vectors) {
  for (std::int32_t row = 0; row < rows; ++row, o += stride) {
    if (factors[row] == 1.0F || factors[row] == 0.0F) continue;
    const __m512 factor = _mm512_set1_ps(factors[row]);
    for (std::int32_t i = 0; i < vectors; ++i) {
      float* const at = o + static_cast<std::ptrdiff_t>(i) * kRowPadding;
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor));
    }
  }
}

/// Two tiles of rows at most go through a product together, and two of columns.
inline constexpr std::int32_t kSliceRows = 2 * kTileRows;
inline constexpr std::int32_t kTileElements = kTileRows * kDepthPadding;  // of bf16

/// Operands of c[row][column] = Σ_i a[row][i] · b[i / 2][column][i % 2]; a step is kDepthPadding
/// elements of depth.
struct TileProduct {
  const std::uint16_t* a = nullptr;  // bf16 [steps, kSliceRows, kDepthPadding]
  const std::uint16_t* b = nullptr;  // [steps] tiles of pairs of bf16
  std::ptrdiff_t b_step = 0;         // elements from one step to the next
  std::ptrdiff_t b_beside = 0;       // elements to the second tile of columns
  float* c = nullptr;                // [kSliceRows, kDepthPadding]
  std::int32_t steps = 0;
};

/// So often is `step()` called of what the core does between the products of a block.
constexpr std::int32_t pauses_of(std::int32_t steps) { return 2 * steps; }

// Tiles are named by constants. 0 … 3 are sums: two of rows × two of columns; 4 and 5 rows of a;
// 6 and 7 columns of b.

/// `kRowTiles` × 16 rows and `kColumnTiles` × 16 columns, 1 or 2 each.
template <int kRowTiles, int kColumnTiles, class Work>
HWY_INLINE void tile_block(const TileProduct& product, Work& meanwhile) {
  constexpr std::ptrdiff_t kSumBytes = kDepthPadding * sizeof(float);
  zero_tile<0>();
  if constexpr (kColumnTiles == 2) zero_tile<1>();
  if constexpr (kRowTiles == 2) zero_tile<2>();
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) zero_tile<3>();
  const std::uint16_t* a = product.a;
  const std::uint16_t* b = product.b;
  for (std::int32_t step = 0; step < product.steps; ++step) {
    load_tile<4>(a);
    stream_tile<6>(b);
    multiply_tile<0, 4, 6>();
    if constexpr (kColumnTiles == 2) {
      stream_tile<7>(b + product.b_beside);
      multiply_tile<1, 4, 7>();
    }
    meanwhile.step();
    if constexpr (kRowTiles == 2) {
      load_tile<5>(a + kTileElements);
      multiply_tile<2, 5, 6>();
    }
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) multiply_tile<3, 5, 7>();
    meanwhile.step();
    a += 2 * kTileElements;
    b += product.b_step;
  }
  float* const below = product.c + static_cast<std::ptrdiff_t>(kTileRows) * kDepthPadding;
  store_tile<0>(product.c, kSumBytes);
  if constexpr (kColumnTiles == 2) store_tile<1>(product.c + kTileRows, kSumBytes);
  if constexpr (kRowTiles == 2) store_tile<2>(below, kSumBytes);
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
    store_tile<3>(below + kTileRows, kSumBytes);
  }
}

/// tile_block for 1 or 2 tiles of rows and of columns.
template <class Work>
void multiply_tiles(std::int32_t row_tiles, std::int32_t column_tiles, const TileProduct& product,
                    Work& meanwhile) {
  if (row_tiles == 2) {
    if (column_tiles == 2) return tile_block<2, 2>(product, meanwhile);
    return tile_block<2, 1>(product, meanwhile);
  }
  if (column_tiles == 2) return tile_block<1, 2>(product, meanwhile);
  return tile_block<1, 1>(product, meanwhile);
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_AMX
