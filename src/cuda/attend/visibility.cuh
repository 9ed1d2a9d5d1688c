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
      : shape_(params.shape), batch_(params.batch), unit_(unit) {}

  /// Position of the unit's first query.
  __device__ std::int32_t first_position() const { return unit_.lengths.position(unit_.q_begin); }

  /// @return True if every query of the unit sees all keys [begin, end).
  __device__ bool sees_all(std::int32_t begin, std::int32_t end) const {
    if (begin < unit_.kv_begin || end > unit_.kv_end) return false;
    switch (shape_.mask) {
      case Mask::kNone:
        break;
      case Mask::kCausal:
        if (end - 1 > first_position()) return false;
        break;
      case Mask::kTree:
        if (end > unit_.lengths.kv_len - unit_.lengths.qo_len) return false;
        break;
      case Mask::kFull:
        return false;
    }
    return shape_.window_left < 0 ||
           begin >= static_cast<std::int64_t>(unit_.lengths.position(unit_.q_end - 1)) -
                        shape_.window_left;
  }

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
};

/// From a product q·k to a logit in units of log 2.
struct LogitTransform {
  float scale = 1.0F;  // sm_scale · k_scale, and log2 e if there is no soft cap
  float logits_soft_cap = 0.0F;
  bool alibi = false;

  __device__ LogitTransform(const AttendParams& params, std::int32_t kv_head)
      : scale(params.shape.sm_scale),
        logits_soft_cap(params.shape.logits_soft_cap),
        alibi(params.tensors.alibi_slopes != nullptr) {
    if (params.tensors.k_scale != nullptr) {
      scale *= params.tensors.k_scale[kv_head * params.tensors.scale_head_stride];
    }
    if (is_linear()) scale *= kLog2E;
  }

  /// @return True if a logit is the product times `scale` and nothing else.
  __device__ bool is_linear() const { return logits_soft_cap == 0.0F && !alibi; }

  /// Any logit. `slope` and `distance` = |position − key| are for ALiBi.
  __device__ float apply(float product, float slope, float distance) const {
    float logit = product * scale;
    if (logits_soft_cap > 0.0F) logit = logits_soft_cap * tanhf(logit / logits_soft_cap);
    return (logit - slope * distance) * kLog2E;
  }
};

}  // namespace quire::cuda
