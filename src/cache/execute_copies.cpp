// SPDX-License-Identifier: Apache-2.0
// Copy plans on a cache in host memory.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cache/failure.hpp"
#include "core/expect.hpp"
#include "quire/page_table.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;

constexpr std::int32_t kPageAxis = 0;
constexpr std::int32_t kDimAxis = 3;

std::int32_t token_axis(KvLayout layout) noexcept { return layout == KvLayout::kNHD ? 1 : 2; }

Status check_cache(const MutableTensorView& cache, KvLayout layout) noexcept {
  if (layout != KvLayout::kNHD && layout != KvLayout::kHND) {
    return failure(ErrorCode::kInvalidArgument,
                   "[execute_copies] layout: expected NHD (0) or HND (1), got {}",
                   static_cast<std::int32_t>(layout));
  }
  const core::Extent any = core::any_extent();
  return core::expect_writable(cache, {.operation = "execute_copies",
                                       .name = "cache",
                                       .dtypes = {},
                                       .shape = {any, any, any, any},
                                       .device = Device::cpu()});
}

Status check_copy(const CopyOp& op, std::size_t index, const MutableTensorView& cache,
                  KvLayout layout) noexcept {
  const std::int64_t num_pages = cache.size(kPageAxis);
  const std::int64_t page_size = cache.size(token_axis(layout));
  for (const PageId page : {op.src, op.dst}) {
    if (page >= 0 && page < num_pages) continue;
    return failure(ErrorCode::kInvalidArgument,
                   "[execute_copies] copies[{}]: expected pages in [0, {}), got {}", index,
                   num_pages, page);
  }
  if (op.src == op.dst) {
    return failure(ErrorCode::kInvalidArgument,
                   "[execute_copies] copies[{}]: expected two different pages, got page {} twice",
                   index, op.src);
  }
  if (op.tokens < 0 || op.tokens > page_size) {
    return failure(ErrorCode::kInvalidArgument,
                   "[execute_copies] copies[{}]: expected tokens in [0, {}], got {}", index,
                   page_size, op.tokens);
  }
  return {};
}

// The first `op.tokens` tokens of all heads, in as few pieces as the strides allow.
void copy_page(const CopyOp& op, const MutableTensorView& cache, KvLayout layout) noexcept {
  const std::int64_t element = static_cast<std::int64_t>(size_of(cache.dtype));
  const bool tokens_outside = layout == KvLayout::kNHD;
  const std::int64_t outer = tokens_outside ? op.tokens : cache.size(1);
  std::int64_t inner = tokens_outside ? cache.size(2) : op.tokens;
  std::int64_t run = cache.size(kDimAxis);
  if (cache.stride(2) == run) {  // rows of the inner axis follow one another
    run *= inner;
    inner = inner > 0 ? 1 : 0;
  }
  if (run == 0) return;
  auto* const bytes = static_cast<std::byte*>(cache.data);
  for (std::int64_t i = 0; i < outer; ++i) {
    for (std::int64_t j = 0; j < inner; ++j) {
      const std::int64_t offset = i * cache.stride(1) + j * cache.stride(2);
      const std::int64_t src = op.src * cache.stride(kPageAxis) + offset;
      const std::int64_t dst = op.dst * cache.stride(kPageAxis) + offset;
      std::memmove(bytes + dst * element, bytes + src * element,
                   static_cast<std::size_t>(run * element));
    }
  }
}

}  // namespace

Status execute_copies(std::span<const CopyOp> copies, const MutableTensorView& cache,
                      KvLayout layout) noexcept {
  Status status = check_cache(cache, layout);
  for (std::size_t index = 0; status.ok() && index < copies.size(); ++index) {
    status = check_copy(copies[index], index, cache, layout);
  }
  if (!status.ok()) return status;
  for (const CopyOp& op : copies) copy_page(op, cache, layout);
  return {};
}

}  // namespace v0
}  // namespace quire
