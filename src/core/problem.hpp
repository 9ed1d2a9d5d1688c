// SPDX-License-Identifier: Apache-2.0
/// @file
/// What kernels are given: validated, plain structs, grouped by how often they change. Pointers are
/// device pointers of the attention's device; strides count elements.
#pragma once

#include <cstdint>

#include "quire/attention.hpp"

namespace quire::core {

/// Fixed by the spec.
struct ProblemShape {
  std::int32_t num_qo_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t group_size = 0;  ///< num_qo_heads / num_kv_heads
  std::int32_t head_dim_qk = 0;
  std::int32_t head_dim_vo = 0;
  std::int32_t page_size = 0;  ///< kContiguousKv: not paged
  Mask mask = Mask::kCausal;
  std::int32_t window_left = -1;
  float sm_scale = 0.0F;
  float logits_soft_cap = 0.0F;
  DType q_dtype = DType::kNone;
  DType kv_dtype = DType::kNone;
  DType o_dtype = DType::kNone;
  KvLayout kv_layout = KvLayout::kNHD;
  KvScale kv_scale = KvScale::kNone;
};

/// Fixed by the step. Null where not given.
struct BatchArrays {
  std::int32_t num_seqs = 0;
  const std::int32_t* qo_indptr = nullptr;   // [num_seqs + 1]
  const std::int32_t* kv_len = nullptr;      // [num_seqs]
  const std::int32_t* page_table = nullptr;  // [num_seqs, page_table_width]
  std::int64_t page_table_stride = 0;
  std::int64_t page_table_width = 0;
  const std::int32_t* kv_page_indptr = nullptr;   // [num_seqs + 1]
  const std::int32_t* kv_page_indices = nullptr;  // [num_page_indices]
  std::int64_t num_page_indices = 0;
  const std::int32_t* kv_last_page_len = nullptr;  // [num_seqs]
  const std::int32_t* kv_indptr = nullptr;         // [num_seqs + 1]
  const std::uint32_t* tree_mask = nullptr;        // [total_q, tree_mask_words]
  std::int64_t tree_mask_stride = 0;
  std::int64_t tree_mask_words = 0;
  std::int64_t tree_mask_rows = 0;
  const std::uint8_t* full_mask = nullptr;  // [full_mask_bytes]
  std::int64_t full_mask_bytes = 0;
  const std::int64_t* full_mask_indptr = nullptr;  // [num_seqs + 1], bytes
};

/// Which requests share prefixes, if the caller says it; for who makes schedules alone.
struct PrefixGroups {
  std::int32_t num_levels = 0;  ///< 0: nothing is said
  const std::int32_t* leaders =
      nullptr;                      // [num_levels, num_seqs]; < 0: in no group from this level on
  std::int64_t leaders_stride = 0;  ///< from level to level
  const std::int32_t* pages = nullptr;  // [num_levels, num_seqs]
  std::int64_t pages_stride = 0;
};

/// Rows of q, o, new K or new V: [token, head, dim].
template <typename Void>
struct RowsOf {
  Void* data = nullptr;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};
using Rows = RowsOf<const void>;
using MutableRows = RowsOf<void>;

/// A cache of K or V: [page, token, head, dim] in any order of axes. Contiguous K/V is one page.
template <typename Void>
struct PagesOf {
  Void* data = nullptr;
  std::int64_t page_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t num_pages = 0;   ///< Contiguous: 1.
  std::int64_t num_tokens = 0;  ///< Tokens of a page. Contiguous: rows of the buffer.
};
using Pages = PagesOf<const void>;
using MutablePages = PagesOf<void>;

/// A scale for each token and kv head, where the token lies: [page, head, token] in any order of
/// axes. Contiguous K/V is one page.
template <typename Float>
struct TokenScalesOf {
  Float* data = nullptr;  // null: scales are not per token
  std::int64_t page_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
};
using TokenScales = TokenScalesOf<const float>;
using MutableTokenScales = TokenScalesOf<float>;

/// Fixed by the layer. Null where not given.
struct LayerTensors {
  std::int64_t total_q = 0;  ///< rows of q and o, padding included
  Rows q;
  Pages k;
  Pages v;
  MutableRows o;
  float* lse = nullptr;  // [total_q, num_qo_heads]
  std::int64_t lse_token_stride = 0;
  std::int64_t lse_head_stride = 0;
  const float* q_scale = nullptr;        // [1] or [num_qo_heads]
  std::int32_t q_scale_head_stride = 0;  // 0: one for all heads
  const float* k_scale = nullptr;        // [1] or [num_kv_heads]
  const float* v_scale = nullptr;        // [1] or [num_kv_heads]
  std::int32_t scale_head_stride = 0;    // of K and V; 0: one for all heads
  TokenScales k_token_scale;             // in place of k_scale
  TokenScales v_token_scale;             // in place of v_scale
  const float* sinks = nullptr;          // [num_qo_heads]
  const float* alibi_slopes = nullptr;   // [num_qo_heads]
};

/// New rows on their way into the cache.
struct AppendArrays {
  std::int64_t num_rows = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim_qk = 0;
  std::int32_t head_dim_vo = 0;
  std::int32_t page_size = 0;
  DType new_dtype = DType::kNone;
  DType cache_dtype = DType::kNone;
  Rows k;
  Rows v;
  MutablePages k_cache;
  MutablePages v_cache;
  const std::int64_t* slot_mapping = nullptr;  // [num_rows]; null: derive from the batch
  const float* k_scale = nullptr;
  const float* v_scale = nullptr;
  std::int32_t k_scale_head_stride = 0;  // 0: one for all heads
  std::int32_t v_scale_head_stride = 0;
  MutableTokenScales k_token_scale;  // computed and written, in place of k_scale
  MutableTokenScales v_token_scale;
};

/// Partial results to be joined.
struct MergeArrays {
  std::int64_t num_parts = 0;
  std::int64_t num_rows = 0;
  std::int32_t num_heads = 0;
  std::int32_t head_dim = 0;
  DType part_dtype = DType::kNone;
  DType o_dtype = DType::kNone;
  const void* o_parts = nullptr;  // [num_parts, num_rows, num_heads, head_dim]
  std::int64_t o_part_stride = 0;
  std::int64_t o_part_token_stride = 0;
  std::int64_t o_part_head_stride = 0;
  const float* lse_parts = nullptr;  // [num_parts, num_rows, num_heads]
  std::int64_t lse_part_stride = 0;
  std::int64_t lse_part_token_stride = 0;
  std::int64_t lse_part_head_stride = 0;
  MutableRows o;
  float* lse = nullptr;
  std::int64_t lse_token_stride = 0;
  std::int64_t lse_head_stride = 0;
};

}  // namespace quire::core
