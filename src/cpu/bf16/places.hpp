// SPDX-License-Identifier: Apache-2.0
/// @file
/// The cheapest order of elements and columns, and the way back. Queries are put into the order that
/// widened keys come in; o is left in the order that pairs of widened values come in, until the item
/// is done. Only whole blocks of 64 elements are moved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/widen.hpp"

QUIRE_BEGIN_BF16
namespace quire::cpu::HWY_NAMESPACE {

/// Puts a row of q into the order of `LaneOrder::kCheapest` keys.
template <typename T>
void order_query(std::uint16_t* q, std::int32_t head_dim) {
  if constexpr (!kIsByte<T>) return;  // keys of bf16 come in order
  const __m512i low_from = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13);
  const __m512i high_from = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
  for (std::int32_t at = 0; at + kWidened <= head_dim; at += kWidened) {
    const __m512i low = _mm512_loadu_si512(q + at);
    const __m512i high = _mm512_loadu_si512(q + at + kWidened / 2);
    _mm512_storeu_si512(q + at, _mm512_permutex2var_epi64(low, low_from, high));
    _mm512_storeu_si512(q + at + kWidened / 2, _mm512_permutex2var_epi64(low, high_from, high));
  }
}

/// Where column `column` of o lies before `order_columns`.
template <typename T>
std::int32_t place_of(std::int32_t column, std::int32_t head_dim) {
  constexpr std::int32_t kChunk = 4;
  const std::int32_t block = column / kWidened * kWidened;
  if (block + kWidened > head_dim) return column;
  const std::int32_t chunk = (column - block) / kChunk;
  // Vector and lane of 128 bits that the chunk is in.
  const std::int32_t vector = kIsByte<T> ? chunk % 4 : chunk / 8 * 2 + chunk % 2;
  const std::int32_t lane = kIsByte<T> ? chunk / 4 : chunk % 8 / 2;
  return block + vector * kRowPadding + lane * kChunk + column % kChunk;
}

/// Puts a row of o into order.
template <typename T>
void order_columns(float* o, std::int32_t head_dim) {
  for (std::int32_t at = 0; at + kWidened <= head_dim; at += kWidened) {
    alignas(kBufferAlignment) float ordered[kWidened];
    for (std::int32_t i = 0; i < kWidened; i += 4) {
      _mm_store_ps(ordered + i, _mm_loadu_ps(o + place_of<T>(at + i, head_dim)));
    }
    for (std::int32_t i = 0; i < kWidened; i += kRowPadding) {
      _mm512_storeu_ps(o + at + i, _mm512_load_ps(ordered + i));
    }
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_BF16
