// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the tensor memory accelerator must know of K, V, q and o to copy boxes of them, 64 components
/// wide: 16 keys of one head from one page; the rows of a tile of queries in the heads of a group;
/// such rows of o that one warp has.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/problem.hpp"

namespace quire::cuda::sm90 {

inline constexpr int kBoxKeys = 16;
inline constexpr int kBoxComponents = 64;
inline constexpr int kBoxResults = 16;  ///< rows of o, if the group's size divides them

/// The second argument of a kernel that `AttendKernel::takes_tile_maps`. Where something lies such
/// that boxes of it cannot be copied, rows are.
struct TileMaps {
  CUtensorMap keys{};     ///< coordinates are (component, token, head, page)
  CUtensorMap values{};   ///< likewise
  CUtensorMap queries{};  ///< coordinates are (component, head, token)
  CUtensorMap results{};  ///< likewise
  bool has_kv = false;
  bool has_queries = false;
  bool has_results = false;
};

/// Asks the driver for what `make_tile_maps` needs. Throws `Error` if it does not have it.
void prepare_tile_maps();

/// Does not allocate and does not ask the device.
/// @param tile_rows  Of a large unit.
TileMaps make_tile_maps(const core::ProblemShape& shape, const core::LayerTensors& tensors,
                        std::int32_t tile_rows) noexcept;

}  // namespace quire::cuda::sm90
