// SPDX-License-Identifier: Apache-2.0
/// @file
/// Few rows of an item (decode, short appends) by the tiles of AMX: 16 keys where they lie are the
/// rows of a tile, the queries of a head its columns. What comes out has rows side by side within a
/// key, four rows of four keys to a vector, and the softmax works on that.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "cpu/bf16/few_rows.hpp"
#include "cpu/bf16/item.hpp"
#include "cpu/bf16/multiply_amx.hpp"
#include "cpu/bf16/panels.hpp"
#include "cpu/item_walk.hpp"

QUIRE_BEGIN_AMX
namespace quire::cpu::HWY_NAMESPACE {

/// Rows that are four to a vector.
inline constexpr std::int32_t kQuadRows = 4;
/// Vectors of a quad of rows and a tile of keys: lane L of vector i is row L % 4 and key
/// 4 · i + L / 4.
inline constexpr std::int32_t kQuadVectors = kKvTile / kQuadRows;

/// Powers of a row lie in the order in which transposing quads leaves their keys.
constexpr std::int32_t key_at(std::int32_t place) {
  return place / 16 * 16 + place % 4 * 4 + place % 16 / 4;
}
static_assert(key_at(key_at(7)) == 7, "its own inverse");

/// Keys and values of the next tile, asked for evenly all along the work on one head: a core has few
/// places for lines that are on their way, and what waits for one of them holds up what follows.
struct TileAhead {
  // Steps of each part of the work on a head.
  static constexpr std::int32_t kOfScores = 16;
  static constexpr std::int32_t kOfSoftmax = 16;
  static constexpr std::int32_t kOfValues = 16;
  static constexpr std::int32_t kOfSums = 16;
  static constexpr std::int32_t kSteps = kOfScores + kOfSoftmax + kOfValues + kOfSums;

  LinesAhead k;
  LinesAhead v;

  HWY_INLINE void step(std::int32_t steps = 1) {
    k.step(steps);
    v.step(steps);
  }
};

/// `T` is the element type of K and V.
template <typename T>
class FewTiles {
 public:
  static constexpr std::int32_t kMostRows = kTileRows;

  explicit FewTiles(const ItemTask& task)
      : task_(task),
        walk_(task),
        buffers_(task.buffers, task.shape, task.rows()),
        rows_(task.rows_per_kv_head()),
        columns_(columns_for(rows_)),
        depth_(padded_depth(task.shape.head_dim_qk)) {}

  void run() {
    const TileSession session(config());
    pack_queries();
    TileKeys tiles[2];
    TileKeys* now = &tiles[0];
    TileKeys* next = &tiles[1];
    walk_.find_keys(task_.item.kv_begin, kKvTile, *now);
    while (now->count > 0) {
      walk_.find_keys(now->first + now->count, kKvTile, *next);
      const TileSight sight = walk_.look(*now, buffers_.words);
      if (sight.any != 0) {
        find_lanes(sight);
        find_strides(*now);
        for (std::int32_t head = 0; head < task_.num_kv_heads(); ++head) {
          attend_head(head, *now, *next, sight);
        }
      }
      std::swap(now, next);
    }
    for (std::int32_t row = 0; row < task_.rows(); ++row) {
      order_columns<T>(
          task_.states.o + static_cast<std::ptrdiff_t>(row) * padded(task_.shape.head_dim_vo),
          task_.shape.head_dim_vo);
    }
  }

 private:
  static constexpr std::int32_t kGroups = kKvTile / kTileRows;  // of keys, a tile each
  static constexpr std::int32_t kMostQuads = kMostRows / kQuadRows;

  /// Columns of the products of keys and queries: whole quads.
  static std::int32_t columns_for(std::int32_t rows) {
    return (rows + kQuadRows - 1) / kQuadRows * kQuadRows;
  }

  // 0, 1: scores of 16 keys; 2: queries; 3, 4: o; 5: powers; 6, 7: 16 keys or 16 pairs of values.
  [[nodiscard]] TileConfig config() const {
    TileConfig config;
    const auto column_bytes = static_cast<std::uint16_t>(columns_ * 4);
    for (const int tile : {0, 1, 2}) config.row_bytes[tile] = column_bytes;
    for (const int tile : {3, 4, 5}) config.rows[tile] = static_cast<std::uint8_t>(rows_);
    return config;
  }

  /// Queries → pairs of components, a column each; zeros beyond the last row.
  void pack_queries() const {
    copy_queries(task_, buffers_.q);
    std::uint32_t* to = buffers_.q_columns;
    for (std::int32_t head = 0; head < task_.num_kv_heads(); ++head) {
      for (std::int32_t row = 0; row < columns_; ++row) {
        std::uint16_t* q =
            buffers_.q +
            static_cast<std::ptrdiff_t>(head * rows_ + std::min(row, rows_ - 1)) * depth_;
        if (row < rows_) order_query<T>(q, task_.shape.head_dim_qk);
        for (std::int32_t pair = 0; pair < depth_ / 2; ++pair) {
          std::uint32_t bits = 0;
          if (row < rows_)
            std::memcpy(&bits, q + static_cast<std::ptrdiff_t>(2) * pair, sizeof(bits));
          to[static_cast<std::ptrdiff_t>(pair) * columns_ + row] = bits;
        }
      }
      to += static_cast<std::ptrdiff_t>(depth_ / 2) * columns_;
    }
  }

  /// Which lanes of a tile's vectors are seen.
  void find_lanes(const TileSight& sight) {
    sees_all_ = ~sight.all == 0;
    if (sees_all_) return;
    constexpr unsigned kOneRow = 0x1111;
    for (std::int32_t quad = 0; quad < columns_ / kQuadRows; ++quad) {
      for (std::int32_t i = 0; i < kQuadVectors; ++i) {
        unsigned lanes = 0;
        for (std::int32_t row = 0; row < kQuadRows; ++row) {
          const std::int32_t query =
              std::min(quad * kQuadRows + row, rows_ - 1) / task_.shape.group_size;
          const auto keys = static_cast<unsigned>(sight.words[query] >> (i * kQuadRows) & 0xfU);
          lanes |= _pdep_u32(keys, kOneRow) << row;
        }
        lanes_[quad][i] = static_cast<__mmask16>(lanes);
      }
    }
  }

  /// Distances between the keys of each group that are all there and evenly apart, else 0.
  void find_strides(const TileKeys& keys) {
    for (std::int32_t group = 0; group < kGroups; ++group) {
      const std::int32_t first = group * kTileRows;
      strides_[group] = 0;
      if (kIsByte<T> || task_.shape.head_dim_qk != depth_ || first + kTileRows > keys.count)
        continue;
      const std::ptrdiff_t stride = keys.k[first + 1] - keys.k[first];
      bool even = true;
      for (std::int32_t i = 2; i < kTileRows; ++i) {
        even = even && keys.k[first + i] - keys.k[first + i - 1] == stride;
      }
      if (even) strides_[group] = stride;
    }
  }

  void attend_head(std::int32_t head, const TileKeys& now, const TileKeys& next,
                   const TileSight& sight) {
    const BlockRows rows = rows_of_head(task_, buffers_, head);
    const auto keys = walk_.keys_of<T>(now, head);
    TileAhead ahead{walk_.k_ahead(next, head, TileAhead::kSteps),
                    walk_.v_ahead(next, head, TileAhead::kSteps)};
    score(head, keys, ahead);
    const std::uint64_t poisoned = poisoned_keys(keys, sight, rows.head_dim_vo);
    soften(head, rows, now, ahead);
    pack_values(keys, sight.any & ~poisoned, ahead);
    accumulate(rows, now.count, ahead);
    add_poisoned<LaneOrder::kCheapest>(
        rows, keys, sight, poisoned,
        [&](std::int32_t row, std::int32_t key) { return powers_[row][key_at(key)]; });
  }

  /// Keys of a group as the rows of a tile: where they lie, or widened into `to`.
  struct KeyRows {
    const std::byte* data;
    std::ptrdiff_t stride;
  };
  KeyRows key_rows(const HeadKeys<T>& keys, std::int32_t group, std::uint16_t* to) const {
    const std::int32_t first = group * kTileRows;
    if (strides_[group] != 0) {
      return {reinterpret_cast<const std::byte*>(keys.k(first)), strides_[group]};
    }
    const Widener<T> widen;
    const std::int32_t last = keys.keys.count - 1;
    const std::int32_t head_dim = task_.shape.head_dim_qk;
    for (std::int32_t i = 0; i < kTileRows; ++i) {
      const T* from = keys.k(std::min(first + i, last));
      std::uint16_t* row = to + static_cast<std::ptrdiff_t>(i) * depth_;
      std::int32_t at = 0;
      for (; at + kWidened <= head_dim; at += kWidened) {
        const Widened wide = widen.template load<LaneOrder::kCheapest>(from + at);
        _mm512_store_si512(row + at, wide.low);
        _mm512_store_si512(row + at + kWidened / 2, wide.high);
      }
      if (at < head_dim) {
        const Widened wide = widen.template load<LaneOrder::kPlain>(from + at, head_dim - at);
        _mm512_store_si512(row + at, wide.low);
        if (at + kWidened / 2 < head_dim) _mm512_store_si512(row + at + kWidened / 2, wide.high);
      }
    }
    return {reinterpret_cast<const std::byte*>(to),
            depth_ * static_cast<std::ptrdiff_t>(sizeof(std::uint16_t))};
  }

  /// scores_[key][column] = k · q.
  void score(std::int32_t head, const HeadKeys<T>& keys, TileAhead& ahead) {
    const auto* const queries =
        buffers_.q_columns + static_cast<std::ptrdiff_t>(head) * (depth_ / 2) * columns_;
    const std::ptrdiff_t stride = columns_ * static_cast<std::ptrdiff_t>(sizeof(float));
    auto* const staged = reinterpret_cast<std::uint16_t*>(buffers_.panels.k);
    for (std::int32_t group = 0; group * kTileRows < keys.keys.count; group += 2) {
      const bool both = (group + 1) * kTileRows < keys.keys.count;
      const KeyRows even = key_rows(keys, group, staged);
      const KeyRows odd =
          both ? key_rows(keys, group + 1, staged + static_cast<std::ptrdiff_t>(kTileRows) * depth_)
               : even;
      zero_tile<0>();
      zero_tile<1>();
      for (std::int32_t pair = 0; pair < depth_ / 2; pair += kTilePairs) {
        ahead.step(2);
        const std::ptrdiff_t at = pair * static_cast<std::ptrdiff_t>(sizeof(std::uint32_t));
        load_tile<2>(queries + static_cast<std::ptrdiff_t>(pair) * columns_, stride);
        load_tile<6>(even.data + at, even.stride);
        multiply_tile<0, 6, 2>();
        load_tile<7>(odd.data + at, odd.stride);
        multiply_tile<1, 7, 2>();
      }
      float* to = scores_ + static_cast<std::ptrdiff_t>(group) * kTileRows * columns_;
      store_tile<0>(to, stride);
      if (both) store_tile<1>(to + static_cast<std::ptrdiff_t>(kTileRows) * columns_, stride);
    }
  }

  /// Scores of quad `quad`, of the keys that are there.
  HWY_INLINE __m512 load_scores(std::int32_t quad, std::int32_t i) const {
    const float* from =
        scores_ + static_cast<std::ptrdiff_t>(i) * kQuadRows * columns_ + quad * kQuadRows;
    if (columns_ == kQuadRows) return _mm512_load_ps(from);
    __m512 v = _mm512_castps128_ps512(_mm_load_ps(from));
    v = _mm512_insertf32x4(v, _mm_load_ps(from + columns_), 1);
    v = _mm512_insertf32x4(v, _mm_load_ps(from + 2 * columns_), 2);
    return _mm512_insertf32x4(v, _mm_load_ps(from + 3 * columns_), 3);
  }

  /// Factors of the keys of vector i.
  static HWY_INLINE __m512 factors_at(const float* factors, std::int32_t i) {
    const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(each,
                                 _mm512_broadcast_f32x4(_mm_load_ps(factors + i * kQuadRows)));
  }

  /// Results over the four lanes of 128 bits, in each of them.
  template <typename F>
  static HWY_INLINE __m512 over_lanes(__m512 v, const F& f) {
    constexpr int kHalves = 0x4e;
    constexpr int kNeighbours = 0xb1;
    v = f(v, _mm512_shuffle_f32x4(v, v, kHalves));
    return f(v, _mm512_shuffle_f32x4(v, v, kNeighbours));
  }

  /// Scores → powers, the rows' new max and sum, rescale_.
  void soften(std::int32_t head, const BlockRows& rows, const TileKeys& keys, TileAhead& ahead) {
    const LogitRule rule = walk_.rule_of(head);
    TokenFactors factors;
    const TokenFactors* const given = walk_.factors_of(keys, head, factors);
    for (std::int32_t quad = 0; quad < columns_ / kQuadRows; ++quad) {
      const std::int32_t count = std::min(kQuadRows, rows_ - quad * kQuadRows);
      soften_quad(quad, count, rows, rule, keys, given, ahead);
    }
  }

  void soften_quad(std::int32_t quad, std::int32_t count, const BlockRows& rows,
                   const LogitRule& rule, const TileKeys& keys, const TokenFactors* factors,
                   TileAhead& ahead) {
    const bool bent = rule.soft_cap > 0.0F || rule.slopes != nullptr;
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 scale = _mm512_set1_ps(bent ? kLog2E : rule.scale * kLog2E);
    const std::int32_t vectors = (keys.count + kQuadRows - 1) / kQuadRows;
    __m512 x[kQuadVectors];
    __m512 top = nothing;
    HWY_UNROLL(16)
    for (std::int32_t i = 0; i < kQuadVectors; ++i) {
      // What is not there is not seen: its memory may hold anything.
      x[i] = i < vectors ? load_scores(quad, i) : nothing;
      if (factors != nullptr) x[i] = _mm512_mul_ps(x[i], factors_at(factors->k, i));
      if (bent) x[i] = bend_quad(x[i], quad, i, rule, keys.first);
      x[i] = _mm512_mul_ps(x[i], scale);
      if (!sees_all_) x[i] = _mm512_mask_mov_ps(nothing, lanes_[quad][i], x[i]);
      top = _mm512_max_ps(x[i], top);  // of a NaN and a number, the second
    }
    top = over_lanes(top, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
    const auto present = static_cast<__mmask8>(first_lanes(count));
    float* const max = rows.states.max + quad * kQuadRows;
    float* const sum = rows.states.sum + quad * kQuadRows;
    const __m512 old = _mm512_broadcast_f32x4(_mm_maskz_loadu_ps(present, max));
    const __mmask16 grows = _mm512_cmp_ps_mask(top, old, _CMP_GT_OQ);
    const __m512 now = _mm512_mask_mov_ps(old, grows, top);
    const __m512 rescale = rescale_of_sums<PowerByReducing>(old, now, grows);
    // Where nothing was seen yet, −∞ − −∞ would be no number.
    const __m512 base =
        _mm512_mask_mov_ps(now, _mm512_cmp_ps_mask(now, nothing, _CMP_EQ_OQ), _mm512_setzero_ps());
    __m512 total = _mm512_setzero_ps();
    HWY_UNROLL(16)
    for (std::int32_t i = 0; i < kQuadVectors; ++i) {
      if (quad == 0) ahead.step();
      x[i] = PowerByReducing::of(_mm512_sub_ps(x[i], base));
      if (!sees_all_) x[i] = _mm512_maskz_mov_ps(lanes_[quad][i], x[i]);
      total = _mm512_add_ps(total, x[i]);
      if (factors != nullptr) x[i] = _mm512_mul_ps(x[i], factors_at(factors->v, i));
    }
    total = over_lanes(total, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
    const __m512 sums =
        _mm512_fmadd_ps(_mm512_broadcast_f32x4(_mm_maskz_loadu_ps(present, sum)), rescale, total);
    _mm_mask_storeu_ps(max, present, _mm512_castps512_ps128(now));
    _mm_mask_storeu_ps(sum, present, _mm512_castps512_ps128(sums));
    _mm_store_ps(rescale_ + quad * kQuadRows, _mm512_castps512_ps128(rescale));
    store_powers(quad, x);
  }

  HWY_INLINE __m512 bend_quad(__m512 x, std::int32_t quad, std::int32_t i, const LogitRule& rule,
                              std::int32_t first_key) const {
    x = _mm512_mul_ps(x, _mm512_set1_ps(rule.scale));
    if (rule.soft_cap > 0.0F) {
      Vec bent;
      bent.raw = _mm512_mul_ps(x, _mm512_set1_ps(1.0F / rule.soft_cap));
      x = _mm512_mul_ps(_mm512_set1_ps(rule.soft_cap), tanh(bent).raw);
    }
    if (rule.slopes == nullptr) return x;
    alignas(kBufferAlignment) float slopes[kQuadRows];
    alignas(kBufferAlignment) float positions[kQuadRows];  // from the vector's first key
    for (std::int32_t row = 0; row < kQuadRows; ++row) {
      const std::int32_t index = std::min(quad * kQuadRows + row, rows_ - 1);
      slopes[row] = rule.slopes[index % task_.shape.group_size];
      positions[row] = static_cast<float>(rule.first_position + index / task_.shape.group_size -
                                          first_key - i * kQuadRows);
    }
    const __m512 key = _mm512_setr_ps(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512 distance =
        _mm512_abs_ps(_mm512_sub_ps(_mm512_broadcast_f32x4(_mm_load_ps(positions)), key));
    return _mm512_fnmadd_ps(_mm512_broadcast_f32x4(_mm_load_ps(slopes)), distance, x);
  }

  HWY_INLINE void store_powers(std::int32_t quad, const __m512* x) {
    __m512i rows[kGroups][kQuadRows];
    HWY_UNROLL(4)
    for (std::int32_t group = 0; group < kGroups; ++group) {
      HWY_UNROLL(4)
      for (std::int32_t i = 0; i < kQuadRows; ++i) {
        rows[group][i] = _mm512_castps_si512(x[group * kQuadRows + i]);
      }
      transpose_lanes(rows[group]);
    }
    HWY_UNROLL(4)
    for (std::int32_t row = 0; row < kQuadRows; ++row) {
      HWY_UNROLL(2)
      for (std::int32_t half = 0; half < kGroups; half += 2) {
        const __m512 low = _mm512_castsi512_ps(rows[half][row]);
        const __m512 high = _mm512_castsi512_ps(rows[half + 1][row]);
        _mm512_store_si512(powers_[quad * kQuadRows + row] + half * kTileRows,
                           (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
    }
  }

  /// Values of the keys in `take` → pairs of keys in the order of the powers; zeros for the others.
  void pack_values(const HeadKeys<T>& keys, std::uint64_t take, TileAhead& ahead) const {
    const Widener<T> widen;
    const std::int32_t head_dim = task_.shape.head_dim_vo;
    const std::int32_t stride = padded(head_dim);
    std::uint32_t* to = buffers_.panels.v;
    for (std::int32_t place = 0; place < places_of(keys.keys.count); place += 2, to += stride) {
      if (place % 4 == 0) ahead.step();
      const std::int32_t even = key_at(place);
      const std::int32_t odd = key_at(place + 1);
      const bool takes_even = (take >> even & 1U) != 0;
      const bool takes_odd = (take >> odd & 1U) != 0;
      const T* even_row = keys.v(takes_even ? even : 0);  // that one is always there
      const T* odd_row = keys.v(takes_odd ? odd : 0);
      std::int32_t column = 0;
      for (; column + kWidened <= head_dim; column += kWidened) {
        __m512i pairs[kWidened / kRowPadding];
        if (takes_even && takes_odd) {
          pair_up<LaneOrder::kCheapest>(
              widen.template load<LaneOrder::kCheapest>(even_row + column),
              widen.template load<LaneOrder::kCheapest>(odd_row + column), pairs);
        } else {
          pair_up<LaneOrder::kCheapest>(
              widen.template load<LaneOrder::kCheapest>(even_row + column,
                                                        takes_even ? kWidened : 0),
              widen.template load<LaneOrder::kCheapest>(odd_row + column, takes_odd ? kWidened : 0),
              pairs);
        }
        store_pairs(pairs, kWidened / kRowPadding, to + column);
      }
      if (column < stride) {
        __m512i pairs[kWidened / kRowPadding];
        const std::int32_t n = head_dim - column;
        pair_up<LaneOrder::kPlain>(
            widen.template load<LaneOrder::kPlain>(even_row + column, takes_even ? n : 0),
            widen.template load<LaneOrder::kPlain>(odd_row + column, takes_odd ? n : 0), pairs);
        store_pairs(pairs, (stride - column) / kRowPadding, to + column);
      }
    }
  }

  static HWY_INLINE void store_pairs(const __m512i* pairs, std::int32_t vectors,
                                     std::uint32_t* to) {
    for (std::int32_t i = 0; i < vectors; ++i) _mm512_store_si512(to + i * kRowPadding, pairs[i]);
  }

  /// Places of powers that hold `count` keys, up to whole steps of a product.
  static std::int32_t places_of(std::int32_t count) { return padded_depth(count); }

  /// o = o · rescale + p · v.
  void accumulate(const BlockRows& rows, std::int32_t count, TileAhead& ahead) {
    const std::int32_t stride = padded(rows.head_dim_vo);
    const std::int32_t vectors = stride / kRowPadding;
    const bool is_first = all_are(0.0F, rescale_, rows_);
    rescale_rows(rows.o_row(0), stride, rescale_, rows_, vectors);
    const std::ptrdiff_t c_bytes = stride * static_cast<std::ptrdiff_t>(sizeof(float));
    const std::int32_t steps = places_of(count) / kDepthPadding;
    for (std::int32_t vector = 0; vector < vectors; vector += 2) {
      float* const o = rows.o_row(0) + vector * kRowPadding;
      const std::uint32_t* v = buffers_.panels.v + vector * kRowPadding;
      const bool both = vector + 1 < vectors;
      if (is_first) {
        zero_tile<3>();
        zero_tile<4>();
      } else {
        load_tile<3>(o, c_bytes);
        if (both) load_tile<4>(o + kRowPadding, c_bytes);
      }
      for (std::int32_t step = 0; step < steps; ++step) {
        ahead.step(2);
        load_tile<5>(powers_[0] + step * kDepthPadding, sizeof(powers_[0]));
        load_tile<6>(v, c_bytes);
        multiply_tile<3, 5, 6>();
        if (both) {
          load_tile<7>(v + kRowPadding, c_bytes);
          multiply_tile<4, 5, 7>();
        }
        v += static_cast<std::ptrdiff_t>(kTilePairs) * stride;
      }
      store_tile<3>(o, c_bytes);
      if (both) store_tile<4>(o + kRowPadding, c_bytes);
    }
  }

  const ItemTask& task_;
  ItemWalk walk_;
  BlockBuffers buffers_;
  std::int32_t rows_;     // of a kv head
  std::int32_t columns_;  // of a kv head
  std::int32_t depth_;
  bool sees_all_ = true;
  std::ptrdiff_t strides_[kGroups] = {};
  __mmask16 lanes_[kMostQuads][kQuadVectors];
  alignas(kBufferAlignment) float rescale_[kMostRows];
  alignas(kBufferAlignment) float scores_[kKvTile * kMostRows];         // [kKvTile, columns_]
  alignas(kBufferAlignment) std::uint16_t powers_[kMostRows][kKvTile];  // as `key_at` tells
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_AMX
