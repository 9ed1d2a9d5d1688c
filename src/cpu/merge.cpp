// SPDX-License-Identifier: Apache-2.0
// Partial results over disjoint keys into the result over all of them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/backend.hpp"
#include "cpu/tier.hpp"

namespace quire::cpu {
namespace {

constexpr double kNoKey = -std::numeric_limits<double>::infinity();
constexpr std::int64_t kRowsPerTask = 16;
/// Elements of o_parts below which the caller merges alone.
constexpr std::int64_t kSmallElements = 64 * 1024;
constexpr std::int64_t kChunk = 256;  // elements of a row at a time

struct MergeContext {
  const Tier& tier;
  const core::MergeArrays& arrays;

  [[nodiscard]] double part_lse(std::int64_t part, std::int64_t row, std::int64_t head) const {
    return arrays.lse_parts[part * arrays.lse_part_stride + row * arrays.lse_part_token_stride +
                            head * arrays.lse_part_head_stride];
  }

  [[nodiscard]] double merged_lse(std::int64_t row, std::int64_t head) const {
    double top = kNoKey;
    for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
      top = std::max(top, part_lse(part, row, head));
    }
    if (top == kNoKey) return kNoKey;
    double sum = 0.0;
    for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
      sum += std::exp(part_lse(part, row, head) - top);
    }
    return top + std::log(sum);
  }

  /// Parts without keys are not touched: what stands in their o means nothing.
  void merge_chunk(std::int64_t row, std::int64_t head, std::int64_t at, double lse) const {
    float sum[kChunk] = {};
    const std::int64_t count = std::min<std::int64_t>(kChunk, arrays.head_dim - at);
    for (std::int64_t part = 0; part < arrays.num_parts; ++part) {
      const double own_lse = part_lse(part, row, head);
      if (own_lse == kNoKey) continue;
      const std::int64_t offset = part * arrays.o_part_stride + row * arrays.o_part_token_stride +
                                  head * arrays.o_part_head_stride + at;
      const auto* from = static_cast<const std::byte*>(arrays.o_parts) +
                         offset * static_cast<std::int64_t>(size_of(arrays.part_dtype));
      tier.add_row(sum, from, arrays.part_dtype, count,
                   static_cast<float>(std::exp(own_lse - lse)));
    }
    const std::int64_t offset = row * arrays.o.token_stride + head * arrays.o.head_stride + at;
    tier.store_row(static_cast<std::byte*>(arrays.o.data) +
                       offset * static_cast<std::int64_t>(size_of(arrays.o_dtype)),
                   arrays.o_dtype, sum, count, 1.0F);
  }

  void merge_rows(std::int64_t first, std::int64_t last) const {
    for (std::int64_t row = first; row < last; ++row) {
      for (std::int64_t head = 0; head < arrays.num_heads; ++head) {
        const double lse = merged_lse(row, head);
        for (std::int64_t at = 0; at < arrays.head_dim; at += kChunk) {
          merge_chunk(row, head, at, lse);
        }
        if (arrays.lse != nullptr) {
          arrays.lse[row * arrays.lse_token_stride + head * arrays.lse_head_stride] =
              static_cast<float>(lse);
        }
      }
    }
  }
};

}  // namespace

Status merge_states(const core::MergeArrays& arrays, Executor* executor) noexcept {
  MergeContext context{row_tier(), arrays};
  const std::int64_t elements =
      arrays.num_parts * arrays.num_rows * arrays.num_heads * arrays.head_dim;
  if (elements <= kSmallElements) {
    context.merge_rows(0, arrays.num_rows);
    return {};
  }
  executor->parallel(
      static_cast<std::int32_t>((arrays.num_rows + kRowsPerTask - 1) / kRowsPerTask),
      [](void* opaque, std::int32_t task) noexcept {
        const auto& call = *static_cast<const MergeContext*>(opaque);
        const std::int64_t first = task * kRowsPerTask;
        call.merge_rows(first, std::min(first + kRowsPerTask, call.arrays.num_rows));
      },
      &context);
  return {};
}

}  // namespace quire::cpu
