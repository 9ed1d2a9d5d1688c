// SPDX-License-Identifier: Apache-2.0
/// @file
/// Many rows of an item (prefill) by the tiles of AMX, block by block of keys and slice by slice of
/// rows. What a slice needs lies in the first-level cache but keys and values, which stream through
/// it from the second: stores that miss the first cost more than the products.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/bf16/item.hpp"
#include "cpu/bf16/multiply_amx.hpp"
#include "cpu/bf16/pack_block.hpp"
#include "cpu/bf16/softmax_amx.hpp"
#include "cpu/item_walk.hpp"

QUIRE_BEGIN_AMX
namespace quire::cpu::HWY_NAMESPACE {

constexpr std::int32_t slices_of(std::int32_t rows) { return (rows + kSliceRows - 1) / kSliceRows; }

/// The parts of a thread's buffers. A null base gives offsets, of which the end is the size.
struct TileBuffers {
  TileBuffers(std::byte* base, const core::ProblemShape& shape, std::int32_t max_rows) {
    // The last slice of a head is padded; items of several heads have few rows of each.
    const auto rows =
        static_cast<std::size_t>(kSliceRows * (slices_of(max_rows) + shape.num_kv_heads));
    const auto depth = static_cast<std::size_t>(padded_depth(shape.head_dim_qk));
    const auto vo = static_cast<std::size_t>(padded_depth(shape.head_dim_vo));
    const auto take = [&](std::size_t size) {
      std::byte* part = base == nullptr ? nullptr : base + bytes;
      bytes += (size + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
      return part;
    };
    q = reinterpret_cast<std::uint16_t*>(take(rows * depth * sizeof(std::uint16_t)));
    slice = reinterpret_cast<SliceBuffers*>(take(sizeof(SliceBuffers)));
    reference = reinterpret_cast<float*>(take(rows * sizeof(float)));
    sum = reinterpret_cast<float*>(take(rows * sizeof(float)));
    panels.k = reinterpret_cast<std::uint32_t*>(take(depth * kBlockKeys * sizeof(std::uint16_t)));
    panels.v = reinterpret_cast<std::uint32_t*>(take(kBlockKeys * vo * sizeof(std::uint16_t)));
    words = reinterpret_cast<std::uint64_t*>(
        take(kBlockTiles * static_cast<std::size_t>(max_rows) * sizeof(std::uint64_t)));
  }

  // [heads, slices, steps of depth, kSliceRows, kDepthPadding]
  std::uint16_t* q = nullptr;
  SliceBuffers* slice = nullptr;
  float* reference = nullptr;  // [heads, slices, kSliceRows]
  float* sum = nullptr;        // likewise
  PairPanels panels;
  std::uint64_t* words = nullptr;  // [kBlockTiles, queries]
  std::size_t bytes = 0;
};

/// `T` is the element type of K and V.
template <typename T>
class ManyTiles {
 public:
  explicit ManyTiles(const ItemTask& task)
      : task_(task),
        walk_(task),
        buffers_(task.buffers, task.shape, task.rows()),
        rows_(task.rows_per_kv_head()),
        slices_(slices_of(rows_)),
        depth_(padded_depth(task.shape.head_dim_qk)),
        columns_(padded(task.shape.head_dim_vo)) {}

  void run() {
    const TileSession session;
    begin();
    Block block;
    find_block(walk_, task_.item.kv_begin, kBlockTiles, block);
    while (block.count > 0) {
      const BlockSight sight = look(walk_, block, buffers_.words);
      for (std::int32_t head = 0; sight.count > 0 && head < task_.num_kv_heads(); ++head) {
        attend_block(head, block, sight);
      }
      find_block(walk_, block.end(), kBlockTiles, block);
    }
    finish();
  }

 private:
  [[nodiscard]] std::ptrdiff_t slice_at(std::int32_t head, std::int32_t slice) const {
    return static_cast<std::ptrdiff_t>(head) * slices_ + slice;
  }
  [[nodiscard]] std::int32_t depth_steps() const { return depth_ / kDepthPadding; }
  [[nodiscard]] std::uint16_t* q_of(std::int32_t head, std::int32_t slice) const {
    return buffers_.q + slice_at(head, slice) * kSliceRows * depth_;
  }
  [[nodiscard]] float* o_row(std::int32_t head, std::int32_t row) const {
    return task_.states.o + (static_cast<std::ptrdiff_t>(head) * rows_ + row) * columns_;
  }

  /// Queries → tiles, states of rows that have seen no key.
  void begin() {
    const core::ProblemShape& shape = task_.shape;
    const auto* const base = static_cast<const std::uint16_t*>(task_.tensors.q.data);
    const std::ptrdiff_t heads = task_.num_kv_heads();
    std::fill_n(buffers_.reference, heads * slices_ * kSliceRows,
                -std::numeric_limits<float>::infinity());
    std::fill_n(buffers_.sum, heads * slices_ * kSliceRows, 0.0F);
    for (std::int32_t head = 0; head < heads; ++head) {
      const std::int32_t first_head = (task_.item.kv_head_begin + head) * shape.group_size;
      for (std::int32_t row = 0; row < slices_ * kSliceRows; ++row) {
        const std::int32_t index = std::min(row, rows_ - 1);
        const std::uint16_t* from =
            base + task_.token_of(index / shape.group_size) * task_.tensors.q.token_stride +
            (first_head + index % shape.group_size) * task_.tensors.q.head_stride;
        std::uint16_t* const to = q_of(head, row / kSliceRows) + row % kSliceRows * kDepthPadding;
        for (std::int32_t at = 0; at < depth_; at += kDepthPadding) {
          const auto lanes = static_cast<__mmask32>(first_lanes(shape.head_dim_qk - at));
          _mm512_store_si512(to + static_cast<std::ptrdiff_t>(at) * kSliceRows,
                             _mm512_maskz_loadu_epi16(lanes, from + at));
        }
      }
    }
  }

  /// States to where the item's are.
  void finish() const {
    for (std::int32_t head = 0; head < task_.num_kv_heads(); ++head) {
      const std::ptrdiff_t to = static_cast<std::ptrdiff_t>(head) * rows_;
      const std::ptrdiff_t from = slice_at(head, 0) * kSliceRows;
      std::copy_n(buffers_.reference + from, rows_, task_.states.max + to);
      std::copy_n(buffers_.sum + from, rows_, task_.states.sum + to);
    }
  }

  [[nodiscard]] Slice slice_of(std::int32_t head, std::int32_t index,
                               const BlockSight& sight) const {
    Slice slice;
    slice.first = index * kSliceRows;
    slice.count = std::min(kSliceRows, rows_ - slice.first);
    slice.row_tiles = (slice.count + kTileRows - 1) / kTileRows;
    slice.reference = buffers_.reference + slice_at(head, index) * kSliceRows;
    slice.sum = buffers_.sum + slice_at(head, index) * kSliceRows;
    look_at(slice, sight);
    return slice;
  }

  void look_at(Slice& slice, const BlockSight& sight) const {
    const std::int32_t group = task_.shape.group_size;
    const std::int32_t last_query = (slice.first + slice.count - 1) / group;
    slice.keys = 0;
    std::uint64_t all = ~std::uint64_t{0};
    for (std::int32_t tile = 0; tile < sight.count; ++tile) {
      const TileSight& seen = sight.tiles[tile];
      std::uint64_t any = seen.all;
      std::uint64_t all_of_tile = seen.all;
      if (~seen.all != 0) {
        all_of_tile = ~std::uint64_t{0};
        for (std::int32_t query = slice.first / group; query <= last_query; ++query) {
          any |= seen.words[query];
          all_of_tile &= seen.words[query];
        }
      }
      if (any != 0) slice.keys = tile * kKvTile + std::bit_width(any);
      if (slice.keys > tile * kKvTile || any == 0) all &= all_of_tile;
    }
    slice.sees_all = ~all == 0;
  }

  /// Keys are not asked for ahead: that cost the products more than packing waits for.
  void attend_block(std::int32_t head, const Block& block, const BlockSight& sight) {
    std::uint64_t poisoned[kBlockTiles] = {};
    pack_block<PanelOrder::kTiles, T>(walk_, head, block, nullptr, sight, buffers_.panels,
                                      poisoned);
    TokenFactors factors[kBlockTiles];
    for (std::int32_t tile = 0; tile < sight.count; ++tile) {
      walk_.factors_of(block.tiles[tile], head, factors[tile]);
    }
    const TokenFactors* const given = walk_.has_token_factors() ? factors : nullptr;
    const LogitRule rule = walk_.rule_of(head);
    for (std::int32_t index = 0; index < slices_; ++index) {
      const Slice slice = slice_of(head, index, sight);
      if (slice.keys == 0) continue;
      SliceSoftmax softmax(slice, task_.shape.group_size, rule, sight, given, *buffers_.slice);
      raise(head, slice, softmax);
      accumulate(head, slice);
      add_poisoned_values(head, slice, block, sight, poisoned);
    }
    adding_.finish();
  }

  /// Powers of a slice and a block, the sums of its rows, and what the values add to the first
  /// columns.
  void raise(std::int32_t head, const Slice& slice, SliceSoftmax& softmax) {
    for (std::int32_t chunk = 0; chunk < slice.chunks() && softmax.needs_reference(); ++chunk) {
      move_references(head, slice, softmax, chunk);
    }
    raise_chunks(head, slice, softmax);
    if (softmax.add_sums(false)) return;
    for (std::int32_t chunk = 0; chunk < slice.chunks(); ++chunk) {
      move_references(head, slice, softmax, chunk);
    }
    raise_chunks(head, slice, softmax);
    softmax.add_sums(true);
  }

  void move_references(std::int32_t head, const Slice& slice, SliceSoftmax& softmax,
                       std::int32_t chunk) {
    float* const logits = score(head, slice, chunk, adding_);
    adding_.finish();
    softmax.move_references(chunk, logits);
    rescale_rows(o_row(head, slice.first), columns_, buffers_.slice->rescale, slice.count,
                 columns_ / kRowPadding);
  }

  /// The softmax of each chunk with the products of the next one; of the last one with those of the
  /// values of all others.
  void raise_chunks(std::int32_t head, const Slice& slice, SliceSoftmax& softmax) {
    const std::int32_t last = slice.chunks() - 1;
    softmax.clear_sums();
    float* logits = score(head, slice, 0, adding_);
    adding_.finish();
    for (std::int32_t chunk = 0; chunk < last; ++chunk) {
      softmax.begin(chunk, logits, pauses_of(depth_steps()));
      logits = score(head, slice, chunk + 1, softmax);
      softmax.finish();
    }
    softmax.begin(last, logits, std::max(1, pauses_of(last)));
    if (last == 0) softmax.finish();
    product_ = multiply_values(slice, 0, last + 1, softmax);
  }

  /// @return Logits of a chunk = q · k.
  template <class Work>
  float* score(std::int32_t head, const Slice& slice, std::int32_t chunk, Work& meanwhile) {
    TileProduct product;
    product.a = q_of(head, slice.first / kSliceRows);
    product.b = reinterpret_cast<const std::uint16_t*>(
                    buffers_.panels.k_of(chunk / kTileChunks, task_.shape.head_dim_qk)) +
                chunk % kTileChunks * kChunkKeys * depth_;
    product.b_step = kTileElements;
    product.b_beside = static_cast<std::ptrdiff_t>(kTileElements) * depth_steps();
    product.c = next_product();
    product.steps = depth_steps();
    multiply_tiles(slice.row_tiles, 2, product, meanwhile);
    return product.c;
  }

  /// Adds products to 32 columns of o, some rows with each `step`.
  struct Adding {
    const float* from = nullptr;  // [rows, kChunkKeys]
    float* to = nullptr;
    std::ptrdiff_t stride = 0;
    std::int32_t rows = 0;  // that are left
    std::int32_t rows_per_step = 0;
    bool both = false;  // vectors of columns, or only one

    HWY_INLINE void step() { add(std::min(rows, rows_per_step)); }
    HWY_INLINE void finish() { add(rows); }

   private:
    HWY_INLINE void add(std::int32_t count) {
      rows -= count;
      for (; count > 0; --count, from += kChunkKeys, to += stride) {
        _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_load_ps(from)));
        if (!both) continue;
        _mm512_store_ps(to + kRowPadding, _mm512_add_ps(_mm512_load_ps(to + kRowPadding),
                                                        _mm512_load_ps(from + kRowPadding)));
      }
    }
  };

  /// @return What the values of a block add to 32 columns of o from `column` on.
  template <class Work>
  float* multiply_values(const Slice& slice, std::int32_t column, std::int32_t chunks,
                         Work& meanwhile) {
    TileProduct product;
    product.a = buffers_.slice->powers[0][0];
    product.b = reinterpret_cast<const std::uint16_t*>(buffers_.panels.v) +
                static_cast<std::ptrdiff_t>(column) * kBlockKeys;
    product.b_step = 2 * kTileElements;
    product.b_beside = kTileElements;
    product.c = next_product();
    product.steps = chunks;
    multiply_tiles(slice.row_tiles, columns_ - column > kRowPadding ? 2 : 1, product, meanwhile);
    return product.c;
  }

  /// o += p · v; the last columns are left to the next products.
  void accumulate(std::int32_t head, const Slice& slice) {
    const std::int32_t pauses = pauses_of(slice.chunks());
    for (std::int32_t column = 0; column < columns_; column += kChunkKeys) {
      if (column > 0) product_ = multiply_values(slice, column, slice.chunks(), adding_);
      adding_.finish();
      adding_.from = product_;
      adding_.to = o_row(head, slice.first) + column;
      adding_.stride = columns_;
      adding_.rows = slice.count;
      adding_.rows_per_step = (slice.count + pauses - 1) / pauses;
      adding_.both = columns_ - column > kRowPadding;
    }
  }

  /// Where a product goes while the one before it is being used.
  [[nodiscard]] float* next_product() {
    turn_ = (turn_ + 1) % SliceBuffers::kInTurn;
    return buffers_.slice->products[turn_][0];
  }

  [[nodiscard]] std::uint16_t power_of(std::int32_t key, std::int32_t row) const {
    return buffers_.slice->powers[key / kChunkKeys][row][key % kChunkKeys];
  }

  /// See `add_poisoned`.
  void add_poisoned_values(std::int32_t head, const Slice& slice, const Block& block,
                           const BlockSight& sight, const std::uint64_t* poisoned) const {
    for (std::int32_t tile = 0; tile < sight.count; ++tile) {
      const auto keys = walk_.keys_of<T>(block.tiles[tile], head);
      for (std::uint64_t left = poisoned[tile]; left != 0; left &= left - 1) {
        const auto key = static_cast<std::int32_t>(std::countr_zero(left));
        for (std::int32_t row = 0; row < slice.count; ++row) {
          const std::int32_t index = slice.first + row;
          if ((sight.tiles[tile].words[index / task_.shape.group_size] >> key & 1U) == 0) continue;
          add_value<LaneOrder::kPlain>(o_row(head, index), power_of(tile * kKvTile + key, row),
                                       keys.v(key), task_.shape.head_dim_vo);
        }
      }
    }
  }

  const ItemTask& task_;
  ItemWalk walk_;
  TileBuffers buffers_;
  std::int32_t rows_;    // of a kv head
  std::int32_t slices_;  // likewise
  std::int32_t depth_;
  std::int32_t columns_;
  std::int32_t turn_ = 0;
  float* product_ = nullptr;  // of the values, the last one
  Adding adding_;
};

}  // namespace quire::cpu::HWY_NAMESPACE
QUIRE_END_AMX
