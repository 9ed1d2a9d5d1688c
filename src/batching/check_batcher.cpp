// SPDX-License-Identifier: Apache-2.0
// The invariants of a batcher, recomputed from scratch.
#include <cstddef>
#include <cstdint>

#include "batching/batcher_state.hpp"
#include "cache/failure.hpp"
#include "quire/batcher.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::BatcherState;
using Phase = BatcherState::Phase;

// Whoever is said to take part in a step takes part in one that is in flight, and who ends with the
// steps in flight takes part in one.
Status check_steps(const BatcherState& state, const BatcherState::Place& place) noexcept {
  for (std::size_t parity = 0; parity < place.step_tokens.size(); ++parity) {
    bool in_flight = false;
    for (std::uint64_t step = state.oldest; step < state.step; ++step) {
      in_flight = in_flight || BatcherState::parity(step) == parity;
    }
    const bool takes_part = place.step_tokens[parity] > 0;
    if ((in_flight || !takes_part) && (takes_part || !place.samples[parity])) continue;
    return failure(ErrorCode::kInternal,
                   "[batcher] check: request {} takes part in a step that is not in flight",
                   place.request.id);
  }
  if (place.goes_on() || place.in_flight() > 0) return {};
  return failure(ErrorCode::kInternal,
                 "[batcher] check: request {} runs although it has ended, and is in no step",
                 place.request.id);
}

// The running requests are in order, and their sequences hold what they are said to have cached.
Status check_running(const BatcherState& state) noexcept {
  for (std::size_t rank = 0; rank < state.running.size(); ++rank) {
    const std::int32_t index = state.running[rank];
    const BatcherState::Place& place = state.at(index);
    if (place.phase != Phase::kRunning ||
        (rank > 0 && !state.before(state.running[rank - 1], index))) {
      return failure(ErrorCode::kInternal,
                     "[batcher] check: request {} runs out of order or is not marked as running",
                     place.request.id);
    }
    if (state.table.length(place.seq) != place.cached || place.missing() < 1) {
      return failure(ErrorCode::kInternal,
                     "[batcher] check: request {} has a sequence of {} tokens, {} cached, {} known",
                     place.request.id, state.table.length(place.seq), place.cached,
                     place.known_or_awaited());
    }
    if (place.num_pages != state.pages_for(place.cached) ||
        std::int64_t{place.num_pages} * state.table.pool_spec().page_size - place.cached !=
            place.tail_room) {
      return failure(
          ErrorCode::kInternal,
          "[batcher] check: request {} is said to have {} pages with room for {} tokens, "
          "its {} tokens have others",
          place.request.id, place.num_pages, place.tail_room, place.cached);
    }
    if (Status status = check_steps(state, place); !status.ok()) return status;
    for (const BatcherState::Window& window : state.windows) {
      const SeqId seq = window.seqs[static_cast<std::size_t>(index)];
      const std::int64_t share = window.share;
      const std::int64_t held = std::ssize(window.table.pages(seq)) - window.table.num_holes(seq);
      if (window.table.length(seq) == place.cached && held <= share) continue;
      return failure(ErrorCode::kInternal,
                     "[batcher] check: request {} has {} tokens on {} pages of a window table, {} "
                     "cached and a share of {} pages",
                     place.request.id, window.table.length(seq), held, place.cached, share);
    }
  }
  return {};
}

// The waiting requests are in order and linked both ways, and have no sequence.
Status check_waiting(const BatcherState& state) noexcept {
  std::int32_t waiting = 0;
  std::int32_t prev = BatcherState::kNobody;
  for (std::int32_t index = state.oldest_waiting; index != BatcherState::kNobody;
       index = state.at(index).next) {
    const BatcherState::Place& place = state.at(index);
    const bool in_order = prev == BatcherState::kNobody || state.before(prev, index);
    if (place.phase != Phase::kWaiting || place.prev != prev || !in_order || place.cached != 0 ||
        place.seq != SeqId{} || waiting == state.num_waiting) {
      return failure(ErrorCode::kInternal,
                     "[batcher] check: request {} waits out of order, wrongly linked or with a "
                     "sequence",
                     place.request.id);
    }
    ++waiting;
    prev = index;
  }
  if (waiting == state.num_waiting && prev == state.newest_waiting) return {};
  return failure(ErrorCode::kInternal, "[batcher] check: {} requests wait, the counter says {}",
                 waiting, state.num_waiting);
}

// Every place is free, waiting or running, and every id leads to its place.
Status check_places(const BatcherState& state) noexcept {
  std::size_t taken = 0;
  for (std::int32_t index = 0; index < state.spec.max_requests; ++index) {
    const BatcherState::Place& place = state.at(index);
    if (place.phase == Phase::kFree) continue;
    ++taken;
    const auto found = state.index_of.find(place.request.id);
    if (found == state.index_of.end() || found->second != index) {
      return failure(ErrorCode::kInternal, "[batcher] check: request {} is not found by its id",
                     place.request.id);
    }
  }
  std::int32_t unborn = 0;
  for (std::int32_t index = 0; index < state.spec.max_requests; ++index) {
    if (state.at(index).phase == Phase::kFree) continue;
    for (std::int32_t sample = state.at(index).first_sample; sample != BatcherState::kNobody;
         sample = state.at(sample).next) {
      if (state.at(sample).phase == Phase::kUnborn && state.at(sample).prev == index &&
          ++unborn <= state.num_unborn) {
        continue;
      }
      return failure(ErrorCode::kInternal,
                     "[batcher] check: request {} has further samples that are not its own",
                     state.at(index).request.id);
    }
  }
  std::size_t free_places = 0;
  for (std::int32_t index = state.first_free; index != BatcherState::kNobody;
       index = state.at(index).next) {
    if (state.at(index).phase != Phase::kFree || ++free_places > state.places.size()) {
      return failure(ErrorCode::kInternal, "[batcher] check: the free places lead to place {}",
                     index);
    }
  }
  const std::size_t listed = state.running.size() + static_cast<std::size_t>(state.num_waiting) +
                             static_cast<std::size_t>(unborn);
  if (taken == listed && taken == state.index_of.size() &&
      taken + free_places == state.places.size()) {
    return {};
  }
  return failure(ErrorCode::kInternal,
                 "[batcher] check: {} places are taken, {} free, {} in the lists, {} known by id",
                 taken, free_places, listed, state.index_of.size());
}

}  // namespace

Status Batcher::check() const noexcept {
  Status status = check_running(*state_);
  if (status.ok()) status = check_waiting(*state_);
  if (status.ok()) status = check_places(*state_);
  if (status.ok() && state_->cache) status = state_->cache->check();
  if (status.ok()) status = state_->check_suffixes();
  for (const BatcherState::Window& window : state_->windows) {
    if (status.ok()) status = window.table.check();
    if (status.ok() && window.table.num_seqs() != std::ssize(state_->running)) {
      status = failure(ErrorCode::kInternal,
                       "[batcher] check: {} sequences in a window table, {} requests run",
                       window.table.num_seqs(), state_->running.size());
    }
  }
  return status.ok() ? state_->table.check() : status;
}

}  // namespace v0
}  // namespace quire
