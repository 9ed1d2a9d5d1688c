// SPDX-License-Identifier: Apache-2.0
/// @file
/// Caches full of random bytes, and a random plan of copies in them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "quire/copies.hpp"

namespace quire::testing {

struct CopyCase {
  KvLayout layout = KvLayout::kNHD;
  DType dtype = DType::kBFloat16;
  std::int64_t page_size = 16;
  std::int64_t num_heads = 2;
  std::int64_t head_dim = 64;
  std::int64_t num_pages = 20;  ///< Of dst.
  std::int64_t src_pages = 0;   ///< Of a src of its own; 0: copies stay in dst.
  std::int64_t num_caches = 2;  ///< Every second one, V, has half the head_dim.
  std::int64_t gap = 0;         ///< Elements between rows, twice that between pages; of src: none.
  std::int64_t offset = 0;      ///< Elements before the first page.
  std::int64_t num_ops = 40;    ///< Many of which depend on one another.
  std::uint32_t seed = 1;

  [[nodiscard]] std::string text() const {
    return std::string(layout == KvLayout::kNHD ? "NHD " : "HND ") + std::string(to_string(dtype)) +
           " page " + std::to_string(page_size) + " heads " + std::to_string(num_heads) + " dim " +
           std::to_string(head_dim) + " gap " + std::to_string(gap) + " offset " +
           std::to_string(offset) + " caches " + std::to_string(num_caches) + " ops " +
           std::to_string(num_ops) + " src pages " + std::to_string(src_pages);
  }
};

/// Equal cases give equal bytes and plans. Whatever is not copied is random too, so that whole
/// buffers are compared: a byte beside a row that was written shows.
class RandomCopies {
 public:
  explicit RandomCopies(const CopyCase& copy_case) : c(copy_case), random_(copy_case.seed) {
    dst.resize(static_cast<std::size_t>(c.num_caches));
    src.resize(c.src_pages == 0 ? 0 : dst.size());
    for (std::size_t i = 0; i < dst.size(); ++i) {
      const std::int64_t head_dim = i % 2 == 0 ? c.head_dim : (c.head_dim + 1) / 2;
      CopyTensors tensors;
      tensors.dst = make_cache(dst[i], c.num_pages, head_dim, c.gap, c.offset);
      if (!src.empty()) tensors.src = make_cache(src[i], c.src_pages, head_dim, 0, 0);
      caches.push_back(tensors);
    }
    for (std::int64_t i = 0; i < c.num_ops; ++i) plan.push_back(random_op());
  }
  RandomCopies(const RandomCopies&) = delete;
  RandomCopies& operator=(const RandomCopies&) = delete;

  /// The oracle: the plan on the host.
  void execute() { execute_copies(Device::cpu(), c.layout, plan, caches).throw_if_error(); }

  const CopyCase c;
  std::vector<std::vector<std::byte>> dst;
  std::vector<std::vector<std::byte>> src;  ///< Empty if copies stay in dst.
  std::vector<CopyTensors> caches;
  std::vector<CopyOp> plan;

 private:
  MutableTensorView make_cache(std::vector<std::byte>& bytes, std::int64_t num_pages,
                               std::int64_t head_dim, std::int64_t gap, std::int64_t offset) {
    const bool tokens_first = c.layout == KvLayout::kNHD;
    const std::int64_t outer = tokens_first ? c.page_size : c.num_heads;
    const std::int64_t inner = tokens_first ? c.num_heads : c.page_size;
    const std::int64_t row = head_dim + gap;
    const std::int64_t page = outer * inner * row + 2 * gap;
    bytes.resize(static_cast<std::size_t>(offset + num_pages * page) * size_of(c.dtype));
    std::ranges::generate(bytes, [this] { return std::byte(random_() & 0xFF); });
    return {bytes.data() + static_cast<std::size_t>(offset) * size_of(c.dtype),
            c.dtype,
            {num_pages, outer, inner, head_dim},
            {page, inner * row, row, 1}};
  }

  CopyOp random_op() {
    const auto below = [this](std::int64_t bound) {
      return static_cast<std::int32_t>(random_() % static_cast<std::uint32_t>(bound));
    };
    CopyOp op{below(c.src_pages == 0 ? c.num_pages : c.src_pages), below(c.num_pages),
              below(c.page_size + 1)};
    if (below(3) == 0) {  // from and to the middle of pages, or within one
      const auto rest = static_cast<std::int32_t>(c.page_size) - op.tokens;
      op.src_begin = below(rest + 1);
      op.dst_begin = below(rest + 1);
    } else if (below(4) == 0) {
      op.tokens = static_cast<std::int32_t>(c.page_size);  // full pages
    }
    const bool overlaps = op.src == op.dst && op.src_begin < op.dst_begin + op.tokens &&
                          op.dst_begin < op.src_begin + op.tokens;
    if (c.src_pages == 0 && overlaps) {
      op.dst = static_cast<std::int32_t>((op.dst + 1) % c.num_pages);
    }
    return op;
  }

  std::mt19937 random_;
};

/// Layouts, dtypes and shapes, aligned to 16 bytes and not, with gaps and without.
inline std::vector<CopyCase> copy_cases() {
  std::vector<CopyCase> cases;
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    for (const std::int64_t src_pages : {0, 9}) {
      CopyCase base;
      base.layout = layout;
      base.src_pages = src_pages;
      cases.push_back(base);
      const auto add = [&](auto change) {
        cases.push_back(base);
        change(cases.back());
        cases.back().seed = static_cast<std::uint32_t>(cases.size());
      };
      add([](CopyCase& c) { c.gap = 8; });        // gaps of 16 bytes
      add([](CopyCase& c) { c.gap = 3; });        // rows are not aligned
      add([](CopyCase& c) { c.offset = 1; });     // nothing is
      add([](CopyCase& c) { c.head_dim = 12; });  // rows of 24 and 12 bytes
      add([](CopyCase& c) { c.head_dim = 24; });  // K is aligned, V is not
      add([](CopyCase& c) { c.dtype = DType::kFloat8E4M3; });
      add([](CopyCase& c) { c.dtype = DType::kInt64; });
      add([](CopyCase& c) { c.dtype = DType::kFloat8E5M2, c.head_dim = 1, c.num_heads = 1; });
      add([](CopyCase& c) { c.page_size = 1; });
      add([](CopyCase& c) { c.page_size = 17, c.num_heads = 3; });
      add([](CopyCase& c) { c.page_size = 256, c.num_heads = 8, c.num_pages = 5; });  // many parts
      add([](CopyCase& c) { c.num_caches = 60, c.num_ops = 10; });  // more than one launch takes
      add([](CopyCase& c) { c.num_ops = 700, c.num_pages = 3000, c.head_dim = 16; });
      add([](CopyCase& c) { c.num_ops = 300, c.num_pages = 2; });  // hardly two at a time
      add([](CopyCase& c) { c.num_heads = 0; });
      add([](CopyCase& c) { c.num_ops = 0; });
    }
  }
  return cases;
}

}  // namespace quire::testing
