// SPDX-License-Identifier: Apache-2.0
// The bf16 tiers: products of pairs with fp32 sums, for bf16 queries and caches of bf16 and 8 bits.

// Compiled once, for a target that nobody else uses: see target.hpp.
#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | HWY_AVX3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/bf16/bf16.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include "cpu/tier.hpp"

#if HWY_TARGET == HWY_AVX3_DL
#include "cpu/bf16/attend.hpp"
#include "cpu/bf16/attend_few_amx.hpp"
#include "cpu/bf16/attend_many_amx.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

void attend_by_dots(const ItemTask& task) noexcept { block_attend<WayOfDots>(task); }
std::size_t buffer_bytes_of_blocks(const core::ProblemShape& shape, std::int32_t rows) noexcept {
  return BlockBuffers(nullptr, shape, rows).bytes;
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16

QUIRE_BEGIN_AMX
namespace quire::cpu::HWY_NAMESPACE {

/// How TDPBF16PS goes through an item.
struct WayOfTiles {
  template <typename T>
  using Few = FewTiles<T>;
  template <typename T>
  using Many = ManyTiles<T>;
};

void attend_by_tiles(const ItemTask& task) noexcept { block_attend<WayOfTiles>(task); }
std::size_t buffer_bytes_of_tiles(const core::ProblemShape& shape, std::int32_t rows) noexcept {
  return std::max(buffer_bytes_of_blocks(shape, rows), TileBuffers(nullptr, shape, rows).bytes);
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_AMX
#endif

#if HWY_ONCE && HWY_ARCH_X86
namespace quire::cpu {

namespace {

/// Whole rows are converted by the kernels of AVX-512.
Tier tier_of_blocks(void (*attend)(const ItemTask&) noexcept) {
  Tier tier = fp32_tier(HWY_AVX3);
  tier.buffer_bytes = N_AVX3_DL::buffer_bytes_of_blocks;
  tier.attend = attend;
  tier.item_elements = 196608;  // q takes half of what it takes in fp32
  return tier;
}

}  // namespace

const Tier& avx512_bf16_tier() noexcept {
  static const Tier tier = tier_of_blocks(N_AVX3_DL::attend_by_dots);
  return tier;
}

const Tier& amx_bf16_tier() noexcept {
  static const Tier tier = [] {
    Tier blocks = tier_of_blocks(N_AVX3_DL::attend_by_tiles);
    blocks.buffer_bytes = N_AVX3_DL::buffer_bytes_of_tiles;
    blocks.few_rows = 16;
    return blocks;
  }();
  return tier;
}

}  // namespace quire::cpu
#endif
