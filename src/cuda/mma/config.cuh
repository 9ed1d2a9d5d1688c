// SPDX-License-Identifier: Apache-2.0
/// @file
/// The shapes of one instance of the tensor-core kernel, and how its shared memory is laid out.
#pragma once

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/narrow_formats.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"

namespace quire::cuda::mma {

/// Warps of a block: four that compute, one that loads K, one that loads V and q.
inline constexpr int kConsumerWarps = 4;
inline constexpr int kConsumers = kConsumerWarps * 32;
inline constexpr int kThreads = kConsumers + 2 * 32;

/// Keys per tile; every computing warp scores a quarter of them.
inline constexpr int kTileKeys = 64;
inline constexpr int kWarpKeys = kTileKeys / kConsumerWarps;

/// Keys that lie at equal strides, whatever page they are in, if the page size is a multiple of it
/// (contiguous K and V are one endless page). With other page sizes every key is a run of its own.
inline constexpr int kRunKeys = 16;

/// Shared memory of a block: such that two fit on a multiprocessor of 228 KiB, that one takes all
/// of it, and what every device from sm_80 on can give.
inline constexpr std::size_t kHalf = 113 * 1024 - timeline::kSharedBytes;
inline constexpr std::size_t kWhole = 227 * 1024;
inline constexpr std::size_t kSmall = 99 * 1024 - timeline::kSharedBytes;

/// How a tile of rows of `kRowBytes` lies in shared memory: 16-byte chunks of neighbouring rows in
/// different banks, so that eight rows are read at once. Split in two, so that a loop over chunks
/// costs one instruction each and no registers.
template <int kRowBytes_>
struct Swizzle {
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kRowStride = kRowBytes_;
  static constexpr int kChunkBytes = 16;
  /// Chunks that are permuted among each other. Rows of an odd number of half lines: even and odd
  /// rows differ already.
  static constexpr int kChunks = kRowBytes % 128 == 0 ? 8 : 4;
  static_assert(kRowBytes % (kChunks * kChunkBytes) == 0);

  /// From a row to the one `rows` below it, a multiple of 8.
  static __device__ __forceinline__ constexpr std::uint32_t below(int rows) {
    return static_cast<std::uint32_t>(rows * kRowBytes);
  }
  /// Address of chunk 0 of a row of the tile at `tile`, a multiple of 128.
  static __device__ __forceinline__ std::uint32_t row(std::uint32_t tile, int row) {
    const int key = kChunks == 8 ? row % 8 : row / 2 % 4;
    return tile + static_cast<std::uint32_t>(row * kRowBytes + key * kChunkBytes);
  }
  /// Address of another chunk of the row.
  static __device__ __forceinline__ std::uint32_t chunk(std::uint32_t row, int chunk) {
    return (row ^ static_cast<std::uint32_t>(chunk % kChunks * kChunkBytes)) +
           static_cast<std::uint32_t>(chunk / kChunks * kChunks * kChunkBytes);
  }
  /// Address of the chunk `rows` rows below the one at `place`. `rows` is a multiple of a power of
  /// two that is larger than the row of `place`.
  static __device__ __forceinline__ std::uint32_t later_row(std::uint32_t place, int rows) {
    const int key = kChunks == 8 ? rows % 8 : rows / 2 % 4;
    return (place ^ static_cast<std::uint32_t>(key * kChunkBytes)) +
           static_cast<std::uint32_t>(rows * kRowBytes);
  }
};

/// Likewise for rows that are no whole half lines: a chunk is left free behind each, so that the
/// chunks from row to row are an odd number.
template <int kRowBytes_>
struct PaddedRows {
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kChunkBytes = 16;
  static constexpr int kRowStride = kRowBytes_ + kChunkBytes;
  static_assert(kRowStride / kChunkBytes % 2 == 1);

  static __device__ __forceinline__ constexpr std::uint32_t below(int rows) {
    return static_cast<std::uint32_t>(rows * kRowStride);
  }
  static __device__ __forceinline__ std::uint32_t row(std::uint32_t tile, int row) {
    return tile + static_cast<std::uint32_t>(row * kRowStride);
  }
  static __device__ __forceinline__ std::uint32_t chunk(std::uint32_t row, int chunk) {
    return row + static_cast<std::uint32_t>(chunk * kChunkBytes);
  }
  static __device__ __forceinline__ std::uint32_t later_row(std::uint32_t place, int rows) {
    return place + static_cast<std::uint32_t>(rows * kRowStride);
  }
};

template <int kRowBytes>
using TileLayout =
    std::conditional_t<kRowBytes % 64 == 0, Swizzle<kRowBytes>, PaddedRows<kRowBytes>>;

/// @tparam Element_  Of q, and what is multiplied: __nv_bfloat16 or __half.
/// @tparam kShared   Bytes of shared memory at most.
/// @tparam Kv_       Of K and V: `Element_`, or an 8-bit format of `core/narrow_formats.hpp`. Those
///   are widened to fp16: `Element_` is __half then, and q and o may be bf16 or fp16 at run time, or q
///   codes as K and V (`kTakesCodes`).
/// @tparam Tiles_    How tiles of K and V lie, by the bytes of a row.
/// @tparam kHasTokenScales_  K and V of 8 bits may have a scale for each token.
template <typename Element_, int kHeadDimQk_, int kHeadDimVo_, std::size_t kShared,
          typename Kv_ = Element_, template <int> typename Tiles_ = TileLayout,
          bool kHasTokenScales_ = true>
struct Config {
  using Element = Element_;
  using Kv = Kv_;
  static constexpr int kKvElementBytes = sizeof(Kv);
  static constexpr bool kIsNarrow = kKvElementBytes == 1;
  static constexpr bool kHasTokenScales = kIsNarrow && kHasTokenScales_;
  /// Whether q may be of the codes of K and V, too, which become fp16 as they do.
  static constexpr bool kTakesCodes = std::is_same_v<Kv, core::Float8E4M3>;
  static_assert(kIsNarrow ? std::is_same_v<Element, __half> : std::is_same_v<Element, Kv>);
  /// Of o, where it is not fp32.
  using Output = std::conditional_t<kIsNarrow, EitherHalf, Element>;
  static constexpr int kHeadDimQk = kHeadDimQk_;
  static constexpr int kHeadDimVo = kHeadDimVo_;
  static_assert(kHeadDimQk % 32 == 0 && kHeadDimVo % 32 == 0);

  static constexpr int kTileRows = 32;  // what o, scores and queries leave of the registers
  static constexpr int kQueryBytes = kHeadDimQk * 2;
  static constexpr int kWeightBytes = kTileKeys * 2;
  using QueryLayout = TileLayout<kQueryBytes>;
  using KeyLayout = Tiles_<kHeadDimQk * kKvElementBytes>;
  using ValueLayout = Tiles_<kHeadDimVo * kKvElementBytes>;

  /// Behind K of a tile: the scales of its tokens, of K and then of V, if they have their own.
  static constexpr int kScalesBegin = static_cast<int>(KeyLayout::below(kTileKeys));
  static constexpr int kScaleBytes = kTileKeys * static_cast<int>(sizeof(float));
  static constexpr int kKeySlotBytes = kScalesBegin + (kHasTokenScales ? 2 * kScaleBytes : 0);
  static constexpr int kValueSlotBytes = static_cast<int>(ValueLayout::below(kTileKeys));
  static constexpr int kSlotBytes =
      kKeySlotBytes > kValueSlotBytes ? kKeySlotBytes : kValueSlotBytes;
  static_assert(kSlotBytes % 128 == 0);

  /// Columns of o of a computing warp; the last warps have fewer if these are no quarter.
  static constexpr int kColumnStep = kIsNarrow ? 16 : 8;
  static constexpr int kColumns =
      (kHeadDimVo / kConsumerWarps + kColumnStep - 1) / kColumnStep * kColumnStep;

  /// Whether registers hold 16 rows of o beside all else, so that warps can have keys to themselves: of
  /// 16 bits where there are more than 16 rows, of 8 bits, whose tiles come fast, where there are not, if
  /// all warps have as many columns of o in the end.
  static constexpr bool kHoldsRows = kHeadDimVo <= 128;
  static constexpr bool kHasQuarters = kHoldsRows && !kIsNarrow;
  static constexpr bool kHasStripes =
      kHoldsRows && kIsNarrow && kHeadDimVo == kConsumerWarps * kColumns;
  /// Whether loading warps have a loop for whole tiles; registers for it are there.
  static constexpr bool kHasLoopOfTiles = kIsNarrow && kHeadDimVo < 256;

  /// Weights of a tile; at a unit's end 8 rows of o in fp32.
  static constexpr int kStagedBytes = 8 * kConsumerWarps * kColumns * 4;
  static constexpr int kWeightsBytes =
      kTileRows * kWeightBytes > kStagedBytes ? kTileRows* kWeightBytes : kStagedBytes;

  /// All but the ring.
  struct Fixed {
    alignas(128) std::byte queries[kTileRows * kQueryBytes];  // q of the unit, swizzled
    alignas(128) std::byte weights[kWeightsBytes];            // 2^(x − max) of the tile, swizzled
    float maxima[kTileRows][kConsumerWarps];                  // of a row over a warp's keys
    float sums[kTileRows][kConsumerWarps];                    // of a row's weights, at a unit's end
    float final_maxima[kTileRows];                            // likewise
    float query_factors[kIsNarrow ? kTileRows : 1];  // what a row of fp16 q is to be multiplied by
    Unit units[2];                // this one and the next; one without rows ends the range
    std::uint64_t queries_full;   // filled by V's loading warp: copies, and lane 0 for `units`
    std::uint64_t queries_empty;  // drained: one arrival of each computing warp
    std::uint32_t complete[4];    // queries of the unit, or a split unit
  };

  static constexpr int kSlots =
      static_cast<int>((kShared - sizeof(Fixed)) / (kSlotBytes + 2 * sizeof(std::uint64_t)));
  static_assert(kSlots >= 2, "K and V of a tile");

  struct Shared {
    /// K, V, K, V …: a tile's rows, swizzled.
    alignas(kSlotBytes % 1024 == 0 ? 1024 : 128) std::byte ring[kSlots][kSlotBytes];
    Fixed fixed;
    std::uint64_t full[kSlots];   // filled by a loading warp's copies
    std::uint64_t empty[kSlots];  // drained: one arrival of each computing warp
  };
  static_assert(sizeof(Shared) <= kShared);
};

/// A place in the ring and how often it was passed.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  std::uint32_t parity = 0;

  /// @param steps  At most kSlots.
  __device__ void advance(int steps = 1) {
    slot += steps;
    const int wraps = opaque(slot >= kSlots ? 1 : 0);  // or a predicate is kept, and spilled
    slot -= wraps * kSlots;
    parity ^= static_cast<std::uint32_t>(wraps);
  }
  /// @param steps  At most kSlots.
  [[nodiscard]] __device__ RingPosition before(int steps = 1) const {
    return slot >= steps ? RingPosition{slot - steps, parity}
                         : RingPosition{slot - steps + kSlots, parity ^ 1};
  }
};

}  // namespace quire::cuda::mma
