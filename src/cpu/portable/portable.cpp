// SPDX-License-Identifier: Apache-2.0
// The fp32 tiers: multiply-adds on rows of any dtype, compiled for each instruction set that Highway
// knows; tiers.cpp names them.

// Targets that would change nothing for fp32 arithmetic, and those whose vectors have no size at
// compile time.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/portable/portable.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target, as Highway asks.
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "cpu/portable/attend-inl.hpp"
#include "cpu/portable/rows-inl.hpp"
#include "cpu/tier.hpp"

HWY_BEFORE_NAMESPACE();
namespace quire::cpu::HWY_NAMESPACE {

const Tier& tier() {
  static constexpr Tier kTier{buffer_bytes, attend, store_row, add_row};
  return kTier;
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire::cpu {

const Tier& fp32_tier(std::int64_t target) noexcept {
#if HWY_TARGETS & HWY_AVX3
  if (target == HWY_AVX3) return N_AVX3::tier();
#endif
#if HWY_TARGETS & HWY_AVX2
  if (target == HWY_AVX2) return N_AVX2::tier();
#endif
#if HWY_TARGETS & HWY_SSE4
  if (target == HWY_SSE4) return N_SSE4::tier();
#endif
#if HWY_TARGETS & HWY_NEON
  if (target == HWY_NEON) return N_NEON::tier();
#endif
  (void)target;
  return HWY_STATIC_DISPATCH(tier)();
}

}  // namespace quire::cpu
#endif
