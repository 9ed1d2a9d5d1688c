// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which keys a query sees. Causal, window, tree and full masks end here: no kernel knows more of a
/// mask than these functions.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/unit.cuh"
#include "cuda/common/ptx.cuh"

namespace quire::cuda {

/// The mask of one unit.
class Visibility {
 public:
  __device__ Visibility(const AttendParams& params, const Unit& unit)
      : shape_(params.shape), batch_(params.batch), unit_(unit), seen_(keys_seen_by_all()) {}

  /// Position of the unit's first query.
  __device__ std::int32_t first_position() const { return unit_.lengths.position(unit_.q_begin); }

  /// @return True if every query of the unit sees all keys [begin, end).
  __device__ bool sees_all(std::int32_t begin, std::int32_t end) const {
    return begin >= seen_.begin && end <= seen_.end;
  }

  /// Keys that every query of the unit sees.
  __device__ schedule::KeyRange seen_by_all() const { return seen_; }

  /// @return True if query `query` of the request sees key `key`.
  __device__ bool sees(std::int32_t query, std::int32_t key) const {
    if (key < unit_.kv_begin || key >= unit_.kv_end || query >= unit_.q_end) return false;
    const std::int32_t position = unit_.lengths.position(query);
    if (shape_.window_left >= 0 && key < static_cast<std::int64_t>(position) - shape_.window_left) {
      return false;
    }
    switch (shape_.mask) {
      case Mask::kNone:
        return true;
      case Mask::kCausal:
        return key <= position;
      case Mask::kTree:
        return sees_node(query, key - (unit_.lengths.kv_len - unit_.lengths.qo_len));
      case Mask::kFull:
        return bit_of_full_mask(query, key);
    }
    return false;
  }

 private:
  __device__ schedule::KeyRange keys_seen_by_all() const {
    schedule::KeyRange seen{unit_.kv_begin, unit_.kv_end};
    switch (shape_.mask) {
      case Mask::kNone:
        break;
      case Mask::kCausal:
        seen.end = min(seen.end, first_position() + 1);
        break;
      case Mask::kTree:
        seen.end = min(seen.end, unit_.lengths.kv_len - unit_.lengths.qo_len);
        break;
      case Mask::kFull:
        seen.end = 0;
        break;
    }
    if (shape_.window_left >= 0) {
      const std::int32_t last = unit_.lengths.position(unit_.q_end - 1);
      seen.begin = max(seen.begin, last - min(last, shape_.window_left));
    }
    return seen;
  }

  __device__ bool sees_node(std::int32_t query, std::int32_t node) const {
    constexpr std::int32_t kWordBits = 32;
    if (node < 0) return true;  // an earlier key
    const std::int64_t row = static_cast<std::int64_t>(batch_.qo_indptr[unit_.seq]) + query;
    const std::uint32_t word = batch_.tree_mask[row * batch_.tree_mask_stride + node / kWordBits];
    return (word >> (node % kWordBits) & 1U) != 0;
  }

  __device__ bool bit_of_full_mask(std::int32_t query, std::int32_t key) const {
    constexpr std::int64_t kByteBits = 8;
    const std::int64_t bit = static_cast<std::int64_t>(query) * unit_.lengths.kv_len + key;
    const std::uint8_t* bytes = batch_.full_mask + batch_.full_mask_indptr[unit_.seq];
    return (bytes[bit / kByteBits] >> (bit % kByteBits) & 1) != 0;
  }

  const core::ProblemShape& shape_;
  const core::BatchArrays& batch_;
  const Unit& unit_;
  const schedule::KeyRange seen_;
};

/// Of 8-bit K.
__device__ inline float key_scale(const AttendParams& params, std::int32_t kv_head) {
  const core::LayerTensors& tensors = params.tensors;
  return tensors.k_scale == nullptr ? 1.0F : tensors.k_scale[kv_head * tensors.scale_head_stride];
}

/// Of 8-bit q; what a row is multiplied by besides.
__device__ inline float query_scale(const AttendParams& params, std::int32_t head) {
  const core::LayerTensors& tensors = params.tensors;
  return tensors.q_scale == nullptr ? 1.0F : tensors.q_scale[head * tensors.q_scale_head_stride];
}

/// From a product q·k to a logit in units of log 2.
class LogitTransform {
 public:
  __device__ LogitTransform(const AttendParams& params, std::int32_t kv_head)
      : params_(params), cap_(params.shape.logits_soft_cap) {
    const float scale = params.shape.sm_scale * key_scale(params, kv_head);
    scale_ = cap_ > 0.0F ? scale / cap_ : scale * kLog2E;
  }

  /// @return True if a logit is the product times `scale()` and nothing else.
  __device__ bool is_linear() const { return opaque(params_.has_linear_logits) != 0; }
  __device__ float scale() const { return scale_; }
  __device__ bool has_cap() const { return cap_ > 0.0F; }

  /// Scale and soft cap.
  template <bool kExact>
  __device__ float capped(float product) const {
    const float x = product * scale_;
    if (!has_cap()) return x;
    return cap_ * kLog2E * (kExact ? tanhf(x) : tanh_fast(x));
  }
  /// What ALiBi takes away; `distance` is |position − key|.
  static __device__ float alibi(float slope, std::int32_t distance) {
    return slope * kLog2E * static_cast<float>(abs(distance));
  }

 private:
  /// Within some 1e-7 of tanh.
  static __device__ float tanh_fast(float x) {
    return 1.0F - __fdividef(2.0F, exp2_fast(2.0F * kLog2E * x) + 1.0F);
  }

  const AttendParams& params_;
  float cap_;
  float scale_;
};

}  // namespace quire::cuda
