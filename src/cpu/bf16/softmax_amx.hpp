// SPDX-License-Identifier: Apache-2.0
/// @file
/// Softmax of a slice of rows between the tile products of its own next keys: a core's tiles and its
/// vectors work at the same time only if the instructions of both lie within what it looks ahead.
///
/// Powers are taken of the distance to a reference that stands for a block of keys, so that they need
/// not wait for the block's maximum: the maximum over the first keys that a row sees, and over all of
/// the block's if their sum grows too large.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "cpu/bf16/multiply_amx.hpp"
#include "cpu/bf16/rows.hpp"
#include "cpu/bf16/softmax.hpp"

QUIRE_BEGIN_AMX
namespace quire::cpu::HWY_NAMESPACE {

/// Keys whose logits are on their way: what one block of tiles gives, a step of the next product.
inline constexpr std::int32_t kChunkKeys = kDepthPadding;
inline constexpr std::int32_t kTileChunks = kKvTile / kChunkKeys;
inline constexpr std::int32_t kBlockChunks = kBlockKeys / kChunkKeys;

/// What the rows of a slice are multiplied to. All of it stays in the first-level cache.
struct SliceBuffers {
  static constexpr std::int32_t kInTurn = 2;  // one is written, one is read

  // Logits of a chunk, or what values add to 32 columns of o.
  alignas(kBufferAlignment) float products[kInTurn][kSliceRows][kChunkKeys];
  alignas(kBufferAlignment) std::uint16_t powers[kBlockChunks][kSliceRows][kChunkKeys];  // bf16
  Vec lanes[kSliceRows];                         // maxima or sums of a row's lanes
  std::uint64_t words[kBlockTiles][kSliceRows];  // what rows see, if not all
  alignas(kBufferAlignment) float rescale[kSliceRows];
};

/// Rows of a kv head that go through the products and the softmax together. What is beyond the last
/// row of the head repeats what that row sees.
struct Slice {
  std::int32_t first = 0;      // row of the head
  std::int32_t count = 0;      // rows that are there
  std::int32_t row_tiles = 0;  // of 16 rows
  std::int32_t keys = 0;       // needed of the block: up to the last that a row sees
  bool sees_all = false;       // of these keys
  float* reference = nullptr;  // [kSliceRows], likewise: `RowStates::max`
  float* sum = nullptr;

  [[nodiscard]] std::int32_t rows() const { return row_tiles * kTileRows; }
  [[nodiscard]] std::int32_t chunks() const { return (keys + kChunkKeys - 1) / kChunkKeys; }
};

class SliceSoftmax {
 public:
  /// @param factors  [tiles], of tokens that have scales of their own, else null.
  SliceSoftmax(const Slice& slice, std::int32_t group, const LogitRule& rule,
               const BlockSight& sight, const TokenFactors* factors, SliceBuffers& buffers)
      : slice_(slice),
        rule_(rule),
        sight_(sight),
        factors_(factors),
        buffers_(buffers),
        group_(group),
        bends_(rule.soft_cap > 0.0F || rule.slopes != nullptr || !(rule.scale > 0.0F)),
        scale_(bends_ ? kLog2E : rule.scale * kLog2E),
        is_plain_(slice.sees_all && factors == nullptr) {
    if (!slice.sees_all) find_words();
  }

  /// Whether a row without a reference sees a key of the block.
  [[nodiscard]] bool needs_reference() const {
    for (std::int32_t first = 0; first < slice_.rows(); first += kTileRows) {
      std::uint32_t rows = _mm512_cmp_ps_mask(_mm512_load_ps(slice_.reference + first),
                                              _mm512_set1_ps(kNoReference), _CMP_EQ_OQ);
      if (rows != 0 && slice_.sees_all) return true;
      for (; rows != 0; rows &= rows - 1) {
        for (std::int32_t tile = 0; tile < sight_.count; ++tile) {
          if (buffers_.words[tile][first + std::countr_zero(rows)] != 0) return true;
        }
      }
    }
    return false;
  }

  /// Moves references up to the maxima of a chunk; `SliceBuffers::rescale` says what becomes of o.
  void move_references(std::int32_t chunk, float* chunk_logits) {
    if (adapts()) adapt(chunk, chunk_logits);
    const __m512 nothing = _mm512_set1_ps(kNoReference);
    for (std::int32_t row = 0; row < slice_.rows(); ++row) {
      const float* logits = chunk_logits + row * kChunkKeys;
      const __m512 low = _mm512_mask_load_ps(nothing, lanes(row, chunk, 0), logits);
      const __m512 high = _mm512_mask_load_ps(nothing, lanes(row, chunk, 1), logits + kRowPadding);
      buffers_.lanes[row].raw = _mm512_max_ps(low, high);
    }
    for (std::int32_t first = 0; first < slice_.rows(); first += kTileRows) {
      const __m512 top =
          _mm512_mul_ps(maxima_of<kTileRows>(buffers_.lanes + first).raw, _mm512_set1_ps(scale_));
      const __m512 old = _mm512_load_ps(slice_.reference + first);
      const __mmask16 grows = _mm512_cmp_ps_mask(top, old, _CMP_GT_OQ);
      const __m512 now = _mm512_mask_mov_ps(old, grows, top);
      const __m512 rescale = rescale_of_sums<PowerByReducing>(old, now, grows);
      const __m512 sum = _mm512_load_ps(slice_.sum + first);
      _mm512_store_ps(slice_.reference + first, now);
      _mm512_store_ps(slice_.sum + first, _mm512_mul_ps(sum, rescale));
      _mm512_store_ps(buffers_.rescale + first, rescale);
    }
  }

  void clear_sums() {
    for (Vec& lanes : buffers_.lanes) lanes.raw = _mm512_setzero_ps();
  }

  /// Logits of a chunk → powers, some rows with each `step`.
  /// @param steps  Until all of them are to be done.
  void begin(std::int32_t chunk, float* chunk_logits, std::int32_t steps) {
    chunk_ = chunk;
    logits_ = chunk_logits;
    row_ = 0;
    rows_per_step_ = (slice_.rows() + steps - 1) / steps;
    if (adapts()) adapt(chunk, chunk_logits);
  }
  HWY_INLINE void step() { raise(std::min(rows_per_step_, slice_.rows() - row_)); }
  HWY_INLINE void finish() { raise(slice_.rows() - row_); }

  /// Adds the block's sums to the rows'.
  /// @return Whether all of them are small enough; if not, nothing has been added.
  bool add_sums(bool at_any_rate) {
    constexpr float kMostSum =
        0x1p16F;  // of powers that are 1 at most if the reference is the maximum
    __m512 sums[kSliceRows / kTileRows];
    for (std::int32_t i = 0; i < slice_.row_tiles; ++i) {
      sums[i] = sums_of<kTileRows>(buffers_.lanes + i * kTileRows).raw;
      const __mmask16 grown = _mm512_cmp_ps_mask(sums[i], _mm512_set1_ps(kMostSum), _CMP_GT_OQ);
      if (grown != 0 && !at_any_rate) return false;
    }
    for (std::int32_t i = 0; i < slice_.row_tiles; ++i) {
      float* const sum = slice_.sum + i * kTileRows;
      _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), sums[i]));
    }
    return true;
  }

 private:
  static constexpr float kNoReference = -std::numeric_limits<float>::infinity();

  void find_words() {
    for (std::int32_t tile = 0; tile < sight_.count; ++tile) {
      for (std::int32_t row = 0; row < slice_.rows(); ++row) {
        const std::int32_t index = slice_.first + std::min(row, slice_.count - 1);
        buffers_.words[tile][row] = sight_.tiles[tile].words[index / group_];
      }
    }
  }

  /// Bits of a chunk's keys that a row sees.
  [[nodiscard]] HWY_INLINE std::uint64_t seen(std::int32_t row, std::int32_t chunk) const {
    if (slice_.sees_all) return ~std::uint64_t{0};
    return buffers_.words[chunk / kTileChunks][row] >> (chunk % kTileChunks * kChunkKeys);
  }
  [[nodiscard]] HWY_INLINE __mmask16 lanes(std::int32_t row, std::int32_t chunk,
                                           std::int32_t vector) const {
    return static_cast<__mmask16>(seen(row, chunk) >> (vector * kRowPadding));
  }

  [[nodiscard]] bool adapts() const { return bends_ || factors_ != nullptr; }

  /// Scales of tokens, soft cap, ALiBi.
  HWY_NOINLINE void adapt(std::int32_t chunk, float* chunk_logits) const {
    const std::int32_t tile = chunk / kTileChunks;
    const std::int32_t key = chunk % kTileChunks * kChunkKeys;
    for (std::int32_t row = 0; row < slice_.count; ++row) {
      const std::int32_t query = (slice_.first + row) / group_;
      const float slope =
          rule_.slopes != nullptr ? rule_.slopes[(slice_.first + row) % group_] : 0.0F;
      float* const logits = chunk_logits + row * kChunkKeys;
      if (factors_ != nullptr) {
        scale_row(logits, kChunkKeys, factors_[tile].k + key, seen(row, chunk));
      }
      if (!bends_) continue;
      bend(logits, kChunkKeys, rule_, slope,
           rule_.first_position + query - sight_.first_keys[tile] - key);
    }
  }

  /// The next `count` rows of the chunk. What most slices need stands between the products.
  HWY_INLINE void raise(std::int32_t count) {
    if (is_plain_) {
      raise_rows<false, false>(count);
    } else {
      raise_other_rows(count);
    }
    row_ += count;
  }
  HWY_NOINLINE void raise_other_rows(std::int32_t count) {
    if (factors_ != nullptr) return raise_rows<true, true>(count);
    raise_rows<true, false>(count);
  }

  template <bool kMasked, bool kWeighted>
  HWY_INLINE void raise_rows(std::int32_t count) {
    const float* from = logits_ + row_ * kChunkKeys;
    std::uint16_t* powers = buffers_.powers[chunk_][row_];
    const float* references = slice_.reference + row_;
    Vec* sums = buffers_.lanes + row_;
    const __m512 scale = _mm512_set1_ps(scale_);
    for (std::int32_t i = 0; i < count; ++i) {
      const __m512 reference = _mm512_set1_ps(references[i]);
      __m512 low = PowerByReducing::of(_mm512_fmsub_ps(_mm512_load_ps(from), scale, reference));
      __m512 high = PowerByReducing::of(
          _mm512_fmsub_ps(_mm512_load_ps(from + kRowPadding), scale, reference));
      if constexpr (kMasked) {
        low = _mm512_maskz_mov_ps(lanes(row_ + i, chunk_, 0), low);
        high = _mm512_maskz_mov_ps(lanes(row_ + i, chunk_, 1), high);
      }
      sums[i].raw = _mm512_add_ps(sums[i].raw, _mm512_add_ps(low, high));
      if constexpr (kWeighted) {
        const float* const factors =
            factors_[chunk_ / kTileChunks].v + chunk_ % kTileChunks * kChunkKeys;
        low = _mm512_maskz_mul_ps(lanes(row_ + i, chunk_, 0), low, _mm512_load_ps(factors));
        high = _mm512_maskz_mul_ps(lanes(row_ + i, chunk_, 1), high,
                                   _mm512_load_ps(factors + kRowPadding));
      }
      _mm512_store_si512(powers, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      from += kChunkKeys;
      powers += kChunkKeys;
    }
  }

  const Slice& slice_;
  const LogitRule& rule_;
  const BlockSight& sight_;
  const TokenFactors* factors_;
  SliceBuffers& buffers_;
  std::int32_t group_;
  bool bends_;
  float scale_;
  bool is_plain_;
  std::int32_t chunk_ = 0;
  const float* logits_ = nullptr;  // [kSliceRows, kChunkKeys]: of the chunk
  std::int32_t row_ = 0;
  std::int32_t rows_per_step_ = 0;
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_AMX
