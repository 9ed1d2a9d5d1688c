// SPDX-License-Identifier: Apache-2.0
/// @file
/// An item's way over its keys, tile by tile: where they lie, who sees them, how their logits are
/// made. The same for all tiers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/tile.hpp"
#include "cpu/visibility.hpp"

namespace quire::cpu {

class ItemWalk {
 public:
  explicit ItemWalk(const ItemTask& task)
      : task_(task),
        mask_(mask_of_request(task.shape, task.batch, task.item.seq, task.lengths)),
        element_bytes_(static_cast<std::ptrdiff_t>(size_of(task.shape.kv_dtype))) {}

  [[nodiscard]] const ItemTask& task() const { return task_; }

  /// Rows of the tile that starts at `key`: up to the next multiple of `most`, so that where a unit
  /// is split does not change its tiles. None at the item's end.
  /// @param most  A divisor of kKvTile.
  void find_keys(std::int32_t key, std::int32_t most, TileKeys& tile) const {
    tile.first = key;
    tile.count = 0;
    const std::int64_t tile_end = (static_cast<std::int64_t>(key) / most + 1) * most;
    const auto end = static_cast<std::int32_t>(std::min<std::int64_t>(tile_end, task_.item.kv_end));
    while (key < end) {
      const schedule::KeyRun run =
          schedule::key_run(task_.shape, task_.batch, task_.item.seq, key, end);
      const std::byte* k = place(task_.tensors.k, run);
      const std::byte* v = place(task_.tensors.v, run);
      if (has_token_factors()) find_scales(run, tile);
      for (std::int32_t i = 0; i < run.tokens; ++i, ++tile.count) {
        tile.k[tile.count] = k + i * task_.tensors.k.token_stride * element_bytes_;
        tile.v[tile.count] = v + i * task_.tensors.v.token_stride * element_bytes_;
      }
      key += run.tokens;
    }
  }

  /// @param words  [queries], written.
  TileSight look(const TileKeys& tile, std::uint64_t* words) const {
    TileSight sight{words, 0, low_bits(tile.count)};
    for (std::int32_t query = 0; query < task_.num_queries(); ++query) {
      const std::uint64_t word =
          visibility(mask_, task_.item.q_begin + query, tile.first, tile.count);
      words[query] = word;
      sight.any |= word;
      sight.all &= word;
    }
    return sight;
  }

  /// A tile for kv head `head` of the item. `T` is the element type of K and V.
  template <typename T>
  [[nodiscard]] HeadKeys<T> keys_of(const TileKeys& tile, std::int32_t head) const {
    const auto kv_head = static_cast<std::ptrdiff_t>(task_.item.kv_head_begin + head);
    return {tile, kv_head * task_.tensors.k.head_stride * element_bytes_,
            kv_head * task_.tensors.v.head_stride * element_bytes_};
  }

  /// Whether every token has scales of its own.
  [[nodiscard]] bool has_token_factors() const {
    return task_.tensors.k_token_scale.data != nullptr;
  }
  /// Those of a tile for kv head `head` of the item.
  /// @return `to`, or null if tokens have none.
  const TokenFactors* factors_of(const TileKeys& tile, std::int32_t head, TokenFactors& to) const {
    if (!has_token_factors()) return nullptr;
    const auto kv_head = static_cast<std::ptrdiff_t>(task_.item.kv_head_begin + head);
    const std::ptrdiff_t k = kv_head * task_.tensors.k_token_scale.head_stride;
    const std::ptrdiff_t v = kv_head * task_.tensors.v_token_scale.head_stride;
    for (std::int32_t key = 0; key < tile.count; ++key) {
      to.k[key] = tile.k_scale[key][k];
      to.v[key] = tile.v_scale[key][v];
    }
    std::fill(to.k + tile.count, to.k + kKvTile, 0.0F);
    std::fill(to.v + tile.count, to.v + kKvTile, 0.0F);
    return &to;
  }

  [[nodiscard]] LogitRule rule_of(std::int32_t head) const {
    const core::LayerTensors& tensors = task_.tensors;
    const std::int32_t kv_head = task_.item.kv_head_begin + head;
    LogitRule rule;
    rule.scale = task_.shape.sm_scale;
    if (tensors.k_scale != nullptr) {
      rule.scale *= tensors.k_scale[kv_head * tensors.scale_head_stride];
    }
    rule.soft_cap = task_.shape.logits_soft_cap;
    if (tensors.alibi_slopes != nullptr) {
      rule.slopes = tensors.alibi_slopes + kv_head * task_.shape.group_size;
    }
    rule.first_position = mask_.lengths.position(task_.item.q_begin);
    return rule;
  }

  /// Keys of the next tile that are to be fetched while head `head` of this one is worked on. Where
  /// the heads of a token lie together, tokens are fetched whole, a share of them with each head, so
  /// that memory is read in its own order; else each head's rows.
  [[nodiscard]] LinesAhead k_ahead(const TileKeys& next, std::int32_t head,
                                   std::int32_t steps) const {
    return ahead(next.k, next.count, task_.tensors.k, task_.shape.head_dim_qk, head, steps);
  }
  /// Likewise of values.
  [[nodiscard]] LinesAhead v_ahead(const TileKeys& next, std::int32_t head,
                                   std::int32_t steps) const {
    return ahead(next.v, next.count, task_.tensors.v, task_.shape.head_dim_vo, head, steps);
  }

 private:
  /// Of a run that begins behind the tile's last key.
  void find_scales(const schedule::KeyRun& run, TileKeys& tile) const {
    const core::TokenScales& k = task_.tensors.k_token_scale;
    const core::TokenScales& v = task_.tensors.v_token_scale;
    for (std::int32_t i = 0; i < run.tokens; ++i) {
      tile.k_scale[tile.count + i] =
          k.data + run.page * k.page_stride + (run.token + i) * k.token_stride;
      tile.v_scale[tile.count + i] =
          v.data + run.page * v.page_stride + (run.token + i) * v.token_stride;
    }
  }

  [[nodiscard]] LinesAhead ahead(const std::byte* const* rows, std::int32_t count,
                                 const core::Pages& pages, std::int32_t head_dim, std::int32_t head,
                                 std::int32_t steps) const {
    const std::int32_t heads = task_.num_kv_heads();
    const auto bytes = static_cast<std::int32_t>(head_dim * element_bytes_);
    const std::ptrdiff_t first_head = task_.item.kv_head_begin * pages.head_stride * element_bytes_;
    if (pages.head_stride == head_dim) {
      const std::int32_t begin = count * head / heads;
      const std::int32_t end = count * (head + 1) / heads;
      return {rows + begin, end - begin, first_head, heads * bytes, steps};
    }
    return {rows, count, first_head + head * pages.head_stride * element_bytes_, bytes, steps};
  }

  [[nodiscard]] const std::byte* place(const core::Pages& pages,
                                       const schedule::KeyRun& run) const {
    return static_cast<const std::byte*>(pages.data) +
           (run.page * pages.page_stride + run.token * pages.token_stride) * element_bytes_;
  }

  const ItemTask& task_;
  MaskOfRequest mask_;
  std::ptrdiff_t element_bytes_;
};

}  // namespace quire::cpu
