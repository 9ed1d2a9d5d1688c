// SPDX-License-Identifier: Apache-2.0
/// @file
/// V of 8 bits on its way to products of codes. wgmma takes operand B of 8 bits with components as rows
/// only, and V is cached with keys as rows: a warp copies tiles as they are into shared memory, from
/// where it and another one transpose them into the ring. Neither finds units: that takes as long as many
/// tiles.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/widen.hpp"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/units.cuh"

namespace quire::cuda::sm90 {

/// One of the warps that transpose: it has half of the keys of every tile.
///
/// A transposing `ldmatrix` of 16-bit elements, which are codes of two neighbouring components here,
/// hands lane t those of keys 2 (t % 4) and the next one, for a pair of components. Of two such
/// registers, 8 keys apart, a byte permutation makes the codes of one component of four keys; these are
/// the four that a thread of the computing warps has weights of. So the keys of 16 stand in the order 0,
/// 1, 8, 9, 2, 3, 10, 11, … in the products, and neither weights nor codes change lanes.
template <typename C>
class ValueTransposer {
 public:
  __device__ ValueTransposer(typename C::Large& shared, LoadingWarp warp, int lane)
      : shared_(shared), lane_(lane) {
    static_assert(kLoads == 8 && From::kRowBytes == 128 && To::kRowBytes == 128);
    const int first_key = warp == kValueWarp ? 0 : kOwnKeys;
    from_ = From::row(From::below(first_key), lane);
    // Eight rows that are written at once differ in their place among 8, so that banks do not
    // collide: lanes below 16 have the even components, the others the odd ones, and then vice versa.
    const bool is_high = lane % 8 >= 4;
    const bool is_second = lane / 8 % 2 == 1;
    const int component = lane % 8 * 2 + (is_high != is_second ? 1 : 0);
    to_ = To::chunk(To::row(0, component), first_key / kChunkKeys + lane / 16);
    first_half_ = lane < 16 ? kEven : kOdd;
  }

  /// The next tile. It is handed over while codes of the one behind it are on their way, or at once if
  /// that is not there yet: what has been written would have to be waited for.
  __device__ __forceinline__ void run() {
    const std::uint32_t full = shared_address(&shared_.fixed.staged.full[staged_.slot]);
    const std::uint32_t empty = shared_address(&shared_.empty[slot_.slot]);
    if (!__all_sync(kAllLanes, barrier_is_over(full, staged_.parity) &&
                                   barrier_is_over(empty, slot_.parity ^ 1))) {
      hand_over();
      barrier_wait(full, staged_.parity);
      barrier_wait(empty, slot_.parity ^ 1);
    }
    const std::uint32_t from = shared_address(shared_.besides.staged[staged_.slot]) + from_;
    const std::uint32_t to = shared_.slot(slot_.slot) + to_;
#pragma unroll
    for (int keys = 0; keys < kOwnKeys; keys += kWarpSize) {
      std::uint32_t codes[kLoads][4];  // of 8 keys each
      load(codes, from + From::below(keys));
      if (keys == 0) hand_over();
      store(codes, To::chunk(to, keys / kChunkKeys));
    }
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.fixed.staged.empty[staged_.slot]));
    staged_.advance();
    slot_.advance(2);
    has_slot_ = true;
  }

  /// What has been written last is there for products. Comes before anything is waited for that the
  /// computing warps must do.
  __device__ __forceinline__ void hand_over() {
    if (!has_slot_) return;
    has_slot_ = false;
    show_to_products();
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.full[slot_.before().before().slot]));
  }

 private:
  using From = typename C::StagedLayout;
  using To = typename C::ValueLayout;
  static constexpr int kOwnKeys = C::kTileKeys / C::kStagingWarps;
  static constexpr int kChunkKeys = 16;
  static constexpr int kLoads = C::kHeadDimVo / 16;  // of 16 components of 32 keys
  // Bytes of two registers.
  static constexpr std::uint32_t kEven = 0x6420;
  static constexpr std::uint32_t kOdd = 0x7531;

  /// Of 32 keys.
  static __device__ __forceinline__ void load(std::uint32_t (&codes)[kLoads][4],
                                              std::uint32_t from) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) load_matrices_transposed(codes[i], From::chunk(from, i));
  }
  __device__ __forceinline__ void store(const std::uint32_t (&codes)[kLoads][4],
                                        std::uint32_t to) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const std::uint32_t(&c)[4] = codes[i];
      const std::uint32_t second_half = first_half_ ^ kEven ^ kOdd;
      store_matrices(to + To::below(i * 16),
                     {pick(c[0], c[1], first_half_), pick(c[0], c[1], second_half),
                      pick(c[2], c[3], first_half_), pick(c[2], c[3], second_half)});
    }
  }
  static __device__ __forceinline__ std::uint32_t pick(std::uint32_t low, std::uint32_t high,
                                                       std::uint32_t bytes) {
    return mma::widening::select_bytes(low, high, bytes);
  }

  typename C::Large& shared_;
  const int lane_;
  std::uint32_t from_;        // of the lane's row, in a staged tile
  std::uint32_t to_;          // likewise, in a slot
  std::uint32_t first_half_;  // which components come first
  mma::RingPosition<C::kStagedTiles> staged_;
  mma::RingPosition<C::kSlots> slot_{1, 0};
  bool has_slot_ = false;  // the one before is not handed over
};

}  // namespace quire::cuda::sm90
