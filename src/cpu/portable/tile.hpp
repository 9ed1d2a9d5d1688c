// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the kernels of a tile are given.
#pragma once

#include <hwy/base.h>

#include <cstddef>
#include <cstdint>

#include "cpu/tier.hpp"

namespace quire::cpu {

/// Where the keys of a tile lie: rows of kv head 0.
struct TileKeys {
  std::int32_t first = 0;  // position of the first key in its request
  std::int32_t count = 0;
  const std::byte* k[kKvTile];  // [count]
  const std::byte* v[kKvTile];
};

/// Which keys of a tile are seen, and by whom.
struct TileSight {
  const std::uint64_t* words = nullptr;  // [queries]
  std::uint64_t any = 0;                 // seen by at least one query
  std::uint64_t all = 0;                 // seen by every query
};

/// Rows that will be read soon.
struct RowsAhead {
  const std::byte* const* rows = nullptr;
  std::int32_t count = 0;
  std::int32_t bytes = 0;     // of a row
  std::ptrdiff_t offset = 0;  // to be added to each of `rows`

  // Both begin to read row `index`, if there is one. They are forced inline since compilers take a
  // function that does nothing but prefetch for one that does nothing.
  HWY_INLINE void fetch_to_first_level(std::int32_t index) const {
    if (index >= count) return;
    for (std::int32_t at = 0; at < bytes; at += kCacheLine) {
      __builtin_prefetch(rows[index] + offset + at, 0, 3);
    }
  }
  HWY_INLINE void fetch_to_second_level(std::int32_t index) const {
    if (index >= count) return;
    for (std::int32_t at = 0; at < bytes; at += kCacheLine) {
      __builtin_prefetch(rows[index] + offset + at, 0, 2);
    }
  }

  static constexpr std::int32_t kCacheLine = 64;
};

/// A tile of keys for one kv head.
template <typename T>
struct HeadKeys {
  const TileKeys& keys;
  std::ptrdiff_t k_offset = 0;  // bytes from head 0
  std::ptrdiff_t v_offset = 0;

  [[nodiscard]] const T* k(std::int32_t key) const {
    return reinterpret_cast<const T*>(keys.k[key] + k_offset);
  }
  [[nodiscard]] const T* v(std::int32_t key) const {
    return reinterpret_cast<const T*>(keys.v[key] + v_offset);
  }
  [[nodiscard]] RowsAhead k_ahead(std::int32_t head_dim) const {
    return {keys.k, keys.count, head_dim * static_cast<std::int32_t>(sizeof(T)), k_offset};
  }
  [[nodiscard]] RowsAhead v_ahead(std::int32_t head_dim) const {
    return {keys.v, keys.count, head_dim * static_cast<std::int32_t>(sizeof(T)), v_offset};
  }
};

/// The rows of one kv head of an item.
struct HeadRows {
  std::int32_t count = 0;  // queries × group
  std::int32_t group = 0;
  std::int32_t head_dim_qk = 0;
  std::int32_t head_dim_vo = 0;
  const float* q = nullptr;  // [count, padded(head_dim_qk)]
  float* scores = nullptr;   // [count, kKvTile]: logits, then their powers of 2
  float* rescale = nullptr;  // [count]: what becomes of o when the maximum grows
  RowStates states;          // of these rows

  [[nodiscard]] const float* q_row(std::int32_t row) const {
    return q + static_cast<std::ptrdiff_t>(row) * padded(head_dim_qk);
  }
  [[nodiscard]] float* score_row(std::int32_t row) const {
    return scores + static_cast<std::ptrdiff_t>(row) * kKvTile;
  }
  [[nodiscard]] float* o_row(std::int32_t row) const {
    return states.o + static_cast<std::ptrdiff_t>(row) * padded(head_dim_vo);
  }
};

/// How dot products become logits in units of log 2.
struct LogitRule {
  float scale = 1.0F;               // sm_scale · k_scale
  float soft_cap = 0.0F;            // 0: off
  const float* slopes = nullptr;    // [group], null: no ALiBi
  std::int32_t first_position = 0;  // of the item's first query
};

}  // namespace quire::cpu
