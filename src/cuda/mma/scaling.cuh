// SPDX-License-Identifier: Apache-2.0
/// @file
/// What scores and weights of 8-bit K and V are multiplied by: factors of the rows of q, which are
/// powers of two, and scales per token. Scales per tensor and per head are part of `LogitTransform`
/// and `RowResult`, as for every cache.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/visibility.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/products.cuh"

namespace quire::cuda::mma {

/// Of one thread's fragments.
/// @tparam F  Their shapes.
template <typename C, typename F>
class Scaling {
 public:
  /// Weights are stored as fp16, which has few numbers below 1: the largest of a row (over a warp's keys, where it has its own) is stored as
  /// 2^kWeightShift.
  static constexpr float kWeightShift = 15.0F;

  __device__ explicit Scaling(const AttendParams& params)
      : is_per_token_(params.tensors.k_token_scale.data != nullptr) {}

  [[nodiscard]] __device__ bool is_per_token() const { return C::kHasTokenScales && is_per_token_; }

  /// At a unit's begin. Rows take the logits' scale in, if that is all that logits need.
  /// @param factors  Of all rows of the unit.
  __device__ void take_rows(const float* factors, const LogitTransform& logits, int lane) {
    const float scale = logits.is_linear() ? logits.scale() : 1.0F;
#pragma unroll
    for (int tile = 0; tile < F::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        of_rows_[tile][half] = scale * factors[tile * 16 + half * 8 + lane / 4];
      }
    }
  }

  /// Scales of the tile's tokens, while its K is there: those of K meet the scores at once.
  __device__ void take_tile(typename F::Scores& scores, std::uint32_t slot, int first_key,
                            int lane) {
    const std::uint32_t at =
        slot + static_cast<std::uint32_t>(C::kScalesBegin + (first_key + lane % 4 * 2) *
                                                                static_cast<int>(sizeof(float)));
#pragma unroll
    for (int keys = 0; keys < F::kKeyTiles; ++keys) {
      const std::uint32_t place = at + static_cast<std::uint32_t>(keys * 8 * sizeof(float));
      const float2 of_keys = load_shared_pair(place);
      of_values_[keys] = load_shared_pair(place + C::kScaleBytes);
#pragma unroll
      for (int tile = 0; tile < F::kRowTiles; ++tile) {
        scores[tile][keys][0] *= of_keys.x;
        scores[tile][keys][1] *= of_keys.y;
        scores[tile][keys][2] *= of_keys.x;
        scores[tile][keys][3] *= of_keys.y;
      }
    }
  }

  __device__ void scale_rows(typename F::Scores& scores) const {
#pragma unroll
    for (int tile = 0; tile < F::kRowTiles; ++tile) {
#pragma unroll
      for (int keys = 0; keys < F::kKeyTiles; ++keys) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[tile][keys][i] *= of_rows_[tile][i / 2];
      }
    }
  }

  /// What a logit is raised by where the row's maximum is sought, such that no weight times its
  /// scale exceeds 2^kWeightShift: log 2 of the scale, but not less than that of a tiny one.
  [[nodiscard]] __device__ float2 raise_of(int keys) const {
    return {log2_of(of_values_[keys].x), log2_of(of_values_[keys].y)};
  }
  /// Of weights, of one row tile.
  __device__ void scale_weights(typename F::Scores& weights) const {
#pragma unroll
    for (int keys = 0; keys < F::kKeyTiles; ++keys) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[0][keys][i] *= i % 2 == 0 ? of_values_[keys].x : of_values_[keys].y;
      }
    }
  }
  /// Scales of the values of two keys.
  [[nodiscard]] __device__ float2 of_values(int keys) const { return of_values_[keys]; }

 private:
  static constexpr float kTiny = 0x1p-60F;

  static __device__ float log2_of(float scale) { return __log2f(fmaxf(scale, kTiny)); }
  static __device__ float2 load_shared_pair(std::uint32_t from) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(pair.x), "=f"(pair.y)
                 : "r"(from)
                 : "memory");
    return pair;
  }

  const bool is_per_token_;
  float of_rows_[F::kRowTiles][2];
  float2 of_values_[F::kKeyTiles];  // of the tile's
};

}  // namespace quire::cuda::mma
