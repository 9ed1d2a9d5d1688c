// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the warps of a block hear of its large units: one warp finds them and puts them into a short
/// queue in shared memory, from which the others read them, each at its own pace.
#pragma once

#include <cstdint>
#include <new>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/attend/visibility.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/tile_stream.cuh"
#include "cuda/sm90/config.cuh"

namespace quire::cuda::sm90 {

/// Which shares of large units a block takes; each share is one block's. If there are no more of
/// them than blocks, one. Otherwise two, one after another: an even one and, where heads go abreast
/// in pairs, the next head's of the neighbouring range. So at any time half of the heads are read,
/// which stay in the second-level cache; and a range tends to be short where its neighbour is long,
/// since cuts between them are rounded to whole units.
class LargeShares {
 public:
  __device__ LargeShares(const AttendParams& params, const schedule::Overview& overview)
      : num_ranges_(overview.num_ranges[schedule::kLargeUnits]),
        heads_abreast_(params.policy.lines[schedule::kLargeUnits].heads_abreast) {
    const std::int32_t total = num_ranges_ * heads_abreast_;
    const auto block = static_cast<std::int32_t>(blockIdx.x);
    const std::int32_t workers =
        overview.large_workers > 0 ? overview.large_workers : static_cast<std::int32_t>(gridDim.x);
    const std::int32_t most = total <= workers ? 1 : kSharesPerBlock;
    first_ = block * most;
    count_ = min(most, max(0, total - first_));
  }

  [[nodiscard]] __device__ std::int32_t count() const { return count_; }
  [[nodiscard]] __device__ std::int32_t operator[](std::int32_t i) const {
    const std::int32_t share = first_ + i;
    if (i == 0 || heads_abreast_ % kSharesPerBlock != 0) return share;  // no pairs of heads
    const std::int32_t neighbour = (share / heads_abreast_) ^ 1;
    return neighbour < num_ranges_ ? neighbour * heads_abreast_ + share % heads_abreast_ : share;
  }

 private:
  std::int32_t num_ranges_;
  std::int32_t heads_abreast_;
  std::int32_t first_;
  std::int32_t count_;
};

/// The large units of the block's shares, one after another.
class UnitFinder {
 public:
  __device__ UnitFinder(const AttendParams& params, const schedule::Overview& overview)
      : params_(params),
        shares_(params, overview),
        cursor_(params, shares_.count() > 0 ? shares_[0] : 0) {}

  /// Without rows at the end.
  __device__ __forceinline__ Unit next() {
#pragma unroll 1
    while (share_ < shares_.count()) {
      const Unit unit = cursor_.next();
      if (unit.rows > 0) return unit;
      if (++share_ < shares_.count()) {
        new (&cursor_) UnitCursor<schedule::kLargeUnits>(params_, shares_[share_]);
      }
    }
    return {};
  }

 private:
  const AttendParams& params_;
  const LargeShares shares_;
  UnitCursor<schedule::kLargeUnits> cursor_;
  std::int32_t share_ = 0;
};

/// Where one warp puts units and all others read them.
///
/// A unit is **plain** if all that has to be done for it is what most need: logits are products
/// times a positive number, without sinks, the mask is causal or none, with or without a window, K and
/// V of 16 bits have no scales, K and V come in boxes (but where `WideningLoader` copies them), final rows of o are written
/// in boxes, and lse is not asked for. The code for those has nothing else in between, since jumps make
/// the machine wait for instructions.
template <typename C>
class UnitQueue {
 public:
  __device__ UnitQueue(const AttendParams& params, const TileMaps& maps, typename C::Fixed& shared,
                       int lane)
      : params_(params), shared_(shared), lane_(lane), is_plain_(are_plain(params, maps)) {}

  /// @param next  Gives the unit, in the first lane.
  template <typename Next>
  __device__ __forceinline__ void put(const Next& next) {
    barrier_wait(shared_address(&shared_.units_empty[at_.slot]), at_.parity ^ 1);
    if (lane_ == 0) {
      shared_.units[at_.slot] = large(next());
      barrier_arrive(shared_address(&shared_.units_full[at_.slot]));
    }
    __syncwarp();
    at_.advance();
  }

 private:
  /// Whether units can be plain, whatever else they are.
  static __device__ bool are_plain(const AttendParams& params, const TileMaps& maps) {
    const core::ProblemShape& shape = params.shape;
    const core::LayerTensors& tensors = params.tensors;
    return shape.sm_scale > 0.0F && shape.logits_soft_cap == 0.0F &&
           (shape.mask == Mask::kCausal || shape.mask == Mask::kNone) &&
           tensors.alibi_slopes == nullptr && tensors.sinks == nullptr && tensors.lse == nullptr &&
           (C::kIsNarrow || (tensors.k_scale == nullptr && tensors.v_scale == nullptr)) &&
           (C::kWidens || maps.has_kv) && maps.has_results;
  }

  [[nodiscard]] __device__ __forceinline__ LargeUnit large(const Unit& unit) const {
    LargeUnit large{unit};
    large.first_key = mma::first_tile_key<C::kTileKeys>(unit.kv_begin);
    large.last_key =
        large.first_key + (unit.kv_end - large.first_key - 1) / C::kTileKeys * C::kTileKeys;
    large.is_plain = is_plain_ && unit.rows % kBoxResults == 0 && !unit.leaves_states() &&
                     !unit.sees_nothing() &&
                     (unit.kv_begin == large.first_key || params_.shape.window_left >= 0);
    if constexpr (C::kIsNarrow) {
      large.is_plain = large.is_plain && key_scale(params_, unit.kv_head_begin) > 0.0F;
    }
    return large;
  }

  const AttendParams& params_;
  typename C::Fixed& shared_;
  const int lane_;
  const bool is_plain_;
  mma::RingPosition<C::kUnits> at_;
};

/// Puts all large units of the block's shares into the queue, and one without rows behind them.
template <typename C>
__device__ __forceinline__ void find_units(const AttendParams& params, const TileMaps& maps,
                                           const schedule::Overview& overview,
                                           typename C::Fixed& shared, int lane) {
  UnitFinder finder(params, overview);
  UnitQueue<C> queue(params, maps, shared, lane);
  Unit unit;
#pragma unroll 1
  do {
    unit = finder.next();
    queue.put([&] { return unit; });
  } while (unit.rows > 0);
}

/// Finds units one at a time, in one of the warps, which has no registers for that: all that must be
/// kept is in shared memory.
template <typename C>
class UnitSource {
 public:
  __device__ UnitSource(const AttendParams& params, const TileMaps& maps,
                        const schedule::Overview& overview, typename C::FinderMemory& memory,
                        typename C::Fixed& shared, bool finds, int lane)
      : finder_(*reinterpret_cast<UnitFinder*>(memory.bytes)),
        queue_(params, maps, shared, lane),
        finds_(finds) {
    static_assert(sizeof(UnitFinder) <= sizeof(memory.bytes));
    if (finds && lane == 0) new (&finder_) UnitFinder(params, overview);
  }

  __device__ void put_next() {
    if (finds_) queue_.put([&] { return finder_.next(); });
  }

 private:
  UnitFinder& finder_;
  UnitQueue<C> queue_;
  const bool finds_;
};

/// A warp's view of the queue: a unit and the next one, like `mma::UnitWalk`.
template <typename C>
class UnitReader {
 public:
  __device__ UnitReader(typename C::Fixed& shared, int lane) : shared_(shared), lane_(lane) {
    wait_for_next();
  }

  [[nodiscard]] __device__ const LargeUnit& now() const { return shared_.units[now_.slot]; }
  [[nodiscard]] __device__ const Unit& next() const { return shared_.units[next_.slot]; }
  __device__ void find_next() {
    next_.advance();
    wait_for_next();
  }
  __device__ void step() {
    if (now_.slot != next_.slot) release();
    now_ = next_;
  }

 private:
  __device__ void wait_for_next() const {
    barrier_wait(shared_address(&shared_.units_full[next_.slot]), next_.parity);
  }
  __device__ void release() const {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.units_empty[now_.slot]));
  }

  typename C::Fixed& shared_;
  const int lane_;
  mma::RingPosition<C::kUnits> now_;
  mma::RingPosition<C::kUnits> next_;
};

}  // namespace quire::cuda::sm90
