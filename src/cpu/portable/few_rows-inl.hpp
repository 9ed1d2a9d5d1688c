// SPDX-License-Identifier: Apache-2.0
/// @file
/// A tile against few rows (decode): keys and values are used where they lie, each loaded once for
/// up to four rows. Compiled once per target.
#if defined(QUIRE_CPU_PORTABLE_FEW_ROWS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_CPU_PORTABLE_FEW_ROWS_INL
#undef QUIRE_CPU_PORTABLE_FEW_ROWS_INL
#else
#define QUIRE_CPU_PORTABLE_FEW_ROWS_INL
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/portable/rows_of_head.hpp"
#include "cpu/portable/vector-inl.hpp"
#include "cpu/tile.hpp"

HWY_BEFORE_NAMESPACE();
namespace quire::cpu::HWY_NAMESPACE {

/// Rows of a block: so that block × keys of a group fill one vector of sums.
inline constexpr std::int32_t kFewRowsBlock = kLanes < 4 ? kLanes : 4;

/// acc[row · kKeys + key] += q[row] · k[key] at one place of the head.
template <std::int32_t kRows, std::int32_t kKeys>
HWY_INLINE void add_products(const Vec* q, const Vec* k, Vec* acc) {
  HWY_UNROLL(4)
  for (std::int32_t row = 0; row < kRows; ++row) {
    HWY_UNROLL(16)
    for (std::int32_t key = 0; key < kKeys; ++key) {
      acc[row * kKeys + key] = hn::MulAdd(q[row], k[key], acc[row * kKeys + key]);
    }
  }
}

/// Dot products of `kRows` rows with kLanes / kRows keys.
template <typename T, std::int32_t kRows>
HWY_INLINE Vec dot_products(const float* const* q, const T* const* k, std::int32_t head_dim) {
  constexpr std::int32_t kKeys = kLanes / kRows;
  const Floats d;
  Vec acc[extent(kLanes)];
  HWY_UNROLL(16)
  for (std::int32_t i = 0; i < kLanes; ++i) acc[i] = hn::Zero(d);
  Vec k_part[extent(kKeys)];
  Vec q_part[extent(kRows)];
  std::int32_t at = 0;
  for (; at + kLanes <= head_dim; at += kLanes) {
    HWY_UNROLL(16)
    for (std::int32_t key = 0; key < kKeys; ++key) k_part[key] = load(d, k[key] + at);
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) q_part[row] = hn::Load(d, q[row] + at);
    add_products<kRows, kKeys>(q_part, k_part, acc);
  }
  if constexpr (kHasHalfTail) {
    if (at < head_dim) {
      HWY_UNROLL(16)
      for (std::int32_t key = 0; key < kKeys; ++key) k_part[key] = load_half(k[key] + at);
      HWY_UNROLL(4)
      for (std::int32_t row = 0; row < kRows; ++row) q_part[row] = hn::Load(d, q[row] + at);
      add_products<kRows, kKeys>(q_part, k_part, acc);
    }
  }
  return sums_of<kLanes>(acc);
}

/// Scores of rows [first, first + kRows) with keys [begin, end); rows beyond the last repeat it.
template <typename T, std::int32_t kRows>
void score_block(const HeadRows& rows, std::int32_t first, const HeadKeys<T>& keys,
                 std::int32_t begin, std::int32_t end) {
  constexpr std::int32_t kKeys = kLanes / kRows;
  const Floats d;
  const float* q[extent(kRows)];
  for (std::int32_t row = 0; row < kRows; ++row) {
    q[row] = rows.q_row(std::min(first + row, rows.count - 1));
  }
  const std::int32_t last = keys.keys.count - 1;
  for (std::int32_t key = begin; key < end; key += kKeys) {
    const T* k[extent(kKeys)];
    HWY_UNROLL(16)
    for (std::int32_t i = 0; i < kKeys; ++i) k[i] = keys.k(std::min(key + i, last));
    alignas(kBufferAlignment) float sums[extent(kLanes)];
    hn::Store(dot_products<T, kRows>(q, k, rows.head_dim_qk), d, sums);
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      std::memcpy(rows.score_row(std::min(first + row, rows.count - 1)) + key, sums + row * kKeys,
                  extent(kKeys) * sizeof(float));
    }
  }
}

/// Calls `block<kRows>(first)` until all rows are done, kRows being 4, 2 or 1.
template <typename F>
HWY_INLINE void for_each_block(std::int32_t count, const F& block) {
  std::int32_t first = 0;
  while (first < count) {
    const std::int32_t left = count - first;
    if (kFewRowsBlock >= 4 && left > 2) {
      block(std::integral_constant<std::int32_t, std::min(4, kFewRowsBlock)>(), first);
      first += 4;
    } else if (kFewRowsBlock >= 2 && left == 2) {
      block(std::integral_constant<std::int32_t, std::min(2, kFewRowsBlock)>(), first);
      first += 2;
    } else {
      block(std::integral_constant<std::int32_t, 1>(), first);
      first += 1;
    }
  }
}

/// Keys of a head that are scored before those of the next head: few, but at least what a vector of
/// sums takes.
constexpr std::int32_t keys_in_turn(std::int32_t rows) {
  constexpr std::int32_t kFewest = 4;
  const std::int32_t left = rows % kFewRowsBlock;  // rows of the last block; of 3 as of 4
  const std::int32_t block = left == 0 || left == 3 ? kFewRowsBlock : left;
  return std::max(kFewest, kLanes / block);
}

/// Scores of all rows with keys [begin, end), which begin a turn.
template <typename T>
void score_few(const HeadRows& rows, const HeadKeys<T>& keys, std::int32_t begin,
               std::int32_t end) {
  for_each_block(rows.count, [&](auto block, std::int32_t first) HWY_ATTR {
    score_block<T, block()>(rows, first, keys, begin, end);
  });
}

/// Keys [begin, end) of a tile, of which the values of those in `take` are to be added.
template <typename T>
struct ValuesTurn {
  HeadKeys<T> keys;
  std::uint64_t take = 0;
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

/// o[row][column …] += Σ p · v for `kRows` rows and `kColumns` vectors. o is rescaled first if the turn
/// is the tile's first.
template <typename T, std::int32_t kRows, std::int32_t kColumns, bool kHalf>
void accumulate_block(const HeadRows& rows, std::int32_t first, std::int32_t column,
                      const ValuesTurn<T>& turn) {
  const Floats d;
  float* o[extent(kRows)];
  const float* p[extent(kRows)];
  Vec acc[extent(kRows * kColumns)];
  HWY_UNROLL(4)
  for (std::int32_t row = 0; row < kRows; ++row) {
    const std::int32_t index = std::min(first + row, rows.count - 1);
    o[row] = rows.o_row(index) + column;
    p[row] = rows.score_row(index);
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      acc[row * kColumns + c] = hn::Load(d, o[row] + c * kLanes);
    }
  }
  if (turn.begin == 0) {
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      const Vec rescale = hn::Set(d, rows.rescale[std::min(first + row, rows.count - 1)]);
      HWY_UNROLL(4)
      for (std::int32_t c = 0; c < kColumns; ++c) {
        acc[row * kColumns + c] = hn::Mul(acc[row * kColumns + c], rescale);
      }
    }
  }
  for (std::int32_t key = turn.begin; key < turn.end; ++key) {
    if (((turn.take >> key) & 1U) == 0) continue;
    const T* v = turn.keys.v(key) + column;
    Vec v_part[extent(kColumns)];
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      v_part[c] = kHalf ? load_half(v) : load(d, v + c * kLanes);
    }
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kRows; ++row) {
      const Vec weight = hn::Set(d, p[row][key]);
      HWY_UNROLL(4)
      for (std::int32_t c = 0; c < kColumns; ++c) {
        acc[row * kColumns + c] = hn::MulAdd(weight, v_part[c], acc[row * kColumns + c]);
      }
    }
  }
  HWY_UNROLL(4)
  for (std::int32_t row = 0; row < kRows; ++row) {
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      hn::Store(acc[row * kColumns + c], d, o[row] + c * kLanes);
    }
  }
}

template <typename T>
void accumulate_few(const HeadRows& rows, const ValuesTurn<T>& turn) {
  for_each_block(rows.count, [&](auto block, std::int32_t first) HWY_ATTR {
    constexpr std::int32_t kRows = block();
    constexpr std::int32_t kWide = kRegisterColumns * kLanes;
    std::int32_t column = 0;
    for (; column + kWide <= rows.head_dim_vo; column += kWide) {
      accumulate_block<T, kRows, kRegisterColumns, false>(rows, first, column, turn);
    }
    for (; column + kLanes <= rows.head_dim_vo; column += kLanes) {
      accumulate_block<T, kRows, 1, false>(rows, first, column, turn);
    }
    if (kHasHalfTail && column < rows.head_dim_vo) {
      accumulate_block<T, kRows, 1, kHasHalfTail>(rows, first, column, turn);
    }
  });
}

/// Whether all elements of a row are finite: then 0 times it is 0.
template <typename T>
bool is_finite(const T* row, std::int32_t n) {
  const Floats d;
  Vec zeros = hn::Zero(d);
  std::int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) zeros = hn::MulAdd(load(d, row + i), hn::Zero(d), zeros);
  if (kHasHalfTail && i < n) zeros = hn::MulAdd(load_half(row + i), hn::Zero(d), zeros);
  return hn::AllTrue(d, hn::Eq(zeros, zeros));
}

/// Keys that some rows see and others must not touch: their values are not finite, and 0 · NaN
/// would leak into rows that do not see them.
template <typename T>
std::uint64_t poisoned_keys(const HeadKeys<T>& keys, const TileSight& sight,
                            std::int32_t head_dim) {
  std::uint64_t poisoned = 0;
  for (std::uint64_t mixed = sight.any & ~sight.all; mixed != 0; mixed &= mixed - 1) {
    const auto key = static_cast<std::int32_t>(std::countr_zero(mixed));
    if (!is_finite(keys.v(key), head_dim)) poisoned |= std::uint64_t{1} << key;
  }
  return poisoned;
}

/// Adds the values of poisoned keys of a block's tile to the rows that see them, one by one.
template <typename T>
void accumulate_poisoned(const HeadRows& rows, const HeadKeys<T>& keys, const TileSight& sight,
                         std::int32_t tile, std::uint64_t poisoned) {
  for (; poisoned != 0; poisoned &= poisoned - 1) {
    const auto key = static_cast<std::int32_t>(std::countr_zero(poisoned));
    for (std::int32_t row = 0; row < rows.count; ++row) {
      if (((sight.words[rows.query(row)] >> key) & 1U) == 0) continue;
      const float weight = rows.score_row(row)[tile * kKvTile + key];
      float* o = rows.o_row(row);
      for (std::int32_t i = 0; i < rows.head_dim_vo; ++i) o[i] += weight * to_float(keys.v(key)[i]);
    }
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
