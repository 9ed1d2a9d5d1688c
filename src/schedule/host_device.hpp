// SPDX-License-Identifier: Apache-2.0
/// @file
/// Marks functions that run on the host and in kernels.
#pragma once

#if defined(__CUDACC__)
#define QUIRE_HOST_DEVICE __host__ __device__
#else
#define QUIRE_HOST_DEVICE
#endif

/// Before a loop whose copies would only fill a GPU's instruction caches.
#if defined(__CUDA_ARCH__)
#define QUIRE_ROLLED _Pragma("unroll 1")
#else
#define QUIRE_ROLLED
#endif
