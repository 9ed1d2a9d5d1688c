// SPDX-License-Identifier: Apache-2.0
/// @file
/// Batches with one wrong value each, for the tests of what a backend makes of them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "support/random_batch.hpp"

namespace quire::testing {

/// Limits that the spoilt values break.
inline constexpr BatchLimits kSpoiltLimits{.max_num_seqs = 3, .max_total_q = 8, .max_kv_len = 100};

/// Three requests on pages of 16: 40 keys (3 pages), 16 (1) and 5 (1).
inline RandomBatchOptions three_requests(KeySource source, Mask mask = Mask::kCausal,
                                         std::int32_t head_dim = 8) {
  RandomBatchOptions options;
  options.spec.num_qo_heads = 2;
  options.spec.num_kv_heads = 1;
  options.spec.head_dim_qk = head_dim;
  options.spec.q_dtype = options.spec.kv_dtype = DType::kFloat32;
  options.spec.mask = mask;
  options.requests = {{2, 40}, {1, 16}, {5, 5}};
  options.source = source;
  options.stale_pages = 0;
  return options;
}

/// A batch and what is wrong with it.
struct Spoilt {
  std::string what;
  RandomBatchOptions options;
  std::function<void(RandomBatch&)> spoil;
};

inline void spoil_lengths(std::vector<Spoilt>& all, std::int32_t head_dim) {
  const RandomBatchOptions dense = three_requests(KeySource::kDense, Mask::kCausal, head_dim);
  const auto add = [&](const char* what, const std::function<void(RandomBatch&)>& spoil) {
    all.push_back({what, dense, spoil});
  };
  add("qo_indptr does not begin with 0", [](RandomBatch& b) { b.qo_indptr[0] = 1; });
  add("qo_indptr is negative", [](RandomBatch& b) { b.qo_indptr[1] = -4; });
  add("qo_indptr decreases", [](RandomBatch& b) { b.qo_indptr[2] = 1; });
  add("qo_indptr is above the limit", [](RandomBatch& b) { b.qo_indptr[3] = 9; });
  add("qo_indptr is far above the limit", [](RandomBatch& b) { b.qo_indptr[3] = 1 << 30; });
  add("qo_indptr is above the rows of q", [](RandomBatch& b) {
    b.tensors.q.shape[0] = b.tensors.o.shape[0] = b.tensors.lse.shape[0] = 7;
  });
  add("kv_len is above the limit", [](RandomBatch& b) { b.kv_len[1] = 101; });
  add("kv_len is negative", [](RandomBatch& b) { b.kv_len[2] = -1; });
  add("kv_len is above what the table is wide", [](RandomBatch& b) { b.kv_len[0] = 49; });
  add("a page id is negative", [](RandomBatch& b) { b.page_table[2] = -1; });
  add("a page id is the number of pages", [](RandomBatch& b) { b.page_table[2 * 6] = 8; });
  add("a page id is enormous", [](RandomBatch& b) { b.page_table[6] = 1 << 30; });
}

inline void spoil_csr(std::vector<Spoilt>& all, std::int32_t head_dim) {
  RandomBatchOptions csr = three_requests(KeySource::kCsr, Mask::kCausal, head_dim);
  const auto add = [&](const char* what, const std::function<void(RandomBatch&)>& spoil) {
    all.push_back({what, csr, spoil});
  };
  add("kv_page_indptr is negative", [](RandomBatch& b) { b.kv_page_indptr[0] = -1; });
  add("kv_page_indptr decreases", [](RandomBatch& b) { b.kv_page_indptr[2] = 2; });
  add("kv_page_indptr is above the indices", [](RandomBatch& b) { b.kv_page_indptr[3] = 6; });
  add("kv_last_page_len is 0", [](RandomBatch& b) { b.kv_last_page_len[1] = 0; });
  add("kv_last_page_len is above a page", [](RandomBatch& b) { b.kv_last_page_len[2] = 17; });
  add("a page id of a CSR table is too large", [](RandomBatch& b) { b.kv_page_indices[3] = 901; });
  csr.requests[1] = {1, 101};
  add("pages hold more keys than the limit", [](RandomBatch&) {});
  csr = three_requests(KeySource::kCsrWithKvLen, Mask::kCausal, head_dim);
  add("kv_len is above a request's pages", [](RandomBatch& b) { b.kv_len[1] = 17; });
}

inline void spoil_contiguous(std::vector<Spoilt>& all, std::int32_t head_dim) {
  RandomBatchOptions rows = three_requests(KeySource::kContiguous, Mask::kCausal, head_dim);
  const auto add = [&](const char* what, const std::function<void(RandomBatch&)>& spoil) {
    all.push_back({what, rows, spoil});
  };
  add("kv_indptr is negative", [](RandomBatch& b) { b.kv_indptr[0] = -3; });
  add("kv_indptr decreases", [](RandomBatch& b) { b.kv_indptr[2] = 42; });
  add("kv_indptr is above the rows of k", [](RandomBatch& b) { b.kv_indptr[3] += 6; });
  add("kv_len is above a request's rows", [](RandomBatch& b) {
    b.kv_len = {40, 17, 5};
    b.batch.kv_len = TensorView(b.kv_len.data(), DType::kInt32, {3});
  });
  rows.requests[1] = {1, 101};
  add("rows are more than the limit", [](RandomBatch&) {});
}

inline void spoil_masks(std::vector<Spoilt>& all, std::int32_t head_dim) {
  RandomBatchOptions masked = three_requests(KeySource::kDense, Mask::kTree, head_dim);
  const auto add = [&](const char* what, const std::function<void(RandomBatch&)>& spoil) {
    all.push_back({what, masked, spoil});
  };
  add("tree_mask has too few rows", [](RandomBatch& b) { b.batch.tree_mask.shape[0] = 7; });
  add("tree_mask has too few words", [](RandomBatch& b) { b.batch.tree_mask.shape[1] = 0; });
  masked = three_requests(KeySource::kDense, Mask::kFull, head_dim);
  add("full_mask_indptr leaves too few bits", [](RandomBatch& b) { b.full_mask_indptr[1] = 9; });
  add("full_mask_indptr is negative", [](RandomBatch& b) { b.full_mask_indptr[0] = -8; });
  add("full_mask_indptr is above the bytes", [](RandomBatch& b) { b.full_mask_indptr[3] = 17; });
}

/// Three requests whose tables, of 4, 2 and 4 pages, begin with the same page, two of them with three.
inline RandomBatchOptions three_that_share(KeySource source, std::int32_t head_dim = 8) {
  RandomBatchOptions options = three_requests(source, Mask::kCausal, head_dim);
  options.requests = {{1, 49}, {1, 20}, {1, 50}};
  options.shared_pages = 1;
  options.num_branches = 2;
  options.branch_pages = 2;
  options.named_prefixes = true;
  return options;
}

/// What is true of them: [level, request].
inline void name_three(RandomBatch& batch) {
  batch.prefix_leaders = {1, 1, 1, 0, -1, 0, -1, -1, -1};
  batch.prefix_pages = {1, 1, 1, 3, 0, 3, 0, 0, 0};
}

inline void spoil_groups(std::vector<Spoilt>& all, std::int32_t head_dim) {
  const RandomBatchOptions options = three_that_share(KeySource::kDense, head_dim);
  const auto add = [&](const char* what, const std::function<void(RandomBatch&)>& spoil) {
    all.push_back({what, options, [spoil](RandomBatch& b) {
                     name_three(b);
                     spoil(b);
                   }});
  };
  add("a leader is the number of requests", [](RandomBatch& b) { b.prefix_leaders[2] = 3; });
  add("a leader is below -1", [](RandomBatch& b) { b.prefix_leaders[1] = -2; });
  add("a leader is enormous", [](RandomBatch& b) { b.prefix_leaders[0] = 1 << 30; });
  add("a leader leads others only", [](RandomBatch& b) { b.prefix_leaders[1] = -1; });
  add("a group is not part of one", [](RandomBatch& b) {
    b.prefix_leaders[3] = b.prefix_leaders[4] = b.prefix_leaders[5] = 1;
    b.prefix_leaders[0] = 0;
  });
  add("a group is below none", [](RandomBatch& b) { b.prefix_leaders[6] = 0; });
  add("a request of a group has none above", [](RandomBatch& b) { b.prefix_leaders[2] = -1; });
  add("a group has no pages", [](RandomBatch& b) { b.prefix_pages[0] = 0; });
  add("a group has less than one above", [](RandomBatch& b) { b.prefix_pages[3] = 1; });
  add("a group has more pages than a table",
      [](RandomBatch& b) { b.prefix_pages[3] = b.prefix_pages[5] = 5; });
  add("a group has more pages than the table is wide",
      [](RandomBatch& b) { b.prefix_pages[3] = b.prefix_pages[5] = 1 << 30; });
  add("requests of a group have different numbers", [](RandomBatch& b) { b.prefix_pages[5] = 2; });
  add("pages of a group are different",
      [](RandomBatch& b) { b.prefix_pages = {2, 2, 2, 3, 0, 3, 0, 0, 0}; });
}

inline std::vector<Spoilt> spoilt_batches(std::int32_t head_dim) {
  std::vector<Spoilt> all;
  spoil_lengths(all, head_dim);
  spoil_csr(all, head_dim);
  spoil_contiguous(all, head_dim);
  spoil_masks(all, head_dim);
  spoil_groups(all, head_dim);
  return all;
}

}  // namespace quire::testing
