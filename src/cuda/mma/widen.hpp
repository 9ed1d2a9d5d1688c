// SPDX-License-Identifier: Apache-2.0
/// @file
/// From 8-bit K and V to the fp16 that tensor cores multiply, four codes in a register at a time, on
/// their way from shared memory to the product (of large units: to the tile in shared memory that the
/// product reads). All three formats are exact in fp16.
///
/// An `ldmatrix` of 16-bit elements hands a lane the bytes 4t … 4t + 3 of a row, t = lane % 4, where
/// the operand B of m16n8k16 wants components 2t, 2t + 1, 2t + 8 and 2t + 9. So component 4t + i of
/// a key is multiplied as component `product_component(4t + i)`, and q is stored in that order
/// (`queries.cuh`): a product is a sum in any order. Transposed, for V, it hands a lane columns 2g
/// and 2g + 1 of keys 2t and 2t + 1, g = lane / 4: keys lie as operand B wants them, and the columns
/// of 16 are those of two operands, the even ones and the odd ones.
#pragma once

#include <cstdint>

#include "core/float_formats.hpp"
#include "core/narrow_formats.hpp"
#include "schedule/host_device.hpp"

namespace quire::cuda::mma {

/// Two registers of two fp16 numbers each, the first in the low half.
struct Pairs {
  std::uint32_t first;
  std::uint32_t second;
};

/// Which bytes of a register make the first pair, and which the second.
enum class Order {
  kNeighbours,  ///< 0, 1 and 2, 3: components of a key or a value
  kEvenOdd,     ///< 0, 2 and 1, 3: two columns of two keys
};

/// Where component `i` of 16 stands in a product.
QUIRE_HOST_DEVICE constexpr int product_component(int i) {
  return i / 4 * 2 + i % 2 + i % 4 / 2 * 8;
}

/// Where word `word` of 8, two neighbouring components each, stands in a product.
QUIRE_HOST_DEVICE constexpr int word_in_product(int word) { return word / 2 + word % 2 * 4; }

namespace widening {

/// Bytes of `low` (0 … 3) and `high` (4 … 7), chosen by the selector's digits, the lowest first.
QUIRE_HOST_DEVICE inline std::uint32_t select_bytes(std::uint32_t low, std::uint32_t high,
                                                    std::uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(low, high, selector);
#else
  const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
  std::uint32_t chosen = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t from = (selector >> (4 * i)) & 7U;
    chosen |= static_cast<std::uint32_t>((bytes >> (8 * from)) & 0xffU) << (8 * i);
  }
  return chosen;
#endif
}

/// The four codes as two pairs, each code in the high byte of its half, `low` below it.
template <Order kOrder>
QUIRE_HOST_DEVICE inline Pairs spread_high(std::uint32_t codes, std::uint32_t low) {
  return kOrder == Order::kNeighbours
             ? Pairs{select_bytes(codes, low, 0x1404), select_bytes(codes, low, 0x3424)}
             : Pairs{select_bytes(codes, low, 0x2404), select_bytes(codes, low, 0x3414)};
}
/// Likewise in the low byte, below `high`.
template <Order kOrder>
QUIRE_HOST_DEVICE inline Pairs spread_low(std::uint32_t codes, std::uint32_t high) {
  return kOrder == Order::kNeighbours
             ? Pairs{select_bytes(codes, high, 0x4140), select_bytes(codes, high, 0x4342)}
             : Pairs{select_bytes(codes, high, 0x4240), select_bytes(codes, high, 0x4341)};
}

#if !defined(__CUDA_ARCH__)
/// `f` of both halves of a pair, in fp32 and rounded.
template <typename F>
std::uint32_t of_both_halves(std::uint32_t pair, const F& f) {
  const auto half = [&](std::uint32_t bits) {
    return static_cast<std::uint32_t>(core::float16_from_float(
        f(core::float_from_float16(static_cast<std::uint16_t>(bits & 0xffffU)))));
  };
  return half(pair) | half(pair >> 16) << 16;
}
#endif

/// Two fp16 numbers times 2^8, exactly if that is finite.
QUIRE_HOST_DEVICE inline std::uint32_t times_256(std::uint32_t pair) {
#if defined(__CUDA_ARCH__)
  std::uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(0x5c005c00U));
  return product;
#else
  return of_both_halves(pair, [](float x) { return x * 256.0F; });
#endif
}

/// Two fp16 numbers minus 1152.
QUIRE_HOST_DEVICE inline std::uint32_t minus_1152(std::uint32_t pair) {
#if defined(__CUDA_ARCH__)
  std::uint32_t difference;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(pair), "r"(0x64806480U));
  return difference;
#else
  return of_both_halves(pair, [](float x) { return x - 1152.0F; });
#endif
}

/// e4m3 without an instruction for it. Codes become fp16 of the same fields, too small by 2^8;
/// what was NaN becomes NaN.
template <Order kOrder>
QUIRE_HOST_DEVICE inline Pairs widen_e4m3_by_bits(std::uint32_t codes) {
  const auto number = [](std::uint32_t pair) {  // s eeee mmm 00000000 to s 0eeee mmm0000000
    return times_256((pair & 0x80008000U) | ((pair >> 1) & 0x3f803f80U));
  };
  const auto nan_bits = [](std::uint32_t pair) { return pair - (pair >> 7); };  // 8000 to 7f00
  const std::uint32_t is_nan = ((codes & 0x7f7f7f7fU) + 0x01010101U) & 0x80808080U;
  const Pairs spread = spread_high<kOrder>(codes, 0);
  const Pairs nan = spread_high<kOrder>(is_nan, 0);
  return {number(spread.first) | nan_bits(nan.first), number(spread.second) | nan_bits(nan.second)};
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
/// Four e4m3 codes, neighbours in pairs.
__device__ inline Pairs widen_e4m3(std::uint32_t codes) {
  Pairs pairs;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.rn.f16x2.e4m3x2 %0, low; "
      "cvt.rn.f16x2.e4m3x2 %1, high; }"
      : "=r"(pairs.first), "=r"(pairs.second)
      : "r"(codes));
  return pairs;
}
#endif

}  // namespace widening

/// Codes of type `Kv` as fp16.
template <typename Kv, Order kOrder>
struct Widen;

template <Order kOrder>
struct Widen<core::Float8E4M3, kOrder> {
  QUIRE_HOST_DEVICE static Pairs pairs(std::uint32_t codes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    return widening::widen_e4m3(
        kOrder == Order::kNeighbours ? codes : widening::select_bytes(codes, 0, 0x3120));
#else
    return widening::widen_e4m3_by_bits<kOrder>(codes);
#endif
  }
};

template <Order kOrder>
struct Widen<core::Float8E5M2, kOrder> {  // the upper half of an fp16
  QUIRE_HOST_DEVICE static Pairs pairs(std::uint32_t codes) {
    return widening::spread_high<kOrder>(codes, 0);
  }
};

template <Order kOrder>
struct Widen<core::Int8, kOrder> {  // 64 and a byte: 1024 + byte
  QUIRE_HOST_DEVICE static Pairs pairs(std::uint32_t codes) {
    const Pairs spread = widening::spread_low<kOrder>(codes ^ 0x80808080U, 0x64646464U);
    return {widening::minus_1152(spread.first), widening::minus_1152(spread.second)};
  }
};

}  // namespace quire::cuda::mma
