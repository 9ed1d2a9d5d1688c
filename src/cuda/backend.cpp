// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend offers beside attention: append, merge, memory, the check record.
#include "core/backend.hpp"

#include <cuda_runtime_api.h>

#include "cuda/append/kernel.hpp"
#include "cuda/check/kernel.hpp"
#include "cuda/common/nvtx.hpp"
#include "cuda/merge/kernel.hpp"
#include "cuda/runtime.hpp"

namespace quire::cuda {

bool built() noexcept { return true; }

Status append(Device device, const core::BatchArrays& batch, const core::AppendArrays& arrays,
              const CallOptions& call) noexcept {
  const NvtxRange range("append");
  const CurrentDevice current(device);
  auto* const stream = static_cast<cudaStream_t>(call.stream);
  cudaError_t error = current.error();
  if (error == cudaSuccess && call.check != nullptr) {
    error = launch_check_append(batch, arrays, call.check, stream);
  }
  if (error == cudaSuccess) error = launch_append(batch, arrays, call.check, stream);
  return status_of("append", error);
}

Status merge_states(Device device, const core::MergeArrays& arrays,
                    const CallOptions& call) noexcept {
  const NvtxRange range("merge_states");
  const CurrentDevice current(device);
  cudaError_t error = current.error();
  if (error == cudaSuccess) {
    error = launch_merge(arrays, static_cast<cudaStream_t>(call.stream));
  }
  return status_of("merge_states", error);
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

void* allocate(Device device, std::size_t bytes) {
  const CurrentDevice current(device);
  throw_if_error("attention", current.error());
  void* memory = nullptr;
  throw_if_error("attention", cudaMalloc(&memory, bytes));
  return memory;
}

void release(Device device, void* memory, void* stream) noexcept {
  const CurrentDevice current(device);
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream));
  cudaFree(memory);
}

}  // namespace quire::cuda
