// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the warps of an attention kernel note of their work in builds with `QUIRE_CUDA_TIMELINE`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

#ifndef QUIRE_CUDA_TIMELINE
#define QUIRE_CUDA_TIMELINE 0
#endif

namespace quire::cuda::timeline {

inline constexpr bool kIsBuilt = QUIRE_CUDA_TIMELINE != 0;

/// What a warp does from an event on, until its next one.
enum class Activity : std::uint32_t {
  kStart,  ///< the kernel's first instructions
  kDone,
  // Loading warps.
  kFindUnits,    ///< the range, its first units and the ids of their pages
  kAwaitSlot,    ///< a free place in the ring
  kIssueCopies,  ///< of a tile
  kLookAhead,    ///< page ids of the tiles to come, or the next unit
  kHandOver,     ///< a unit with its queries
  kAwaitCopies,  ///< the last ones
  // Computing warps.
  kAwaitUnit,  ///< with its queries
  kAwaitKeys,
  kScore,
  kShareMaxima,   ///< with the warps that have other keys of the tile
  kShareWeights,  ///< likewise
  kAwaitValues,
  kAccumulate,
  kEdgeTile,   ///< of a large unit: some rows do not see all of its keys
  kInnerTile,  ///< of a large unit, with the products of the tile before it
  kStore,      ///< results, final or partial
  kCount,      ///< partial results: fence, counter, barriers
  kMerge,
};

/// Names of activities, by their numbers.
inline constexpr const char* kNames[] = {
    "start",      "done",         "find units",    "await slot",   "issue copies",
    "look ahead", "hand over",    "await copies",  "await unit",   "await keys",
    "score",      "share maxima", "share weights", "await values", "accumulate",
    "edge tile",  "inner tile",   "store",         "count",        "merge"};
static_assert(std::size(kNames) == static_cast<std::size_t>(Activity::kMerge) + 1);

struct Event {
  std::uint64_t clock;  ///< of the multiprocessor
  Activity activity;
  std::int32_t of;  ///< a tile's first key, a unit's request
};

inline constexpr int kMostWarps = 16;  // of a block
/// Where events are counted: the last bytes of a block's shared memory.
inline constexpr std::size_t kSharedBytes = kIsBuilt ? kMostWarps * sizeof(std::uint32_t) : 0;

inline constexpr std::uint32_t kMostEvents = 2048;  // of a warp; what comes behind is not noted

/// A moment by the clock of the multiprocessor, which runs fast, and by the device's, which all share.
struct Moment {
  std::uint64_t clock;
  std::uint64_t nanoseconds;
};

/// Of a block of the last launch.
struct BlockRecord {
  Moment begin;
  Moment end;
  std::uint32_t multiprocessor;
  std::uint32_t num_blocks;  ///< of its launch
  std::uint32_t num_events[kMostWarps];
  Event events[kMostWarps][kMostEvents];
};

/// Where blocks write: a kernel's parameter. Empty, and without any cost, in other builds.
template <bool kBuilt>
struct Recorder {
  BlockRecord* blocks = nullptr;  ///< one for each block; null: nothing is noted
};
template <>
struct Recorder<false> {};

}  // namespace quire::cuda::timeline
