// SPDX-License-Identifier: Apache-2.0
#include "prefixes/hit_rate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/exit_code.hpp"
#include "quire/page_pool.hpp"
#include "quire/prefix_cache.hpp"

namespace quire::tool {
namespace {

double percent(std::int64_t part, std::int64_t whole) {
  constexpr double kHundred = 100;
  return whole == 0 ? 0 : kHundred * static_cast<double>(part) / static_cast<double>(whole);
}

std::int64_t pages_of(const TraceRequest& request, std::int32_t page_size) {
  return (std::int64_t{request.input_tokens} + page_size - 1) / page_size;
}

/// @return Pages of a pool for `capacity`, or for all prompts.
std::int32_t pool_pages(std::span<const TraceRequest> requests, std::int32_t page_size,
                        std::int32_t capacity) {
  if (capacity > 0) return capacity;
  std::int64_t all = 0;
  for (const TraceRequest& request : requests) all += pages_of(request, page_size);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(all, 1, kMost));
}

bool names_all_blocks(const TraceRequest& request) {
  const std::int64_t blocks =
      (std::int64_t{request.input_tokens} + kBlockTokens - 1) / kBlockTokens;
  return std::cmp_equal(request.blocks.size(), blocks);
}

/// A block's tokens are its name, over and over: two blocks differ from their first token on.
void write_prompt(const TraceRequest& request, std::vector<std::int32_t>& tokens) {
  tokens.clear();
  std::int32_t left = request.input_tokens;
  for (const std::uint32_t block : request.blocks) {
    const std::int32_t count = std::min(left, kBlockTokens);
    tokens.insert(tokens.end(), static_cast<std::size_t>(count), static_cast<std::int32_t>(block));
    left -= count;
  }
}

}  // namespace

double HitRate::page_percent() const { return percent(hit_pages, pages); }
double HitRate::token_percent() const { return percent(hit_tokens, tokens); }

HitRate hit_rate(std::span<const TraceRequest> requests, std::int32_t page_size,
                 std::int32_t capacity) {
  PagePool pool({.num_pages = pool_pages(requests, page_size, capacity), .page_size = page_size});
  PrefixCache cache(pool);
  HitRate rate{.capacity = capacity};
  std::vector<std::int32_t> tokens;
  std::vector<PageId> pages;
  for (const TraceRequest& request : requests) {
    if (!names_all_blocks(request)) {
      throw CommandError(ExitCode::kUsage,
                         fmt::format("expected hash_ids in every request, one for each {} tokens "
                                     "of its prompt, got a request without",
                                     kBlockTokens));
    }
    write_prompt(request, tokens);
    pages.resize(static_cast<std::size_t>(pages_of(request, page_size)));
    const PrefixLease lease = cache.match(0, tokens);
    const bool all = std::cmp_equal(lease.num_tokens(), tokens.size());
    const auto hits = all ? pages.size() : static_cast<std::size_t>(lease.num_tokens() / page_size);
    lease.copy_pages(std::span(pages).first(hits));

    const std::span<PageId> added = std::span(pages).subspan(hits);
    cache.evict(static_cast<std::int32_t>(added.size()) - pool.num_free());
    if (!pool.allocate(added).ok()) {
      throw CommandError(ExitCode::kUsage,
                         fmt::format("--capacity: expected room for a prompt of {} pages, got {}",
                                     pages.size(), capacity));
    }
    const Result<std::int32_t> stored = cache.publish(0, tokens, pages);
    if (!stored.ok()) throw Error(stored.status().code(), std::string(stored.status().message()));
    const Status released = pool.release(added);  // the index has references of its own
    if (!released.ok()) throw Error(released.code(), std::string(released.message()));

    rate.pages += std::ssize(pages);
    rate.hit_pages += static_cast<std::int64_t>(hits);
    rate.tokens += std::ssize(tokens);
    rate.hit_tokens += lease.num_tokens();
  }
  rate.evicted = cache.stats().evicted;
  return rate;
}

}  // namespace quire::tool
