// SPDX-License-Identifier: Apache-2.0
// The portable tier: fp32 arithmetic on rows of any dtype, compiled for each instruction set that
// Highway knows and chosen at run time.

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
  static const Tier tier{
      "cpu.portable", hwy::TargetName(HWY_TARGET), buffer_bytes, attend, store_row, add_row};
  return tier;
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire::cpu {

HWY_EXPORT(tier);

const Tier& portable_tier() noexcept { return HWY_DYNAMIC_DISPATCH(tier)(); }

}  // namespace quire::cpu
#endif
