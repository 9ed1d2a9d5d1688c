// SPDX-License-Identifier: Apache-2.0
/// @file
/// Products of blocks of rows with a panel of pairs, by VDPBF16PS.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/bf16/softmax.hpp"
#include "cpu/bf16/widen.hpp"
#include "cpu/portable/vector-inl.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Rows and vectors of columns of a block: 24 sums, 4 columns and a row's pair fill the registers.
inline constexpr std::int32_t kDotRows = 6;
inline constexpr std::int32_t kDotColumns = 4;

/// Operands of c[row][column] (+)= Σ_i a[row][i] · b[i / 2][column][i % 2].
struct PairProduct {
  const std::uint16_t* a = nullptr;  // bf16 [rows, 2 · pairs]
  std::ptrdiff_t a_stride = 0;
  const std::uint32_t* b = nullptr;  // [pairs, columns]
  std::ptrdiff_t b_stride = 0;
  float* c = nullptr;  // [rows, columns]
  std::ptrdiff_t c_stride = 0;
  std::int32_t pairs = 0;
  const float* rescale = nullptr;  // [rows]: c is multiplied by it first; null: c is overwritten
};

template <std::int32_t kRows, std::int32_t kColumns>
void dot_block(const PairProduct& product) {
  __m512 acc[extent(kRows * kColumns)];
  HWY_UNROLL(6)
  for (std::int32_t row = 0; row < kRows; ++row) {
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      acc[row * kColumns + c] =
          product.rescale == nullptr
              ? _mm512_setzero_ps()
              : _mm512_mul_ps(_mm512_load_ps(product.c + row * product.c_stride + c * kRowPadding),
                              _mm512_set1_ps(product.rescale[row]));
    }
  }
  const std::uint16_t* a = product.a;
  const std::uint32_t* b = product.b;
  const std::ptrdiff_t a_stride = product.a_stride;
  for (std::int32_t i = 0; i < product.pairs; ++i, a += 2, b += product.b_stride) {
    __m512i b_part[extent(kColumns)];
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) b_part[c] = _mm512_load_si512(b + c * kRowPadding);
    HWY_UNROLL(6)
    for (std::int32_t row = 0; row < kRows; ++row) {
      const __m512i a_part = broadcast_pair(a + row * a_stride);
      HWY_UNROLL(4)
      for (std::int32_t c = 0; c < kColumns; ++c) {
        acc[row * kColumns + c] = dot(acc[row * kColumns + c], a_part, b_part[c]);
      }
    }
  }
  HWY_UNROLL(6)
  for (std::int32_t row = 0; row < kRows; ++row) {
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      _mm512_store_ps(product.c + row * product.c_stride + c * kRowPadding,
                      acc[row * kColumns + c]);
    }
  }
}

/// dot_block for 1 … kDotRows rows.
template <std::int32_t kColumns>
inline constexpr std::array<void (*)(const PairProduct&), kDotRows> kDotBlocks = {
    dot_block<1, kColumns>, dot_block<2, kColumns>, dot_block<3, kColumns>,
    dot_block<4, kColumns>, dot_block<5, kColumns>, dot_block<6, kColumns>};

/// The micro-kernels of AVX512-BF16.
struct Dots {
  /// Queries whose rows go through both products and the softmax between them together: few, so that
  /// their logits are still near when they are needed.
  static constexpr std::int32_t slice_queries(std::int32_t group) {
    constexpr std::int32_t kRows = 8 * kDotRows;
    return std::max(1, kRows / group);
  }

  /// @return Rows of the next block, of so many.
  static std::int32_t next_rows(std::int32_t left) {
    return left >= 2 * kDotRows || left <= kDotRows ? std::min(left, kDotRows) : (left + 1) / 2;
  }

  /// `rows` of `next_rows` and `vectors` ≤ kDotColumns vectors of columns.
  static void multiply(std::int32_t rows, std::int32_t vectors, const PairProduct& product) {
    const auto index = static_cast<std::size_t>(rows - 1);
    switch (vectors) {
      case 4:
        return kDotBlocks<4>[index](product);
      case 3:
        return kDotBlocks<3>[index](product);
      case 2:
        return kDotBlocks<2>[index](product);
      default:
        return kDotBlocks<1>[index](product);
    }
  }
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
