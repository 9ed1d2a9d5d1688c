// SPDX-License-Identifier: Apache-2.0
// Step 05: the library. No kernel here: the batch is described, the rest is quire's business.
//
// What it does beyond the ladder: work is cut into equal ranges on the device, so that neither the
// grid nor the host depends on the lengths; long requests are split among blocks and merged within
// the launch; loading and computing are different warps; several new tokens, masks, windows, any
// page size, any head size that the table of `quire info` has.
#include "05_library.hpp"

#include <numeric>

namespace ladder {
namespace {

using quire::DType;

constexpr quire::Device kGpu = quire::Device::cuda(0);

quire::AttentionSpec spec_of(const Workload& workload) {
  quire::AttentionSpec spec;
  spec.num_qo_heads = workload.num_qo_heads;
  spec.num_kv_heads = workload.num_kv_heads;
  spec.head_dim_qk = kHeadDim;
  spec.o_dtype = DType::kFloat32;  // as the other steps; q, K and V are bf16 unless said otherwise
  spec.page_size = kPageSize;
  return spec;
}

quire::BatchLimits limits_of(const Workload& workload) {
  quire::BatchLimits limits{.max_num_seqs = workload.batch(), .max_total_q = workload.batch()};
  limits.max_kv_len = workload.max_blocks * kPageSize;
  return limits;
}

/// quire's requests are in the order of their rows of q: 0, 1, 2, …
std::vector<int> offsets(int batch) {
  std::vector<int> indptr(static_cast<std::size_t>(batch) + 1);
  std::iota(indptr.begin(), indptr.end(), 0);
  return indptr;
}

std::vector<int> lengths_by_row(const Workload& workload) {
  std::vector<int> lengths(workload.requests.size());
  for (const RequestInfo& request : workload.requests) {
    lengths[static_cast<std::size_t>(request.q_start)] = request.seq_len;
  }
  return lengths;
}

std::vector<int> table_by_row(const Workload& workload, const std::vector<int>& page_table) {
  std::vector<int> table(page_table.size());
  for (const RequestInfo& request : workload.requests) {
    const auto from = page_table.begin() + request.kv_page_start;
    std::copy(from, from + workload.max_blocks,
              table.begin() + std::ptrdiff_t{request.q_start} * workload.max_blocks);
  }
  return table;
}

quire::Workspace bytes_of(const DeviceBytes& bytes) {
  return {bytes.as<std::byte>(), bytes.size()};
}

}  // namespace

Library::Library(const Workload& workload, const DeviceWorkload<__nv_bfloat16>& device)
    : qo_indptr_(offsets(workload.batch())),
      kv_len_(lengths_by_row(workload)),
      page_table_(table_by_row(workload, workload.page_table)),
      attention_(kGpu, spec_of(workload), limits_of(workload)),
      schedule_(attention_.workspace_sizes().schedule),
      scratch_(attention_.workspace_sizes().scratch),
      workload_(workload) {
  const Problem<__nv_bfloat16>& problem = device.problem();
  const auto batch = std::int64_t{workload.batch()};
  const auto heads = std::int64_t{workload.num_qo_heads};
  const auto kv_heads = std::int64_t{workload.num_kv_heads};
  const auto pages = std::int64_t{workload.num_pages};
  batch_.qo_indptr = {qo_indptr_.data(), DType::kInt32, {batch + 1}, kGpu};
  batch_.kv_len = {kv_len_.data(), DType::kInt32, {batch}, kGpu};
  batch_.page_table = {page_table_.data(), DType::kInt32, {batch, workload.max_blocks}, kGpu};
  tensors_.q = {problem.q, DType::kBFloat16, {batch, heads, kHeadDim}, kGpu};
  tensors_.k = {problem.k_pages, DType::kBFloat16, {pages, kPageSize, kv_heads, kHeadDim}, kGpu};
  tensors_.v = {problem.v_pages, DType::kBFloat16, {pages, kPageSize, kv_heads, kHeadDim}, kGpu};
  tensors_.o = {problem.o, DType::kFloat32, {batch, heads, kHeadDim}, kGpu};
}

void Library::schedule(cudaStream_t stream) const {
  attention_.schedule(batch_, bytes_of(schedule_), {.stream = stream}).throw_if_error();
}

void Library::run(cudaStream_t stream) const { run(quire::CallOptions{.stream = stream}); }

void Library::run(const quire::CallOptions& call) const {
  attention_.run(batch_, tensors_, bytes_of(schedule_), bytes_of(scratch_), call).throw_if_error();
}

quire::CheckRecord Library::check(const std::vector<int>& page_table) const {
  page_table_.upload(table_by_row(workload_, page_table));
  const DeviceArray<quire::CheckRecord> record(std::vector<quire::CheckRecord>(1));
  const quire::CallOptions call{.check = record.data()};
  attention_.schedule(batch_, bytes_of(schedule_), call).throw_if_error();
  run(call);
  quire::CheckRecord found;
  require(cudaMemcpy(&found, record.data(), sizeof found, cudaMemcpyDeviceToHost),
          "reading what checked mode found");
  return found;
}

}  // namespace ladder
