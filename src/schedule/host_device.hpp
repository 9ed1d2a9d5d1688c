// SPDX-License-Identifier: Apache-2.0
/// @file
/// Marks functions that run on the host and in kernels.
#pragma once

#if defined(__CUDACC__)
#define QUIRE_HOST_DEVICE __host__ __device__
#else
#define QUIRE_HOST_DEVICE
#endif

/// A function of which kernels have one copy, however often it is called: what seldom runs must not
/// stand between what always does, since a cold kernel waits for its instructions.
#if defined(__CUDACC__)
#define QUIRE_OUTLINED __host__ __device__ __noinline__ inline
#else
#define QUIRE_OUTLINED inline
#endif

/// Before a loop whose copies would only fill a GPU's instruction caches.
#if defined(__CUDA_ARCH__)
#define QUIRE_ROLLED _Pragma("unroll 1")
#else
#define QUIRE_ROLLED
#endif
