// SPDX-License-Identifier: Apache-2.0
/// @file
/// Instructions that Highway 1.0 does not ask a processor for.
#pragma once

namespace quire::cpu {

struct Processor {
  bool avx512_bf16 = false;  ///< AVX-512 with BF16 and VBMI, and a system that keeps its registers
  bool amx_bf16 = false;     ///< the same with AMX-BF16, and a system that lets this process use it
};

/// @return What this machine has. Asks it once; on Linux, asks for the tiles of AMX.
const Processor& processor() noexcept;

}  // namespace quire::cpu
