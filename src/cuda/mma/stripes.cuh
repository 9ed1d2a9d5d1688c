// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warps on units of up to 16 rows over K and V of 8 bits: of each tile a warp has a
/// stripe of 16 keys to itself (`OwnKeys`), since tiles come so fast that to agree about each of them
/// would take longer than to load it.
#pragma once

#include "cuda/attend/results.cuh"
#include "cuda/attend/unit_end.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/column_results.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/own_keys.cuh"

namespace quire::cuda::mma {

/// One unit, or piece of one, of at most 16 rows.
template <typename C>
class StripeAttention : OwnKeys<C, kConsumerWarps> {
 public:
  __device__ StripeAttention(ConsumerState<C>& state, const Unit& unit) : Base(state, unit) {}

  /// @return Whether results are final, or those of others are to be waited for.
  __device__ bool run() {
    OtherResults others;
    if (warp_ == 0) others.ask(params_, unit_, lane_);
    this->attend_tiles();
    join_keys();
    typename Results::P::Columns o;
#pragma unroll
    for (int tile = 0; tile < kJoinedTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[0][tile][i] = o_[0][tile][i];
    }
    const float max[1][2] = {{max_[0], max_[1]}};
    const float sum[1][2] = {{sum_[0], sum_[1]}};
    return Results(state_, unit_, warp_, lane_, o, max, sum, others).finish();
  }

 private:
  using Base = OwnKeys<C, kConsumerWarps>;
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
  using Results = ColumnResults<C, 1>;
  static constexpr int kJoinedTiles = Results::P::kColumnTiles;  // of a warp in the end
  static_assert(Base::P::kColumnTiles == kConsumerWarps * kJoinedTiles);

  /// Joins the results of all stripes: each warp gets a quarter of the columns, of which it has the
  /// first `kJoinedTiles` tiles then.
  __device__ void join_keys() {
    state_.wait_at(kUnitEnd);  // nobody reads what the unit before left in shared memory
    join_maxima();
    const auto wait = [&] { state_.wait_at(kMaximaWritten); };
    this->template exchange_halves<2 * kJoinedTiles>(warp_ ^ 2, warp_ < 2, wait);
    this->template exchange_halves<kJoinedTiles>(warp_ ^ 1, warp_ % 2 == 0, wait);
  }

  /// Maxima of the rows over all keys; sums and o relative to them.
  __device__ void join_maxima() {
    if (quad_ == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        shared_.fixed.maxima[row_of(0, half)][warp_] = max_[half];
      }
    }
    state_.wait_at(kMaximaWritten);
    float max[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 of_warps =
          *reinterpret_cast<const float4*>(shared_.fixed.maxima[row_of(0, half)]);
      max[half] = fmaxf(fmaxf(of_warps.x, of_warps.y), fmaxf(of_warps.z, of_warps.w));
    }
    this->scale_to(max);
  }
};

}  // namespace quire::cuda::mma
