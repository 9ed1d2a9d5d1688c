// SPDX-License-Identifier: Apache-2.0
/// @file
/// A block against many rows (prefill): keys are transposed and values widened once into fp32
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

/// Columns of a panel: those of a block of products.
inline constexpr std::int32_t kPanelColumns = kRegisterColumns * kLanes;
/// Rows whose logits are held at a time: few, so that they are still near when they are needed, and
/// enough for what is brought near of the panels to be used often.
inline constexpr std::int32_t kSliceRows = 8 * kManyRowsBlock;

constexpr std::int32_t panels_of(std::int32_t columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns;
}

/// A block in fp32, in panels that are as wide as a block of products.
struct Panels {
  float* k =
      nullptr;  // [kFp32BlockTiles, kKvTile / kPanelColumns, padded(head_dim_qk), kPanelColumns]
  float* v = nullptr;  // [panels_of(padded(head_dim_vo)), kFp32BlockKeys, kPanelColumns]

  [[nodiscard]] float* k_of(std::int32_t key, std::int32_t head_dim) const {
    return k + static_cast<std::ptrdiff_t>(key / kPanelColumns) * padded(head_dim) * kPanelColumns;
  }
  [[nodiscard]] float* v_of(std::int32_t column) const {
    return v + static_cast<std::ptrdiff_t>(column / kPanelColumns) * kFp32BlockKeys * kPanelColumns;
  }
};

/// kLanes keys × kLanes components (half of them if kHalf) from component `at` on → a panel.
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
    hn::Store(block[i], d, to + (at + i) * kPanelColumns);
  }
}

/// Keys of tile `tile` → panels.k. Columns beyond the last key, up to a whole vector, repeat it.
template <typename T>
void pack_keys(const HeadKeys<T>& keys, std::int32_t tile, std::int32_t head_dim,
               const Panels& panels) {
  for (std::int32_t key = 0; key < keys.keys.count; key += kLanes) {
    float* const to = panels.k_of(tile * kKvTile + key, head_dim) + key % kPanelColumns;
    std::int32_t at = 0;
    for (; at + kLanes <= head_dim; at += kLanes) pack_key_block<T, false>(keys, key, at, to);
    if (kHasHalfTail && at < head_dim) pack_key_block<T, kHasHalfTail>(keys, key, at, to);
  }
}

/// Values of keys [0, end) of tile `tile` → panels.v; zeros for keys that are not in `take`.
template <typename T>
void pack_values(const HeadKeys<T>& keys, std::uint64_t take, std::int32_t tile, std::int32_t end,
                 std::int32_t head_dim, const Panels& panels) {
  const Floats d;
  for (std::int32_t column = 0; column < padded(head_dim); column += kPanelColumns) {
    float* to = panels.v_of(column) + static_cast<std::ptrdiff_t>(tile) * kKvTile * kPanelColumns;
    for (std::int32_t key = 0; key < end; ++key, to += kPanelColumns) {
      const std::int32_t columns =
          (take >> key & 1U) != 0 ? std::min(head_dim - column, kPanelColumns) : 0;
      const T* const from = keys.v(columns > 0 ? key : 0) + column;  // that one is always there
      std::int32_t at = 0;
      for (; at + kLanes <= columns; at += kLanes) hn::Store(load(d, from + at), d, to + at);
      if (kHasHalfTail && at < columns) {
        hn::Store(load_half(from + at), d, to + at);
        at += kLanes;
      }
      for (; at < kPanelColumns; at += kLanes) hn::Store(hn::Zero(d), d, to + at);
    }
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

/// `rows` ≤ kManyRowsBlock rows and `vectors` ≤ kRegisterColumns vectors of columns.
inline void multiply(std::int32_t rows, std::int32_t vectors, const Product& product) {
  const auto index = static_cast<std::size_t>(rows - 1);
  if (vectors == kRegisterColumns) return kMultiplyRows<kRegisterColumns>[index](product);
  Product part = product;
  for (; vectors >= 2; vectors -= 2) {
    kMultiplyRows<2>[index](part);
    part.b += 2 * kLanes;
    part.c += 2 * kLanes;
  }
  if (vectors > 0) kMultiplyRows<1>[index](part);
}

/// Keys that rows [first, first + count) need of a tile: up to the last that one of them sees.
inline std::int32_t keys_needed(const HeadRows& rows, const TileSight& sight, std::int32_t first,
                                std::int32_t count) {
  std::uint64_t seen = sight.all;
  if (~seen == 0) return kKvTile;
  const std::int32_t last_query = rows.query(first + count - 1);
  for (std::int32_t query = rows.query(first); query <= last_query; ++query) {
    seen |= sight.words[query];
  }
  return static_cast<std::int32_t>(std::bit_width(seen));
}

/// Calls `f(first, count)` for blocks of rows of nearly equal size.
template <typename F>
HWY_INLINE void for_each_row_block(const HeadRows& rows, const F& f) {
  const std::int32_t blocks = (rows.count + kManyRowsBlock - 1) / kManyRowsBlock;
  const std::int32_t least = rows.count / blocks;
  const std::int32_t longer = rows.count % blocks;
  for (std::int32_t i = 0, first = 0; i < blocks; ++i) {
    const std::int32_t count = least + (i < longer ? 1 : 0);
    f(first, count);
    first += count;
  }
}

/// Logits of all rows of a slice and a tile's keys.
/// @param ahead  A row is a step.
inline void score_many(const HeadRows& rows, const TileSight& sight, std::int32_t tile,
                       const Panels& panels, LinesAhead& ahead) {
  for (std::int32_t column = 0; column < kKvTile; column += kPanelColumns) {
    Product product;
    product.a_stride = padded(rows.head_dim_qk);
    product.b = panels.k_of(tile * kKvTile + column, rows.head_dim_qk);
    product.b_stride = kPanelColumns;
    product.c_stride = HeadRows::kScoreStride;
    product.depth = rows.head_dim_qk;
    for_each_row_block(rows, [&](std::int32_t first, std::int32_t count) HWY_ATTR {
      if (column == 0) ahead.step(count);
      const std::int32_t columns =
          std::min(keys_needed(rows, sight, first, count) - column, kPanelColumns);
      if (columns <= 0) return;
      product.a = rows.q_row(first);
      product.c = rows.score_row(first) + tile * kKvTile + column;
      multiply(count, (columns + kLanes - 1) / kLanes, product);
    });
  }
}

/// o = o · rescale + p · v for all rows of a slice.
/// @param ahead  [kFp32BlockTiles]; a row is a step.
inline void accumulate_many(const HeadRows& rows, const Fp32BlockSight& sight, const Panels& panels,
                            LinesAhead* ahead) {
  const std::int32_t stride = padded(rows.head_dim_vo);
  for (std::int32_t column = 0; column < stride; column += kPanelColumns) {
    Product product;
    product.a_stride = HeadRows::kScoreStride;
    product.b = panels.v_of(column);
    product.b_stride = kPanelColumns;
    product.c_stride = stride;
    for_each_row_block(rows, [&](std::int32_t first, std::int32_t count) HWY_ATTR {
      product.depth = 0;
      for (std::int32_t tile = 0; tile < sight.count; ++tile) {
        if (column == 0) ahead[tile].step(count);
        const std::int32_t keys = keys_needed(rows, sight.tiles[tile], first, count);
        if (keys > 0) product.depth = tile * kKvTile + keys;
      }
      if (product.depth == 0) return;
      product.a = rows.score_row(first);
      product.c = rows.o_row(first) + column;
      product.rescale = rows.rescale + first;
      multiply(count, std::min(stride - column, kPanelColumns) / kLanes, product);
    });
  }
}

}  // namespace quire::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
