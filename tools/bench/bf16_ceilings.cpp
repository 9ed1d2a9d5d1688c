// SPDX-License-Identifier: Apache-2.0
// The instructions on bf16 that Highway 1.0 has no operations for. Only run where a kernel that is
// made of them was chosen.
#include <hwy/base.h>

#include "bench/ceilings.hpp"

#if HWY_ARCH_X86
#include <immintrin.h>
#endif

namespace quire::tool {

#if HWY_ARCH_X86
namespace {

constexpr int kSums = 12;  // independent ones hide the latency of an instruction

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) float add_pairs(std::size_t rounds,
                                                                                float start) {
  const auto a = (__m512bh)_mm512_set1_epi32(0x3f7f3f7f);  // 0.996
  __m512 sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(start + static_cast<float>(i));
  for (std::size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, a);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  float lanes[16];
  _mm512_storeu_ps(lanes, sums[0]);
  return lanes[0];
}

struct alignas(64) TileSetup {
  unsigned char palette = 1;
  unsigned char unused[15] = {};
  unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16};
};

__attribute__((target("avx512f,amx-tile,amx-bf16"))) float add_tiles(std::size_t rounds,
                                                                     float start) {
  const TileSetup setup;
  alignas(64) float tile[16 * 16];
  for (float& element : tile) element = start;
  __asm__ volatile("" : : "r"(&setup), "r"(tile) : "memory");
  _tile_loadconfig(&setup);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, tile, 64);
  _tile_loadd(5, tile, 64);
  for (std::size_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, tile, 64);
  _tile_release();
  __asm__ volatile("" : : "r"(tile) : "memory");
  return tile[0];
}

}  // namespace

Arithmetic pairs_of_bf16() {
  constexpr double kFlop = 16 * 2 * 2;  // lanes, pairs, multiply and add
  return {"vdpbf16ps", add_pairs, kSums * kFlop};
}

Arithmetic tiles_of_bf16() {
  constexpr double kFlop = 16 * 16 * 32 * 2;  // rows, columns, depth, multiply and add
  return {"tdpbf16ps", add_tiles, 4 * kFlop};
}

#else

Arithmetic pairs_of_bf16() { return arithmetic_of("cpu.portable"); }
Arithmetic tiles_of_bf16() { return arithmetic_of("cpu.portable"); }

#endif

}  // namespace quire::tool
