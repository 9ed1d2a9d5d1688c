// SPDX-License-Identifier: Apache-2.0
#include "cuda/copy/launch.hpp"

#include <bit>

namespace quire::cuda {

std::int64_t piece_bytes(const core::CopyRows& rows) noexcept {
  std::uint64_t bits = static_cast<std::uint64_t>(rows.row_bytes) |
                       std::bit_cast<std::uint64_t>(rows.src.data) |
                       std::bit_cast<std::uint64_t>(rows.dst.data);
  for (const std::int64_t stride :
       {rows.src.page_stride, rows.src.token_stride, rows.src.head_stride, rows.dst.page_stride,
        rows.dst.token_stride, rows.dst.head_stride}) {
    bits |= static_cast<std::uint64_t>(stride);
  }
  constexpr std::int64_t kVectorBytes = sizeof(uint4);
  return bits % kVectorBytes == 0 ? kVectorBytes : 1;
}

void CopyLaunch::add(const core::CopyRows& rows) noexcept {
  const std::uint32_t cache = params_.num_caches++;
  params_.caches[cache] = rows;
  const std::int64_t piece = piece_bytes(rows);
  if (piece > 1) params_.aligned_caches |= 1U << cache;
  pieces_of_token_ = std::max(pieces_of_token_, rows.num_heads * (rows.row_bytes / piece));
}

void CopyLaunch::set_ops(std::span<const CopyOp> ops) noexcept {
  std::ranges::copy(ops, params_.ops);
  params_.num_ops = static_cast<std::uint32_t>(ops.size());
  const std::int32_t most_tokens = std::ranges::max_element(ops, {}, &CopyOp::tokens)->tokens;
  params_.parts_per_op =
      static_cast<std::uint32_t>((most_tokens * pieces_of_token_ + kPartPieces - 1) / kPartPieces);
}

}  // namespace quire::cuda
