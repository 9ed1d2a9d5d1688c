// SPDX-License-Identifier: Apache-2.0
/// @file
/// Products of blocks of rows with a panel of pairs, by the tiles of AMX: 16 rows of 32 elements of
/// bf16 with 16 pairs of 16 columns. Rows that do not fill a tile are left to VDPBF16PS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>

#include "cpu/bf16/multiply.hpp"
#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/target.hpp"

QUIRE_BEGIN_AMX
namespace quire::cpu::HWY_NAMESPACE {

inline constexpr std::int32_t kTileRows = 16;
inline constexpr std::int32_t kTilePairs = kDepthPadding / 2;

/// What LDTILECFG reads: all eight tiles have 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

inline bool all_are(float value, const float* factors, std::int32_t count) {
  const __m512 wanted = _mm512_set1_ps(value);
  for (std::int32_t i = 0; i < count; i += kRowPadding) {
    const auto lanes = static_cast<__mmask16>(first_lanes(count - i));
    const __m512 found = _mm512_maskz_loadu_ps(lanes, factors + i);
    if (_mm512_mask_cmp_ps_mask(lanes, found, wanted, _CMP_NEQ_UQ) != 0) return false;
  }
  return true;
}

/// Multiplies c by the rows' factors, before sums are added to it.
inline void rescale_rows(const PairProduct& product, std::int32_t rows, std::int32_t vectors) {
  for (std::int32_t row = 0; row < rows; ++row) {
    if (product.rescale[row] == 1.0F) continue;
    const __m512 factor = _mm512_set1_ps(product.rescale[row]);
    float* c = product.c + row * product.c_stride;
    for (std::int32_t i = 0; i < vectors; ++i, c += kRowPadding) {
      _mm512_store_ps(c, _mm512_mul_ps(_mm512_load_ps(c), factor));
    }
  }
}

// Tiles are named by constants. 0 … 3 are sums: two of rows × two of columns; 4 and 5 rows of a;
// 6 and 7 columns of b.

/// Where the tiles of a block lie, and how far apart their rows are, in bytes.
struct TilePlaces {
  explicit TilePlaces(const PairProduct& product)
      : a(reinterpret_cast<const std::byte*>(product.a)),
        b(reinterpret_cast<const std::byte*>(product.b)),
        c(reinterpret_cast<std::byte*>(product.c)),
        a_stride(product.a_stride * static_cast<std::ptrdiff_t>(sizeof(std::uint16_t))),
        b_stride(product.b_stride * static_cast<std::ptrdiff_t>(sizeof(std::uint32_t))),
        c_stride(product.c_stride * static_cast<std::ptrdiff_t>(sizeof(float))) {}

  static constexpr std::ptrdiff_t kRowBytes = 64;  // of a tile

  const std::byte* a;
  const std::byte* b;
  std::byte* c;
  std::ptrdiff_t a_stride, b_stride, c_stride;
};

/// GCC's intrinsics for tiles do not tell the compiler which memory they touch.
HWY_INLINE void settle_memory() { __asm__ volatile("" ::: "memory"); }

/// `kRowTiles` × 16 rows and `kColumnTiles` × 16 columns, 1 or 2 each.
template <int kRowTiles, int kColumnTiles>
inline void tile_block(const PairProduct& product) {
  settle_memory();
  constexpr std::ptrdiff_t kRowBytes = TilePlaces::kRowBytes;
  TilePlaces at(product);
  const std::ptrdiff_t a_below = kTileRows * at.a_stride;
  const std::ptrdiff_t c_below = kTileRows * at.c_stride;
  if (product.rescale == nullptr) {
    _tile_zero(0);
    if constexpr (kColumnTiles == 2) _tile_zero(1);
    if constexpr (kRowTiles == 2) _tile_zero(2);
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, at.c, at.c_stride);
    if constexpr (kColumnTiles == 2) _tile_loadd(1, at.c + kRowBytes, at.c_stride);
    if constexpr (kRowTiles == 2) _tile_loadd(2, at.c + c_below, at.c_stride);
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
      _tile_loadd(3, at.c + c_below + kRowBytes, at.c_stride);
    }
  }
  for (std::int32_t pair = 0; pair < product.pairs; pair += kTilePairs) {
    _tile_loadd(4, at.a, at.a_stride);
    _tile_loadd(6, at.b, at.b_stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumnTiles == 2) {
      _tile_loadd(7, at.b + kRowBytes, at.b_stride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, at.a + a_below, at.a_stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) _tile_dpbf16ps(3, 5, 7);
    at.a += kRowBytes;
    at.b += kTilePairs * at.b_stride;
  }
  _tile_stored(0, at.c, at.c_stride);
  if constexpr (kColumnTiles == 2) _tile_stored(1, at.c + kRowBytes, at.c_stride);
  if constexpr (kRowTiles == 2) _tile_stored(2, at.c + c_below, at.c_stride);
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
    _tile_stored(3, at.c + c_below + kRowBytes, at.c_stride);
  }
  settle_memory();
}

template <int kRowTiles>
inline void tile_row(std::int32_t vectors, PairProduct product) {
  for (; vectors >= 2; vectors -= 2) {
    tile_block<kRowTiles, 2>(product);
    product.b += 2 * kRowPadding;
    product.c += 2 * kRowPadding;
  }
  if (vectors > 0) tile_block<kRowTiles, 1>(product);
}

/// The micro-kernels of AMX.
struct Tiles {
  static constexpr std::int32_t kDepth = kDepthPadding;
  using Power = PowerByReducing;

  /// Rows of whole tiles, two or more: see `Dots::slice_queries`.
  static constexpr std::int32_t slice_queries(std::int32_t group) {
    std::int32_t queries = kTileRows / std::gcd(kTileRows, group);
    while (queries * group < 2 * kTileRows) queries *= 2;
    return queries;
  }

  /// Sets the tiles up for this thread, and gives them back: an idle tile register file is not
  /// saved and lets the core sleep deeper.
  class Session {
   public:
    explicit Session(const TileConfig& config = {}) {
      __asm__ volatile("" : : "r"(&config) : "memory");
      _tile_loadconfig(&config);
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() { _tile_release(); }
  };

  static std::int32_t next_rows(std::int32_t left) {
    if (left >= 2 * kTileRows) return 2 * kTileRows;
    return left >= kTileRows ? kTileRows : Dots::next_rows(left);
  }

  static void multiply(std::int32_t rows, std::int32_t vectors, const PairProduct& product) {
    if (rows < kTileRows) return Dots::multiply(rows, vectors, product);
    PairProduct sums = product;
    if (sums.rescale != nullptr) {
      if (all_are(0.0F, sums.rescale, rows)) {
        sums.rescale = nullptr;  // the first keys: nothing to add to
      } else if (!all_are(1.0F, sums.rescale, rows)) {
        rescale_rows(sums, rows, vectors);
      }
    }
    if (rows == 2 * kTileRows) {
      tile_row<2>(vectors, sums);
    } else {
      tile_row<1>(vectors, sums);
    }
  }
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_AMX
