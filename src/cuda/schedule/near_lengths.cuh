// SPDX-License-Identifier: Apache-2.0
/// @file
/// Lengths and first pages of all requests in shared memory: asked for at once, waited for once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/schedule/arguments.cuh"
#include "cuda/schedule/block.cuh"

namespace quire::cuda::scheduler {

extern __shared__ std::byte near_memory[];

__device__ inline std::int32_t* near_words(std::uint32_t at) {
  return reinterpret_cast<std::int32_t*>(near_memory + at);
}

__device__ inline void ask_for_lengths(const Arguments& arguments) {
  const std::uint32_t memory = shared_address(near_memory);
  const NearLayout& near = arguments.near;
  const NearCopy* const copies = near.copies;
  QUIRE_ROLLED
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < copies[0].count; i += kThreads) {
    const std::uint32_t to = memory + 4 * static_cast<std::uint32_t>(i);
    copy_word_async(to, copies[0].from + i, true);
    if (i < copies[1].count) copy_word_async(to + copies[1].to, copies[1].from + i, true);
    if (i < copies[2].count) copy_word_async(to + copies[2].to, copies[2].from + i, true);
    if (i < near.num_pages) {
      copy_word_async(to + near.pages_at,
                      arguments.batch.page_table + i * arguments.batch.page_table_stride, true);
    }
  }
}

/// The table of first pages is empty.
__device__ inline void clear_table(std::int32_t table_bits, std::int32_t* table) {
  constexpr int kAtOnce = 4;
  QUIRE_ROLLED
  for (auto i = kAtOnce * static_cast<int>(threadIdx.x); i >> table_bits == 0;
       i += kAtOnce * kThreads) {
    *reinterpret_cast<int4*>(table + i) = make_int4(-1, -1, -1, -1);
  }
}

/// The batch, whose lengths have been brought near.
template <bool kIsNear>
__device__ core::BatchArrays batch_of(const Arguments& arguments) {
  core::BatchArrays batch = arguments.batch;
  if constexpr (kIsNear) {
    batch.qo_indptr = near_words(0);
    batch.kv_len = near_words(arguments.near.kv_at);
    __builtin_assume(batch.kv_len != nullptr);
  }
  return batch;
}

/// Of batches that do not say how many keys there are.
__device__ inline void count_keys(const Arguments& arguments, std::int32_t num_seqs) {
  const NearLayout& near = arguments.near;
  core::BatchArrays batch = arguments.batch;
  batch.qo_indptr = near_words(0);
  if (batch.kv_page_indptr != nullptr) {
    batch.kv_page_indptr = near_words(near.copies[1].to);
    batch.kv_last_page_len = near_words(near.copies[2].to);
  } else {
    batch.kv_indptr = near_words(near.copies[1].to);
  }
  QUIRE_ROLLED
  for (auto seq = static_cast<std::int32_t>(threadIdx.x); seq < num_seqs; seq += kThreads) {
    near_words(near.kv_at)[seq] = schedule::lengths_of(arguments.shape, batch, seq).kv_len;
  }
  __syncthreads();
}

/// Whether two requests may share a prefix: they begin with the same page, or in the same group.
__device__ inline bool first_pages_meet(const Arguments& arguments, const core::BatchArrays& batch,
                                        std::int32_t num_seqs, std::int32_t* table) {
  constexpr std::uint32_t kHash = 0x9e37'79b1U;
  constexpr std::int32_t kEmpty = -1;
  if (arguments.groups.num_levels > 0 || num_seqs > kTableSeqs) return true;
  QUIRE_ROLLED
  for (auto seq = static_cast<std::int32_t>(threadIdx.x); seq < num_seqs; seq += kThreads) {
    const schedule::Lengths lengths = schedule::lengths_of(arguments.shape, batch, seq);
    if (!schedule::may_share_pages(arguments.policy, arguments.shape, lengths)) continue;
    const std::int32_t page = arguments.near.num_pages > 0
                                  ? near_words(arguments.near.pages_at)[seq]
                                  : schedule::page_ids(batch, seq)[0];
    if (page < 0) continue;
    std::uint32_t slot = static_cast<std::uint32_t>(page) * kHash >> (32 - arguments.table_bits);
    QUIRE_ROLLED
    while (true) {
      const std::int32_t before = atomicCAS(table + slot, kEmpty, page);
      if (before == page) return true;
      if (before == kEmpty) break;
      slot = (slot + 1) & ((1U << arguments.table_bits) - 1);
    }
  }
  return false;
}

}  // namespace quire::cuda::scheduler
