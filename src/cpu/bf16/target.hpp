// SPDX-License-Identifier: Apache-2.0
/// @file
/// Instruction sets of the bf16 kernels, which Highway 1.0 has no operations for. They are compiled
/// once, in bf16.cpp, under Highway's target AVX3_DL (which the fp32 kernels are not compiled for, so
/// that no two functions share a name) and these additions.
#pragma once

#include <hwy/highway.h>
#include <immintrin.h>

/// Between these two, functions may use VDPBF16PS and the byte permutations of VBMI.
#define QUIRE_BEGIN_BF16 HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16,avx512vbmi")
#define QUIRE_END_BF16 HWY_POP_ATTRIBUTES

/// Between these two, the tiles of AMX as well.
#define QUIRE_BEGIN_AMX \
  HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16,avx512vbmi,amx-tile,amx-bf16")
#define QUIRE_END_AMX HWY_POP_ATTRIBUTES
