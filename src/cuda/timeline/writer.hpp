// SPDX-License-Identifier: Apache-2.0
/// @file
/// The timeline of the last launch of an attention kernel, as a file for ui.perfetto.dev.
#pragma once

#include <cstdint>

#include "cuda/timeline/events.hpp"

namespace quire::cuda::timeline {

#if QUIRE_CUDA_TIMELINE
/// What kernels on the current device are given. If `QUIRE_TIMELINE` names a file, the first call
/// takes memory, and the process writes that file when it exits: of the device of the first call,
/// of its last launch.
/// @throws Error if the device has not enough memory.
Recorder<true> recorder(std::int32_t blocks);
#else
inline Recorder<false> recorder(std::int32_t /*blocks*/) { return {}; }
#endif

}  // namespace quire::cuda::timeline
