// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <limits>

#include "quire/executor.hpp"

namespace quire {
namespace {

constexpr std::size_t kPiece = std::size_t{2} << 20;  // a huge page: no two threads share one
constexpr std::size_t kSmallestPage = 4096;

struct Touch {
  std::span<std::byte> memory;
  std::atomic<std::size_t> next{0};  // the first byte that nobody has taken

  void work() noexcept {
    for (std::size_t begin = next.fetch_add(kPiece, std::memory_order_relaxed);
         begin < memory.size(); begin = next.fetch_add(kPiece, std::memory_order_relaxed)) {
      const std::size_t end = std::min(memory.size(), begin + kPiece);
      for (std::size_t at = begin; at < end; at += kSmallestPage) memory[at] = std::byte{0};
      memory[end - 1] = std::byte{0};  // on a page of its own if the memory is not aligned
    }
  }
};

}  // namespace

inline namespace v0 {

void first_touch(std::span<std::byte> memory, Executor& executor) noexcept {
  if (memory.empty()) return;
  Touch touch{memory};
  executor.parallel(
      executor.concurrency(),
      [](void* context, std::int32_t /*index*/) noexcept { static_cast<Touch*>(context)->work(); },
      &touch);
}

}  // namespace v0
}  // namespace quire
