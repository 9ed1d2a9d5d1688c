// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warps on units of 17 to 32 rows, where registers hold all columns of o: of each tile
/// a warp has half of the rows and half of the keys to itself (`OwnKeys`). K and V are read from shared
/// memory twice, but q (of up to 128 components) only once.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/own_keys.cuh"

namespace quire::cuda::mma {

/// One unit, or piece of one, of at most 32 rows.
template <typename C>
class QuarterAttention : OwnKeys<C, 2> {
 public:
  __device__ QuarterAttention(ConsumerState<C>& state, const Unit& unit) : Base(state, unit) {}

  /// @return Whether results are final, or those of others are to be waited for.
  __device__ bool run() {
    this->attend_tiles();
    join_keys();
    if (unit_.num_pieces > 1 || unit_.leaves_states()) {
      store_partial();
      return false;
    }
    store_final();
    return true;
  }

 private:
  using Base = OwnKeys<C, 2>;
  using Base::lane_;
  using Base::max_;
  using Base::o_;
  using Base::params_;
  using Base::quad_;
  using Base::row_of;
  using Base::shared_;
  using Base::state_;
  using Base::sum_;
  using Base::unit_;
  using Base::warp_;
  using typename Base::P;
  static constexpr int kJoinedTiles = P::kColumnTiles / 2;  // of a warp in the end
  static_assert(P::kColumnTiles % 2 == 0);

  /// Which half of the keys the warp has, and which half of the columns of o in the end.
  __device__ int half_of_pair() const { return warp_ % 2; }

  /// Waits for the warp with the same rows.
  __device__ void wait_for_pair() const {
    if (warp_ < 2) {
      named_barrier<2 * kWarpSize>(state_.first_barrier + kLowRows);
    } else {
      named_barrier<2 * kWarpSize>(state_.first_barrier + kHighRows);
    }
  }

  /// Joins the results of both halves of the keys: each of the two warps gets half of the columns, of
  /// which it has the first `kJoinedTiles` tiles then.
  __device__ void join_keys() {
    state_.wait_at(kUnitEnd);  // nobody reads what the unit before left in shared memory
    join_states();
    this->template exchange_halves<kJoinedTiles>(warp_ ^ 1, half_of_pair() == 0,
                                                 [&] { wait_for_pair(); });
  }

  /// Maxima and sums of the rows over all keys; o relative to them.
  __device__ void join_states() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum_[half] += __shfl_xor_sync(kAllLanes, sum_[half], 1);
      sum_[half] += __shfl_xor_sync(kAllLanes, sum_[half], 2);
      if (quad_ != 0) continue;
      shared_.fixed.maxima[row_of(0, half)][half_of_pair()] = max_[half];
      shared_.fixed.sums[row_of(0, half)][half_of_pair()] = sum_[half];
    }
    wait_for_pair();
    float max[2];
    float other_sum[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float other_max = shared_.fixed.maxima[row_of(0, half)][half_of_pair() ^ 1];
      max[half] = fmaxf(max_[half], other_max);
      const float base = max[half] == kNoKey ? 0.0F : max[half];
      other_sum[half] = __fmul_rn(shared_.fixed.sums[row_of(0, half)][half_of_pair() ^ 1],
                                  exp2_fast(other_max - base));
    }
    this->scale_to(max);
    // Not contracted: both warps get the same bits.
    sum_[0] = __fadd_rn(sum_[0], other_sum[0]);
    sum_[1] = __fadd_rn(sum_[1], other_sum[1]);
  }

  /// Of the warp's columns of o in the end, the first that this thread holds.
  __device__ int first_column() const { return half_of_pair() * kJoinedTiles * 8 + quad_ * 2; }

  __device__ void store_final() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(0, half) >= unit_.rows) continue;
      const RowTarget target = row_target(params_, unit_, row_of(0, half));
      const RowResult result = result_of(params_, target.head, max_[half], sum_[half]);
      if (first_column() == 0) store_lse(params_, target, result);
#pragma unroll
      for (int i = 0; i < kJoinedTiles; ++i) {
        const float pair[2] = {o_[0][i][2 * half] * result.o_scale,
                               o_[0][i][2 * half + 1] * result.o_scale};
        store_o<typename C::Output>(params_, target, first_column() + i * 8, pair);
      }
    }
  }

  __device__ void store_partial() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(0, half) >= unit_.rows) continue;
      const std::int32_t to = partial_row<schedule::kSmallUnits>(params_, unit_, row_of(0, half));
      if (first_column() == 0) {
        params_.partials.max_and_sum[to] = make_float2(max_[half], sum_[half]);
      }
      float* const o = params_.partials.o + to * C::kHeadDimVo + first_column();
#pragma unroll
      for (int i = 0; i < kJoinedTiles; ++i) {
        store_pair(o + i * 8, o_[0][i][2 * half], o_[0][i][2 * half + 1]);
      }
    }
  }
};

}  // namespace quire::cuda::mma
