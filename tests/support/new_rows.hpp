// SPDX-License-Identifier: Apache-2.0
/// @file
/// The keys and values of a batch's new tokens, taken out of its cache: what a step appends before
/// it attends. Used by the tests of every backend.
#pragma once

#include <cstring>

#include "support/random_batch.hpp"

namespace quire::testing {

/// Takes them: the cache holds NaN in their place. Rows of padding and before position 0 are NaN.
class NewRows {
 public:
  explicit NewRows(RandomBatch& batch)
      : k_elements(batch.spec.kv_dtype, elements(batch, batch.spec.head_dim_qk)),
        v_elements(batch.spec.kv_dtype, elements(batch, batch.spec.head_dim_vo)) {
    tensors.k = take(batch, batch.tensors.k, batch.spec.head_dim_qk, k_elements);
    tensors.v = take(batch, batch.tensors.v, batch.spec.head_dim_vo, v_elements);
  }
  NewRows(const NewRows&) = delete;
  NewRows& operator=(const NewRows&) = delete;

  ElementBuffer k_elements, v_elements;
  AppendTensors tensors;  ///< k and v: [total_q, num_kv_heads, head_dim]

 private:
  static std::int64_t elements(const RandomBatch& batch, std::int64_t head_dim) {
    return batch.total_q() * batch.spec.num_kv_heads * head_dim;
  }

  static MutableTensorView take(const RandomBatch& batch, const TensorView& cache,
                                std::int64_t head_dim, ElementBuffer& to) {
    const std::int64_t heads = batch.spec.num_kv_heads;
    for (std::size_t seq = 0; seq < batch.options.requests.size(); ++seq) {
      const Request& request = batch.options.requests[seq];
      for (std::int32_t query = 0; query < request.qo_len; ++query) {
        const std::int32_t key = request.kv_len - request.qo_len + query;
        for (std::int64_t head = 0; key >= 0 && head < heads; ++head) {
          const std::int64_t row = (batch.qo_indptr[seq] + query) * heads + head;
          take_row(cache, batch.row_offset(cache, seq, key, head), to, row * head_dim, head_dim);
        }
      }
    }
    return {to.at(0), to.dtype(), {batch.total_q(), heads, head_dim}};
  }

  static void take_row(const TensorView& cache, std::int64_t offset, ElementBuffer& to,
                       std::int64_t at, std::int64_t head_dim) {
    const auto element = static_cast<std::int64_t>(size_of(cache.dtype));
    auto* row = static_cast<std::byte*>(const_cast<void*>(cache.data)) + offset * element;
    std::memcpy(to.at(at), row, static_cast<std::size_t>(head_dim * element));
    for (std::int64_t i = 0; i < head_dim; ++i) {
      encode(std::numeric_limits<float>::quiet_NaN(), row + i * element, cache.dtype);
    }
  }
};

}  // namespace quire::testing
