// SPDX-License-Identifier: Apache-2.0
#include "batching/batcher_state.hpp"

#include <algorithm>

namespace quire {
inline namespace v0 {
namespace internal {

BatcherState::BatcherState(PageTable shared_table, PageTableState& table_state,
                           std::shared_ptr<PrefixCacheState> cache_state,
                           const BatcherSpec& batcher_spec)
    : spec(batcher_spec),
      table(std::move(shared_table)),
      prefixes(std::move(cache_state)),
      sequences(table_state),
      places(static_cast<std::size_t>(batcher_spec.max_requests)),
      texts(prefixes ? places.size() : 0),
      dropped(static_cast<std::size_t>(table.pool_spec().num_pages)) {
  for (std::int32_t index = 0; index + 1 < spec.max_requests; ++index) at(index).next = index + 1;
}

BatcherState::~BatcherState() {
  for (const std::int32_t index : running) destroy_sequences(at(index));
  for (Window& window : windows) {
    for (std::size_t i = 0; i < window.suffixes.size(); ++i) {
      release_suffix(window, static_cast<std::int32_t>(i));
    }
  }
}

StepItem BatcherState::item(std::int32_t index, std::int32_t n, std::int32_t found) const noexcept {
  const Place& place = at(index);
  StepItem item;
  item.request = place.request.id;
  item.index = index;
  item.seq = place.seq;
  item.admitted = place.phase == Phase::kWaiting;
  item.position = item.admitted ? found : place.cached;
  item.num_new_tokens = n;
  const std::int32_t missing = place.known_or_awaited() - item.position;
  item.is_prefill = missing != 1 || place.known_or_awaited() == place.request.prompt_tokens;
  item.samples = n == missing;
  if (item.samples) item.num_samples = 1;
  if (item.samples && place.known_or_awaited() == place.request.prompt_tokens) {
    item.num_samples += count_unborn(place);
  }
  item.awaits_token = item.position + n > place.known();
  return item;
}

void BatcherState::link(std::int32_t index, std::int32_t prev, std::int32_t next) noexcept {
  at(index).prev = prev;
  at(index).next = next;
  (prev == kNobody ? oldest_waiting : at(prev).next) = index;
  (next == kNobody ? newest_waiting : at(next).prev) = index;
  at(index).phase = Phase::kWaiting;
  ++num_waiting;
}

void BatcherState::enqueue_new(std::int32_t index) noexcept {
  std::int32_t prev = newest_waiting;
  while (prev != kNobody && before(index, prev)) prev = at(prev).prev;
  link(index, prev, prev == kNobody ? oldest_waiting : at(prev).next);
}

void BatcherState::enqueue_preempted(std::int32_t index) noexcept {
  std::int32_t next = oldest_waiting;
  while (next != kNobody && before(next, index)) next = at(next).next;
  link(index, next == kNobody ? newest_waiting : at(next).prev, next);
}

void BatcherState::unlink(std::int32_t index) noexcept {
  Place& place = at(index);
  (place.prev == kNobody ? oldest_waiting : at(place.prev).next) = place.next;
  (place.next == kNobody ? newest_waiting : at(place.next).prev) = place.prev;
  place.prev = place.next = kNobody;
  --num_waiting;
}

void BatcherState::run(std::int32_t index) noexcept {
  at(index).phase = Phase::kRunning;
  const auto place = std::ranges::upper_bound(
      running, index, [this](std::int32_t a, std::int32_t b) { return before(a, b); });
  running.insert(place, index);
}

void BatcherState::preempt_newest() noexcept {
  const std::int32_t index = running.back();
  running.pop_back();
  Place& place = at(index);
  if (is_worth_swapping(place)) ++counters.swaps;
  publish_all(place);
  keep_windows(place, place.cached);
  destroy_sequences(place);
  counters.recomputed_tokens += place.cached;
  ++counters.preemptions;
  place.seq = {};
  place.cached = place.num_pages = place.tail_room = place.published = 0;
  enqueue_preempted(index);
}

void BatcherState::end(std::int32_t index) noexcept {
  Place& place = at(index);
  if (place.phase == Phase::kRunning) {
    publish_all(place);
    keep_windows(place, place.cached);
    destroy_sequences(place);
  }
  ++(place.cancelled ? counters.cancelled : counters.finished);
  index_of.erase(place.request.id);
  if (place.shares) text_of(place) = {};
  place = {};
  place.next = first_free;
  first_free = index;
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
