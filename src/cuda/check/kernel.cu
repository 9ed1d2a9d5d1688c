// SPDX-License-Identifier: Apache-2.0
// One block; each thread looks at every kThreads-th request (or slot) and keeps its first offence.
// The block's earliest one is written. Lengths of all requests are checked before any page is.
#include "cuda/check/kernel.hpp"

#include "schedule/check.hpp"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

/// The block's offence of the smallest index, written by the thread that found it.
__device__ bool report(const CheckRecord& found, std::int64_t index, CheckRecord* record) {
  __shared__ unsigned long long first;
  constexpr unsigned long long kNone = ~0ULL;
  if (threadIdx.x == 0) first = kNone;
  __syncthreads();
  if (found.what != 0) atomicMin(&first, static_cast<unsigned long long>(index));
  __syncthreads();
  const bool any = first != kNone;
  if (found.what != 0 && first == static_cast<unsigned long long>(index)) *record = found;
  __syncthreads();
  return any;
}

/// The first offence among requests threadIdx.x, threadIdx.x + kThreads, …
template <typename Check>
__device__ bool check_requests(std::int32_t num_seqs, CheckRecord* record, const Check& check) {
  CheckRecord found;
  std::int32_t seq = static_cast<std::int32_t>(threadIdx.x);
  for (; seq < num_seqs; seq += kThreads) {
    found = check(seq);
    if (found.what != 0) break;
  }
  return report(found, seq, record);
}

/// Lengths of all requests, then the rows of q; no rows: `rows` < 0.
__device__ bool check_lengths(const core::ProblemShape& shape, const BatchLimits& limits,
                              const core::BatchArrays& batch, std::int64_t rows,
                              CheckRecord* record) {
  return check_requests(batch.num_seqs, record, [&](std::int32_t seq) {
    schedule::RequestChecks checks(shape, limits, batch, seq);
    const CheckRecord found = checks.lengths();
    const bool is_last = seq + 1 == batch.num_seqs;
    return found.what != 0 || rows < 0 || !is_last ? found : checks.rows(rows);
  });
}

struct LayerExtents {
  std::int64_t rows = 0;  // of q; negative: check lengths alone
  std::int64_t num_pages = 0;
  std::int64_t num_tokens = 0;
};

__global__ void __launch_bounds__(kThreads)
    check_batch_kernel(const __grid_constant__ core::ProblemShape shape,
                       const __grid_constant__ BatchLimits limits,
                       const __grid_constant__ core::BatchArrays batch,
                       const __grid_constant__ LayerExtents extents, CheckRecord* record) {
  if (record->what != 0) return;
  __syncthreads();  // nobody writes before all have looked
  if (check_lengths(shape, limits, batch, extents.rows, record) || extents.rows < 0) return;
  check_requests(batch.num_seqs, record, [&](std::int32_t seq) {
    return schedule::RequestChecks(shape, limits, batch, seq)
        .pages(extents.num_pages, extents.num_tokens);
  });
}

/// Before a schedule: lengths, then groups.
__global__ void __launch_bounds__(kThreads)
    check_groups_kernel(const __grid_constant__ core::ProblemShape shape,
                        const __grid_constant__ BatchLimits limits,
                        const __grid_constant__ core::BatchArrays batch,
                        const __grid_constant__ core::PrefixGroups groups, CheckRecord* record) {
  if (record->what != 0) return;
  __syncthreads();
  if (check_lengths(shape, limits, batch, -1, record)) return;
  check_requests(batch.num_seqs, record, [&](std::int32_t seq) {
    return schedule::RequestChecks(shape, limits, batch, seq).prefixes(groups);
  });
}

__global__ void __launch_bounds__(kThreads)
    check_slots_kernel(const __grid_constant__ core::AppendArrays arrays, CheckRecord* record) {
  if (record->what != 0) return;
  __syncthreads();
  const std::int64_t end = arrays.k_cache.num_pages * arrays.page_size;
  CheckRecord found;
  std::int64_t row = threadIdx.x;
  for (; row < arrays.num_rows; row += kThreads) {
    if (arrays.slot_mapping[row] < end) continue;
    found.what = static_cast<std::int32_t>(CheckedItem::kSlot);
    found.position = row;
    found.value = arrays.slot_mapping[row];
    found.bound = end;
    break;
  }
  report(found, row, record);
}

__global__ void __launch_bounds__(kThreads)
    check_derived_slots_kernel(const __grid_constant__ core::ProblemShape shape,
                               const __grid_constant__ BatchLimits limits,
                               const __grid_constant__ core::BatchArrays batch, std::int64_t rows,
                               std::int64_t num_pages, CheckRecord* record) {
  if (record->what != 0) return;
  __syncthreads();
  if (check_lengths(shape, limits, batch, rows, record)) return;
  check_requests(batch.num_seqs, record, [&](std::int32_t seq) {
    const schedule::Lengths lengths = schedule::lengths_of(shape, batch, seq);
    const std::int32_t begin = lengths.position(0) < 0 ? 0 : lengths.position(0);
    if (begin >= lengths.kv_len) return CheckRecord();
    return schedule::RequestChecks(shape, limits, batch, seq)
        .page_ids_of(begin, lengths.kv_len, num_pages);
  });
}

}  // namespace

cudaError_t launch_check_step(const core::ProblemShape& shape, const BatchLimits& limits,
                              const core::BatchArrays& batch, const core::PrefixGroups& groups,
                              CheckRecord* record, cudaStream_t stream) noexcept {
  if (groups.num_levels > 0) {
    check_groups_kernel<<<1, kThreads, 0, stream>>>(shape, limits, batch, groups, record);
    return cudaGetLastError();
  }
  check_batch_kernel<<<1, kThreads, 0, stream>>>(shape, limits, batch, LayerExtents{-1, 0, 0},
                                                 record);
  return cudaGetLastError();
}

cudaError_t launch_check_layer(const core::ProblemShape& shape, const BatchLimits& limits,
                               const core::BatchArrays& batch, const core::LayerTensors& tensors,
                               CheckRecord* record, cudaStream_t stream) noexcept {
  const LayerExtents extents{tensors.total_q, tensors.k.num_pages, tensors.k.num_tokens};
  check_batch_kernel<<<1, kThreads, 0, stream>>>(shape, limits, batch, extents, record);
  return cudaGetLastError();
}

cudaError_t launch_check_append(const core::BatchArrays& batch, const core::AppendArrays& arrays,
                                CheckRecord* record, cudaStream_t stream) noexcept {
  if (arrays.slot_mapping != nullptr) {
    check_slots_kernel<<<1, kThreads, 0, stream>>>(arrays, record);
    return cudaGetLastError();
  }
  core::ProblemShape shape;
  shape.page_size = arrays.page_size;
  const BatchLimits limits{batch.num_seqs, INT32_MAX, INT32_MAX};
  check_derived_slots_kernel<<<1, kThreads, 0, stream>>>(shape, limits, batch, arrays.num_rows,
                                                         arrays.k_cache.num_pages, record);
  return cudaGetLastError();
}

}  // namespace quire::cuda
