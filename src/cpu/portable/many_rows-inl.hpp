// SPDX-License-Identifier: Apache-2.0
/// @file
/// A tile against many rows (prefill): keys are transposed and values widened once into fp32
/// panels, then register-blocked products run over blocks of rows. Compiled once per target.
#if defined(QUIRE_CPU_PORTABLE_MANY_ROWS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef QUIRE_CPU_PORTABLE_MANY_ROWS_INL
#undef QUIRE_CPU_PORTABLE_MANY_ROWS_INL
#else
#define QUIRE_CPU_PORTABLE_MANY_ROWS_INL
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "cpu/portable/rows_of_head.hpp"
#include "cpu/portable/vector-inl.hpp"
#include "cpu/tile.hpp"

HWY_BEFORE_NAMESPACE();
namespace quire::cpu::HWY_NAMESPACE {

/// Rows of a block: with kRegisterColumns they fill the vector registers.
inline constexpr std::int32_t kManyRowsBlock = 6;

/// A tile in fp32.
struct Panels {
  float* k = nullptr;  // [head_dim_qk, kKvTile]
  float* v = nullptr;  // [kKvTile, padded(head_dim_vo)]
};

/// kLanes keys × kLanes components (half of them if kHalf) from component `at` on.
template <typename T, bool kHalf>
HWY_INLINE void pack_key_block(const HeadKeys<T>& keys, std::int32_t key, std::int32_t at,
                               float* to) {
  const Floats d;
  Vec block[extent(kLanes)];
  const std::int32_t last = keys.keys.count - 1;
  HWY_UNROLL(16)
  for (std::int32_t i = 0; i < kLanes; ++i) {
    const T* from = keys.k(std::min(key + i, last)) + at;
    block[i] = kHalf ? load_half(from) : load(d, from);
  }
  transpose(block);
  HWY_UNROLL(16)
  for (std::int32_t i = 0; i < (kHalf ? kHeadDimStep : kLanes); ++i) {
    hn::Store(block[i], d, to + (at + i) * kKvTile + key);
  }
}

/// Keys → panel.k. Columns beyond the last key, up to a whole vector, repeat it.
template <typename T>
void pack_keys(const HeadKeys<T>& keys, std::int32_t head_dim, float* to) {
  for (std::int32_t key = 0; key < keys.keys.count; key += kLanes) {
    std::int32_t at = 0;
    for (; at + kLanes <= head_dim; at += kLanes) pack_key_block<T, false>(keys, key, at, to);
    if (kHasHalfTail && at < head_dim) pack_key_block<T, kHasHalfTail>(keys, key, at, to);
  }
}

/// Values of the keys in `take` → panel.v; zeros for the other keys of the tile.
template <typename T>
void pack_values(const HeadKeys<T>& keys, std::uint64_t take, std::int32_t head_dim, float* to) {
  const Floats d;
  const std::int32_t stride = padded(head_dim);
  for (std::int32_t key = 0; key < keys.keys.count; ++key, to += stride) {
    if (((take >> key) & 1U) == 0) {
      for (std::int32_t at = 0; at < stride; at += kLanes) hn::Store(hn::Zero(d), d, to + at);
      continue;
    }
    const T* from = keys.v(key);
    std::int32_t at = 0;
    for (; at + kLanes <= head_dim; at += kLanes) hn::Store(load(d, from + at), d, to + at);
    if (kHasHalfTail && at < head_dim) hn::Store(load_half(from + at), d, to + at);
  }
}

/// Operands of c[row][column] (+)= Σ_i a[row][i] · b[i][column].
struct Product {
  const float* a = nullptr;  // [rows, depth]
  std::ptrdiff_t a_stride = 0;
  const float* b = nullptr;  // [depth, columns]
  std::ptrdiff_t b_stride = 0;
  float* c = nullptr;  // [rows, columns]
  std::ptrdiff_t c_stride = 0;
  std::int32_t depth = 0;
  const float* rescale = nullptr;  // [rows]: c is multiplied by it first; null: c is overwritten
};

template <std::int32_t kRows, std::int32_t kColumns>
void multiply_block(const Product& product) {
  const Floats d;
  Vec acc[extent(kRows * kColumns)];
  HWY_UNROLL(6)
  for (std::int32_t row = 0; row < kRows; ++row) {
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      acc[row * kColumns + c] =
          product.rescale == nullptr
              ? hn::Zero(d)
              : hn::Mul(hn::Load(d, product.c + row * product.c_stride + c * kLanes),
                        hn::Set(d, product.rescale[row]));
    }
  }
  const float* a = product.a;
  const float* b = product.b;
  const std::ptrdiff_t a_stride = product.a_stride;
  for (std::int32_t i = 0; i < product.depth; ++i, ++a, b += product.b_stride) {
    Vec b_part[extent(kColumns)];
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) b_part[c] = hn::Load(d, b + c * kLanes);
    HWY_UNROLL(6)
    for (std::int32_t row = 0; row < kRows; ++row) {
      const Vec a_part = hn::Set(d, a[row * a_stride]);
      HWY_UNROLL(4)
      for (std::int32_t c = 0; c < kColumns; ++c) {
        acc[row * kColumns + c] = hn::MulAdd(a_part, b_part[c], acc[row * kColumns + c]);
      }
    }
  }
  HWY_UNROLL(6)
  for (std::int32_t row = 0; row < kRows; ++row) {
    HWY_UNROLL(4)
    for (std::int32_t c = 0; c < kColumns; ++c) {
      hn::Store(acc[row * kColumns + c], d, product.c + row * product.c_stride + c * kLanes);
    }
  }
}

/// multiply_block for 1 … kManyRowsBlock rows.
template <std::int32_t kColumns>
inline constexpr std::array<void (*)(const Product&), kManyRowsBlock> kMultiplyRows = {
    multiply_block<1, kColumns>, multiply_block<2, kColumns>, multiply_block<3, kColumns>,
    multiply_block<4, kColumns>, multiply_block<5, kColumns>, multiply_block<6, kColumns>};

/// `rows` ≤ kManyRowsBlock rows and `vectors` vectors of columns.
inline void multiply(std::int32_t rows, std::int32_t vectors, Product product) {
  const auto index = static_cast<std::size_t>(rows - 1);
  const auto advance = [&](std::int32_t columns) {
    product.b += columns * kLanes;
    product.c += columns * kLanes;
    vectors -= columns;
  };
  while (vectors >= kRegisterColumns) {
    kMultiplyRows<kRegisterColumns>[index](product);
    advance(kRegisterColumns);
  }
  while (vectors >= 2) {
    kMultiplyRows<2>[index](product);
    advance(2);
  }
  if (vectors > 0) kMultiplyRows<1>[index](product);
}

/// A block of rows and the keys that it needs of a tile.
struct RowBlock {
  std::int32_t first = 0;
  std::int32_t count = 0;
  std::int32_t keys = 0;  // up to the last key that one of the rows sees; 0: none sees any
};

/// Calls `f(block)` for blocks of nearly equal size. @param ahead  A row is a step.
template <typename F>
HWY_INLINE void for_each_row_block(const HeadRows& rows, const TileSight& sight, LinesAhead ahead,
                                   const F& f) {
  const std::int32_t blocks = (rows.count + kManyRowsBlock - 1) / kManyRowsBlock;
  for (std::int32_t i = 0; i < blocks; ++i) {
    RowBlock block;
    block.first = rows.count * i / blocks;
    block.count = rows.count * (i + 1) / blocks - block.first;
    ahead.step(block.count);
    std::uint64_t seen = 0;
    const std::int32_t last_query = (block.first + block.count - 1) / rows.group;
    for (std::int32_t query = block.first / rows.group; query <= last_query; ++query) {
      seen |= sight.words[query];
    }
    block.keys = static_cast<std::int32_t>(std::bit_width(seen));
    if (block.keys > 0) f(block);
  }
}

/// Scores of all rows.
/// @param ahead  Fetched meanwhile.
inline void score_many(const HeadRows& rows, const TileSight& sight, const float* k_panel,
                       const LinesAhead& ahead) {
  for (std::int32_t column = 0; column < kKvTile; column += kRegisterColumns * kLanes) {
    const auto multiply_rows = [&](const RowBlock& block) HWY_ATTR {
      const std::int32_t columns = std::min(block.keys - column, kRegisterColumns * kLanes);
      if (columns <= 0) return;
      Product product;
      product.a = rows.q_row(block.first);
      product.a_stride = padded(rows.head_dim_qk);
      product.b = k_panel + column;
      product.b_stride = kKvTile;
      product.c = rows.score_row(block.first) + column;
      product.c_stride = kKvTile;
      product.depth = rows.head_dim_qk;
      multiply(block.count, (columns + kLanes - 1) / kLanes, product);
    };
    for_each_row_block(rows, sight, column == 0 ? ahead : LinesAhead(), multiply_rows);
  }
}

/// o = o · rescale + p · v for all rows.
/// @param ahead  Fetched meanwhile.
inline void accumulate_many(const HeadRows& rows, const TileSight& sight, const float* v_panel,
                            const LinesAhead& ahead) {
  const std::int32_t stride = padded(rows.head_dim_vo);
  for (std::int32_t column = 0; column < stride; column += kRegisterColumns * kLanes) {
    const auto multiply_rows = [&](const RowBlock& block) HWY_ATTR {
      Product product;
      product.a = rows.score_row(block.first);
      product.a_stride = kKvTile;
      product.b = v_panel + column;
      product.b_stride = stride;
      product.c = rows.o_row(block.first) + column;
      product.c_stride = stride;
      product.depth = block.keys;
      product.rescale = rows.rescale + block.first;
      multiply(block.count, std::min(stride - column, kRegisterColumns * kLanes) / kLanes, product);
    };
    for_each_row_block(rows, sight, column == 0 ? ahead : LinesAhead(), multiply_rows);
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
