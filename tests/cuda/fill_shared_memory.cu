// SPDX-License-Identifier: Apache-2.0
#include "fill_shared_memory.hpp"

namespace quire::testing {
namespace {

extern __shared__ volatile unsigned char memory[];

/// One block a multiprocessor, as it takes all of its memory.
__global__ void fill(unsigned char value, int bytes) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) {
    memory[i] = value;
  }
}

}  // namespace

cudaError_t fill_shared_memory(unsigned char value, cudaStream_t stream) {
  int bytes = 0;
  int multiprocessors = 0;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  fill<<<multiprocessors, 512, bytes, stream>>>(value, bytes);
  return cudaGetLastError();
}

}  // namespace quire::testing
