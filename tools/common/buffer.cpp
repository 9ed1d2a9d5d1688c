// SPDX-License-Identifier: Apache-2.0
#include "common/buffer.hpp"

#include <fmt/format.h>

#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common/exit_code.hpp"
#include "common/format.hpp"

namespace quire::tool {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kAlignment = 256;  // what quire asks of workspaces

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

std::byte* allocate_on(PageKind pages, std::size_t bytes) {
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const std::size_t rounded = round_up(bytes == 0 ? 1 : bytes, alignment);
  auto* const data = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
  if (data == nullptr) {
    throw CommandError(ExitCode::kFailed,
                       fmt::format("cannot allocate {} of memory", human_bytes(bytes)));
  }
#ifdef __linux__
  // Best effort: without huge pages everything works, only slower.
  const int advice = pages == PageKind::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
  if (alignment == kHugePage) static_cast<void>(madvise(data, rounded, advice));
#endif
  return data;
}

void Buffer::Free::operator()(std::byte* data) const noexcept { std::free(data); }

}  // namespace quire::tool
