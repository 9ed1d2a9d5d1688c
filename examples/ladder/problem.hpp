// SPDX-License-Identifier: Apache-2.0
/// @file
/// What every step of the ladder computes, and from what: one new token a request, which attends to
/// all keys of its request.
///
///     o = Σ_t p_t · v_t / Σ_t p_t      with p_t = exp(q · k_t / √d)
///
/// The keys and values lie on pages, and a request's pages lie anywhere. Three sizes are constants,
/// so that the lessons are about memory and not about loops that handle every case.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>

namespace ladder {

inline constexpr int kHeadDim = 128;  ///< d: components of a query, a key, a value.
inline constexpr int kPageSize = 16;  ///< Tokens per page.
inline constexpr int kGroup = 4;  ///< Query heads that share a kv head, from the second step on.
inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;
inline constexpr int kNoPage = -1;
/// 1/√d, and log₂ e, so that exp(x) can be exp2(x), which the machine has.
inline constexpr float kScoreScale = 0.08838834764831845F * 1.4426950408889634F;

/// Where a request's parts lie.
struct RequestInfo {
  int q_start;        ///< Its row of Q.
  int seq_len;        ///< Its keys, the new token's own included.
  int kv_page_start;  ///< Where its pages begin in the page table, counted in entries.
};

/// The first entry of a page table that names no page. All zero: none was found.
struct PageError {
  int found;
  int entry;  ///< Of the page table: request · max_blocks + page of the request.
  int page_id;
};

/// Device memory. T is float or __nv_bfloat16.
template <typename T>
struct Problem {
  const T* q;                   ///< [total_queries, num_qo_heads, d]
  const T* k_pages;             ///< [num_pages, page_size, num_kv_heads, d]
  const T* v_pages;             ///< the same
  const int* page_table;        ///< [batch, max_blocks]: beyond a request's last page, anything
  const RequestInfo* requests;  ///< [batch]
  float* o;                     ///< [total_queries, num_qo_heads, d]
  PageError* error;             ///< [1]
  int batch;
  int total_queries;
  int num_pages;
  int num_qo_heads;
  int num_kv_heads;

  /// Rows of Q and O, if a row is one head of one query.
  __host__ __device__ int num_rows() const { return total_queries * num_qo_heads; }
};

/// Where a token's key (or value) of one head begins in `k_pages` (`v_pages`). 64 bits: a cache has
/// more than 2³¹ elements soon.
template <typename T>
__host__ __device__ inline std::int64_t token_offset(const Problem<T>& problem, int page_id,
                                                     int token, int kv_head) {
  const std::int64_t slot = std::int64_t{page_id} * kPageSize + token;
  return (slot * problem.num_kv_heads + kv_head) * kHeadDim;
}

__host__ __device__ inline int pages_of(int tokens) { return (tokens + kPageSize - 1) / kPageSize; }

/// The physical page that holds a request's tokens from `page · kPageSize` on. An entry that names
/// no page is reported, and `kNoPage` is returned: nobody may follow it.
/// @param page  Less than pages_of(request.seq_len).
template <typename T>
__host__ __device__ inline int get_physical_page(const Problem<T>& problem,
                                                 const RequestInfo& request, int page) {
  const int entry = request.kv_page_start + page;
  const int page_id = problem.page_table[entry];
  if (page_id >= 0 && page_id < problem.num_pages) return page_id;
#ifdef __CUDA_ARCH__
  const bool is_first = atomicCAS(&problem.error->found, 0, 1) == 0;
#else
  const bool is_first = problem.error->found == 0;
  problem.error->found = 1;
#endif
  if (is_first) {
    problem.error->entry = entry;
    problem.error->page_id = page_id;
  }
  return kNoPage;
}

/// Softmax over a part of the keys: what has to be known of it to join it with another part.
struct SoftmaxState {
  float max;  ///< Of the scores in powers of two; −inf for a part without keys.
  float sum;  ///< Σ exp2(score − max).
};

/// What a part's sum and output are multiplied with when the maximum over all parts is `max`.
__host__ __device__ inline float part_weight(float part_max, float max) {
  return part_max == max ? 1.0F : exp2f(part_max - max);  // −inf − −inf would be NaN
}

}  // namespace ladder
