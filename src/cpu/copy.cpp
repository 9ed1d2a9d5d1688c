// SPDX-License-Identifier: Apache-2.0
// Copy plans on caches in host memory.
#include <cstring>

#include "core/backend.hpp"
#include "core/copies.hpp"

namespace quire::cpu {
namespace {

/// The tokens of an op of all heads, in as few pieces as the strides allow.
void copy_page(const CopyOp& op, const core::CopyRows& rows, KvLayout layout) {
  if (rows.empty() || op.tokens == 0) return;
  struct Axis {
    std::int64_t size, src_stride, dst_stride;
  };
  const Axis tokens{op.tokens, rows.src.token_stride, rows.dst.token_stride};
  const Axis heads{rows.num_heads, rows.src.head_stride, rows.dst.head_stride};
  const Axis& outer = layout == KvLayout::kNHD ? tokens : heads;
  Axis inner = layout == KvLayout::kNHD ? heads : tokens;
  std::int64_t piece = rows.row_bytes;
  if (inner.src_stride == piece && inner.dst_stride == piece) {  // rows follow one another
    piece *= inner.size;
    inner.size = 1;
  }
  const std::byte* const src =
      rows.src.data + op.src * rows.src.page_stride + op.src_begin * rows.src.token_stride;
  std::byte* const dst =
      rows.dst.data + op.dst * rows.dst.page_stride + op.dst_begin * rows.dst.token_stride;
  for (std::int64_t i = 0; i < outer.size; ++i) {
    for (std::int64_t j = 0; j < inner.size; ++j) {
      std::memcpy(dst + i * outer.dst_stride + j * inner.dst_stride,
                  src + i * outer.src_stride + j * inner.src_stride,
                  static_cast<std::size_t>(piece));
    }
  }
}

}  // namespace

void execute_copies(KvLayout layout, std::span<const CopyOp> copies,
                    std::span<const CopyTensors> caches) noexcept {
  for (const CopyTensors& tensors : caches) {
    const core::CopyRows rows = core::rows_of(tensors, layout);
    for (const CopyOp& op : copies) copy_page(op, rows, layout);
  }
}

}  // namespace quire::cpu
