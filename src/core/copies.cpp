// SPDX-License-Identifier: Apache-2.0
#include "core/copies.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "core/expect.hpp"

namespace quire::core {
namespace {

constexpr std::string_view kOperation = "execute_copies";
constexpr std::int32_t kPageAxis = 0;
constexpr std::int32_t kDimAxis = 3;

std::int32_t token_axis(KvLayout layout) { return layout == KvLayout::kNHD ? 1 : 2; }
std::int32_t head_axis(KvLayout layout) { return layout == KvLayout::kNHD ? 2 : 1; }

/// `caches[3].dst`, without taking memory.
class TensorName {
 public:
  TensorName(std::size_t index, std::string_view tensor)
      : size_(fmt::format_to_n(text_.data(), text_.size(), "caches[{}].{}", index, tensor).size) {}
  [[nodiscard]] std::string_view text() const { return {text_.data(), size_}; }

 private:
  std::array<char, 40> text_{};
  std::size_t size_;
};

/// What all caches have in common.
struct CommonSizes {
  Extent src_pages = any_extent();
  Extent dst_pages = any_extent();
  Extent page_size = any_extent();
};

/// Pages lie on the device, or in memory of the host that the device reaches.
Device device_of(const TensorView& tensor, Device device) {
  const bool on_host = device.type == DeviceType::kCuda && tensor.device == Device::cpu();
  return on_host ? Device::cpu() : device;
}

Status check_dst(const MutableTensorView& dst, std::string_view name, const CommonSizes& sizes,
                 KvLayout layout, Device device) {
  const bool tokens_first = layout == KvLayout::kNHD;
  return expect_writable(dst,
                         {.operation = kOperation,
                          .name = name,
                          .dtypes = {},
                          .shape = {sizes.dst_pages, tokens_first ? sizes.page_size : any_extent(),
                                    tokens_first ? any_extent() : sizes.page_size, any_extent()},
                          .device = device_of(dst, device)});
}

Status check_src(const CopyTensors& tensors, std::string_view name, const CommonSizes& sizes,
                 Device device) {
  const MutableTensorView& dst = tensors.dst;
  return expect(tensors.src, {.operation = kOperation,
                              .name = name,
                              .dtypes = SetOf<DType>::of(dst.dtype),
                              .shape = {sizes.src_pages, exactly(dst.size(1)), exactly(dst.size(2)),
                                        exactly(dst.size(kDimAxis))},
                              .device = device_of(tensors.src, device)});
}

TensorView src_of(const CopyTensors& tensors) {
  return tensors.src.given() ? tensors.src : TensorView(tensors.dst);
}

Status check_caches(Device device, KvLayout layout, std::span<const CopyTensors> caches) {
  CommonSizes sizes;
  for (std::size_t index = 0; index < caches.size(); ++index) {
    const CopyTensors& tensors = caches[index];
    Status status = check_dst(tensors.dst, TensorName(index, "dst").text(), sizes, layout, device);
    if (status.ok() && tensors.src.given()) {
      status = check_src(tensors, TensorName(index, "src").text(), sizes, device);
    }
    if (!status.ok()) return status;
    const std::int64_t src_pages = src_of(tensors).size(kPageAxis);
    if (!sizes.src_pages.takes(src_pages)) {  // of dst itself
      return invalid(kOperation, TensorName(index, "dst").text(),
                     fmt::format("expected {} pages, as many as those of caches[0] that are read, "
                                 "got {}",
                                 sizes.src_pages.value, src_pages));
    }
    sizes = {exactly(src_pages), exactly(tensors.dst.size(kPageAxis)),
             exactly(tensors.dst.size(token_axis(layout)))};
  }
  return {};
}

/// Whether two stretches of tokens have one in common.
bool overlap(PageId page, std::int64_t begin, std::int64_t tokens, PageId other_page,
             std::int64_t other_begin, std::int64_t other_tokens) {
  return page == other_page && begin < other_begin + other_tokens && other_begin < begin + tokens &&
         tokens > 0 && other_tokens > 0;
}

Status check_op(const CopyOp& op, std::size_t index, const CopyTensors& tensors, bool one_cache,
                KvLayout layout) {
  const auto refuse = [index](const std::string& expected_and_got) {
    return invalid(kOperation, fmt::format("copies[{}]", index), expected_and_got);
  };
  const auto check_page = [&](std::string_view name, PageId page, const TensorView& tensor) {
    const std::int64_t num_pages = tensor.size(kPageAxis);
    if (page >= 0 && page < num_pages) return Status();
    return refuse(fmt::format("expected {} in [0, {}), got {}", name, num_pages, page));
  };
  Status status = check_page("src", op.src, src_of(tensors));
  if (status.ok()) status = check_page("dst", op.dst, tensors.dst);
  if (!status.ok()) return status;
  const std::int64_t page_size = tensors.dst.size(token_axis(layout));
  for (const auto& [name, begin] :
       {std::pair("src_begin", op.src_begin), std::pair("dst_begin", op.dst_begin)}) {
    if (begin >= 0 && begin <= page_size) continue;
    return refuse(fmt::format("expected {} in [0, {}], got {}", name, page_size, begin));
  }
  const std::int64_t most = page_size - std::max(op.src_begin, op.dst_begin);
  if (op.tokens < 0 || op.tokens > most) {
    return refuse(fmt::format("expected tokens in [0, {}], got {}", most, op.tokens));
  }
  if (one_cache && overlap(op.src, op.src_begin, op.tokens, op.dst, op.dst_begin, op.tokens)) {
    return refuse(
        fmt::format("expected to read other tokens than are written, got {} of page {} from {} on "
                    "and from {} on",
                    op.tokens, op.src, op.src_begin, op.dst_begin));
  }
  return {};
}

template <typename Byte, typename View>
RowsOfPages<Byte> bytes_of(const View& view, KvLayout layout) {
  const auto element = static_cast<std::int64_t>(size_of(view.dtype));
  const auto stride = [&](std::int32_t axis) {
    return view.size(axis) > 1 ? view.stride(axis) * element : 0;
  };
  return {static_cast<Byte*>(view.data), stride(kPageAxis), stride(token_axis(layout)),
          stride(head_axis(layout))};
}

}  // namespace

Status check_copies(Device device, KvLayout layout, std::span<const CopyOp> copies,
                    std::span<const CopyTensors> caches) {
  if (layout != KvLayout::kNHD && layout != KvLayout::kHND) {
    return invalid(
        kOperation, "layout",
        fmt::format("expected NHD (0) or HND (1), got {}", static_cast<std::int32_t>(layout)));
  }
  Status status = check_caches(device, layout, caches);
  if (!status.ok() || caches.empty()) return status;
  const bool one_cache = std::ranges::any_of(caches, is_one_cache);
  for (std::size_t index = 0; status.ok() && index < copies.size(); ++index) {
    status = check_op(copies[index], index, caches.front(), one_cache, layout);
  }
  return status;
}

CopyRows rows_of(const CopyTensors& tensors, KvLayout layout) noexcept {
  const MutableTensorView& dst = tensors.dst;
  return {.src = bytes_of<const std::byte>(src_of(tensors), layout),
          .dst = bytes_of<std::byte>(dst, layout),
          .page_size = dst.size(token_axis(layout)),
          .num_heads = dst.size(head_axis(layout)),
          .row_bytes = dst.size(kDimAxis) * static_cast<std::int64_t>(size_of(dst.dtype))};
}

bool is_one_cache(const CopyTensors& tensors) noexcept {
  if (!tensors.src.given()) return true;
  return tensors.src.data == tensors.dst.data && tensors.dst.data != nullptr;  // null: empty
}

std::size_t independent_prefix(std::span<const CopyOp> copies, bool one_cache) noexcept {
  const auto depends = [one_cache](const CopyOp& op, const CopyOp& earlier) {
    const auto touches = [](PageId page, std::int32_t begin, const CopyOp& of, PageId other_page,
                            std::int32_t other_begin, const CopyOp& other) {
      return overlap(page, begin, of.tokens, other_page, other_begin, other.tokens);
    };
    return touches(op.dst, op.dst_begin, op, earlier.dst, earlier.dst_begin, earlier) ||
           (one_cache &&
            (touches(op.src, op.src_begin, op, earlier.dst, earlier.dst_begin, earlier) ||
             touches(op.dst, op.dst_begin, op, earlier.src, earlier.src_begin, earlier)));
  };
  for (std::size_t count = 0; count < copies.size(); ++count) {
    const auto before = copies.first(count);
    if (std::ranges::any_of(
            before, [&](const CopyOp& earlier) { return depends(copies[count], earlier); })) {
      return count;
    }
  }
  return copies.size();
}

}  // namespace quire::core
