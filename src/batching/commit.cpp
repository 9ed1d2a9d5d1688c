// SPDX-License-Identifier: Apache-2.0
// `Batcher::commit`: a plan is checked as a whole, its pages are secured, then it is carried out.
#include <exception>
#include <utility>

#include "batching/batcher_state.hpp"
#include "batching/memory.hpp"
#include "cache/failure.hpp"
#include "quire/batcher.hpp"

namespace quire {
inline namespace v0 {
namespace {

using batching::out_of_memory;
using batching::reserve_more;
using cache::failure;
using internal::BatcherState;

Status stale(const StepPlan& plan, const char* why) noexcept {
  return failure(ErrorCode::kInvalidArgument,
                 "[batcher] commit: expected the last plan, unchanged, got a plan of step {}: {}",
                 plan.step, why);
}

// What a committed plan would take, and what it would give back.
struct Demand {
  std::int64_t pages = 0;
  std::int32_t admitted = 0;
  std::int64_t found = 0;  ///< pages that the admitted begin with: some may come from the host
};

// The preempted must be the newest of the running, newest first.
Status check_preempted(const BatcherState& state, const StepPlan& plan,
                       BatcherState::Reclaim& reclaim) noexcept {
  if (plan.preempted.size() > state.running.size()) return stale(plan, "too many are preempted");
  if (!plan.preempted.empty() && state.steps_in_flight() > 0) {
    return stale(plan, "nobody is preempted while a step is in flight");
  }
  for (std::size_t i = 0; i < plan.preempted.size(); ++i) {
    const BatcherState::Place& place = state.at(state.running[state.running.size() - 1 - i]);
    if (place.request.id != plan.preempted[i]) return stale(plan, "others are the newest");
    reclaim.add_next();
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
    const std::int32_t found = admitted ? item.position : 0;
    if (!place.goes_on() || found < 0 ||
        (found > 0 && std::cmp_greater(found, state.askable(place).size())) ||
        item.num_new_tokens < 1 || item.num_new_tokens > place.missing() - found ||
        item.num_new_tokens > state.max_chunk ||
        item != state.item(index, item.num_new_tokens, found)) {
      return stale(plan, "an item is not as it was planned");
    }
    if (admitted) {
      waiting = place.next;
      ++demand.admitted;
      demand.found += state.pages_for(found);
      demand.pages +=
          state.pages_for(found + item.num_new_tokens) - found / state.table.pool_spec().page_size;
      continue;
    }
    if (!state.is_as_left(place)) {
      return failure(
          ErrorCode::kBadHandle,
          "[batcher] commit: expected the sequence of request {} as it was left, got one "
          "that was destroyed or changed",
          item.request);
    }
    demand.pages += item.num_new_tokens == 1 ? state.pages_for_next(place)
                                             : state.pages_needed(place, item.num_new_tokens);
  }
  return {};
}

// Everything that could make a commit fail half way, but for the pages.
Status check_plan(const BatcherState& state, const StepPlan& plan, BatcherState::Reclaim& reclaim,
                  Demand& demand) noexcept {
  if (plan.step >= state.oldest && plan.step < state.step) {
    return stale(plan, "it is in flight already");
  }
  if (plan.step != state.step) return stale(plan, "another step is next");
  if (state.steps_in_flight() == state.spec.max_steps_in_flight) {
    return stale(plan, "another step is to be finished first");
  }
  if (plan.items.empty() && state.steps_in_flight() > 0) {
    return stale(plan, "it has no items, and a step is in flight");
  }
  Status status = check_preempted(state, plan, reclaim);
  if (status.ok()) status = check_items(state, plan, demand);
  if (!status.ok()) return status;
  status = state.check_windows(plan);
  if (!status.ok()) return status;
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

void let_go(BatcherState& state) noexcept {
  state.leases.clear();
  for (const internal::NodeId id : state.pins) state.prefixes->unpin(id);
  state.pins.clear();
}

// Pins what the cache has of the admitted, in their order: it must be what was planned.
Status take_leases(BatcherState& state, const StepPlan& plan, Demand& demand) noexcept {
  for (const StepItem& item : plan.items) {
    if (!item.admitted) continue;
    PrefixLease lease;
    if (item.position > 0) {
      const BatcherState::Place& place = state.at(item.index);
      const std::span<const std::int32_t> found =
          state.askable(place).first(static_cast<std::size_t>(item.position));
      if (!state.windows.empty()) {
        const internal::NodeId end = state.end_of(place, item.position);
        if (end == internal::kNoNode || !state.have_suffix(end)) {
          return stale(plan, "a cached window has gone");
        }
      }
      const std::int32_t fetched = state.pin_host_part(place, found);
      demand.pages += fetched;
      if (fetched == 0) lease = state.cache->match(state.text_of(place).name_space, found);
      if (fetched == 0 && (lease.num_tokens() != item.position || lease.pending() != 0)) {
        return stale(plan, "the prefix cache has changed");
      }
    }
    state.leases.push_back(std::move(lease));
  }
  return {};
}

// Sees to it that the pages are there once the preempted have given theirs back. Evicts what is idle
// now; what only becomes idle then is counted, exactly, and evicted by `commit`.
Status secure_pages(BatcherState& state, const BatcherState::Reclaim& reclaim, std::int64_t pages,
                    TransferPlan& transfers) noexcept {
  state.evict_for(pages - reclaim.freed(), transfers);
  std::int64_t got = state.table.num_free_pages() + reclaim.freed();
  if (pages <= got) return {};
  if (reclaim.idle() > 0) got += state.prefixes->count_evictable(state.dropped);
  if (pages <= got) return {};
  state.others_hold = true;
  state.evict_sent(transfers);
  return failure(ErrorCode::kOutOfPages,
                 "[batcher] commit: expected {} free pages, got {}: others took pages since the "
                 "plan",
                 pages, got);
}

// The cache was asked for what had been found before: its counters hear of the rest here.
void count_hit(BatcherState& state, const BatcherState::Place& place, std::int32_t found) noexcept {
  if (!state.cache) return;
  const auto asked = static_cast<std::int64_t>(state.askable(place).size());
  state.counters.asked_tokens += asked;
  state.counters.hit_tokens += found;
  state.prefixes->stats.asked_tokens += asked - found;
  if (found == 0) ++state.prefixes->stats.lookups;
}

// Admits the request of an item if need be, and appends its tokens.
void carry_out(BatcherState& state, StepItem& item, const PrefixLease* lease,
               std::vector<CopyOp>& copies, TransferPlan& transfers) noexcept {
  BatcherState::Place& place = state.at(item.index);
  if (item.admitted) {
    state.unlink(item.index);
    place.seq = state.adopt(place, item.position, *lease, transfers);
    place.published = item.position / state.table.pool_spec().page_size;
    if (!state.windows.empty()) place.junction = state.known_pages(place);
    state.grow(place, item.position);
    state.run(item.index);
    item.seq = place.seq;
    count_hit(state, place, item.position);
  }
  static_cast<void>(state.table.append(place.seq, item.num_new_tokens, copies));
  state.grow(place, item.num_new_tokens);
  const std::size_t parity = BatcherState::parity(state.step);
  place.step_tokens[parity] = item.num_new_tokens;
  place.samples[parity] = item.samples;
  (item.is_prefill ? state.counters.prefill_tokens : state.counters.decode_tokens) +=
      item.num_new_tokens;
}

}  // namespace

Status Batcher::commit(StepPlan& plan, std::vector<CopyOp>& copies) noexcept {
  BatcherState& state = *state_;
  Demand demand;
  {
    BatcherState::Reclaim reclaim(state);
    if (Status status = check_plan(state, plan, reclaim, demand); !status.ok()) return status;
    try {
      plan.batch.clear();
      plan.transfers.clear();
      reserve_more(state.leases, static_cast<std::size_t>(demand.admitted));
      reserve_more(state.pins, 2 * static_cast<std::size_t>(demand.admitted));
      reserve_more(state.running, plan.items.size());
      reserve_more(plan.batch, plan.items.size());
      reserve_more(copies, plan.items.size());
      if (state.prefixes && state.prefixes->has_host()) {
        // Each page that is taken may send another to the host, each that was found may come from there.
        reserve_more(plan.transfers.offloads,
                     static_cast<std::size_t>(demand.pages + demand.found));
        reserve_more(plan.transfers.fetches, static_cast<std::size_t>(demand.found));
      }
      state.reserve_windows(plan);
    } catch (const std::exception&) {
      return out_of_memory("commit");
    }
    Status status = take_leases(state, plan, demand);
    if (status.ok()) status = secure_pages(state, reclaim, demand.pages, plan.transfers);
    if (!status.ok()) {
      let_go(state);
      return status;
    }
  }
  for (std::size_t i = 0; i < plan.preempted.size(); ++i) state.preempt_newest();
  state.evict_for(demand.pages, plan.transfers);
  const PrefixLease* lease = state.leases.data();
  for (StepItem& item : plan.items) {
    carry_out(state, item, lease, copies, plan.transfers);
    if (item.admitted) ++lease;
    state.append_windows(item, plan);
    plan.batch.push_back({item.seq, item.num_new_tokens});
  }
  let_go(state);
  state.others_hold = false;
  ++state.step;
  ++state.counters.steps;
  const std::int32_t used = state.table.pool_spec().num_pages - state.table.num_free_pages();
  state.counters.peak_used_pages = std::max(state.counters.peak_used_pages, used);
  return {};
}

}  // namespace v0
}  // namespace quire
