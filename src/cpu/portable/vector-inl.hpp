// SPDX-License-Identifier: Apache-2.0
/// @file
/// Vectors of fp32: loading rows of any dtype, exp2, tanh, transposing. Compiled once per target.
#if defined(QUIRE_CPU_PORTABLE_VECTOR_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_CPU_PORTABLE_VECTOR_INL
#undef QUIRE_CPU_PORTABLE_VECTOR_INL
#else
#define QUIRE_CPU_PORTABLE_VECTOR_INL
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/float_formats.hpp"
#include "cpu/elements.hpp"
#include "cpu/tier.hpp"

HWY_BEFORE_NAMESPACE();
namespace quire::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, kRowPadding>;
using Vec = hn::Vec<Floats>;
inline constexpr std::int32_t kLanes = static_cast<std::int32_t>(hn::MaxLanes(Floats()));

/// A count as the size of an array.
constexpr std::size_t extent(std::int32_t count) { return static_cast<std::size_t>(count); }

/// Whether half of a vector is a step of head_dim: rows may then end in half a vector.
inline constexpr bool kHasHalfTail = kLanes > kHeadDimStep;

// x86 before AVX-512 has 16 vector registers, others 32.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr std::int32_t kRegisterColumns = 2;
#else
inline constexpr std::int32_t kRegisterColumns = 4;
#endif

// Whether the target converts fp16 in hardware, subnormals and infinities included.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2 || HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
inline constexpr bool kConvertsFloat16 = false;
#else
inline constexpr bool kConvertsFloat16 = true;
#endif

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const BFloat16* from) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<std::uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const Float16* from) {
  if constexpr (kConvertsFloat16) {
    const hn::Rebind<hwy::float16_t, D> d16;
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
  } else {
    // Exponent and mantissa read as fp32 are 2^112 too small, subnormals included; the codes of
    // infinity and NaN need the exponent of fp32's.
    const hn::Rebind<std::uint16_t, D> d16;
    const hn::Rebind<std::uint32_t, D> d32;
    constexpr float kRebias = 5.192296858534828e33F;  // 2^112
    constexpr std::int32_t kInfinity = 0x7c00 << 13;
    const auto bits =
        hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from)));
    const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(d32, 0x7fffU)));
    const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d32, 0x8000U)));
    const auto value = hn::BitCast(d32, hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, kRebias)));
    const hn::Rebind<std::int32_t, D> di;  // magnitudes are below 2^31: a signed compare will do
    const auto finite = hn::Lt(hn::BitCast(di, magnitude), hn::Set(di, kInfinity));
    const auto exponent = hn::BitCast(d32, hn::IfThenZeroElse(finite, hn::Set(di, 0x7f800000)));
    return hn::BitCast(d, hn::Or(hn::Or(value, exponent), sign));
  }
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const Int8* from) {
  const hn::Rebind<std::int8_t, D> d8;
  const hn::Rebind<std::int32_t, D> d32;
  return hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, &from->bits)));
}

/// Bits of an 8-bit float with `kExponentBits`, moved to where fp16 has them: 2^(15 − bias) too
/// small, subnormals included.
template <int kExponentBits, class D>
HWY_INLINE hn::Vec<D> load_float8(D d, const std::uint8_t* from) {
  constexpr int kShift = 10 - (7 - kExponentBits);
  const hn::Rebind<std::uint8_t, D> d8;
  const hn::Rebind<std::uint32_t, D> d32;
  constexpr float kRebias = kExponentBits == 4 ? 256.0F : 1.0F;
  if constexpr (kConvertsFloat16) {
    const hn::Rebind<std::uint16_t, D> d16;
    const hn::Rebind<hwy::float16_t, D> half;
    const auto code = hn::PromoteTo(d16, hn::LoadU(d8, from));
    const auto magnitude = hn::ShiftLeft<kShift>(hn::And(code, hn::Set(d16, 0x7fU)));
    const auto sign = hn::ShiftLeft<8>(hn::And(code, hn::Set(d16, 0x80U)));
    const auto value = hn::PromoteTo(d, hn::BitCast(half, hn::Or(magnitude, sign)));
    return kRebias == 1.0F ? value : hn::Mul(value, hn::Set(d, kRebias));
  } else {
    constexpr float kFrom16 = 5.192296858534828e33F;  // 2^112
    const auto code = hn::PromoteTo(d32, hn::LoadU(d8, from));
    const auto magnitude = hn::ShiftLeft<kShift + 13>(hn::And(code, hn::Set(d32, 0x7fU)));
    const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(d32, 0x80U)));
    const auto value = hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, kFrom16 * kRebias));
    return hn::BitCast(d, hn::Or(hn::BitCast(d32, value), sign));
  }
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const Float8E4M3* from) {
  // Its only code without a number would read as 480.
  const auto value = load_float8<4>(d, &from->bits);
  const auto is_number = hn::Le(hn::Abs(value), hn::Set(d, 448.0F));
  return hn::IfThenElse(is_number, value, hn::Set(d, std::numeric_limits<float>::quiet_NaN()));
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const Float8E5M2* from) {
  const auto value = load_float8<5>(d, &from->bits);
  if constexpr (kConvertsFloat16) return value;
  // Codes from 2^16 on are those of infinity and NaN.
  const auto magnitude = hn::Abs(value);
  const auto infinity = hn::Set(d, std::numeric_limits<float>::infinity());
  const auto special =
      hn::IfThenElse(hn::Eq(magnitude, hn::Set(d, 65536.0F)), hn::CopySign(infinity, value),
                     hn::Set(d, std::numeric_limits<float>::quiet_NaN()));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 65536.0F)), value, special);
}

/// The last half vector of a row whose length is not a multiple of the vector, then zeros.
template <typename T>
HWY_INLINE Vec load_half(const T* from) {
#if HWY_TARGET <= HWY_AVX3
  const hn::Half<Floats> half;
  return hn::ZeroExtendVector(Floats(), load(half, from));
#else
  return load(Floats(), from);  // not reached: kHasHalfTail is false
#endif
}

template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, float* to) {
  hn::StoreU(value, d, to);
}

template <class D>
HWY_INLINE void store(D, hn::Vec<D> value, BFloat16* to) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<std::uint32_t, D> d32;
  const auto bits = hn::BitCast(d32, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1U));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fffU)));
  const auto quiet_nan = hn::Or(bits, hn::Set(d32, 0x00400000U));
  const auto is_number = hn::RebindMask(d32, hn::Eq(value, value));
  const auto high = hn::ShiftRight<16>(hn::IfThenElse(is_number, rounded, quiet_nan));
  hn::StoreU(hn::TruncateTo(d16, high), d16, reinterpret_cast<std::uint16_t*>(to));
}

template <class D>
HWY_INLINE void store([[maybe_unused]] D d, hn::Vec<D> value, Float16* to) {
  if constexpr (kConvertsFloat16) {
    const hn::Rebind<hwy::float16_t, D> d16;
    hn::StoreU(hn::DemoteTo(d16, value), d16, reinterpret_cast<hwy::float16_t*>(to));
  } else {
    float values[hn::MaxLanes(D())];
    hn::StoreU(value, d, values);
    for (float element : values) *to++ = {core::float16_from_float(element)};
  }
}

template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, Int8* to) {
  const hn::Rebind<std::int8_t, D> d8;
  value = hn::IfThenElseZero(hn::Eq(value, value), value);
  value = hn::Min(hn::Max(value, hn::Set(d, -128.0F)), hn::Set(d, 127.0F));
  hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(value)), d8, &to->bits);
}

/// Rounds to an 8-bit float of `kExponentBits`, saturating: the mantissa of fp32 to the
/// nearest of its upper bits or, for subnormals, the number to the nearest step.
template <int kExponentBits, std::uint8_t kNaN, class D>
HWY_INLINE void store_float8(D d, hn::Vec<D> value, std::uint8_t* to) {
  constexpr int kMantissaBits = 7 - kExponentBits;
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr int kDropped = 23 - kMantissaBits;
  constexpr float kLargestValue = kExponentBits == 4 ? 448.0F : 57344.0F;
  constexpr float kSteps = kExponentBits == 4 ? 0x1p9F : 0x1p16F;  // of subnormals, to 1
  constexpr float kSmallestNormal = kExponentBits == 4 ? 0x1p-6F : 0x1p-14F;
  const hn::Rebind<std::int32_t, D> d32;
  const hn::Rebind<std::uint8_t, D> d8;
  const auto magnitude = hn::Min(hn::Abs(value), hn::Set(d, kLargestValue));
  const auto bits = hn::BitCast(d32, magnitude);
  const auto odd = hn::And(hn::ShiftRight<kDropped>(bits), hn::Set(d32, 1));
  const auto half = hn::Set(d32, (1 << (kDropped - 1)) - 1);
  const auto rounded = hn::ShiftRight<kDropped>(hn::Add(bits, hn::Add(half, odd)));
  const auto normal = hn::Sub(rounded, hn::Set(d32, (127 - kBias) << kMantissaBits));
  const auto subnormal = hn::NearestInt(hn::Mul(magnitude, hn::Set(d, kSteps)));
  const auto is_small = hn::RebindMask(d32, hn::Lt(magnitude, hn::Set(d, kSmallestNormal)));
  const auto is_number = hn::RebindMask(d32, hn::Eq(value, value));
  const auto code =
      hn::IfThenElse(is_number, hn::IfThenElse(is_small, subnormal, normal), hn::Set(d32, kNaN));
  const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(d32, value)), hn::Set(d32, 0x80));
  hn::StoreU(hn::DemoteTo(d8, hn::Or(code, sign)), d8, to);
}
template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, Float8E4M3* to) {
  store_float8<4, 0x7f>(d, value, &to->bits);
}
template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, Float8E5M2* to) {
  store_float8<5, 0x7e>(d, value, &to->bits);
}

/// 2^x for x < 127; below −126 as for −126. Relative error ≤ 2.1e-7; NaN stays NaN.
HWY_INLINE Vec exp2(Vec x) {
  const Floats d;
  x = hn::Max(hn::Set(d, -126.0F), x);  // of a NaN and a number, the second
  // Adding it rounds to a whole number, whose exponent of fp32 is then in the lowest bits.
  const Vec shift = hn::Set(d, 0x1.8p23F + 127.0F);
  const Vec shifted = hn::Add(x, shift);
  const Vec whole = hn::Sub(shifted, shift);
  const Vec f = hn::Sub(x, whole);
  // Minimax of 2^f on [−0.5, 0.5], degree 5.
  Vec p = hn::Set(d, 0.00132764585F);
  p = hn::MulAdd(p, f, hn::Set(d, 0.00967554096F));
  p = hn::MulAdd(p, f, hn::Set(d, 0.0555071346F));
  p = hn::MulAdd(p, f, hn::Set(d, 0.240221202F));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693146944F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.00000012F));
#if HWY_TARGET <= HWY_AVX3
  p.raw = _mm512_scalef_ps(p.raw, whole.raw);
  return p;
#else
  const hn::Rebind<std::uint32_t, Floats> d32;
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(d32, shifted))));
#endif
}

/// tanh x, relative error ≤ 1e-6.
HWY_INLINE Vec tanh(Vec x) {
  const Floats d;
  constexpr float kPolynomialBound = 0.625F;
  constexpr float kTwoLog2E = 2.88539008F;
  constexpr float kSaturation = 40.0F;  // 1 − 2 / (2^40 + 1) is 1 in fp32
  const Vec magnitude = hn::Abs(x);
  // Odd polynomial, interpolated at the Chebyshev nodes of [0, 0.625²]: e^2x − 1 would cancel here.
  const Vec z = hn::Mul(x, x);
  Vec p = hn::Set(d, -0.00565713519F);
  p = hn::MulAdd(p, z, hn::Set(d, 0.0205881915F));
  p = hn::MulAdd(p, z, hn::Set(d, -0.0537201077F));
  p = hn::MulAdd(p, z, hn::Set(d, 0.133311141F));
  p = hn::MulAdd(p, z, hn::Set(d, -0.333332599F));
  p = hn::MulAdd(hn::Mul(p, z), x, x);
  const Vec power =
      exp2(hn::Min(hn::Set(d, kSaturation), hn::Mul(magnitude, hn::Set(d, kTwoLog2E))));
  const Vec one = hn::Set(d, 1.0F);
  const Vec large = hn::Sub(one, hn::Div(hn::Set(d, 2.0F), hn::Add(power, one)));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, kPolynomialBound)), p, hn::CopySign(large, x));
}

/// Every second lane of `low`, then of `high`.
HWY_INLINE Vec even_lanes(Vec low, Vec high) {
#if HWY_TARGET == HWY_SCALAR
  return (void)high, low;  // not reached: one lane has no pairs
#else
  return hn::ConcatEven(Floats(), high, low);
#endif
}
HWY_INLINE Vec odd_lanes(Vec low, Vec high) {
#if HWY_TARGET == HWY_SCALAR
  return (void)low, high;
#else
  return hn::ConcatOdd(Floats(), high, low);
#endif
}

/// Lane i is the result of `f` over the lanes of v[i]; `f` does not care for order.
template <std::int32_t kCount, typename F>
HWY_INLINE Vec over_lanes_of(const Vec* v, const F& f) {
  if constexpr (kCount == 1) {
    return *v;
  } else {
    const Vec low = over_lanes_of<kCount / 2>(v, f);
    const Vec high = over_lanes_of<kCount / 2>(v + kCount / 2, f);
    return f(even_lanes(low, high), odd_lanes(low, high));
  }
}
template <std::int32_t kCount>
HWY_INLINE Vec sums_of(const Vec* v) {
  return over_lanes_of<kCount>(v, [](Vec a, Vec b) HWY_ATTR { return hn::Add(a, b); });
}
template <std::int32_t kCount>
HWY_INLINE Vec maxima_of(const Vec* v) {
  return over_lanes_of<kCount>(v, [](Vec a, Vec b) HWY_ATTR { return hn::Max(a, b); });
}

/// Transposes kLanes vectors. Each of the log2(kLanes) rounds moves one bit of the lane's number
/// into the vector's number and one the other way.
HWY_INLINE void transpose(Vec* v) {
  constexpr std::int32_t kHalf = kLanes / 2;
  HWY_UNROLL(4)
  for (std::int32_t span = 1; span < kLanes; span *= 2) {
    Vec next[kLanes];
    HWY_UNROLL(8)
    for (std::int32_t i = 0; i < kHalf; ++i) {
      next[i] = even_lanes(v[2 * i], v[2 * i + 1]);
      next[i + kHalf] = odd_lanes(v[2 * i], v[2 * i + 1]);
    }
    HWY_UNROLL(16)
    for (std::int32_t i = 0; i < kLanes; ++i) v[i] = next[i];
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
