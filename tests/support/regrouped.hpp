// SPDX-License-Identifier: Apache-2.0
/// @file
/// Some requests of a `RandomBatch`, whole or a chunk of their queries, in a batch of their own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "support/random_batch.hpp"

namespace quire::testing {

/// Queries [begin, end) of a request, as they are when the keys of later ones are not there yet.
struct Chunk {
  std::int32_t seq = 0;
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

/// All queries of a request.
inline Chunk whole_of(const RandomBatch& batch, std::int32_t seq) {
  return {seq, 0, batch.options.requests[static_cast<std::size_t>(seq)].qo_len};
}

/// As many requests as `count`, at random, the same one several times at times.
inline std::vector<Chunk> any_of(const RandomBatch& batch, std::int32_t count,
                                 std::mt19937& random) {
  std::uniform_int_distribution<std::int32_t> seq(0, batch.num_seqs() - 1);
  std::vector<Chunk> chunks;
  for (std::int32_t i = 0; i < count; ++i) chunks.push_back(whole_of(batch, seq(random)));
  return chunks;
}

/// A batch of chunks. Its q, tables, o and lse are its own; K and V are those of the batch they come
/// from, which has a dense table and packed rows.
class Regrouped {
 public:
  Regrouped(RandomBatch& from, std::span<const Chunk> chunks) : spec_(from.spec) {
    const auto width = static_cast<std::size_t>(from.batch.page_table.shape[1]);
    const std::size_t row_bytes = static_cast<std::size_t>(spec_.num_qo_heads) *
                                  static_cast<std::size_t>(spec_.head_dim_qk) *
                                  size_of(spec_.q_dtype);
    for (const Chunk& chunk : chunks) {
      const auto seq = static_cast<std::size_t>(chunk.seq);
      const Request& request = from.options.requests[seq];
      qo_indptr.push_back(qo_indptr.back() + chunk.end - chunk.begin);
      kv_len.push_back(request.kv_len - (request.qo_len - chunk.end));
      const auto entries =
          std::span(from.page_table)
              .subspan(seq * static_cast<std::size_t>(from.batch.page_table.stride(0)), width);
      page_table.insert(page_table.end(), entries.begin(), entries.end());
      const auto first = static_cast<std::size_t>(from.qo_indptr[seq] + chunk.begin);
      const auto rows = from.q_elements.bytes().subspan(
          first * row_bytes, static_cast<std::size_t>(chunk.end - chunk.begin) * row_bytes);
      q.insert(q.end(), rows.begin(), rows.end());
    }
    const auto num_seqs = static_cast<std::int64_t>(chunks.size());
    const std::int64_t total_q = qo_indptr.back();
    const auto results = static_cast<std::size_t>(total_q * spec_.num_qo_heads);
    o.assign(results * static_cast<std::size_t>(spec_.head_dim_vo) * size_of(spec_.o_dtype),
             std::byte{0xff});
    lse.assign(results, std::numeric_limits<float>::quiet_NaN());
    batch.qo_indptr = TensorView(qo_indptr.data(), DType::kInt32, {num_seqs + 1});
    batch.kv_len = TensorView(kv_len.data(), DType::kInt32, {num_seqs});
    batch.page_table =
        TensorView(page_table.data(), DType::kInt32, {num_seqs, from.batch.page_table.shape[1]});
    tensors.q =
        TensorView(q.data(), spec_.q_dtype, {total_q, spec_.num_qo_heads, spec_.head_dim_qk});
    tensors.k = from.tensors.k;
    tensors.v = from.tensors.v;
    tensors.o = MutableTensorView(o.data(), spec_.o_dtype,
                                  {total_q, spec_.num_qo_heads, spec_.head_dim_vo});
    tensors.lse = MutableTensorView(lse.data(), DType::kFloat32, {total_q, spec_.num_qo_heads});
  }
  Regrouped(const Regrouped&) = delete;
  Regrouped& operator=(const Regrouped&) = delete;

  [[nodiscard]] BatchLimits limits() const {
    return {static_cast<std::int32_t>(kv_len.size()), std::max(1, qo_indptr.back()),
            std::max(1, *std::ranges::max_element(kv_len))};
  }
  /// Bytes of o and of lse of the rows [begin, end) of a chunk.
  [[nodiscard]] std::vector<std::byte> rows_of(std::size_t chunk, std::int32_t begin,
                                               std::int32_t end) const {
    const auto first = static_cast<std::size_t>(qo_indptr[chunk] + begin);
    const auto rows = static_cast<std::size_t>(end - begin);
    std::vector<std::byte> bytes;
    for (const auto& all : {std::span<const std::byte>(o), std::as_bytes(std::span(lse))}) {
      const std::size_t row = all.size() / static_cast<std::size_t>(std::max(1, qo_indptr.back()));
      const auto some = all.subspan(first * row, rows * row);
      bytes.insert(bytes.end(), some.begin(), some.end());
    }
    return bytes;
  }
  [[nodiscard]] std::vector<std::byte> result_of(std::size_t chunk) const {
    return rows_of(chunk, 0, qo_indptr[chunk + 1] - qo_indptr[chunk]);
  }

  Batch batch;
  AttentionTensors tensors;
  std::vector<std::int32_t> qo_indptr = {0}, kv_len, page_table;
  std::vector<std::byte> q, o;
  std::vector<float> lse;

 private:
  AttentionSpec spec_;
};

}  // namespace quire::testing
