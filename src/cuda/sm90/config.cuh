// SPDX-License-Identifier: Apache-2.0
/// @file
/// The shapes of one instance of the Hopper kernel, and how its shared memory is laid out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/narrow_formats.hpp"
#include "cuda/mma/config.cuh"
#include "cuda/sm90/instructions.cuh"

namespace quire::cuda::sm90 {

/// Shares of each line that a block takes: those of small units both at the same time, half of its
/// memory and a computing warpgroup each, those of large units one after another with all of it.
inline constexpr int kSharesPerBlock = 2;
inline constexpr int kHalves = kSharesPerBlock;  ///< of a block, for small units

/// Registers of a thread that loads and of one that computes, while the block works on small units
/// and on large ones. Rows of 384 bytes take more of those that load, and so do codes that are widened.
struct Registers {
  int loader;
  int consumer;
};
inline constexpr Registers kForSmallUnits{136, 184};
inline constexpr Registers kForSmallUnitsOf192{152, 176};
inline constexpr Registers kForLargeUnits{88, 208};
inline constexpr Registers kForWidenedLargeUnits{104, 200};
/// Where three warpgroups compute, of which small units have no use for the third.
inline constexpr Registers kForSmallUnitsBesideIdle{152, 168};
inline constexpr Registers kForLargeUnitsOfThree{80, 144};
inline constexpr int kIdleRegisters = 24;

/// How tiles of small units lie: as boxes bring them, if rows are whole ones.
template <int kRowBytes>
using SmallTiles = std::conditional_t<kRowBytes % kBoxRowBytes == 0, Groups<kRowBytes>,
                                      mma::TileLayout<kRowBytes>>;

/// What the warps of the first warpgroup do for large units: three load, one finds the units. Where K
/// and V have to be widened, all of them do that, and the last one finds the units besides. Where V alone
/// has to be, those that load do that besides.
enum LoadingWarp : int { kKeyWarp = 0, kValueWarp = 1, kQueryWarp = 2, kUnitWarp = 3 };
inline constexpr int kLoadingWarps = kWarpgroupSize / kWarpSize;

/// What a block does, one after another: a digit each, to the base of 4, the lowest first.
using Phases = std::uint32_t;
enum Phase : std::uint32_t { kEnd = 0, kSmallPhase = 1, kLargePhase = 2 };
inline constexpr int kPhaseBits = 2;

/// A large unit with what all that work on it would have to compute otherwise.
struct LargeUnit : Unit {
  std::int32_t first_key = 0;  // of its first tile
  std::int32_t last_key = 0;   // of its last tile, which is attended first
  bool is_plain = false;       // see `UnitQueue`
};

/// @tparam Element_  What is multiplied, but where K of 8 bits is: __nv_bfloat16 or __half.
/// @tparam Kv_       Of K and V: `Element_`, or an 8-bit format, as `mma::Config` has them.
/// @tparam kHasCodedQueries_  q are codes, too, which are multiplied with K as they are.
template <typename Element_, int kHeadDimQk_, int kHeadDimVo_, typename Kv_ = Element_,
          bool kHasCodedQueries_ = false>
struct Config {
  using Element = Element_;
  using Kv = Kv_;
  static constexpr int kHeadDimQk = kHeadDimQk_;
  static constexpr int kHeadDimVo = kHeadDimVo_;
  static constexpr int kElementBytes = sizeof(Element);

  static constexpr bool kIsNarrow = sizeof(Kv) == 1;
  /// What large units do with K of 8 bits: multiply it as it is, with q of the same codes or as the sum
  /// of two, or widen it. V is widened in either case.
  static constexpr bool kKeepsKeys =
      kIsNarrow && !std::is_same_v<Kv, core::Int8> && kHeadDimQk == 128 && kHeadDimVo == 128;
  static constexpr bool kHasCodedQueries = kHasCodedQueries_;
  static_assert(kKeepsKeys || !kHasCodedQueries);
  static constexpr bool kSplitsQueries = kKeepsKeys && !kHasCodedQueries;
  static constexpr bool kWidens = kIsNarrow && !kKeepsKeys;
  /// q may be codes, too, which are widened: of heads of which rows of codes fill no 128 bytes.
  static constexpr bool kWidensQueries =
      kWidens && std::is_same_v<Kv, core::Float8E4M3> && kHeadDimQk % 128 != 0;

  /// The mma kernel, of which a block runs two. Scales of 8-bit tokens are for it alone.
  using Small = std::conditional_t<
      kIsNarrow, mma::Config<__half, kHeadDimQk, kHeadDimVo, mma::kHalf, Kv, SmallTiles, false>,
      mma::Config<Element, kHeadDimQk, kHeadDimVo, mma::kHalf, Kv, SmallTiles>>;
  /// Whether tiles of small units can come in boxes, which are of 128 bytes of a row.
  static constexpr bool kHasSmallBoxes =
      kHeadDimQk * sizeof(Kv) % kBoxRowBytes == 0 && kHeadDimVo * sizeof(Kv) % kBoxRowBytes == 0;
  using Output = typename Small::Output;  ///< of o, where it is not fp32

  /// Warpgroups of a block that compute, beside one that loads. Products of narrow heads take as long
  /// as the powers of their scores: while one warpgroup multiplies, two make powers.
  static constexpr bool kHasThird = kHeadDimQk == 64 && kHeadDimVo == 64 && !kIsNarrow;
  static constexpr int kComputingWarpgroups = kHasThird ? 3 : 2;
  static constexpr int kThreads = (1 + kComputingWarpgroups) * kWarpgroupSize;
  static constexpr int kConsumers = kComputingWarpgroups * kWarpgroupSize;

  static constexpr Registers kSmallRegisters = kHasThird           ? kForSmallUnitsBesideIdle
                                               : kHeadDimQk == 192 ? kForSmallUnitsOf192
                                                                   : kForSmallUnits;
  static constexpr Registers kLargeRegisters = kHasThird   ? kForLargeUnitsOfThree
                                               : kIsNarrow ? kForWidenedLargeUnits
                                                           : kForLargeUnits;
  /// What the kernel is launched with, the same for each thread.
  static constexpr int kLaunchedRegisters = 64 * 1024 / kThreads / 8 * 8;
  static_assert(kSmallRegisters.loader + kHalves * kSmallRegisters.consumer +
                        (kComputingWarpgroups - kHalves) * kIdleRegisters <=
                    (1 + kComputingWarpgroups) * kLaunchedRegisters &&
                kLargeRegisters.loader + kComputingWarpgroups * kLargeRegisters.consumer <=
                    (1 + kComputingWarpgroups) * kLaunchedRegisters);

  /// Wide heads have fewer keys in a tile: o takes up to 128 of a computing thread's registers, and
  /// the ring must hold K and V of two tiles. So have narrow ones, since three warpgroups share the
  /// registers.
  static constexpr bool kIsWide = kHeadDimQk > 128 || kHeadDimVo > 128;
  static constexpr int kTileRows = kComputingWarpgroups * kProductRows;
  static constexpr int kTileKeys = kIsWide ? 64 : kHasThird ? 96 : 128;
  static constexpr int kQueryElementBytes = kHasCodedQueries ? 1 : kElementBytes;
  static constexpr int kQueryBuffers = kHeadDimQk > 192 ? 1 : 2;
  using QueryLayout = Panels<kHeadDimQk * kQueryElementBytes, kTileRows>;
  using KeyLayout = Groups<kHeadDimQk*(kKeepsKeys ? 1 : kElementBytes)>;
  using ValueLayout = Groups<kHeadDimVo * kElementBytes>;
  /// Of rows of o, which go through shared memory where the queries were.
  using ResultLayout =
      std::conditional_t<kHasCodedQueries, Panels<kHeadDimVo * kElementBytes, kTileRows>,
                         QueryLayout>;

  static constexpr int kQueryBytes =
      kTileRows * (QueryLayout::kRowBytes > ResultLayout::kRowBytes ? QueryLayout::kRowBytes
                                                                    : ResultLayout::kRowBytes);
  static constexpr int kSlotBytes =
      kTileKeys * kElementBytes * (kHeadDimQk > kHeadDimVo ? kHeadDimQk : kHeadDimVo);

  struct NoMemory {};
  struct FinderMemory {
    alignas(8) std::byte bytes[256];  // of `UnitFinder`, where it takes no registers
  };

  /// What K and V that are widened need besides (`WideningLoader`).
  using StagedLayout =
      std::conditional_t<kKeepsKeys, Groups<kHeadDimVo>, mma::TileLayout<kHeadDimQk>>;
  struct WideningMemory {
    alignas(128) std::byte staged[2][kTileKeys * StagedLayout::kRowStride];  // codes of K, of V
    FinderMemory finder;
  };
  /// What V needs besides where it alone is widened (`ValueWidener`), by three warps.
  static constexpr int kStagedTiles = 2;
  static constexpr int kStagingWarps = 3;
  struct StagedMemory {
    alignas(1024) std::byte staged[kStagedTiles][kTileKeys * kHeadDimVo];  // of V, as it is cached
  };
  struct StagedBarriers {
    std::uint64_t full[kStagedTiles];   // filled by one warp's copies
    std::uint64_t empty[kStagedTiles];  // drained: one arrival of each of the warps
  };
  using Besides = std::conditional_t<kWidens, WideningMemory,
                                     std::conditional_t<kKeepsKeys, StagedMemory, NoMemory>>;
  using Staged = std::conditional_t<kKeepsKeys, StagedBarriers, NoMemory>;
  /// What products with a row of q are to be multiplied by, powers of two. They fill `Fixed`, which is a
  /// multiple of 1,024 bytes, up to 16.
  using QueryFactors = std::conditional_t<kWidens || kSplitsQueries,
                                          __nv_bfloat16[kQueryBuffers][kTileRows], NoMemory>;

  /// Large units on their way; one without rows ends the work. Drained by the loading warps and the
  /// computing ones.
  static constexpr int kUnits = 4;
  static constexpr int kLoadersOfUnits = kWidens ? kLoadingWarps : kUnitWarp;

  /// Arrivals at a barrier of what is loaded: each lane of a warp is told of its copies, or each warp
  /// says that its part has been widened.
  static constexpr int kLoaderArrivals = kWidens ? kLoadingWarps : kWarpSize;
  static __device__ constexpr int arrivals_of_slot(int slot) {
    return kKeepsKeys && slot % 2 == 1 ? kStagingWarps : kLoaderArrivals;
  }

  /// All but the ring.
  struct Fixed {
    alignas(1024) std::byte queries[kQueryBuffers][kQueryBytes];
    LargeUnit units[kUnits];
    std::uint64_t units_full[kUnits];           // filled by one warp, one arrival
    std::uint64_t units_empty[kUnits];          // drained: one arrival of each warp that reads them
    std::uint64_t queries_full[kQueryBuffers];  // filled by one warp's copies, or by all loaders
    std::uint64_t queries_empty[kQueryBuffers];      // drained: one arrival of each computing warp
    std::uint32_t exceeds[kComputingWarpgroups][2];  // weights of an even, an odd tile do not fit
    std::uint32_t complete[kTileRows / kWarpSize];   // queries of the unit, or a split unit
    Staged staged;
    QueryFactors query_factors;
  };
  static constexpr std::size_t kBytesBesides = kIsNarrow ? sizeof(Besides) : 0;
  static constexpr int kFittingSlots = static_cast<int>(
      (mma::kWhole - sizeof(Fixed) - kBytesBesides) / (kSlotBytes + 2 * sizeof(std::uint64_t)));
  static_assert(kFittingSlots >= 4, "a tile that is multiplied and one that is loaded");

  /// The ring: K, V, K, V … Where K has half of the bytes of V there is memory for four tiles of K but
  /// for two of V: slots 1 and 5 share one, 3 and 7 the other. Who fills one of them waits until the
  /// other is empty, which its own barrier has been since then.
  static constexpr int kSlots = kKeepsKeys ? 8 : kFittingSlots;
  static constexpr int kValueTiles = 2;  // there
  struct UniformRing {
    alignas(1024) std::byte slots[kSlots][kSlotBytes];
    static __device__ constexpr int begin_of(int slot) { return slot * kSlotBytes; }
  };
  struct UnequalRing {
    static constexpr int kKeyBytes = kTileKeys * KeyLayout::kRowBytes;
    alignas(1024) std::byte keys[kSlots / 2][kKeyBytes];
    alignas(1024) std::byte values[kValueTiles][kSlotBytes];
    static __device__ constexpr int begin_of(int slot) {
      return slot % 2 == 0 ? slot / 2 * kKeyBytes
                           : kSlots / 2 * kKeyBytes + slot / 2 % kValueTiles * kSlotBytes;
    }
  };
  using Ring = std::conditional_t<kKeepsKeys, UnequalRing, UniformRing>;

  struct Large {
    Ring ring;
    Fixed fixed;
    Besides besides;
    std::uint64_t full[kSlots];   // filled by a loading warp's copies, or by several warps
    std::uint64_t empty[kSlots];  // drained: one arrival of each computing warp

    /// Address of a slot.
    [[nodiscard]] __device__ std::uint32_t slot(int slot) const {
      return shared_address(&ring) + static_cast<std::uint32_t>(Ring::begin_of(slot));
    }
  };

  struct Shared {
    union {
      typename Small::Shared halves[kHalves];
      Large large;
    };
    schedule::Overview overview;
    Phases phases;
  };
  static_assert(sizeof(Shared) <= mma::kWhole);
  static_assert(sizeof(Large) + sizeof(schedule::Overview) + sizeof(Phases) +
                    timeline::kSharedBytes <=
                sizeof(Shared));
};

}  // namespace quire::cuda::sm90
