// SPDX-License-Identifier: Apache-2.0
/// @file
/// Marks functions that run on the host and in kernels.
#pragma once

#if defined(__CUDACC__)
#define QUIRE_HOST_DEVICE __host__ __device__
#define QUIRE_ROLLED _Pragma("unroll 1")  // before a loop whose copies would only fill caches
#else
#define QUIRE_HOST_DEVICE
#define QUIRE_ROLLED
#endif
