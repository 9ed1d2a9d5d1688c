// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend offers to the core. It has no attention kernel yet and says so.
#include "core/backend.hpp"

#include <cuda_runtime_api.h>

#include "cuda/runtime.hpp"

namespace quire::cuda {
namespace {

constexpr std::string_view kNoAttention =
    "[attention] expected a device with a kernel for it, got a CUDA device, for which there is no "
    "kernel yet; nearest: the CPU";

}  // namespace

bool built() noexcept { return true; }

std::unique_ptr<internal::AttentionBackend> make_attention(const core::AttentionConfig&) {
  throw Error(ErrorCode::kUnsupported, std::string(kNoAttention));
}

WorkspaceSizes workspace_sizes(const core::AttentionConfig&) {
  throw Error(ErrorCode::kUnsupported, std::string(kNoAttention));
}

Status append(Device, const core::BatchArrays&, const core::AppendArrays&,
              const CallOptions&) noexcept {
  return {ErrorCode::kUnsupported,
          "[append] no CUDA kernel yet for append; nearest: tensors on the CPU"};
}

Status merge_states(Device, const core::MergeArrays&, const CallOptions&) noexcept {
  return {ErrorCode::kUnsupported,
          "[merge_states] no CUDA kernel yet for merge_states; nearest: tensors on the CPU"};
}

Status read_check_record(Device device, const CheckRecord* record, const CallOptions& call,
                         CheckRecord& out) noexcept {
  const CurrentDevice current(device);
  auto* const stream = static_cast<cudaStream_t>(call.stream);
  cudaError_t error = current.error();
  if (error == cudaSuccess) {
    error = cudaMemcpyAsync(&out, record, sizeof(out), cudaMemcpyDeviceToHost, stream);
  }
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  return status_of("check_result", error);
}

std::span<const core::KernelRow> kernel_rows() noexcept { return {}; }

}  // namespace quire::cuda
