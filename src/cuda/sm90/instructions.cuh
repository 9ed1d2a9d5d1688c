// SPDX-License-Identifier: Apache-2.0
/// @file
/// Hopper's own instructions: matrix products of a warpgroup (wgmma), registers handed from one
/// warpgroup to another, and how operands lie in shared memory for them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "core/narrow_formats.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/sm90/tile_maps.hpp"

namespace quire::cuda::sm90 {

inline constexpr int kWarpgroupSize = 128;

/// Rows of an accumulator that a warpgroup makes at a time, and bytes of a row per instruction.
inline constexpr int kProductRows = 64;
inline constexpr int kProductBytes = 32;

/// How a tile of rows lies in shared memory for wgmma: in blocks of 8 rows × 64 elements (128
/// bytes), a row's 16-byte chunks swizzled (the 128-byte mode). Tiles begin at multiples of 1,024.
/// @tparam kGroupBytes_  From a block to that of the next 8 rows.
/// @tparam kPanelBytes_  From a block to that of the next 64 elements.
template <int kRowBytes_, int kGroupBytes_, int kPanelBytes_>
struct Blocks {
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kRowStride = 128;
  static constexpr int kGroupRows = 8;
  static constexpr int kGroupBytes = kGroupBytes_;
  static constexpr int kPanelBytes = kPanelBytes_;
  static constexpr int kPanels = kRowBytes / kRowStride;
  static constexpr int kChunkBytes = 16;
  static_assert(kRowBytes % kRowStride == 0);

  /// From a row to the one `rows` below it, a multiple of 8.
  static __device__ __forceinline__ constexpr std::uint32_t below(int rows) {
    return static_cast<std::uint32_t>(rows / kGroupRows * kGroupBytes);
  }
  /// Address of chunk 0 of a row of the tile at `tile`.
  static __device__ __forceinline__ std::uint32_t row(std::uint32_t tile, int row) {
    return tile + below(row) +
           static_cast<std::uint32_t>(row % kGroupRows * (kRowStride + kChunkBytes));
  }
  /// Address of another chunk of the row.
  static __device__ __forceinline__ std::uint32_t chunk(std::uint32_t row, int chunk) {
    return (row ^ static_cast<std::uint32_t>(chunk % 8 * kChunkBytes)) +
           static_cast<std::uint32_t>(chunk / 8 * kPanelBytes);
  }
  /// Address of the chunk `rows` rows below the one at `place`. `rows` is a multiple of a power of
  /// two that is larger than the row of `place`.
  static __device__ __forceinline__ std::uint32_t later_row(std::uint32_t place, int rows) {
    return (place ^ static_cast<std::uint32_t>(rows % kGroupRows * kChunkBytes)) + below(rows) +
           static_cast<std::uint32_t>(rows % kGroupRows * kRowStride);
  }
};

inline constexpr int kBlockBytes = 1024;
/// All rows' first 64 elements, then their next ones, …: as boxes of 64 components bring q and o.
template <int kRowBytes, int kRows>
using Panels = Blocks<kRowBytes, kBlockBytes, kRows / 8 * kBlockBytes>;
/// All elements of 8 rows, then the next 8 rows, …: as boxes of whole rows bring K and V.
template <int kRowBytes>
using Groups = Blocks<kRowBytes, kRowBytes / 128 * kBlockBytes, kBlockBytes>;

/// An operand in shared memory as wgmma takes it: where it begins, in units of 16 bytes, and above that
/// how far the next 64 columns of a transposed one are (others do not use it); the other half of the
/// 64 bits says how far the next 8 rows are and is the same for all operands of a layout.
template <typename Layout>
struct Operand {
  static constexpr std::uint32_t kSwizzle128 = 1U << 30U;
  static constexpr std::uint32_t kHigh = kSwizzle128 | Layout::kGroupBytes / 16;
  std::uint32_t low;

  /// @param address  Of the first block.
  static __device__ __forceinline__ Operand at(std::uint32_t address) {
    constexpr std::uint32_t kPanelStride = Layout::kPanelBytes / 16;
    return {__shfl_sync(kAllLanes, address / 16 | kPanelStride << 16U, 0)};
  }
  [[nodiscard]] __device__ __forceinline__ Operand after(int bytes) const {
    return {low + static_cast<std::uint32_t>(bytes / 16)};
  }
};

/// Before the first product that uses registers which other instructions have written.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// Closes a group of products.
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most `kGroups` groups are on their way.
template <int kGroups>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
/// What is computed with these registers stays behind this line.
template <typename T, int kCount>
__device__ __forceinline__ void hold(T (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(registers[i])::"memory");
    } else {
      asm volatile("" : "+r"(registers[i])::"memory");
    }
  }
}

/// True for one lane of the warp, of which the compiler knows that it is one. All lanes call it.
__device__ __forceinline__ bool elect_one() {
  std::uint32_t is_elected;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }"
               : "=r"(is_elected));
  return is_elected != 0;
}

/// The phase of a barrier in shared memory is not over before `bytes` have been copied, too.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Copies a box of K or V into shared memory, asynchronously, and tells the barrier. wgmma sees
/// what it has copied. Of the coordinates that are not given all are copied.
template <Reuse kReuse>
__device__ __forceinline__ void copy_box(std::uint32_t to, std::uint64_t map, int token, int panel,
                                         int run, std::uint32_t barrier) {
  if constexpr (kReuse == Reuse::kNone) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%2, %3, %4, %2, %5}], [%6], %7;" ::"r"(to),
        "l"(map), "r"(0), "r"(token), "r"(panel), "r"(run), "r"(barrier), "l"(evict_first_policy())
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3, %4, %2, %5}], [%6];" ::"r"(to),
        "l"(map), "r"(0), "r"(token), "r"(panel), "r"(run), "r"(barrier)
        : "memory");
  }
}

/// Brings a map near that will be used.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// The same for 128 bytes of rows of q, which are read once unless their unit is split.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap& map, int component,
                                         int head, int token, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(component), "r"(head), "r"(token), "r"(barrier), "l"(evict_first_policy())
      : "memory");
}
/// Copies rows of o out of shared memory, asynchronously; `show_to_products` comes before.
__device__ __forceinline__ void store_box(std::uint32_t from, const CUtensorMap& map, int component,
                                          int head, int token) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%1, {%2, %3, %4}], [%0];" ::"r"(from),
      "l"(&map), "r"(component), "r"(head), "r"(token)
      : "memory");
}
/// What this thread has stored in boxes until now can be waited for.
__device__ __forceinline__ void commit_boxes() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Waits until shared memory has been read by all boxes that this thread has committed.
__device__ __forceinline__ void wait_for_boxes_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

/// Four 8 × 8 matrices of 16-bit elements into rows of 16 bytes, as an accumulator's registers hold
/// them.
__device__ __forceinline__ void store_matrices(std::uint32_t row, const std::uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

/// What copies of 16 bytes have written to shared memory, and this thread knows of, is seen by
/// wgmma.
__device__ __forceinline__ void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// What this thread has written to shared memory comes before what boxes write there.
__device__ __forceinline__ void order_before_boxes() { show_to_products(); }

/// All warps of a warpgroup call it.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// A barrier that some threads only pass and others wait at, `Threads` in all.
template <int Threads>
__device__ __forceinline__ void pass_barrier(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}

/// @return Whether `value` is true for any of the `Threads` threads that name the barrier.
template <int Threads>
__device__ __forceinline__ bool any_at_barrier(int id, bool value) {
  std::uint32_t any;
  asm volatile(
      "{ .reg .pred p, q; setp.ne.u32 p, %1, 0; barrier.cta.red.or.pred q, %2, %3, p;\n"
      "selp.u32 %0, 1, 0, q; }"
      : "=r"(any)
      : "r"(value ? 1 : 0), "r"(id), "n"(Threads)
      : "memory");
  return any != 0;
}

// Lists of an accumulator's registers, for the instructions below.
#define QUIRE_EIGHT(d, i)                                                                       \
  "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), "+f"((d)[(i) + 4]), \
      "+f"((d)[(i) + 5]), "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])
#define QUIRE_32(d) QUIRE_EIGHT(d, 0), QUIRE_EIGHT(d, 8), QUIRE_EIGHT(d, 16), QUIRE_EIGHT(d, 24)
#define QUIRE_48(d) QUIRE_32(d), QUIRE_EIGHT(d, 32), QUIRE_EIGHT(d, 40)
#define QUIRE_64(d) \
  QUIRE_32(d), QUIRE_EIGHT(d, 32), QUIRE_EIGHT(d, 40), QUIRE_EIGHT(d, 48), QUIRE_EIGHT(d, 56)
#define QUIRE_NAMES_32                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, "         \
  "%8, %9, %10, %11, %12, %13, %14, %15, "   \
  "%16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define QUIRE_NAMES_48                         \
  QUIRE_NAMES_32                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define QUIRE_NAMES_64                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, "         \
  "%8, %9, %10, %11, %12, %13, %14, %15, "   \
  "%16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
// Products of operands a and b, added to d.
#define QUIRE_PRODUCT_OF_SHARED(columns, type, orders, names, list, low_a, high_a, low_b, high_b, \
                                flag)                                                             \
  asm volatile("{ .reg .pred p; .reg .b64 a, b; setp.ne.b32 p, " flag                             \
               ", 0;\n"                                                                           \
               "mov.b64 a, {" low_a ", " high_a "}; mov.b64 b, {" low_b ", " high_b               \
               "};\n"                                                                             \
               "wgmma.mma_async.sync.aligned.m64n" columns type " {" names                        \
               "}, a, b, p, 1, 1" orders "; }"                                                    \
               : list(d)                                                                          \
               : "r"(a.low), "n"(a.kHigh), "r"(b.low), "n"(b.kHigh), "r"(add ? 1 : 0)             \
               : "memory")
#define QUIRE_PRODUCT_OF_REGISTERS(columns, type, orders, names, list, r0, r1, r2, r3, low_b, \
                                   high_b)                                                    \
  asm volatile("{ .reg .b64 b; mov.b64 b, {" low_b ", " high_b                                \
               "};\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" columns type " {" names "}, {" r0 ", " r1  \
               ", " r2 ", " r3 "}, b, 1, 1, 1" orders "; }"                                   \
               : list(d)                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "n"(b.kHigh)         \
               : "memory")

/// Types of operands, and what follows in the instruction: 16-bit ones say how their rows lie.
#define QUIRE_BF16 "k16.f32.bf16.bf16"
#define QUIRE_F16 "k16.f32.f16.f16"
#define QUIRE_E4M3 "k32.f32.e4m3.e4m3"
#define QUIRE_E4M3_E5M2 "k32.f32.e4m3.e5m2"

/// d (+)= a · bᵀ for 32 bytes of 64 rows of a and of kColumns rows of b, both in shared memory, d in
/// fp32.
/// @tparam ElementB  Of b, if both are of 8 bits.
template <typename Element, int kColumns, typename ElementB = Element, typename LayoutA,
          typename LayoutB>
__device__ __forceinline__ void multiply_shared(float* d, Operand<LayoutA> a, Operand<LayoutB> b,
                                                bool add) {
  static_assert(kColumns == 64 || kColumns == 96 || kColumns == 128);
  constexpr bool kIsBfloat16 = std::is_same_v<Element, __nv_bfloat16>;
  if constexpr (std::is_same_v<ElementB, core::Float8E5M2>) {
    static_assert(kColumns == 128 && std::is_same_v<Element, core::Float8E4M3>);
    QUIRE_PRODUCT_OF_SHARED("128", QUIRE_E4M3_E5M2, "", QUIRE_NAMES_64, QUIRE_64, "%64", "%65",
                            "%66", "%67", "%68");
  } else if constexpr (std::is_same_v<Element, core::Float8E4M3>) {
    static_assert(kColumns == 128);
    QUIRE_PRODUCT_OF_SHARED("128", QUIRE_E4M3, "", QUIRE_NAMES_64, QUIRE_64, "%64", "%65", "%66",
                            "%67", "%68");
  } else if constexpr (kColumns == 96 && kIsBfloat16) {
    QUIRE_PRODUCT_OF_SHARED("96", QUIRE_BF16, ", 0, 0", QUIRE_NAMES_48, QUIRE_48, "%48", "%49",
                            "%50", "%51", "%52");
  } else if constexpr (kColumns == 96) {
    QUIRE_PRODUCT_OF_SHARED("96", QUIRE_F16, ", 0, 0", QUIRE_NAMES_48, QUIRE_48, "%48", "%49",
                            "%50", "%51", "%52");
  } else if constexpr (kColumns == 64 && kIsBfloat16) {
    QUIRE_PRODUCT_OF_SHARED("64", QUIRE_BF16, ", 0, 0", QUIRE_NAMES_32, QUIRE_32, "%32", "%33",
                            "%34", "%35", "%36");
  } else if constexpr (kColumns == 64) {
    QUIRE_PRODUCT_OF_SHARED("64", QUIRE_F16, ", 0, 0", QUIRE_NAMES_32, QUIRE_32, "%32", "%33",
                            "%34", "%35", "%36");
  } else if constexpr (kIsBfloat16) {
    QUIRE_PRODUCT_OF_SHARED("128", QUIRE_BF16, ", 0, 0", QUIRE_NAMES_64, QUIRE_64, "%64", "%65",
                            "%66", "%67", "%68");
  } else {
    QUIRE_PRODUCT_OF_SHARED("128", QUIRE_F16, ", 0, 0", QUIRE_NAMES_64, QUIRE_64, "%64", "%65",
                            "%66", "%67", "%68");
  }
}

/// d += a · b for a 64 × 16 in four registers and b 16 × kColumns in shared memory.
template <typename Element, int kColumns, typename LayoutB>
__device__ __forceinline__ void multiply_registers(float* d, const std::uint32_t* a,
                                                   Operand<LayoutB> b) {
  static_assert(kColumns == 64 || kColumns == 128);
  constexpr bool kIsBfloat16 = std::is_same_v<Element, __nv_bfloat16>;
  if constexpr (kColumns == 64 && kIsBfloat16) {
    QUIRE_PRODUCT_OF_REGISTERS("64", QUIRE_BF16, ", 1", QUIRE_NAMES_32, QUIRE_32, "%32", "%33",
                               "%34", "%35", "%36", "%37");
  } else if constexpr (kColumns == 64) {
    QUIRE_PRODUCT_OF_REGISTERS("64", QUIRE_F16, ", 1", QUIRE_NAMES_32, QUIRE_32, "%32", "%33",
                               "%34", "%35", "%36", "%37");
  } else if constexpr (kIsBfloat16) {
    QUIRE_PRODUCT_OF_REGISTERS("128", QUIRE_BF16, ", 1", QUIRE_NAMES_64, QUIRE_64, "%64", "%65",
                               "%66", "%67", "%68", "%69");
  } else {
    QUIRE_PRODUCT_OF_REGISTERS("128", QUIRE_F16, ", 1", QUIRE_NAMES_64, QUIRE_64, "%64", "%65",
                               "%66", "%67", "%68", "%69");
  }
}

/// Four numbers as e4m3 in one register, the first in the lowest byte. What is beyond ±448 becomes that.
__device__ __forceinline__ std::uint32_t pack_e4m3(float a, float b, float c, float d) {
  std::uint32_t codes;
  asm("{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3; mov.b32 %0, {low, high}; }"
      : "=r"(codes)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return codes;
}

#undef QUIRE_E4M3_E5M2
#undef QUIRE_E4M3
#undef QUIRE_F16
#undef QUIRE_BF16
#undef QUIRE_PRODUCT_OF_REGISTERS
#undef QUIRE_PRODUCT_OF_SHARED
#undef QUIRE_NAMES_64
#undef QUIRE_NAMES_48
#undef QUIRE_NAMES_32
#undef QUIRE_64
#undef QUIRE_48
#undef QUIRE_32
#undef QUIRE_EIGHT

}  // namespace quire::cuda::sm90
