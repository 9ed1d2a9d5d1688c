// SPDX-License-Identifier: Apache-2.0
#include "batching/planner.hpp"

#include <algorithm>
#include <utility>

#include "cache/failure.hpp"

namespace quire::batching {

using internal::BatcherState;

Status Planner::run() {
  plan_.step = state_.step;
  plan_.num_tokens = 0;
  plan_.items.clear();
  plan_.preempted.clear();
  plan_.batch.clear();
  plan_.transfers.clear();
  for (StepPlan::Window& window : plan_.windows) {
    window.batch.clear();
    window.copies.clear();
  }

  serve_running();
  const auto kept = static_cast<std::size_t>(num_kept_);
  for (std::size_t rank = state_.running.size(); rank-- > kept;) {
    plan_.preempted.push_back(state_.at(state_.running[rank]).request.id);
  }
  if (plan_.preempted.empty()) admit_waiting();
  const bool idle = state_.running.empty() && state_.num_waiting == 0;
  const bool may_wait = idle || state_.steps_in_flight() > 0 ||
                        (state_.prefixes && state_.prefixes->stats.in_flight > 0);
  return plan_.items.empty() && !may_wait ? explain_standstill() : Status();
}

// The oldest first, so that only requests not served yet are preempted.
void Planner::serve_running() {
  decodes_to_come_ = count_decodes();
  std::int32_t least = 1;  // the oldest always moves on
  for (std::int32_t rank = 0; rank < std::min(num_kept_, max_seqs_); ++rank) {
    const std::int32_t index = state_.running[static_cast<std::size_t>(rank)];
    const BatcherState::Place& place = state_.at(index);
    if (!place.goes_on()) continue;  // waits for the end of the steps in flight
    const bool decodes = place.missing() == 1;
    if (decodes) --decodes_to_come_;
    const std::int32_t kept_back = decodes ? 0 : decodes_to_come_;
    const std::int32_t most =
        std::min(std::max(tokens_left_ - kept_back, std::exchange(least, 0)), state_.max_chunk);
    if (decodes && most > 0 && add_decode(index, place)) continue;
    std::int32_t n = std::min(place.missing(), most);
    if (n > 0) n = std::min(n, make_room(rank));
    if (n > 0) add(index, n);
  }
}

// In order, and nobody before the head of the queue. Whoever is admitted finds the pages for all
// that is known of it, so that it is not preempted at once. (No running prefill still counts on
// them: one that is not complete has used up the tokens or the pages.)
void Planner::admit_waiting() {
  std::int32_t num_running = num_kept_;
  std::int32_t num_seqs = state_.table.num_seqs();
  for (std::int32_t index = state_.oldest_waiting; index != BatcherState::kNobody;
       index = state_.at(index).next) {
    const BatcherState::Place& place = state_.at(index);
    if (tokens_left_ == 0 || num_running >= max_seqs_) return;
    if (num_seqs == state_.table.spec().max_seqs) return;
    const std::int64_t free_pages =
        free_pages_ - (num_running > 0 ? state_.spec.watermark_pages : 0);
    BatcherState::Hit hit = state_.find_hit(place);
    const auto pages_beyond = [&](std::int32_t tokens) {
      return state_.pages_for(tokens) - hit.whole_pages + hit.idle_pages + hit.copied_pages;
    };
    if (hit.pending) return;  // a transfer has to retire
    if (pages_beyond(place.known_or_awaited()) > free_pages) hit = state_.without_partial_page(hit);
    if (pages_beyond(place.known_or_awaited()) > free_pages) return;
    if (waits_for_prefix(place, hit.tokens)) return;
    const std::int32_t n =
        std::min({place.known_or_awaited() - hit.tokens, tokens_left_, state_.max_chunk});
    add(index, n, pages_beyond(hit.tokens + n), hit.tokens);
    ++num_running;
    ++num_seqs;
  }
}

// True if another request computes, in this step, whole pages that this one would then find.
bool Planner::waits_for_prefix(const BatcherState::Place& place,
                               std::int32_t found) const noexcept {
  if (!place.shares) return false;
  for (const std::int32_t index :
       state_.running) {  // what is in flight is found once it is finished
    const BatcherState::Place& other = state_.at(index);
    const std::int32_t written = std::max(found, other.cached - other.in_flight());
    if (other.in_flight() == 0 || !other.shares || other.cached <= written) continue;
    const std::int32_t shared = std::min(state_.shared_tokens(other, place), other.cached);
    if (state_.left_for_others(other, shared) > written) return true;
  }
  const auto most = static_cast<std::int32_t>(state_.askable(place).size());
  return std::ranges::any_of(plan_.items, [&](const StepItem& item) {
    const BatcherState::Place& other = state_.at(item.index);
    const std::int32_t known = std::max(found, item.position);
    if (!other.shares || std::min(most, other.known_or_awaited()) <= known) return false;
    return state_.left_for_others(other, state_.shared_tokens(other, place)) > known;
  });
}

// Tokens that the running request of this rank can append. Preempts the newest ones until it is at
// least one; if even all of them do not help, nobody is preempted in vain.
std::int32_t Planner::make_room(std::int32_t rank) noexcept {
  const BatcherState::Place& place = state_.at(state_.running[static_cast<std::size_t>(rank)]);
  std::int32_t room = state_.table.room(place.seq, free_pages_);
  if (room > 0 || state_.steps_in_flight() > 0) return room;
  if (pages_come_free(place)) return 0;
  BatcherState::Reclaim reclaim(state_);
  for (std::size_t kept = state_.running.size(); std::cmp_greater(kept, num_kept_); --kept) {
    reclaim.add_next();
  }
  const std::int64_t before = reclaim.total();
  std::int32_t kept = num_kept_;
  while (room == 0 && kept > rank + 1) {
    --kept;
    reclaim.add_next();
    room = state_.room(place, free_pages_ + reclaim.total() - before);
  }
  if (room > 0) {
    num_kept_ = kept;
    free_pages_ += reclaim.total() - before;
  }
  return room;
}

// Pages of transfers in flight are not had by preempting anybody, and need nobody to be preempted.
bool Planner::pages_come_free(const BatcherState::Place& place) const noexcept {
  if (!state_.prefixes || state_.prefixes->stats.in_flight == 0) return false;
  const std::int64_t taken = state_.available_pages() - free_pages_;
  return state_.room(place, state_.pages_once_retired() - taken) > 0;
}

// Decodes among those that may take part.
std::int32_t Planner::count_decodes() const noexcept {
  const auto taking_part =
      std::min<std::size_t>(state_.running.size(), static_cast<std::size_t>(max_seqs_));
  return static_cast<std::int32_t>(std::count_if(
      state_.running.begin(), state_.running.begin() + static_cast<std::ptrdiff_t>(taking_part),
      [this](std::int32_t index) { return state_.at(index).decodes(); }));
}

void Planner::add(std::int32_t index, std::int32_t n) {
  add(index, n, state_.table.pages_needed(state_.at(index).seq, n));
}

void Planner::add(std::int32_t index, std::int32_t n, std::int32_t pages, std::int32_t found) {
  plan_.items.push_back(state_.item(index, n, found));
  plan_.num_tokens += n;
  tokens_left_ -= n;
  free_pages_ -= pages;
}

// The usual case in short: a decode that finds its page. False leaves it to the general one.
bool Planner::add_decode(std::int32_t index, const BatcherState::Place& place) {
  if (!state_.is_as_left(place)) return false;
  const std::int32_t pages = state_.pages_for_next(place);
  if (pages > free_pages_) return false;
  add(index, 1, pages);
  return true;
}

// There is work but no item: not even the oldest request finds a page or a sequence.
Status Planner::explain_standstill() const noexcept {
  const bool waits = state_.running.empty();
  const BatcherState::Place& oldest = state_.at(waits ? state_.oldest_waiting : state_.running[0]);
  if (waits && state_.table.num_seqs() == state_.table.spec().max_seqs) {
    return cache::failure(ErrorCode::kQueueFull,
                          "[batcher] plan: expected a free sequence slot for request {}, got {} of "
                          "{} held by others",
                          oldest.request.id, state_.table.num_seqs(), state_.table.spec().max_seqs);
  }
  if (!waits && state_.table.length(oldest.seq) != oldest.cached) {
    return cache::failure(ErrorCode::kBadHandle,
                          "[batcher] plan: expected the sequence of request {} as it was left, got "
                          "one that was destroyed or changed",
                          oldest.request.id);
  }
  const std::int32_t pages = waits ? state_.pages_for(oldest.known_or_awaited())
                                   : state_.table.pages_needed(oldest.seq, 1);
  return cache::failure(
      ErrorCode::kOutOfPages,
      "[batcher] plan: expected {} free pages for request {}, got {}: others keep "
      "the rest",
      pages, oldest.request.id, free_pages_);
}

}  // namespace quire::batching
