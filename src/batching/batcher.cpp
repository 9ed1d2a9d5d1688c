// SPDX-License-Identifier: Apache-2.0
#include "quire/batcher.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <new>
#include <utility>

#include "batching/batcher_state.hpp"
#include "batching/planner.hpp"
#include "cache/failure.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::BatcherState;

Status out_of_memory(const char* call) noexcept {
  return failure(ErrorCode::kOutOfMemory, "[batcher] {}: expected memory, got none", call);
}

Status stale(const StepPlan& plan, const char* why) noexcept {
  return failure(ErrorCode::kInvalidArgument,
                 "[batcher] commit: expected the last plan, unchanged, got a plan of step {}: {}",
                 plan.step, why);
}

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

// What a committed plan would take, and what it would give back.
struct Demand {
  std::int64_t pages = 0;
  std::int64_t reclaimed = 0;
  std::int32_t admitted = 0;
};

// The preempted must be the newest of the running, newest first.
Status check_preempted(const BatcherState& state, const StepPlan& plan, Demand& demand) noexcept {
  if (plan.preempted.size() > state.running.size()) return stale(plan, "too many are preempted");
  for (std::size_t i = 0; i < plan.preempted.size(); ++i) {
    const BatcherState::Place& place = state.at(state.running[state.running.size() - 1 - i]);
    if (place.request.id != plan.preempted[i]) return stale(plan, "others are the newest");
    demand.reclaimed += state.table.reclaimable_pages(place.seq);
  }
  return {};
}

// The running ones in their order, then the head of the queue, each as `BatcherState::item` says.
Status check_items(const BatcherState& state, const StepPlan& plan, Demand& demand) noexcept {
  const std::size_t kept = state.running.size() - plan.preempted.size();
  std::size_t rank = 0;
  std::int32_t waiting = state.oldest_waiting;
  for (const StepItem& item : plan.items) {
    while (rank < kept && state.running[rank] != item.index) ++rank;
    const bool admitted = rank == kept;
    const std::int32_t index = admitted ? waiting : state.running[rank++];
    if (index == BatcherState::kNobody) return stale(plan, "nobody waits to be admitted");
    const BatcherState::Place& place = state.at(index);
    if (item.num_new_tokens < 1 || item.num_new_tokens > place.missing() ||
        item != state.item(index, item.num_new_tokens)) {
      return stale(plan, "an item is not as it was planned");
    }
    if (admitted) {
      waiting = place.next;
      ++demand.admitted;
      demand.pages += state.pages_for(item.num_new_tokens);
      continue;
    }
    if (!state.is_as_left(place)) {
      return failure(
          ErrorCode::kBadHandle,
          "[batcher] commit: expected the sequence of request {} as it was left, got one "
          "that was destroyed or changed",
          item.request);
    }
    demand.pages += item.num_new_tokens == 1
                        ? state.pages_for_next(place)
                        : state.table.pages_needed(place.seq, item.num_new_tokens);
  }
  return {};
}

// Everything that could make a commit fail half way.
Status check_plan(const BatcherState& state, const StepPlan& plan) noexcept {
  if (plan.step != state.step) return stale(plan, "another step is next");
  if (state.in_flight) return stale(plan, "it is in flight already");
  Demand demand;
  Status status = check_preempted(state, plan, demand);
  if (status.ok()) status = check_items(state, plan, demand);
  if (!status.ok()) return status;

  const std::int64_t free_pages = state.table.num_free_pages() + demand.reclaimed;
  if (demand.pages > free_pages) {
    return failure(ErrorCode::kOutOfPages,
                   "[batcher] commit: expected {} free pages, got {}: others took pages since the "
                   "plan",
                   demand.pages, free_pages);
  }
  if (demand.admitted > 0 && !plan.preempted.empty()) {
    return stale(plan, "nobody is admitted while others are preempted");
  }
  const std::int64_t seqs = std::int64_t{state.table.num_seqs()} + demand.admitted;
  if (seqs > state.table.spec().max_seqs) {
    return failure(ErrorCode::kQueueFull,
                   "[batcher] commit: expected room for {} sequences, got {}: others took slots "
                   "since the plan",
                   seqs, state.table.spec().max_seqs);
  }
  return {};
}

// Room for `more` elements, growing as a vector grows by itself.
template <typename T>
void reserve_more(std::vector<T>& vector, std::size_t more) {
  if (vector.capacity() - vector.size() >= more) return;
  vector.reserve(std::max(vector.size() + more, 2 * vector.capacity()));
}

// Admits the request of an item if need be, and appends its tokens.
void carry_out(BatcherState& state, StepItem& item, std::vector<CopyOp>& copies) noexcept {
  BatcherState::Place& place = state.at(item.index);
  if (item.admitted) {
    state.dequeue_head();
    place.seq = *state.table.create();
    state.run(item.index);
    item.seq = place.seq;
  }
  static_cast<void>(state.table.append(place.seq, item.num_new_tokens, copies));
  state.grow(place, item.num_new_tokens);
  place.in_step = true;
  place.samples = item.samples;
  (item.is_prefill ? state.counters.prefill_tokens : state.counters.decode_tokens) +=
      item.num_new_tokens;
}

// Takes a request out of the step in flight, with its new token if it sampled one.
// Returns true if that was its last.
bool advance(BatcherState::Place& place) noexcept {
  if (place.samples) ++place.generated;
  place.in_step = false;
  place.samples = false;
  return place.stopped || place.generated == place.request.max_new_tokens;
}

}  // namespace

Batcher::Batcher(PageTable& table, const BatcherSpec& spec) {
  if (spec.max_requests < 1) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("[batcher] max_requests: expected at least 1, got {}", spec.max_requests));
  }
  try {
    state_ = std::make_unique<BatcherState>(PageTable(table.state_), *table.state_, spec);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("[batcher] max_requests: expected memory for {} requests, got none",
                            spec.max_requests));
  }
}
Batcher::Batcher(Batcher&&) noexcept = default;
Batcher& Batcher::operator=(Batcher&&) noexcept = default;
Batcher::~Batcher() = default;

Status Batcher::submit(const Request& request) noexcept {
  BatcherState& state = *state_;
  if (Status status = check_request(state, request); !status.ok()) return status;
  const std::int32_t index = state.first_free;
  try {
    state.index_of.emplace(request.id, index);
  } catch (const std::exception&) {
    return out_of_memory("submit");
  }
  BatcherState::Place& place = state.at(index);
  state.first_free = place.next;
  place.request = request;
  place.ticket = state.next_ticket++;
  state.enqueue_new(index);
  return {};
}

Status Batcher::plan(const StepBudget& budget, StepPlan& plan) const noexcept {
  if (budget.max_tokens < 1 || budget.max_seqs < 1) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] plan: expected a budget of at least 1 token and 1 sequence, got {} "
                   "and {}",
                   budget.max_tokens, budget.max_seqs);
  }
  if (state_->in_flight) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] plan: expected step {} to be finished first, got it in flight",
                   state_->step);
  }
  try {
    return batching::Planner(*state_, budget, plan).run();
  } catch (const std::exception&) {
    return out_of_memory("plan");
  }
}

Status Batcher::commit(StepPlan& plan, std::vector<CopyOp>& copies) noexcept {
  BatcherState& state = *state_;
  if (Status status = check_plan(state, plan); !status.ok()) return status;
  try {
    plan.batch.clear();
    reserve_more(state.running, plan.items.size());
    reserve_more(plan.batch, plan.items.size());
    reserve_more(copies, plan.items.size());
  } catch (const std::exception&) {
    return out_of_memory("commit");
  }
  for (std::size_t i = 0; i < plan.preempted.size(); ++i) state.preempt_newest();
  for (StepItem& item : plan.items) {
    carry_out(state, item, copies);
    plan.batch.push_back({item.seq, item.num_new_tokens});
  }
  state.in_flight = true;
  ++state.counters.steps;
  const std::int32_t used = state.table.pool_spec().num_pages - state.table.num_free_pages();
  state.counters.peak_used_pages = std::max(state.counters.peak_used_pages, used);
  return {};
}

Status Batcher::finish(const StepPlan& plan, std::span<const std::uint64_t> stopped,
                       std::vector<std::uint64_t>& ended) noexcept {
  BatcherState& state = *state_;
  if (!state.in_flight) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] finish: expected a step in flight, got step {} with none committed",
                   plan.step);
  }
  if (plan.step != state.step) {
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] finish: expected the plan of step {}, got that of step {}",
                   state.step, plan.step);
  }
  for (const std::uint64_t id : stopped) {
    const auto found = state.index_of.find(id);
    if (found != state.index_of.end() && state.at(found->second).samples) continue;
    return failure(ErrorCode::kInvalidArgument,
                   "[batcher] finish: expected ids of requests that sample in step {}, got {}",
                   state.step, id);
  }
  try {
    reserve_more(ended, state.running.size());
  } catch (const std::exception&) {
    return out_of_memory("finish");
  }
  for (const std::uint64_t id : stopped) state.at(state.index_of.find(id)->second).stopped = true;
  std::size_t kept = 0;
  for (const std::int32_t index : state.running) {
    if (advance(state.at(index))) {
      ended.push_back(state.at(index).request.id);
      state.end(index);
    } else {
      state.running[kept++] = index;
    }
  }
  state.running.resize(kept);
  state.in_flight = false;
  ++state.step;
  return {};
}

bool Batcher::idle() const noexcept { return state_->running.empty() && state_->num_waiting == 0; }

BatcherStats Batcher::stats() const noexcept {
  BatcherStats stats = state_->counters;
  stats.waiting = state_->num_waiting;
  stats.running = static_cast<std::int32_t>(state_->running.size());
  stats.used_pages = state_->table.pool_spec().num_pages - state_->table.num_free_pages();
  return stats;
}

}  // namespace v0
}  // namespace quire
