// SPDX-License-Identifier: Apache-2.0
#include "cpu/finish.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

namespace quire::cpu {
namespace {

constexpr float kNoKey = -std::numeric_limits<float>::infinity();

/// What a row's state becomes in the end.
struct RowResult {
  float o_scale = 0.0F;
  float lse = kNoKey;
};

/// @param sink In units of log 2; −inf: none.
/// @param with_lse  Powers and logarithms cost as much as storing the row.
RowResult result_of(float max, float sum, double sink, bool with_lse) {
  if (max == kNoKey) return {};
  if (sink == kNoKey && !with_lse) return {1.0F / sum, kNoKey};
  const double top = std::max<double>(max, sink);
  const double weight = std::exp2(max - top);
  const double denominator = sum * weight + std::exp2(sink - top);
  return {static_cast<float>(weight / denominator),
          static_cast<float>(top * std::numbers::ln2 + std::log(denominator))};
}

void* o_row(const core::ProblemShape& shape, const core::LayerTensors& tensors, std::int64_t token,
            std::int64_t head) {
  const std::int64_t offset = token * tensors.o.token_stride + head * tensors.o.head_stride;
  return static_cast<std::byte*>(tensors.o.data) +
         offset * static_cast<std::int64_t>(size_of(shape.o_dtype));
}

void write_lse(const core::LayerTensors& tensors, std::int64_t token, std::int64_t head,
               float value) {
  if (tensors.lse == nullptr) return;
  tensors.lse[token * tensors.lse_token_stride + head * tensors.lse_head_stride] = value;
}

}  // namespace

void clear_states(const ItemTask& task) {
  const auto rows = static_cast<std::ptrdiff_t>(task.rows());
  std::fill_n(task.states.max, rows, kNoKey);
  std::fill_n(task.states.sum, rows, 0.0F);
  std::fill_n(task.states.o, rows * padded(task.shape.head_dim_vo), 0.0F);
}

void add_piece(const Tier& tier, const ItemTask& task, const RowStates& piece) {
  const std::int32_t head_dim = task.shape.head_dim_vo;
  const std::ptrdiff_t stride = padded(head_dim);
  for (std::ptrdiff_t row = 0; row < task.rows(); ++row) {
    if (piece.max[row] == kNoKey) continue;
    float* o = task.states.o + row * stride;
    float& max = task.states.max[row];
    float& sum = task.states.sum[row];
    const float top = std::max(max, piece.max[row]);
    const float own_weight = std::exp2(max - top);
    const float piece_weight = std::exp2(piece.max[row] - top);
    tier.store_row(o, DType::kFloat32, o, head_dim, own_weight);
    tier.add_row(o, piece.o + row * stride, DType::kFloat32, head_dim, piece_weight);
    sum = sum * own_weight + piece.sum[row] * piece_weight;
    max = top;
  }
}

void write_results(const Tier& tier, const ItemTask& task) {
  const std::int32_t group = task.shape.group_size;
  std::ptrdiff_t row = 0;
  for (std::int32_t kv_head = task.item.kv_head_begin; kv_head < task.item.kv_head_end; ++kv_head) {
    for (std::int32_t query = 0; query < task.num_queries(); ++query) {
      for (std::int32_t member = 0; member < group; ++member, ++row) {
        write_row(tier, task, task.token_of(query), std::int64_t{kv_head} * group + member,
                  {task.states.o + row * padded(task.shape.head_dim_vo), task.states.max[row],
                   task.states.sum[row]});
      }
    }
  }
}

void write_row(const Tier& tier, const ItemTask& task, std::int64_t token, std::int64_t head,
               const RowState& state) {
  const core::ProblemShape& shape = task.shape;
  const core::LayerTensors& tensors = task.tensors;
  const float v_scale = tensors.v_scale != nullptr
                            ? tensors.v_scale[head / shape.group_size * tensors.scale_head_stride]
                            : 1.0F;
  const double sink = tensors.sinks != nullptr ? tensors.sinks[head] * std::numbers::log2e
                                               : -std::numeric_limits<double>::infinity();
  const RowResult result = result_of(state.max, state.sum, sink, tensors.lse != nullptr);
  tier.store_row(o_row(shape, tensors, token, head), shape.o_dtype, state.o, shape.head_dim_vo,
                 result.o_scale * v_scale);
  write_lse(tensors, token, head, result.lse);
}

void write_nothing(const core::ProblemShape& shape, const core::LayerTensors& tensors,
                   std::int64_t first, std::int64_t last) {
  const std::size_t bytes = static_cast<std::size_t>(shape.head_dim_vo) * size_of(shape.o_dtype);
  for (std::int64_t token = first; token < last; ++token) {
    for (std::int64_t head = 0; head < shape.num_qo_heads; ++head) {
      std::memset(o_row(shape, tensors, token, head), 0, bytes);  // 0 in every dtype of o
      write_lse(tensors, token, head, kNoKey);
    }
  }
}

}  // namespace quire::cpu
