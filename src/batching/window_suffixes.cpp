// SPDX-License-Identifier: Apache-2.0
// Prefixes that window tables can serve: the window at the end of a page of the prefix cache. A request
// may go on from there if the cache has all pages up to it and each window table has kept its window.
// The pages are the batcher's, as a caller's are: several windows may share one.
#include <algorithm>
#include <array>

#include "batching/batcher_state.hpp"
#include "cache/failure.hpp"

namespace quire {
inline namespace v0 {
namespace internal {
namespace {

std::span<PageId> kept_pages(BatcherState::Window& window, std::size_t index) noexcept {
  return std::span(window.pages)
      .subspan(index * static_cast<std::size_t>(window.suffix_pages))
      .first(static_cast<std::size_t>(window.suffixes[index].count));
}

}  // namespace

std::int32_t BatcherState::find_suffix(const Window& window, NodeId node) const noexcept {
  if (window.suffixes.empty()) return kNobody;
  const std::int32_t index = window.kept[static_cast<std::size_t>(node)];
  if (index == kNobody) return kNobody;
  const Suffix& suffix = window.suffixes[static_cast<std::size_t>(index)];
  const bool is_its = suffix.node == node && suffix.serial == prefixes->node(node).serial;
  return is_its ? index : kNobody;
}

bool BatcherState::have_suffix(NodeId node) const noexcept {
  return std::ranges::all_of(
      windows, [&](const Window& window) { return find_suffix(window, node) != kNobody; });
}

NodeId BatcherState::end_of(const Place& place, std::int32_t tokens) const noexcept {
  const PrefixRun prefix{text_of(place).name_space,
                         askable(place).first(static_cast<std::size_t>(tokens))};
  const PrefixCacheState::Path path = prefixes->find_path(prefix);
  const std::int32_t whole = (path.pages + path.host_pages) * prefixes->page_size();
  return whole == tokens ? path.deepest : kNoNode;
}

std::int32_t BatcherState::known_pages(const Place& place) const noexcept {
  if (!place.shares) return 0;
  const PrefixCacheState::Path path =
      prefixes->find_path({text_of(place).name_space, askable(place)});
  return path.pages + path.host_pages;
}

void BatcherState::release_suffix(Window& window, std::int32_t index) noexcept {
  const auto at = static_cast<std::size_t>(index);
  PagePoolState& pool = *window.sequences.pool;
  for (const PageId page : kept_pages(window, at)) {
    --pool.page(page).caller_refs;
    pool.drop_ref(page);
  }
  window.suffixes[at] = {};
}

// In the place of a window whose prefix has left the cache, or of the one that was used least recently.
void BatcherState::keep_windows(const Place& place, std::int32_t written) noexcept {
  const std::int32_t page_size = table.pool_spec().page_size;
  const std::int32_t last = written / page_size - 1;
  if (last < 0 || !place.shares) return;
  const std::int32_t tokens = (last + 1) * page_size;
  const PageId* const row = sequences.row(static_cast<std::int32_t>(place.seq.slot));
  const NodeId node = prefixes->node_of(row[last]);
  if (node == kNoNode || prefixes->node(node).num_tokens != page_size) return;
  const auto place_index = static_cast<std::size_t>(&place - places.data());
  for (Window& window : windows) {
    const std::int32_t slot = window.sequences.find(window.seqs[place_index]);
    if (window.suffixes.empty() || !window.sequences.has_window(slot, tokens)) continue;
    std::int32_t index = find_suffix(window, node);
    if (index == kNobody) {
      const auto worth = [this](const Suffix& suffix) {
        const bool alive =
            suffix.node != kNoNode && suffix.serial == prefixes->node(suffix.node).serial;
        return alive ? suffix.last_use : 0;
      };
      index = static_cast<std::int32_t>(std::ranges::min_element(window.suffixes, {}, worth) -
                                        window.suffixes.begin());
      release_suffix(window, index);
      Suffix& suffix = window.suffixes[static_cast<std::size_t>(index)];
      suffix.node = node;
      suffix.serial = prefixes->node(node).serial;
      suffix.first = window.sequences.unseen_pages(tokens);
      suffix.count = window.sequences.pages_for(tokens) - suffix.first;
      std::ranges::copy(
          window.sequences.pages(slot).subspan(static_cast<std::size_t>(suffix.first),
                                               static_cast<std::size_t>(suffix.count)),
          kept_pages(window, static_cast<std::size_t>(index)).begin());
      for (const PageId page : kept_pages(window, static_cast<std::size_t>(index))) {
        window.sequences.pool->add_ref(page);
        ++window.sequences.pool->page(page).caller_refs;
      }
      window.kept[static_cast<std::size_t>(node)] = index;
    }
    window.suffixes[static_cast<std::size_t>(index)].last_use = ++suffix_clock;
  }
}

namespace {

// Whole pages behind which a request's windows are kept: at the end of the prompt, as far as the same prompt
// would be looked up, and where it has left what the cache knew before it.
std::array<std::int32_t, 2> kept_ends(const BatcherState::Place& place,
                                      std::int32_t page_size) noexcept {
  return {place.junction, (place.request.prompt_tokens - 1) / page_size};
}

}  // namespace

void BatcherState::keep_windows_between(const Place& place, std::int32_t before,
                                        std::int32_t after) noexcept {
  const std::int32_t page_size = table.pool_spec().page_size;
  for (const std::int32_t pages : kept_ends(place, page_size)) {
    const std::int32_t tokens = pages * page_size;
    if (before < tokens && tokens <= after) keep_windows(place, tokens);
  }
}

// With window tables, up to the last place in it of which the windows are kept.
std::int32_t BatcherState::left_for_others(const Place& place, std::int32_t shared) const noexcept {
  if (windows.empty()) return shared;
  std::int32_t left = 0;
  if (spec.cached_windows == 0) return left;
  const std::int32_t page_size = table.pool_spec().page_size;
  for (const std::int32_t pages : kept_ends(place, page_size)) {
    if (pages * page_size <= shared) left = std::max(left, pages * page_size);
  }
  return left;
}

// Holes, then the pages of the window, which others may hold too: a partial one is copied before it is
// written.
SeqId BatcherState::begin_window(Window& window, NodeId node, std::int32_t length) noexcept {
  const std::int32_t index = find_suffix(window, node);
  Suffix& suffix = window.suffixes[static_cast<std::size_t>(index)];
  suffix.last_use = ++suffix_clock;
  const SeqId seq = window.sequences.take_slot(length);
  const auto slot = static_cast<std::int32_t>(seq.slot);
  PageId* const row = window.sequences.row(slot);
  window.sequences.at(slot).holes = suffix.first;
  std::fill_n(row, suffix.first, kNoPage);
  std::ranges::copy(kept_pages(window, static_cast<std::size_t>(index)), row + suffix.first);
  for (const PageId page : window.sequences.held_pages(slot)) {
    window.sequences.pool->add_ref(page);
  }
  return seq;
}

Status BatcherState::check_suffixes() const noexcept {
  for (const Window& window : windows) {
    std::int64_t held = 0;
    for (std::size_t i = 0; i < window.suffixes.size(); ++i) {
      const Suffix& suffix = window.suffixes[i];
      held += suffix.count;
      for (std::int32_t page = 0; page < suffix.count; ++page) {
        const PageId id = window.pages[i * static_cast<std::size_t>(window.suffix_pages) +
                                       static_cast<std::size_t>(page)];
        if (window.sequences.pool->page(id).caller_refs > 0) continue;
        return cache::failure(ErrorCode::kInternal,
                              "[batcher] check: page {} of a cached window has no reference for it",
                              id);
      }
    }
    std::int64_t counted = 0;
    for (const PagePoolState::Page& page : window.sequences.pool->pages)
      counted += page.caller_refs;
    if (counted >= held) continue;
    return cache::failure(ErrorCode::kInternal,
                          "[batcher] check: cached windows have {} pages, the pool knows of {}",
                          held, counted);
  }
  return {};
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
