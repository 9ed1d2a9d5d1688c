// SPDX-License-Identifier: Apache-2.0
/// @file
/// The policy: who takes part in the next step, with how many tokens, and who has to make room.
#pragma once

#include <cstdint>

#include "batching/batcher_state.hpp"

namespace quire::batching {

/// Plans one step over a state that it does not change. Used once.
///
/// Why every accepted request ends, provided that nobody else keeps pages of the pool and that only
/// finitely many requests go before it. Let O be the oldest request that has not ended.
///
///  1. If O runs, it is never preempted: only requests behind the one that needs room are, and O is
///     the first of all. It computes at least one token in every step: it is asked first; the part
///     of the budget kept for later decodes is waived for it; and if no page is free, the others
///     are preempted one by one, until a page is free or O runs alone, and then all pages but its
///     own are free, which suffices, because `submit` accepted it only if its longest cache fits
///     the pool. So O ends after at most prompt_tokens + max_new_tokens steps.
///  2. If O waits, it is the head of the queue, and nobody is admitted before the head. So those
///     who run only become fewer: they end (by 1, applied to the oldest of them, one after another)
///     or are preempted. At the latest when nobody runs, all pages are free and O is admitted: the
///     watermark is waived then, and nobody computes a prefix that it could wait for.
///
/// "Free" includes the pages that only the prefix cache holds, as they can be evicted. Beginning with
/// pages of the cache takes no more pages than computing them: each of them is one page less to be
/// found, whether it was idle or not, except a partial one, which is given up if it does not fit.
/// O waits for a prefix only while the request that computes it computes a token of it in the same
/// step, or in a step in flight, so no more steps than the prefix has tokens; if that request is cancelled or preempted, O
/// does not wait any longer.
///
/// With a step in flight nobody is preempted, so that O may find no page, and an empty plan waits for
/// that step; then 1 and 2 hold. Who does not go on takes no part and ends with the steps in flight.
///
/// With a host tier nothing of this changes: an idle page that goes to the host is handed out by the same
/// commit, as its copy is ordered before the step, and what the host cannot take is evicted; a page that
/// is fetched is a free one taken, as if it were computed. Only transfers of others make O wait: until
/// their tickets have retired pages may be neither free nor idle, nor written. Then nobody is preempted for
/// these pages, a plan may be empty, and 1 and 2 hold once the tickets have retired.
///
/// Window tables never make anybody wait: a share holds the window and `max_chunk` ≥ 1 new tokens of each
/// step in flight, and there is one for every sequence that the first table has.
///
/// After O has ended the same holds for the next one. A preempted request keeps its place in the
/// order and what it has sampled, so nothing of this is ever undone.
class Planner {
 public:
  Planner(const internal::BatcherState& state, const StepBudget& budget, StepPlan& plan) noexcept
      : state_(state),
        plan_(plan),
        max_seqs_(budget.max_seqs),
        tokens_left_(budget.max_tokens),
        free_pages_(state.available_pages()),
        num_kept_(static_cast<std::int32_t>(state.running.size())) {}

  /// Fills the plan. @throws std::bad_alloc if the plan's vectors cannot grow.
  Status run();

 private:
  void serve_running();
  void admit_waiting();
  Status explain_standstill() const noexcept;

  [[nodiscard]] bool waits_for_prefix(const internal::BatcherState::Place& place,
                                      std::int32_t found) const noexcept;
  std::int32_t make_room(std::int32_t rank) noexcept;
  [[nodiscard]] bool pages_come_free(const internal::BatcherState::Place& place) const noexcept;
  [[nodiscard]] std::int32_t count_decodes() const noexcept;
  void add(std::int32_t index, std::int32_t n);
  void add(std::int32_t index, std::int32_t n, std::int32_t pages, std::int32_t found = 0);
  bool add_decode(std::int32_t index, const internal::BatcherState::Place& place);

  const internal::BatcherState& state_;
  StepPlan& plan_;
  std::int32_t max_seqs_;
  std::int32_t tokens_left_;
  std::int64_t
      free_pages_;         // or the prefix cache's alone, once the preempted have given theirs back
  std::int32_t num_kept_;  // running requests that stay: the preempted are the newest
  std::int32_t decodes_to_come_ =
      0;  // behind the one being served; the preempted may be among them
};

}  // namespace quire::batching
