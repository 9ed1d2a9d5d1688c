// SPDX-License-Identifier: Apache-2.0
#include "quire/recorder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <new>
#include <string_view>
#include <utility>

#include "batching/recorder_state.hpp"

namespace quire {
inline namespace v0 {
namespace internal {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// What the constructor says of its memory.
static_assert(sizeof(RequestEvent) == 56 && sizeof(StepRecord) == 80 &&
              sizeof(RequestRecord) == 72);
static_assert(sizeof(RecorderState::Life) + 2 * sizeof(RecorderState::Share) +
                  4 * batching::RequestIndex::kEntryBytes ==
              224);

}  // namespace

RecorderState::RecorderState(const RecorderSpec& recorder_spec)
    : spec(recorder_spec),
      events(spec.max_events),
      steps(spec.max_steps),
      ended(spec.max_ended),
      index(spec.max_requests) {
  lives.reserve(static_cast<std::size_t>(spec.max_requests));
  for (Flight& flight : flights) {
    flight.shares.reserve(static_cast<std::size_t>(spec.max_requests));
  }
}

std::int32_t RecorderState::begin_life(std::uint64_t request) noexcept {
  std::int32_t slot = first_free;
  if (slot != kNobody) {
    first_free = at(slot).next_free;
  } else if (lives.size() < static_cast<std::size_t>(spec.max_requests)) {
    slot = static_cast<std::int32_t>(lives.size());
    lives.emplace_back();
  } else {
    return kNobody;
  }
  Life life;
  life.record.request = request;
  life.record.submitted = kUnknown;
  life.record.admitted = kUnknown;
  life.record.first_token = kUnknown;
  life.last_token = kUnknown;
  at(slot) = life;
  index.insert(request, slot);
  return slot;
}

std::int32_t RecorderState::find_or_begin(std::uint64_t request) noexcept {
  const std::int32_t slot = index.find(request);
  return slot != kNobody ? slot : begin_life(request);
}

void RecorderState::preempt(std::uint64_t request, std::uint64_t step, double time) noexcept {
  const std::int32_t slot = find_or_begin(request);
  if (slot == kNobody) {
    ++untracked_events;
    return;
  }
  Life& life = at(slot);
  events.push({request, step, step, time, time, 0, life.cached, EventKind::kPreempt});
  ++life.record.num_preemptions;
  life.record.recomputed_tokens += life.cached;
  cached_tokens -= life.cached;
  life.cached = 0;
  life.decode = kNoEvent;
}

// The event of what an item computes: the request's decode that goes on, or a new one.
std::uint64_t RecorderState::add_compute(Life& life, const StepItem& item,
                                         const StepRecord& record) noexcept {
  const EventKind kind = item.is_prefill ? EventKind::kPrefill : EventKind::kDecode;
  if (kind == EventKind::kDecode) {
    RequestEvent* running = events.find(life.decode);
    if (running != nullptr && running->last_step + 1 == record.step) {
      running->last_step = record.step;
      running->num_tokens += item.num_new_tokens;
      return life.decode;
    }
  }
  const std::uint64_t event = events.push({item.request, record.step, record.step, record.begin,
                                           record.begin, item.position, item.num_new_tokens, kind});
  life.decode = kind == EventKind::kDecode ? event : kNoEvent;
  return event;
}

void RecorderState::take_part(const StepItem& item, StepRecord& record, Flight& flight) noexcept {
  (item.is_prefill ? record.prefill_tokens : record.decode_tokens) += item.num_new_tokens;
  ++(item.is_prefill ? record.num_prefills : record.num_decodes);
  if (item.admitted) {
    ++record.num_admitted;
    record.reused_tokens += item.position;
  }
  const std::int32_t slot = find_or_begin(item.request);
  if (slot == kNobody) {
    untracked_events += item.admitted ? 2 : 1;
    return;
  }
  Life& life = at(slot);
  if (item.admitted) {
    events.push({item.request, record.step, record.step, record.begin, record.begin, 0,
                 item.position, EventKind::kAdmit});
    life.record.reused_tokens += item.position;
    if (std::isnan(life.record.admitted)) life.record.admitted = record.begin;
  }
  // From the item rather than by adding up: right also for a request that was running before.
  cached_tokens += item.position + item.num_new_tokens - life.cached;
  life.cached = item.position + item.num_new_tokens;
  flight.shares.push_back({slot, add_compute(life, item, record), item.samples});
}

RecorderState::Flight* RecorderState::oldest_flight() noexcept {
  Flight* oldest = nullptr;
  for (Flight& flight : flights) {
    if (flight.record == kNoEvent) continue;
    if (oldest == nullptr || flight.step < oldest->step) oldest = &flight;
  }
  return oldest;
}

void RecorderState::complete(const Share& share, double time) noexcept {
  if (RequestEvent* event = events.find(share.event); event != nullptr) event->end = time;
  Life& life = at(share.slot);
  if (!share.samples || life.stopped) return;
  while (life.next_sample != kNobody) {  // they begin with the first token of the prompt
    Life& sample = at(life.next_sample);
    unlink_sample(sample);
    sample.record.admitted = time;
    note_token(sample, time);
  }
  note_token(life, time);
}

void RecorderState::note_token(Life& life, double time) noexcept {
  RequestRecord& record = life.record;
  if (!std::isnan(life.last_token)) {
    record.longest_gap = std::max(record.longest_gap, time - life.last_token);
  } else if (!std::isnan(record.submitted)) {  // else it may have sampled before it was seen
    record.first_token = time;
  }
  life.last_token = time;
  ++record.new_tokens;
}

// Out of the list of further samples that it is in; of those that it has, the first has no request.
void RecorderState::unlink_sample(Life& life) noexcept {
  if (life.prev_sample != kNobody) at(life.prev_sample).next_sample = life.next_sample;
  if (life.next_sample != kNobody) at(life.next_sample).prev_sample = life.prev_sample;
  life.prev_sample = life.next_sample = kNobody;
}

void RecorderState::end(std::uint64_t request, double time) noexcept {
  const std::int32_t slot = index.find(request);
  if (slot == kNobody) {
    ++untracked_events;
    ++untracked_ends;
    return;
  }
  Life& life = at(slot);
  const std::uint64_t step = next_step == 0 ? 0 : next_step - 1;
  events.push(
      {request, step, step, time, time, life.cached, life.record.new_tokens, EventKind::kFinish});
  life.record.finished = time;
  ended.push(life.record);
  cached_tokens -= life.cached;
  unlink_sample(life);
  index.erase(request);
  life.next_free = first_free;
  first_free = slot;
}

}  // namespace internal

using internal::RecorderState;

std::string_view to_string(EventKind kind) noexcept {
  constexpr std::array<std::string_view, 6> kNames = {"submit", "admit",   "prefill",
                                                      "decode", "preempt", "finish"};
  const auto number = static_cast<std::size_t>(kind);
  return number < kNames.size() ? kNames[number] : "unknown";
}

Recorder::Recorder(const RecorderSpec& spec) {
  const std::array<std::pair<std::string_view, std::int32_t>, 4> counts = {
      {{"max_events", spec.max_events},
       {"max_steps", spec.max_steps},
       {"max_ended", spec.max_ended},
       {"max_requests", spec.max_requests}}};
  for (const auto& [name, count] : counts) {
    if (count >= 1) continue;
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[recorder] {}: expected at least 1, got {}", name, count));
  }
  try {
    state_ = std::make_unique<RecorderState>(spec);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("[recorder] expected memory for {} events, {} steps and {} requests, "
                            "got none",
                            spec.max_events, spec.max_steps, spec.max_requests));
  }
}
Recorder::Recorder(Recorder&&) noexcept = default;
Recorder& Recorder::operator=(Recorder&&) noexcept = default;
Recorder::~Recorder() = default;

const RecorderSpec& Recorder::spec() const noexcept { return state_->spec; }

void Recorder::submitted(const Request& request, double time) noexcept {
  RecorderState& state = *state_;
  std::int32_t last = RecorderState::kNobody;
  for (std::size_t i = 0; i <= request.further_samples.size(); ++i) {
    const std::uint64_t id = i == 0 ? request.id : request.further_samples[i - 1];
    const std::int32_t slot = state.find_or_begin(id);
    if (slot == RecorderState::kNobody) {
      ++state.untracked_events;
      continue;
    }
    RequestRecord& record = state.at(slot).record;
    record.submitted = time;
    record.prompt_tokens = request.prompt_tokens;
    state.events.push({id, state.next_step, state.next_step, time, time, 0, request.prompt_tokens,
                       EventKind::kSubmit});
    if (last != RecorderState::kNobody) {
      state.at(last).next_sample = slot;
      state.at(slot).prev_sample = last;
    }
    last = slot;
  }
}

void Recorder::committed(const StepPlan& plan, const BatcherStats& stats, double time) noexcept {
  RecorderState& state = *state_;
  StepRecord record;
  record.step = plan.step;
  record.begin = time;
  record.end = time;
  record.num_preempted = static_cast<std::int32_t>(plan.preempted.size());
  record.waiting = stats.waiting;
  record.running = stats.running;
  record.used_pages = stats.used_pages;
  RecorderState::Flight& flight = state.flights[plan.step & 1U];
  flight.shares.clear();
  for (const std::uint64_t request : plan.preempted) state.preempt(request, plan.step, time);
  for (const StepItem& item : plan.items) state.take_part(item, record, flight);
  record.cached_tokens = state.cached_tokens;
  state.next_step = plan.step + 1;
  flight.step = plan.step;
  flight.record = state.steps.push(record);
}

void Recorder::finished(std::span<const std::uint64_t> ended,
                        std::span<const std::uint64_t> stopped, double time) noexcept {
  RecorderState& state = *state_;
  if (RecorderState::Flight* flight = state.oldest_flight(); flight != nullptr) {
    if (StepRecord* record = state.steps.find(flight->record); record != nullptr) {
      record->end = time;
      record->num_ended = static_cast<std::int32_t>(ended.size());
    }
    for (const RecorderState::Share& share : flight->shares) state.complete(share, time);
    flight->shares.clear();
    flight->record = RecorderState::kNoEvent;
  }
  for (const std::uint64_t request : stopped) {
    const std::int32_t slot = state.index.find(request);
    if (slot != RecorderState::kNobody) state.at(slot).stopped = true;
  }
  for (const std::uint64_t request : ended) state.end(request, time);
}

void Recorder::cancelled(std::uint64_t request, double time) noexcept {
  state_->end(request, time);
}

Records<RequestEvent> Recorder::events() const noexcept { return state_->events.view(); }
Records<StepRecord> Recorder::steps() const noexcept { return state_->steps.view(); }
Records<RequestRecord> Recorder::ended() const noexcept { return state_->ended.view(); }

RecorderLosses Recorder::losses() const noexcept {
  return {state_->events.displaced() + state_->untracked_events, state_->steps.displaced(),
          state_->ended.displaced() + state_->untracked_ends};
}

}  // namespace v0
}  // namespace quire
