// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of any length: rounding to a dtype, widening and adding. Compiled once per target.
#if defined(QUIRE_CPU_PORTABLE_ROWS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_CPU_PORTABLE_ROWS_INL
#undef QUIRE_CPU_PORTABLE_ROWS_INL
#else
#define QUIRE_CPU_PORTABLE_ROWS_INL
#endif

#include <cstdint>

#include "cpu/portable/vector-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace quire::cpu::HWY_NAMESPACE {

/// Rows are a multiple of kHeadDimStep long as a rule; the rest goes one by one.
using RowFloats = hn::CappedTag<float, kHeadDimStep>;
inline constexpr std::int64_t kRowLanes = static_cast<std::int64_t>(hn::MaxLanes(RowFloats()));

inline void store_row(void* to, DType dtype, const float* from, std::int64_t n,
                      float scale) noexcept {
  with_element_type(dtype, [&](auto element) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    const RowFloats d;
    auto* row = static_cast<T*>(to);
    std::int64_t i = 0;
    for (; i + kRowLanes <= n; i += kRowLanes) {
      store(d, hn::Mul(hn::LoadU(d, from + i), hn::Set(d, scale)), row + i);
    }
    for (; i < n; ++i) from_float(from[i] * scale, row[i]);
  });
}

inline void add_row(float* to, const void* from, DType dtype, std::int64_t n,
                    float weight) noexcept {
  with_element_type(dtype, [&](auto element) HWY_ATTR {
    const RowFloats d;
    const auto* row = static_cast<decltype(element)>(from);
    std::int64_t i = 0;
    for (; i + kRowLanes <= n; i += kRowLanes) {
      const auto sum = hn::MulAdd(load(d, row + i), hn::Set(d, weight), hn::LoadU(d, to + i));
      hn::StoreU(sum, d, to + i);
    }
    for (; i < n; ++i) to[i] += to_float(row[i]) * weight;
  });
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
