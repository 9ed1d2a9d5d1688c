// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the tensor memory accelerator must know of K and V to copy boxes of them: 16 keys of one
/// head, 64 components, from one page.
#pragma once

#include <cuda.h>

#include "core/problem.hpp"

namespace quire::cuda::sm90 {

inline constexpr int kBoxKeys = 16;
inline constexpr int kBoxComponents = 64;

/// The second argument of a kernel that `AttendKernel::takes_tile_maps`. Coordinates are (component,
/// token, head, page).
struct TileMaps {
  CUtensorMap keys{};
  CUtensorMap values{};
  bool are_valid = false;  ///< or K and V lie such that boxes cannot be copied
};

/// Asks the driver for what `make_tile_maps` needs. Throws `Error` if it does not have it.
void prepare_tile_maps();

/// Does not allocate and does not ask the device.
TileMaps make_tile_maps(const core::ProblemShape& shape,
                        const core::LayerTensors& tensors) noexcept;

}  // namespace quire::cuda::sm90
