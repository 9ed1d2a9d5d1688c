// SPDX-License-Identifier: Apache-2.0
// Copies of pages, on the device and to and from mapped memory of the host: blocks take parts.
#include "cuda/copy/kernel.hpp"

#include <algorithm>

namespace quire::cuda {
namespace {

/// Blocks that share a link to the host. Each has up to 16 KiB on its way and is on its way half
/// of the time; a link of 64 GB/s answers after some 2 µs, so that 128 KiB fill it. More would
/// only take multiprocessors from the attention that runs meanwhile.
constexpr std::uint32_t kLinkBlocks = 32;

__global__ void __launch_bounds__(kCopyThreads)
    copy_kernel(const __grid_constant__ CopyParams params) {
  for (std::uint32_t part = blockIdx.x; part < params.num_parts(); part += gridDim.x) {
    copy_part(params, part, threadIdx.x);
  }
}

}  // namespace

cudaError_t launch_copy(const CopyParams& params, bool crosses_link, cudaStream_t stream) noexcept {
  const std::uint32_t parts = params.num_parts();
  if (parts == 0) return cudaSuccess;
  const std::uint32_t blocks = crosses_link ? std::min(parts, kLinkBlocks) : parts;
  copy_kernel<<<blocks, kCopyThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace quire::cuda
