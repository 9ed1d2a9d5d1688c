// SPDX-License-Identifier: Apache-2.0
/// @file
/// cp.async: copies from global to shared memory that a thread issues and does not wait for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ladder {

/// Begins to copy 16 bytes; writes zeros, and reads nothing, if not `exists`.
__device__ __forceinline__ void copy_async(float4* to_shared, const float* from, bool exists) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(to_shared));
  const int bytes = exists ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

/// What this thread issued since the last call is a group.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `Pending` of this thread's groups, the newest, are not there yet.
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace ladder
