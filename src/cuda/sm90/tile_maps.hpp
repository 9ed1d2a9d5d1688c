// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the tensor memory accelerator must know of K, V, q and o to copy boxes of them: 16 keys of one
/// head; 128 bytes of the rows of a tile of queries in the heads of a group; such
/// rows of o that one warp has.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/problem.hpp"

namespace quire::cuda::sm90 {

inline constexpr int kBoxKeys = 16;
inline constexpr int kBoxRowBytes = 128;  ///< of a row, one panel
inline constexpr int kBoxResults = 16;    ///< rows of o, if the group's size divides them

/// K or V. All runs of 16 tokens that begin at a page or are 16 tokens behind another are numbered
/// through the pool, so that one coordinate says which of them is meant.
struct PoolMap {
  /// Coordinates are (0, token, panel, 0, run): where in the run the 16 keys begin, which is 0 unless
  /// keys are contiguous (then they may reach into the next run); the first 128 bytes of the head,
  /// counted in 128 bytes from head 0.
  CUtensorMap map{};
  std::int32_t runs_per_page = 0;
  std::int32_t panels_per_head = 0;
};

/// The second argument of a kernel that `AttendKernel::takes_tile_maps`. Where something lies such
/// that boxes of it cannot be copied, rows are.
struct TileMaps {
  PoolMap keys;
  PoolMap values;
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
