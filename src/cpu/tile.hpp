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
  const float* k_scale[kKvTile];  // [count], if tokens have scales of their own
  const float* v_scale[kKvTile];
};

/// Scales of a tile's tokens for one kv head; zeros behind the last key.
struct TokenFactors {
  alignas(kBufferAlignment) float k[kKvTile];  // of dot products
  alignas(kBufferAlignment) float v[kKvTile];  // of weights
};

/// Which keys of a tile are seen, and by whom.
struct TileSight {
  const std::uint64_t* words = nullptr;  // [queries]
  std::uint64_t any = 0;                 // seen by at least one query
  std::uint64_t all = 0;                 // seen by every query
};

/// A cache that is asked to hold memory, as `__builtin_prefetch` counts them.
inline constexpr int kSecondLevel = 2;
inline constexpr int kFirstLevel = 3;

/// Memory that will be read soon, a part of which is asked for with each step of the work before it:
/// `count` pieces of `bytes` each, at `rows[i] + offset`. It goes to the second-level cache where
/// much is asked for far ahead, since rows of one head lie at powers of two apart and would push one
/// another out of the first.
class LinesAhead {
 public:
  LinesAhead() = default;
  /// @param steps  After so many everything has been asked for, > 0.
  LinesAhead(const std::byte* const* rows, std::int32_t count, std::ptrdiff_t offset,
             std::int32_t bytes, std::int32_t steps)
      : row_(rows),
        end_(rows + count),
        offset_(offset),
        lines_((bytes + kCacheLine - 1) / kCacheLine),
        lines_per_step_((count * lines_ + steps - 1) / steps) {}

  [[nodiscard]] bool done() const { return row_ == end_; }

  // Forced inline since compilers take a function that does nothing but prefetch for one that does
  // nothing.
  template <int kLevel = kSecondLevel>
  HWY_INLINE void step(std::int32_t steps = 1) {
    for (std::int32_t left = steps * lines_per_step_; left > 0 && row_ != end_;) {
      const std::byte* from = *row_ + offset_ + line_ * kCacheLine;
      std::int32_t count = 1;
      __builtin_prefetch(from, 0, kLevel);
      if (line_ + kLinesTogether <= lines_) {
        __builtin_prefetch(from + kCacheLine, 0, kLevel);
        __builtin_prefetch(from + 2 * kCacheLine, 0, kLevel);
        __builtin_prefetch(from + 3 * kCacheLine, 0, kLevel);
        count = kLinesTogether;
      }
      left -= count;
      line_ += count;
      if (line_ == lines_) {
        line_ = 0;
        ++row_;
      }
    }
  }

 private:
  static constexpr std::int32_t kCacheLine = 64;
  static constexpr std::int32_t kLinesTogether = 4;

  const std::byte* const* row_ = nullptr;
  const std::byte* const* end_ = nullptr;
  std::ptrdiff_t offset_ = 0;
  std::int32_t lines_ = 0;
  std::int32_t lines_per_step_ = 0;
  std::int32_t line_ = 0;  // of *row_
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
};

/// How dot products become logits in units of log 2.
struct LogitRule {
  float scale = 1.0F;               // sm_scale · k_scale
  float soft_cap = 0.0F;            // 0: off
  const float* slopes = nullptr;    // [group], null: no ALiBi
  std::int32_t first_position = 0;  // of the item's first query
};

}  // namespace quire::cpu
