// SPDX-License-Identifier: Apache-2.0
#include "bench/row_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "common/numbers.hpp"
#include "common/random.hpp"
#include "quire/reference.hpp"

namespace quire::tool {
namespace {

constexpr int kRequestsPerCheck = 4;
constexpr int kRowsPerRequest = 3;

using Bytes = std::vector<std::byte>;

/// A query of one head.
struct Row {
  std::size_t seq = 0;
  std::int32_t query = 0;
  std::int32_t head = 0;
};

/// The keys or the values of a request in one head, after one another.
Bytes head_of_cache(const Arrays& arrays, const NoiseBlock& noise, std::size_t seq,
                    std::int32_t kv_head) {
  const AttentionSpec& spec = arrays.spec();
  const auto dim = static_cast<std::size_t>(spec.head_dim_qk);
  const std::size_t row_bytes = dim * size_of(spec.kv_dtype);
  Bytes rows(static_cast<std::size_t>(arrays.keys_of(seq)) * row_bytes);
  for (std::int32_t t = 0; t < arrays.keys_of(seq); ++t) {
    const std::int64_t token = arrays.layout().token_of(seq, t);
    noise.tell(static_cast<std::size_t>(token * spec.num_kv_heads + kv_head) * dim,
               std::span(rows).subspan(static_cast<std::size_t>(t) * row_bytes, row_bytes));
  }
  return rows;
}

/// The scales of a request's keys in one head.
std::vector<float> scales_of(const Arrays& arrays, std::size_t seq, std::int32_t kv_head) {
  std::vector<float> scales;
  for (std::int32_t t = 0; t < arrays.keys_of(seq); ++t) {
    const PageLayout& layout = arrays.layout();
    scales.push_back(arrays.scales().at(layout.page_of(seq, t), kv_head, layout.place_in_page(t)));
  }
  return scales;
}

/// Elements of q and o before a row.
std::size_t first_element(const Arrays& arrays, const Row& row) {
  const std::int64_t token = arrays.layout().first_row(row.seq) + row.query;
  return static_cast<std::size_t>((token * arrays.spec().num_qo_heads + row.head) *
                                  arrays.spec().head_dim_qk);
}

/// The oracle's row: its request alone, one head, keys and values in one piece.
ReferenceRow expected_row(const Arrays& arrays, AttentionSpec spec, const Row& row) {
  const std::int64_t queries = arrays.queries_of(row.seq);
  const std::int64_t keys = arrays.keys_of(row.seq);
  const std::int32_t dim = spec.head_dim_qk;
  const std::int32_t kv_head = row.head / (spec.num_qo_heads / spec.num_kv_heads);
  const Bytes k = head_of_cache(arrays, arrays.k().block, row.seq, kv_head);
  const Bytes v = head_of_cache(arrays, arrays.v().block, row.seq, kv_head);
  const std::size_t q_bytes = static_cast<std::size_t>(dim) * size_of(spec.q_dtype);
  Bytes q(static_cast<std::size_t>(queries) * q_bytes);
  arrays.q().block.tell(
      first_element(arrays, row),
      std::span(q).subspan(static_cast<std::size_t>(row.query) * q_bytes, q_bytes));

  spec.num_qo_heads = spec.num_kv_heads = 1;
  spec.page_size = kContiguousKv;
  const std::array qo_indptr = {0, arrays.queries_of(row.seq)};
  const std::array kv_indptr = {0, arrays.keys_of(row.seq)};
  const std::vector<float> scales = scales_of(arrays, row.seq, kv_head);
  Batch batch;
  batch.qo_indptr = {qo_indptr.data(), DType::kInt32, {2}};
  batch.kv_indptr = {kv_indptr.data(), DType::kInt32, {2}};
  if (const std::uint32_t* mask = arrays.tree_mask_of(row.seq)) {
    batch.tree_mask = {mask, DType::kUInt32, {queries, arrays.tree_words()}};
  }
  AttentionTensors tensors;
  tensors.q = {q.data(), spec.q_dtype, {queries, 1, dim}};
  tensors.k = {k.data(), spec.kv_dtype, {keys, 1, dim}};
  tensors.v = {v.data(), spec.kv_dtype, {keys, 1, dim}};
  if (spec.kv_scale == KvScale::kPerToken) {
    tensors.k_scale = {scales.data(), DType::kFloat32, {1, keys}};
  } else if (spec.kv_scale != KvScale::kNone) {
    tensors.k_scale = {scales.data(), DType::kFloat32, {1}};
  }
  tensors.v_scale = tensors.k_scale;
  return reference_attention_row(spec, batch, tensors, 0, row.query, 0);
}

void check_row(const Arrays& arrays, const AttentionSpec& spec, const Row& row,
               SpotCheckResult& result) {
  const std::size_t element_bytes = size_of(spec.o_dtype);
  Bytes actual(static_cast<std::size_t>(spec.head_dim_vo) * element_bytes);
  arrays.o().download(actual, first_element(arrays, row) * element_bytes);
  result.take(
      compare_row(spec, expected_row(arrays, spec, row).o, actual.data(), arrays.largest_v()),
      fmt::format("request {}, query {}, head {}", row.seq, row.query, row.head));
}

std::size_t longest_request(const Arrays& arrays) {
  std::size_t longest = 0;
  for (std::size_t seq = 1; seq < static_cast<std::size_t>(arrays.layout().num_seqs()); ++seq) {
    if (arrays.keys_of(seq) > arrays.keys_of(longest)) longest = seq;
  }
  return longest;
}

/// Calls `body` with the longest request and some others that have queries.
template <typename Body>
void for_some_requests(const Arrays& arrays, Random& random, Body body) {
  for (int i = 0; i < kRequestsPerCheck; ++i) {
    const std::size_t seq =
        i == 0 ? longest_request(arrays)
               : static_cast<std::size_t>(random.between(0, arrays.layout().num_seqs() - 1));
    if (arrays.queries_of(seq) == 0) continue;
    for (int row = 0; row < kRowsPerRequest; ++row) {
      body(seq, random.between(0, arrays.queries_of(seq) - 1));
    }
  }
}

}  // namespace

SpotCheckResult check_attention(const Arrays& arrays, const AttentionSpec& spec,
                                std::uint64_t seed) {
  SpotCheckResult result;
  Random random(seed);
  for_some_requests(arrays, random, [&](std::size_t seq, std::int32_t query) {
    check_row(arrays, spec, {seq, query, random.between(0, spec.num_qo_heads - 1)}, result);
  });
  return result;
}

SpotCheckResult check_append(const Arrays& arrays, std::uint64_t seed) {
  const AttentionSpec& spec = arrays.spec();
  SpotCheckResult result;
  if (!is_float(spec.kv_dtype) || spec.q_dtype != spec.kv_dtype) return result;
  Random random(seed);
  const std::int64_t elements = std::int64_t{spec.num_kv_heads} * spec.head_dim_qk;
  const std::size_t row_bytes = static_cast<std::size_t>(elements) * size_of(spec.kv_dtype);
  Bytes expected(row_bytes);
  Bytes actual(row_bytes);
  for_some_requests(arrays, random, [&](std::size_t seq, std::int32_t query) {
    const std::int32_t t = arrays.keys_of(seq) - arrays.queries_of(seq) + query;
    const std::int64_t slot = arrays.layout().token_of(seq, t);
    const std::int64_t row = arrays.layout().first_row(seq) + query;
    for (const auto& [made, cache] :
         {std::pair(&arrays.new_k(), &arrays.k()), std::pair(&arrays.new_v(), &arrays.v())}) {
      made->block.tell(static_cast<std::size_t>(row * elements), expected);
      cache->memory.download(actual, static_cast<std::size_t>(slot) * row_bytes);
      RowComparison compared;
      if (actual != expected) compared.complaint = "is not in its page";
      result.take(compared, fmt::format("request {}, position {}", seq, t));
    }
  });
  return result;
}

}  // namespace quire::tool
