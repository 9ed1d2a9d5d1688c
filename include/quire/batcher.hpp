// SPDX-License-Identifier: Apache-2.0
/// @file
/// `Batcher`: continuous batching as pure bookkeeping. Requests go in, step plans come out; pages
/// change hands only when a plan is committed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "quire/batch_builder.hpp"
#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/page_table.hpp"

namespace quire {
inline namespace v0 {

/// What is asked for: a prompt to be continued.
struct Request {
  std::uint64_t id = 0;             ///< The caller's; unique among the requests not yet ended.
  std::int32_t prompt_tokens = 0;   ///< ≥ 1.
  std::int32_t max_new_tokens = 0;  ///< ≥ 1. The last one is never cached.
  double arrival = 0.0;  ///< Any unit. Earlier goes first; ties in the order of `submit`.
};

/// How large a step may be.
struct StepBudget {
  std::int32_t max_tokens = 2048;  ///< New tokens of the step, ≥ 1.
  std::int32_t max_seqs = 256;     ///< Requests running at the same time, ≥ 1.
};

/// One request's share of a step.
struct StepItem {
  std::uint64_t request = 0;        ///< `Request::id`.
  std::int32_t index = 0;           ///< 0…max_requests − 1, the request's own until it ends.
  SeqId seq;                        ///< Its sequence. Of an admitted request: set by `commit`.
  std::int32_t position = 0;        ///< Of the first new token.
  std::int32_t num_new_tokens = 0;  ///< ≥ 1.
  bool is_prefill = false;          ///< Computes more than the token sampled last.
  bool samples = false;             ///< Its last row yields the request's next token.
  bool admitted = false;            ///< Starts, or restarts, in this step.

  /// Equal in every field.
  friend bool operator==(const StepItem&, const StepItem&) = default;
};

/// A step: who computes what, and who has to make room. A plan changes nothing by itself. Reuse one
/// object from step to step and its vectors stop allocating.
struct StepPlan {
  std::uint64_t step = 0;                ///< Number of the step, from 0.
  std::vector<StepItem> items;           ///< Who runs, then who is admitted, by arrival.
  std::vector<std::uint64_t> preempted;  ///< Ids of those that lose their pages, newest first.
  std::int32_t num_tokens = 0;           ///< New tokens of all items.
  std::vector<BatchEntry> batch;  ///< Written by `commit`: the items as `BatchBuilder` takes them.
};

/// Counters since construction, and the present state.
struct BatcherStats {
  std::int64_t steps = 0;              ///< Committed.
  std::int64_t finished = 0;           ///< Requests.
  std::int64_t preemptions = 0;        ///< Times that a request lost its pages.
  std::int64_t prefill_tokens = 0;     ///< Computed in prefill, recomputed ones included.
  std::int64_t decode_tokens = 0;      ///< Computed in decode.
  std::int64_t recomputed_tokens = 0;  ///< Cached tokens that preemptions threw away.
  std::int32_t waiting = 0;            ///< Requests without pages.
  std::int32_t running = 0;            ///< Requests with pages.
  std::int32_t used_pages = 0;         ///< Pages of the pool in use, by whomever.
  std::int32_t peak_used_pages = 0;    ///< The most that a step had in use.
};

/// How much a batcher holds.
struct BatcherSpec {
  std::int32_t max_requests = 65536;  ///< Waiting and running, ≥ 1.
};

namespace internal {
struct BatcherState;
}

/// Continuous batching, first come, first served. A step is
///
///     plan(budget, plan) → commit(plan, copies) → execute copies, build, run → finish(plan, …)
///
/// A running request takes part with one token if all but its last token are cached (decode), else
/// with a chunk of what is missing (prefill). Prefills leave one token of the budget to each decode
/// behind them, except that the oldest request always gets one; beyond that the order of arrival
/// decides. Requests are admitted in that order, when the pages for all of their known tokens are
/// free. If pages run out, the newest request is preempted: it loses its pages, keeps its place in
/// the queue and computes its tokens again later.
///
/// Every request that `submit` accepts is finished after a bounded number of steps, provided that
/// no one else keeps pages of the pool; the proof stands in `src/batching/planner.hpp`.
///
/// Deterministic. Allocates at construction and in the caller's vectors. One owner: calls must not
/// overlap in time, nor with the table's. Sequences of the batcher may be read and forked through
/// the table, not changed. Movable, not copyable; a moved-from batcher may only be destroyed or
/// assigned to.
class QUIRE_API Batcher {
 public:
  /// A batcher without requests, whose sequences live in `table`. It keeps the table's state alive.
  /// @throws Error `kInvalidArgument` (the spec is out of range), `kOutOfMemory`.
  explicit Batcher(PageTable& table, const BatcherSpec& spec = {});
  Batcher(Batcher&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  Batcher& operator=(Batcher&&) noexcept;  ///< Likewise; ends what it held as the destructor does.
  ~Batcher();                              ///< Destroys the sequences of its requests.

  /// Queues a request. O(1) if it arrived last. Allowed at any time, also during a step.
  /// @return `kInvalidArgument` (a count below 1, an arrival that is not a number, an id in use),
  ///   `kTooLong` (can never fit: too long for the table or larger than the pool), `kQueueFull`,
  ///   `kOutOfMemory`.
  Status submit(const Request& request) noexcept;

  /// Plans the next step. Changes nothing but `plan`, which has no items if there is nothing to do.
  /// O(running + pages of the preempted).
  /// @return `kInvalidArgument` (a budget below 1, or the last step is not finished);
  /// `kOutOfPages`,
  ///   `kQueueFull` (not even the oldest request fits: others keep pages or sequences),
  ///   `kBadHandle` (a sequence was destroyed or changed behind the batcher's back);
  ///   `kOutOfMemory`.
  Status plan(const StepBudget& budget, StepPlan& plan) const noexcept;

  /// Carries a plan out: preempts, admits, appends. Sets the items' `seq` and `plan.batch`.
  /// O(items + new pages + pages of the preempted).
  /// @param plan    The last plan, unchanged. A request submitted since does not matter.
  /// @param copies  Receives the copies to execute before the step (only sequences that were forked
  ///                need any).
  /// @return `kInvalidArgument` (not a plan for this step), `kBadHandle` (a sequence was destroyed
  ///   or changed behind the batcher's back), `kOutOfPages`, `kQueueFull` (pages or sequences were
  ///   taken since); `kOutOfMemory`. Nothing has changed then; plan again.
  Status commit(StepPlan& plan, std::vector<CopyOp>& copies) noexcept;

  /// Ends the step that `plan` was committed as: each item that samples has one more token;
  /// requests that have all theirs, and the stopped ones, end and give their pages back. O(items +
  /// pages).
  /// @param stopped  Ids of sampling items that end here (an end-of-text token, say).
  /// @param ended    Receives the ids of all requests that ended, in the order of arrival.
  /// @return `kInvalidArgument` (not the committed plan, an id that does not sample in it),
  ///   `kOutOfMemory`. Nothing has changed then.
  Status finish(const StepPlan& plan, std::span<const std::uint64_t> stopped,
                std::vector<std::uint64_t>& ended) noexcept;

  /// @return True if nothing waits and nothing runs. O(1).
  [[nodiscard]] bool idle() const noexcept;
  /// @return Counters since construction, and the present state. O(1).
  [[nodiscard]] BatcherStats stats() const noexcept;

  /// Recomputes what must always hold, the table's and the pool's invariants included. Allocates.
  /// @return `kInternal` with the first violation, `kOutOfMemory`.
  [[nodiscard]] Status check() const noexcept;

 private:
  friend struct internal::TestAccess;
  std::unique_ptr<internal::BatcherState> state_;
};

}  // namespace v0
}  // namespace quire
