// SPDX-License-Identifier: Apache-2.0
#include "quire/batcher.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <memory>
#include <new>
#include <utility>

#include "batching/batcher_state.hpp"
#include "batching/memory.hpp"
#include "batching/planner.hpp"
#include "cache/failure.hpp"

namespace quire {
inline namespace v0 {
namespace {

using batching::out_of_memory;
using batching::reserve_more;
using cache::failure;
using internal::BatcherState;

// What a request would cache at most, its last token never being cached, must fit table and pool.
Status check_size(const BatcherState& state, const Request& request) noexcept {
  const std::int64_t longest = std::int64_t{request.prompt_tokens} + request.max_new_tokens - 1;
  const std::int32_t max_tokens = state.table.spec().max_tokens_per_seq;
  if (longest > max_tokens) {
    return failure(ErrorCode::kTooLong,
                   "[batcher] submit: expected at most {} cached tokens, got {} (request {}: {} of "
                   "prompt, {} new)",
                   max_tokens, longest, request.id, request.prompt_tokens, request.max_new_tokens);
  }
  const std::int32_t pages = state.pages_for(static_cast<std::int32_t>(longest));
  if (pages > state.table.pool_spec().num_pages) {
    return failure(
        ErrorCode::kTooLong,
        "[batcher] submit: expected at most the {} pages of the pool, got {} (request {}: "
        "{} of prompt, {} new)",
        state.table.pool_spec().num_pages, pages, request.id, request.prompt_tokens,
        request.max_new_tokens);
  }
  return {};
}

Status check_request(const BatcherState& state, const Request& request) noexcept {
  if (request.prompt_tokens < 1 || request.max_new_tokens < 1) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] submit: expected at least 1 prompt token and 1 new token, got {} and "
                   "{} (request {})",
                   request.prompt_tokens, request.max_new_tokens, request.id);
  }
  if (std::isnan(request.arrival)) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] submit: expected a number as arrival, got NaN (request {})",
                   request.id);
  }
  if (!std::isfinite(request.head_start)) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] submit: expected a finite head_start, got {} (request {})",
                   std::isnan(request.head_start) ? "NaN" : "infinity", request.id);
  }
  if (!request.prompt.empty() && std::cmp_not_equal(request.prompt.size(), request.prompt_tokens)) {
    return failure(
        ErrorCode::kInvalidArgument,
        "[batcher] submit: expected the {} tokens of the prompt or none, got {} (request "
        "{})",
        request.prompt_tokens, request.prompt.size(), request.id);
  }
  const Retention& retention = request.retention;
  if (retention.priority < 0 || retention.priority > Retention::kMaxPriority ||
      retention.time_to_live < 0) {
    return failure(
        ErrorCode::kInvalidArgument,
        "[batcher] submit: expected a retention of priority 0 to {} and a time to live of "
        "at least 0, got {} and {} (request {})",
        Retention::kMaxPriority, retention.priority, retention.time_to_live, request.id);
  }
  if (state.index_of.contains(request.id)) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] submit: expected an id that is not in use, got {}", request.id);
  }
  if (Status status = check_size(state, request); !status.ok()) return status;
  if (state.first_free == BatcherState::kNobody) {
    return failure(ErrorCode::kQueueFull,
                   "[batcher] submit: expected a free place for request {}, got {} of {} taken",
                   request.id, state.spec.max_requests, state.spec.max_requests);
  }
  return {};
}

// Enters the ids of a request and of its further samples, and their texts, for the first free places:
// all or none.
Status enter(BatcherState& state, const Request& request) noexcept {
  const std::size_t count = request.further_samples.size() + 1;
  const auto id_of = [&request](std::size_t i) {
    return i == 0 ? request.id : request.further_samples[i - 1];
  };
  Status status;
  std::int32_t index = state.first_free;
  try {
    for (std::size_t i = 0; i < count && status.ok(); ++i) {
      if (index == BatcherState::kNobody) {
        status = failure(ErrorCode::kQueueFull,
                         "[batcher] submit: expected {} free places for request {}, got {} taken",
                         count, request.id, state.spec.max_requests - static_cast<std::int32_t>(i));
      } else if (!state.index_of.emplace(id_of(i), index).second) {
        status = failure(ErrorCode::kInvalidArgument,
                         "[batcher] submit: expected an id that is not in use, got {}", id_of(i));
      } else {
        if (state.cache && !request.prompt.empty()) {
          state.text_of(state.at(index)) = {request.name_space,
                                            request.retention,
                                            {request.prompt.begin(), request.prompt.end()}};
        }
        index = state.at(index).next;
      }
    }
  } catch (const std::exception&) {
    status = out_of_memory("submit");
  }
  if (status.ok()) return status;
  index = state.first_free;
  for (std::size_t i = 0; i < count && index != BatcherState::kNobody; ++i) {
    const auto found = state.index_of.find(id_of(i));
    if (found != state.index_of.end() && found->second == index) state.index_of.erase(found);
    if (state.cache) state.text_of(state.at(index)) = {};
    index = state.at(index).next;
  }
  return status;
}

// Takes a request out of the step being finished, with its new token if it sampled one that counts.
// Returns true if that was its last, and no other step in flight has it.
bool advance(BatcherState::Place& place, std::size_t parity) noexcept {
  if (place.samples[parity] && !place.stopped) ++place.generated;
  place.step_tokens[parity] = 0;
  place.samples[parity] = false;
  place.stopped = place.stopped || place.stops;
  place.stops = false;
  return place.in_flight() == 0 && !place.goes_on();
}

std::unique_ptr<BatcherState> make_state(PageTable table, internal::PageTableState& rows,
                                         std::shared_ptr<internal::PrefixCacheState> cache,
                                         const BatcherSpec& spec) {
  if (spec.max_requests < 1) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("[batcher] max_requests: expected at least 1, got {}", spec.max_requests));
  }
  if (spec.watermark_pages < 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[batcher] watermark_pages: expected at least 0, got {}",
                            spec.watermark_pages));
  }
  if (spec.max_steps_in_flight < 1 || spec.max_steps_in_flight > 2) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[batcher] max_steps_in_flight: expected 1 or 2, got {}",
                            spec.max_steps_in_flight));
  }
  if (spec.cached_windows < 0) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("[batcher] cached_windows: expected at least 0, got {}", spec.cached_windows));
  }
  try {
    return std::make_unique<BatcherState>(std::move(table), rows, std::move(cache), spec);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("[batcher] max_requests: expected memory for {} requests, got none",
                            spec.max_requests));
  }
}

// Every sampling item has a token to come, or none is told. The texts that grow have room then.
Status prepare_texts(BatcherState& state, const StepPlan& plan,
                     std::span<const std::int32_t> sampled) {
  if (sampled.empty()) return {};
  const std::size_t parity = BatcherState::parity(state.oldest);
  const auto samples_of = [&](const BatcherState::Place& place) {
    return !place.samples[parity] ? 0 : place.bears(parity) ? 1 + state.count_unborn(place) : 1;
  };
  std::int64_t sampling = 0;
  for (const std::int32_t index : state.running) sampling += samples_of(state.at(index));
  std::int64_t told = 0;
  std::int64_t items = 0;
  for (const StepItem& item : plan.items) {
    if (!item.samples) continue;
    const auto found = state.index_of.find(item.request);
    if (found == state.index_of.end() || !state.at(found->second).samples[parity]) {
      return failure(ErrorCode::kInvalidArgument,
                     "[batcher] finish: expected the plan as it was committed, got request {} that "
                     "does not sample in step {}",
                     item.request, state.oldest);
    }
    const BatcherState::Place& place = state.at(found->second);
    told += samples_of(place);
    ++items;
    if (place.shares) reserve_more(state.text_of(place).tokens, 1);
    if (!place.shares || !place.bears(parity)) continue;
    for (std::int32_t sample = place.first_sample; sample != BatcherState::kNobody;
         sample = state.at(sample).next) {
      reserve_more(state.text_of(state.at(sample)).tokens, 1);
    }
  }
  if (told == sampling && std::cmp_equal(sampled.size(), told)) return {};
  return failure(ErrorCode::kInvalidArgument,
                 "[batcher] finish: expected {} sampled tokens or none, got {} for {} items",
                 sampling, sampled.size(), items);
}

// Whether a request, or a further sample that begins, has a token of the step being finished.
bool samples_in(const BatcherState& state, std::int32_t index, std::size_t parity) noexcept {
  const BatcherState::Place& place = state.at(index);
  if (place.phase != BatcherState::Phase::kUnborn) return place.samples[parity];
  return state.at(place.prev).bears(parity);
}

// Only where everything before is known too.
void add_texts(BatcherState& state, const StepPlan& plan,
               std::span<const std::int32_t> sampled) noexcept {
  std::size_t next = 0;
  for (const StepItem& item : plan.items) {
    if (sampled.empty() || !item.samples) continue;
    BatcherState::Place& place = state.at(state.index_of.find(item.request)->second);
    const std::int32_t token = sampled[next++];
    if (place.bears(BatcherState::parity(state.oldest))) {
      for (std::int32_t sample = place.first_sample; sample != BatcherState::kNobody;
           sample = state.at(sample).next) {
        const std::int32_t first_token = sampled[next++];
        if (place.shares) state.text_of(state.at(sample)).tokens.push_back(first_token);
      }
    }
    if (!place.shares || place.stopped) continue;
    std::vector<std::int32_t>& tokens = state.text_of(place).tokens;
    if (std::cmp_equal(tokens.size(), place.known())) tokens.push_back(token);
  }
}

}  // namespace

Batcher::Batcher(PageTable& table, const BatcherSpec& spec)
    : state_(make_state(PageTable(table.state_), *table.state_, nullptr, spec)) {}
Batcher::Batcher(PageTable& table, PrefixCache& cache, const BatcherSpec& spec) {
  if (cache.state_->pool != table.state_->pool) {
    throw Error(ErrorCode::kBadHandle,
                "[batcher] cache: expected a prefix cache on the table's pool, got one on another");
  }
  if (table.spec().window_left >= 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "[batcher] table: expected one without a window beside a prefix cache, got one "
                "with; give it as "
                "a window table beside one of the whole sequences");
  }
  state_ = make_state(PageTable(table.state_), *table.state_, cache.state_, spec);
  state_->cache.emplace(PrefixCache(cache.state_));
}
Batcher::Batcher(PageTable& table, std::span<PageTable* const> windows, const BatcherSpec& spec)
    : Batcher(table, spec) {
  add_windows(windows);
}
Batcher::Batcher(PageTable& table, PrefixCache& cache, std::span<PageTable* const> windows,
                 const BatcherSpec& spec)
    : Batcher(table, cache, spec) {
  add_windows(windows);
}

void Batcher::add_windows(std::span<PageTable* const> windows) {
  try {
    for (PageTable* const window : windows) {
      state_->add_window(PageTable(window->state_), *window->state_);
    }
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                "[batcher] windows: expected memory for a sequence of each request, got none");
  }
}

Batcher::Batcher(Batcher&&) noexcept = default;
Batcher& Batcher::operator=(Batcher&&) noexcept = default;
Batcher::~Batcher() = default;

Status Batcher::submit(const Request& request) noexcept {
  BatcherState& state = *state_;
  if (Status status = check_request(state, request); !status.ok()) return status;
  if (Status status = enter(state, request); !status.ok()) return status;
  const std::int32_t first = state.first_free;
  std::int32_t* link = nullptr;
  for (std::size_t i = 0; i <= request.further_samples.size(); ++i) {
    const std::int32_t index = state.first_free;
    BatcherState::Place& place = state.at(index);
    state.first_free = std::exchange(place.next, BatcherState::kNobody);
    place.request = {i == 0 ? request.id : request.further_samples[i - 1], request.prompt_tokens,
                     request.max_new_tokens};
    place.turn = request.arrival - request.head_start;
    place.ticket = state.next_ticket++;
    place.shares = state.cache.has_value() && !request.prompt.empty();
    if (i > 0) {
      place.phase = BatcherState::Phase::kUnborn;
      place.prev = first;
      *link = index;
      ++state.num_unborn;
    }
    link = i == 0 ? &place.first_sample : &place.next;
  }
  state.enqueue_new(first);
  return {};
}

Status Batcher::cancel(std::uint64_t request) noexcept {
  BatcherState& state = *state_;
  const auto found = state.index_of.find(request);
  if (found == state.index_of.end() || state.at(found->second).cancelled ||
      state.at(found->second).stopped) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] cancel: expected the id of a request that has not ended, got {}",
                   request);
  }
  const std::int32_t index = found->second;
  BatcherState::Place& place = state.at(index);
  place.cancelled = true;
  if (place.phase == BatcherState::Phase::kUnborn) {
    const BatcherState::Place& first = state.at(place.prev);
    if (first.bears(0) || first.bears(1)) return {};  // the device samples its first token
    state.unlink_unborn(index);
    state.end(index);
    return {};
  }
  for (std::int32_t sample = place.first_sample; sample != BatcherState::kNobody;
       sample = state.at(sample).next) {
    state.at(sample).cancelled = true;
  }
  if (place.in_flight() > 0) return {};  // the device may be writing to its pages
  if (place.phase == BatcherState::Phase::kWaiting) {
    state.unlink(index);
  } else {
    state.running.erase(std::ranges::find(state.running, index));
  }
  state.end_unborn(place, nullptr);
  state.end(index);
  return {};
}

Status Batcher::plan(const StepBudget& budget, StepPlan& plan) const noexcept {
  if (budget.max_tokens < 1 || budget.max_seqs < 1) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] plan: expected a budget of at least 1 token and 1 sequence, got {} "
                   "and {}",
                   budget.max_tokens, budget.max_seqs);
  }
  if (state_->steps_in_flight() == state_->spec.max_steps_in_flight) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] plan: expected step {} to be finished first, got it in flight",
                   state_->oldest);
  }
  try {
    return batching::Planner(*state_, budget, plan).run();
  } catch (const std::exception&) {
    return out_of_memory("plan");
  }
}

Status Batcher::finish(const StepPlan& plan, std::span<const std::int32_t> sampled,
                       std::span<const std::uint64_t> stopped,
                       std::vector<std::uint64_t>& ended) noexcept {
  BatcherState& state = *state_;
  if (state.steps_in_flight() == 0) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] finish: expected a step in flight, got step {} with none committed",
                   plan.step);
  }
  if (plan.step != state.oldest) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] finish: expected the plan of step {}, got that of step {}",
                   state.oldest, plan.step);
  }
  const std::size_t parity = BatcherState::parity(state.oldest);
  for (const std::uint64_t id : stopped) {
    const auto found = state.index_of.find(id);
    if (found != state.index_of.end() && samples_in(state, found->second, parity)) continue;
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] finish: expected ids of requests that sample in step {}, got {}",
                   state.oldest, id);
  }
  try {
    if (Status status = prepare_texts(state, plan, sampled); !status.ok()) return status;
    const auto unborn = static_cast<std::size_t>(state.num_unborn);
    reserve_more(ended, state.running.size() + unborn);
    reserve_more(state.running, unborn);
    reserve_more(state.born, unborn);
  } catch (const std::exception&) {
    return out_of_memory("finish");
  }
  add_texts(state, plan, sampled);
  for (const std::uint64_t id : stopped) state.at(state.index_of.find(id)->second).stops = true;
  std::size_t kept = 0;
  for (const std::int32_t index : state.running) {
    BatcherState::Place& place = state.at(index);
    if (place.shares && place.has_filled()) {
      state.publish_filled(place, place.cached - place.step_tokens[1 - parity]);
    }
    if (place.bears(parity)) state.bear(place);
    if (state.slides()) {
      const std::int32_t written = place.cached - place.step_tokens[1 - parity];
      state.keep_windows_between(place, written - place.step_tokens[parity], written);
      state.slide(place, written);
    }
    if (advance(place, parity)) {
      ended.push_back(place.request.id);
      state.end_unborn(place, &ended);
      state.end(index);
    } else {
      state.running[kept++] = index;
    }
  }
  state.running.resize(kept);
  state.begin_born(ended);
  ++state.oldest;
  return {};
}

bool Batcher::idle() const noexcept { return state_->running.empty() && state_->num_waiting == 0; }

BatcherStats Batcher::stats() const noexcept {
  BatcherStats stats = state_->counters;
  stats.waiting = state_->num_waiting;
  stats.running = static_cast<std::int32_t>(state_->running.size());
  stats.used_pages = state_->table.pool_spec().num_pages - state_->table.num_free_pages();
  if (state_->cache) stats.idle_pages = state_->sequences.pool->num_idle;
  return stats;
}

}  // namespace v0
}  // namespace quire
