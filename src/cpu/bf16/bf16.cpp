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

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

void attend_by_dots(const ItemTask& task) noexcept { block_attend<Dots>(task); }
std::size_t buffer_bytes_of_blocks(const core::ProblemShape& shape, std::int32_t rows) noexcept {
  return BlockBuffers(nullptr, shape, rows).bytes;
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
#endif

#if HWY_ONCE
namespace quire::cpu {

const Tier& avx512_bf16_tier() noexcept {
  static const Tier tier = [] {
    Tier with_rows = fp32_tier(HWY_AVX3);  // whole rows are converted in fp32
    with_rows.buffer_bytes = N_AVX3_DL::buffer_bytes_of_blocks;
    with_rows.attend = N_AVX3_DL::attend_by_dots;
    return with_rows;
  }();
  return tier;
}

}  // namespace quire::cpu
#endif
