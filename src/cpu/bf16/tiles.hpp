// SPDX-License-Identifier: Apache-2.0
/// @file
/// The eight tiles of AMX, by number. Compiler intrinsics for them do not say which memory they
/// touch, and take no template's constant for a number; these do. With QUIRE_EMULATE_TILES, tiles are
/// memory and products those of VDPBF16PS, so that kernels can be tested on cores without AMX.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/target.hpp"

QUIRE_BEGIN_AMX
namespace quire::cpu::HWY_NAMESPACE {

/// Bytes of a tile's row.
inline constexpr std::ptrdiff_t kTileBytes = 64;

/// What LDTILECFG reads: all eight tiles have 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

/// A tile's rows, one after the other.
using WholeTile = std::byte[kTileRows * kTileBytes];

#if QUIRE_EMULATE_TILES

struct EmulatedTiles {
  TileConfig config;
  alignas(64) std::byte rows[8][kTileRows][kTileBytes];
};
inline thread_local EmulatedTiles emulated;

inline void configure_tiles(const TileConfig& config) { emulated.config = config; }
inline void release_tiles() {}

template <int kTile>
void zero_tile() {
  std::memset(emulated.rows[kTile], 0, sizeof(emulated.rows[kTile]));
}

/// Rows begin `stride` bytes apart.
template <int kTile>
void load_tile(const void* from, std::ptrdiff_t stride = kTileBytes) {
  zero_tile<kTile>();
  for (std::int32_t row = 0; row < emulated.config.rows[kTile]; ++row) {
    std::memcpy(emulated.rows[kTile][row], static_cast<const std::byte*>(from) + row * stride,
                emulated.config.row_bytes[kTile]);
  }
}

template <int kTile>
void stream_tile(const void* from) {
  load_tile<kTile>(from);
}

template <int kTile>
void store_tile(void* to, std::ptrdiff_t stride) {
  for (std::int32_t row = 0; row < emulated.config.rows[kTile]; ++row) {
    std::memcpy(static_cast<std::byte*>(to) + row * stride, emulated.rows[kTile][row],
                emulated.config.row_bytes[kTile]);
  }
}

/// c[row][column] += Σ_i a[row][i] · b[i / 2][column][i % 2]
template <int kC, int kA, int kB>
void multiply_tile() {
  const std::int32_t pairs = emulated.config.row_bytes[kA] / 4;
  for (std::int32_t row = 0; row < emulated.config.rows[kC]; ++row) {
    __m512 c = _mm512_load_ps(emulated.rows[kC][row]);
    for (std::int32_t pair = 0; pair < pairs; ++pair) {
      std::int32_t a = 0;
      std::memcpy(&a, emulated.rows[kA][row] + pair * 4, sizeof(a));
      c = _mm512_dpbf16_ps(c, (__m512bh)_mm512_set1_epi32(a),
                           (__m512bh)_mm512_load_si512(emulated.rows[kB][pair]));
    }
    _mm512_store_ps(emulated.rows[kC][row], c);
  }
}

#else

inline void configure_tiles(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
inline void release_tiles() { __asm__ volatile("tilerelease"); }

template <int kTile>
HWY_INLINE void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

/// Rows begin `stride` bytes apart.
template <int kTile>
HWY_INLINE void load_tile(const void* from, std::ptrdiff_t stride) {
  __asm__ volatile("tileloadd (%0,%1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
HWY_INLINE void load_tile(const void* from) {
  __asm__ volatile("tileloadd (%0,%1), %%tmm%c2"
                   :
                   : "r"(from), "r"(kTileBytes), "i"(kTile),
                     "m"(*static_cast<const WholeTile*>(from)));
}

/// Of what is read again only after much else.
template <int kTile>
HWY_INLINE void stream_tile(const void* from) {
  __asm__ volatile("tileloaddt1 (%0,%1), %%tmm%c2"
                   :
                   : "r"(from), "r"(kTileBytes), "i"(kTile),
                     "m"(*static_cast<const WholeTile*>(from)));
}

template <int kTile>
HWY_INLINE void store_tile(void* to, std::ptrdiff_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
/// c[row][column] += Σ_i a[row][i] · b[i / 2][column][i % 2]
template <int kC, int kA, int kB>
HWY_INLINE void multiply_tile() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

#endif

/// Tiles set up for this thread, and given back: an idle tile register file is not saved and lets the
/// core sleep deeper.
class TileSession {
 public:
  explicit TileSession(const TileConfig& config = {}) { configure_tiles(config); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
  ~TileSession() { release_tiles(); }
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_AMX
