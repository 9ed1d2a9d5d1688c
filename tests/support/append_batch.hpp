// SPDX-License-Identifier: Apache-2.0
/// @file
/// New keys and values on their way into a cache of NaN, and what the cache must hold afterwards.
/// Used by the tests of every backend.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "core/narrow_formats.hpp"
#include "support/random_batch.hpp"

namespace quire::testing {

/// New rows of four requests and a cache of NaN.
struct AppendCase {
  DType new_dtype = DType::kFloat32;
  DType cache_dtype = DType::kFloat32;
  KvLayout layout = KvLayout::kNHD;
  std::int64_t heads = 2;
  std::int64_t head_dim_qk = 24;
  std::int64_t head_dim_vo = 40;
  std::int64_t page_size = 16;
  std::int64_t num_pages = 9;
  std::vector<std::int32_t> qo_indptr = {0, 3, 3, 24, 27};
  std::vector<std::int32_t> kv_len = {5, 7, 40, 2};  // the last has a query before position 0
  std::int64_t padding_rows = 2;
};

/// The rows, the cache and the views of both.
class AppendBatch {
 public:
  explicit AppendBatch(const AppendCase& append_case) : c(append_case) {
    total_q = c.qo_indptr.back() + c.padding_rows;
    // Rows of new keys and values are slices of wider ones.
    const std::int64_t row = c.heads * (c.head_dim_qk + c.head_dim_vo) + 5;
    fused = ElementBuffer(c.new_dtype, total_q * row);
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < fused.size(); ++i) fused.set(i, normal(random));
    tensors.k = view_of(fused, 0, {total_q, c.heads, c.head_dim_qk}, {row, c.head_dim_qk, 1});
    tensors.v = view_of(fused, c.heads * c.head_dim_qk, {total_q, c.heads, c.head_dim_vo},
                        {row, c.head_dim_vo, 1});
    k_cache = ElementBuffer(c.cache_dtype, c.num_pages * c.page_size * c.heads * c.head_dim_qk);
    v_cache = ElementBuffer(c.cache_dtype, c.num_pages * c.page_size * c.heads * c.head_dim_vo);
    tensors.k_cache = pages(k_cache, c.head_dim_qk);
    tensors.v_cache = pages(v_cache, c.head_dim_vo);
    for (std::int32_t page : {7, 2, 5, 0, 8, 3, 6, 1, 4, 7, 7, 7}) table.push_back(page);
    batch.qo_indptr = TensorView(c.qo_indptr.data(), DType::kInt32, {5});
    batch.kv_len = TensorView(c.kv_len.data(), DType::kInt32, {4});
    const auto width = static_cast<std::int64_t>(table.size()) / 4;
    batch.page_table = TensorView(table.data(), DType::kInt32, {4, width});
  }

  AppendBatch(const AppendBatch&) = delete;
  AppendBatch& operator=(const AppendBatch&) = delete;

  [[nodiscard]] MutableTensorView pages(ElementBuffer& cache, std::int64_t dim) const {
    if (c.layout == KvLayout::kHND) {
      return {cache.at(0), c.cache_dtype, {c.num_pages, c.heads, c.page_size, dim}};
    }
    return {cache.at(0), c.cache_dtype, {c.num_pages, c.page_size, c.heads, dim}};
  }

  /// Slot of a row by the definition, or −1.
  [[nodiscard]] std::int64_t slot_of(std::int64_t row) const {
    for (std::size_t seq = 0; seq + 1 < c.qo_indptr.size(); ++seq) {
      if (row < c.qo_indptr[seq] || row >= c.qo_indptr[seq + 1]) continue;
      const std::int64_t position = c.kv_len[seq] - c.qo_indptr[seq + 1] + row;
      if (position < 0) return -1;
      const std::size_t width = table.size() / 4;
      const std::int64_t page =
          table[seq * width + static_cast<std::size_t>(position / c.page_size)];
      return page * c.page_size + position % c.page_size;
    }
    return -1;
  }

  /// Expects the rows in their slots, rounded, and NaN everywhere else.
  void expect_written(float scale_of_k = 1.0F, float scale_of_v = 1.0F) const {
    expect_written(tensors.k, k_cache, c.head_dim_qk, scale_of_k);
    expect_written(tensors.v, v_cache, c.head_dim_vo, scale_of_v);
  }

  /// Asks for scales per token, NaN to begin with.
  void compute_token_scales() {
    const auto make = [&](std::vector<float>& scales) {
      scales.assign(static_cast<std::size_t>(c.num_pages * c.heads * c.page_size),
                    std::numeric_limits<float>::quiet_NaN());
      return MutableTensorView(scales.data(), DType::kFloat32, {c.num_pages, c.heads, c.page_size});
    };
    tensors.k_token_scale = make(k_token_scale);
    tensors.v_token_scale = make(v_token_scale);
  }

  /// Expects each row's scale, NaN elsewhere, and the codes that the scales give.
  void expect_quantised() const {
    expect_quantised(tensors.k, k_cache, c.head_dim_qk, k_token_scale);
    expect_quantised(tensors.v, v_cache, c.head_dim_vo, v_token_scale);
  }

  void expect_nothing_written() const {
    for (const ElementBuffer* cache : {&k_cache, &v_cache}) {
      for (std::int64_t i = 0; i < cache->size(); ++i) ASSERT_TRUE(std::isnan(cache->get(i)));
    }
  }

  AppendCase c;
  std::int64_t total_q = 0;
  ElementBuffer fused, k_cache, v_cache;
  std::vector<std::int32_t> table, kv_page_indptr;
  std::vector<std::int64_t> slots;
  std::vector<float> k_scale, v_scale, k_token_scale, v_token_scale;
  Batch batch;
  AppendTensors tensors;

 private:
  /// Calls `visit(row, head, slot's page, slot's token)` for what goes somewhere.
  template <typename Visit>
  void for_each_written(const Visit& visit) const {
    for (std::int64_t row = 0; row < total_q; ++row) {
      const std::int64_t slot = slots.empty() ? slot_of(row) : slots[static_cast<std::size_t>(row)];
      if (slot < 0) continue;
      for (std::int64_t head = 0; head < c.heads; ++head) {
        visit(row, head, slot / c.page_size, slot % c.page_size);
      }
    }
  }

  [[nodiscard]] std::int64_t cache_offset(std::int64_t page, std::int64_t token, std::int64_t head,
                                          std::int64_t dim) const {
    return c.layout == KvLayout::kHND ? ((page * c.heads + head) * c.page_size + token) * dim
                                      : ((page * c.page_size + token) * c.heads + head) * dim;
  }

  [[nodiscard]] static float new_element(const TensorView& rows, std::int64_t row,
                                         std::int64_t head, std::int64_t i) {
    const auto* from = static_cast<const std::byte*>(rows.data) +
                       (row * rows.stride(0) + head * rows.stride(1) + i) *
                           static_cast<std::int64_t>(size_of(rows.dtype));
    return decode(from, rows.dtype);
  }

  void expect_quantised(const TensorView& rows, const ElementBuffer& cache, std::int64_t dim,
                        const std::vector<float>& scales) const {
    ElementBuffer expected(c.cache_dtype, cache.size());
    std::vector<float> expected_scales(scales.size(), std::numeric_limits<float>::quiet_NaN());
    for_each_written(
        [&](std::int64_t row, std::int64_t head, std::int64_t page, std::int64_t token) {
          float largest = 0.0F;
          for (std::int64_t i = 0; i < dim; ++i) {
            largest = std::max(largest, std::fabs(new_element(rows, row, head, i)));
          }
          const float scale = largest / core::largest_of(c.cache_dtype);
          expected_scales[static_cast<std::size_t>((page * c.heads + head) * c.page_size + token)] =
              scale;
          for (std::int64_t i = 0; i < dim; ++i) {
            expected.set(cache_offset(page, token, head, dim) + i,
                         new_element(rows, row, head, i) / scale);
          }
        });
    for (std::size_t i = 0; i < scales.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(scales[i]),
                std::bit_cast<std::uint32_t>(expected_scales[i]))
          << "scale " << i;
    }
    for (std::int64_t i = 0; i < cache.size(); ++i) {
      ASSERT_EQ(*cache.at(i), *expected.at(i)) << "code " << i;
    }
  }

  void expect_written(const TensorView& rows, const ElementBuffer& cache, std::int64_t dim,
                      float scale) const {
    ElementBuffer expected(c.cache_dtype, cache.size());
    for_each_written(
        [&](std::int64_t row, std::int64_t head, std::int64_t page, std::int64_t token) {
          for (std::int64_t i = 0; i < dim; ++i) {
            expected.set(cache_offset(page, token, head, dim) + i,
                         new_element(rows, row, head, i) / scale);
          }
        });
    for (std::int64_t i = 0; i < cache.size(); ++i) {
      const float want = expected.get(i);
      const float got = cache.get(i);
      ASSERT_TRUE(want == got || (std::isnan(want) && std::isnan(got)))
          << "element " << i << ": expected " << want << ", got " << got;
    }
  }
};

}  // namespace quire::testing
