// SPDX-License-Identifier: Apache-2.0
// Several samples of one prompt: forks of its sequence, each with a first token of its own.
#include <algorithm>
#include <utility>

#include "batching/batcher_state.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

std::int32_t BatcherState::count_unborn(const Place& place) const noexcept {
  std::int32_t count = 0;
  for (std::int32_t index = place.first_sample; index != kNobody; index = at(index).next) ++count;
  return count;
}

void BatcherState::unlink_unborn(std::int32_t index) noexcept {
  std::int32_t* link = &at(at(index).prev).first_sample;
  while (*link != index) link = &at(*link).next;
  *link = at(index).next;
  at(index).prev = at(index).next = kNobody;
  --num_unborn;
}

// The prompt is written, or in the step being finished; what its request appended meanwhile lies behind
// it. A fork takes no page. Without a free sequence the sample waits, and computes the prompt again, or
// finds it.
void BatcherState::bear(Place& place) noexcept {
  const std::int32_t prompt = place.request.prompt_tokens;
  const std::int32_t page_size = table.pool_spec().page_size;
  std::int32_t index = std::exchange(place.first_sample, kNobody);
  while (index != kNobody) {
    Place& sample = at(index);
    sample.generated = 1;
    born.push_back(index);
    index = std::exchange(sample.next, kNobody);
    sample.prev = kNobody;
    --num_unborn;
    if (!sample.goes_on() || sample.stops) continue;
    // Asked first: a refusal would cost memory for its sentence.
    if (sequences.first_free_slot == PageTableState::kNoSlot) continue;
    const Result<SeqId> forked = table.fork(place.seq, prompt);
    if (!forked.ok()) continue;
    sample.seq = *forked;
    fork_windows(place, born.back(), prompt);
    slide(sample, prompt);
    sample.cached = prompt;
    sample.num_pages = pages_for(prompt);
    sample.tail_room =
        static_cast<std::int32_t>(std::int64_t{sample.num_pages} * page_size - prompt);
    sample.published = std::min(place.published, prompt / page_size);
  }
}

void BatcherState::begin_born(std::vector<std::uint64_t>& ended) noexcept {
  for (const std::int32_t index : born) {
    Place& sample = at(index);
    if (!sample.goes_on() || sample.stops) {
      ended.push_back(sample.request.id);
      end(index);
    } else if (sample.seq != SeqId{}) {
      run(index);
    } else {
      enqueue_preempted(index);
    }
  }
  born.clear();
}

void BatcherState::end_unborn(Place& place, std::vector<std::uint64_t>* ended) noexcept {
  std::int32_t index = std::exchange(place.first_sample, kNobody);
  while (index != kNobody) {
    const std::int32_t next = at(index).next;
    if (ended != nullptr) ended->push_back(at(index).request.id);
    at(index).cancelled = true;
    --num_unborn;
    end(index);
    index = next;
  }
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
