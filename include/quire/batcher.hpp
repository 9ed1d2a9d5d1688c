// SPDX-License-Identifier: Apache-2.0
/// @file
/// `Batcher`: continuous batching as pure bookkeeping. Requests go in, step plans come out; pages
/// are taken only when a plan is committed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "quire/batch_builder.hpp"
#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/page_table.hpp"
#include "quire/prefix_cache.hpp"

namespace quire {
inline namespace v0 {

/// What is asked for: a prompt to be continued.
struct Request {
  std::uint64_t id = 0;             ///< The caller's; unique among the requests not yet ended.
  std::int32_t prompt_tokens = 0;   ///< ≥ 1.
  std::int32_t max_new_tokens = 0;  ///< ≥ 1. The last one is never cached.
  double arrival = 0.0;  ///< Any unit. Earlier goes first; ties in the order of `submit`.
  /// The prompt's tokens, which `submit` copies: what a prefix cache goes by. Empty, or
  /// `prompt_tokens` of them. Without a cache, and of a request without them, nothing is shared.
  std::span<const std::int32_t> prompt{};
  std::uint64_t name_space = 0;  ///< Whose pages it may share: see `PrefixCache::match`.
  Retention retention{};         ///< Of the pages that it leaves in the prefix cache.
  /// Its priority: it goes as if it had arrived so much earlier. A request is overtaken only by
  /// those that arrive less than the difference of the two head starts after it, so that its wait is
  /// bounded however many with a greater one come. Finite.
  double head_start = 0.0;
  /// Ids of further samples of the prompt: from the step on that samples the first token, which then
  /// samples one for each, they are requests of their own that share the prompt's pages. Read by
  /// `submit`.
  std::span<const std::uint64_t> further_samples{};
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
  std::int32_t num_samples = 0;     ///< Tokens that its last row yields: see `samples`.
  bool is_prefill = false;          ///< Computes more than the token sampled last.
  /// Its last row yields the request's next token, and if that is its first one for each of its
  /// further samples, in their order.
  bool samples = false;
  /// Starts, or restarts, in this step. Its first `position` tokens were found in the prefix cache.
  bool admitted = false;
  /// Its last new token is the one that the step in flight samples: the device has it before the host
  /// does. Only where steps are planned ahead.
  bool awaits_token = false;

  /// Equal in every field.
  friend bool operator==(const StepItem&, const StepItem&) = default;
};

/// A step: who computes what, and who has to make room. A plan changes nothing by itself. Reuse one
/// object from step to step and its vectors stop allocating.
struct StepPlan {
  std::uint64_t step = 0;                ///< Number of the step, from 0.
  std::vector<StepItem> items;           ///< Who runs, then who is admitted, each by turn.
  std::vector<std::uint64_t> preempted;  ///< Ids of those that lose their pages, newest first.
  std::int32_t num_tokens = 0;           ///< New tokens of all items.
  std::vector<BatchEntry> batch;  ///< Written by `commit`: the items as `BatchBuilder` takes them.
  /// Written by `commit`, of a prefix cache with a host tier: what goes to the host to make room, and what
  /// the admitted find there. Executed after the steps before and before the copies of `commit`; the
  /// batcher knows that it has run then, and needs no `retire`.
  TransferPlan transfers;
  /// What a step is in one of the window tables of a batcher.
  struct Window {
    std::vector<BatchEntry> batch;  ///< As the plan's, of that table.
    std::vector<CopyOp> copies;     ///< To execute before the step, in the layers of that table.
  };
  std::vector<Window> windows;  ///< Written by `commit`, in the order of the tables.
};

/// Counters since construction, and the present state.
struct BatcherStats {
  std::int64_t steps = 0;           ///< Committed.
  std::int64_t finished = 0;        ///< Requests.
  std::int64_t preemptions = 0;     ///< Times that a request lost its pages.
  std::int64_t prefill_tokens = 0;  ///< Computed in prefill, recomputed ones included.
  std::int64_t decode_tokens = 0;   ///< Computed in decode.
  /// Cached tokens that preemptions took away; a prefix cache may give some back.
  std::int64_t recomputed_tokens = 0;
  std::int64_t cancelled = 0;        ///< Requests; not among the finished.
  std::int64_t asked_tokens = 0;     ///< Known tokens of the admitted that a prefix cache may have.
  std::int64_t hit_tokens = 0;       ///< Those of them that it had: they were not computed.
  std::int32_t waiting = 0;          ///< Requests without pages.
  std::int32_t running = 0;          ///< Requests with pages.
  std::int32_t used_pages = 0;       ///< Pages of the pool in use, by whomever.
  std::int32_t idle_pages = 0;       ///< Those of them that only a prefix cache holds.
  std::int32_t peak_used_pages = 0;  ///< The most that a step had in use.
  /// Preemptions that left behind what it is quicker to get back from the host than to compute.
  std::int64_t swaps = 0;
  std::int64_t fetched_tokens = 0;  ///< Those of `hit_tokens` that came from the host.
};

/// How much a batcher holds.
struct BatcherSpec {
  std::int32_t max_requests = 65536;  ///< Waiting and running, ≥ 1.
  /// Pages that must stay free when a request is admitted while others run, ≥ 0: room for those to
  /// grow, so that fewer are preempted.
  std::int32_t watermark_pages = 0;
  /// 1, or 2: the next step may be planned and committed while one runs, so that the device does not
  /// wait for the host.
  std::int32_t max_steps_in_flight = 1;
  /// With a prefix cache and window tables: ends of prefixes whose window is kept in each of these, for
  /// other requests to go on from, ≥ 0. Each takes the pages of a window out of each window table's pool.
  /// With 0 no prefix is ever found: a hit needs the windows at its end.
  std::int32_t cached_windows = 0;
};

namespace internal {
struct BatcherState;
}

/// Continuous batching, first come, first served. A step is
///
///     plan(budget, plan) → commit(plan, copies) → execute plan.transfers, then copies → build, run
///         → finish(plan, …)
///
/// (and the copies of each of plan.windows, whose batches are built likewise).
///
/// A running request takes part with one token if all but its last token are cached (decode), else
/// with a chunk of what is missing (prefill). Prefills leave one token of the budget to each decode
/// behind them, except that the oldest request always gets one; beyond that the order of arrival
/// decides. Requests are admitted in that order, when the pages for all of their known tokens are
/// free. If pages run out, the newest request is preempted: it loses its pages, keeps its place in
/// the queue and computes its tokens again later.
///
/// With a `PrefixCache`, a request that is admitted begins with the pages that the cache has of its
/// known tokens, and computes the rest, the last token at least. Whole pages go into the cache as
/// the steps that filled them are finished; when a request ends, is cancelled or preempted, so does
/// the partial one. Where the cache has the same page already, the request takes that one and gives
/// its own back. A request at the head of the queue waits while another computes, in the step being
/// planned or in one in flight, whole pages of a prefix that both share: at most as many steps as these have tokens.
/// Pages that only the cache holds count as free; `commit` evicts as many of them as it needs.
///
/// If the cache has a host tier, `commit` sends these to the host instead, as far as `TierCosts` finds it
/// worth it and the host has room, and gets back what the host has of the tokens of the admitted, if that
/// is quicker than computing them. So a request that is preempted is swapped out: its pages are left to
/// the cache, go to the host as the others need room, and are back when it is admitted again; what the
/// host has no room for is computed again. `StepPlan::transfers` is the plan of these copies. Whoever
/// offloads or fetches besides, between the steps, keeps pages until the ticket has retired: nobody is
/// preempted for want of pages that are about to come free, nor admitted to pages that are not written
/// yet, and a plan without items may say that a ticket has to retire first.
///
/// A model with layers of several kinds has a table for each: one for the layers that see everything, and
/// *window tables* for the others, each on a pool of its own. In each of these a running request has a
/// sequence too, of the same tokens, whose pages go back as its window moves on. Their pools are divided
/// evenly: less those of cached windows, a request has num_pages / max_seqs pages in each (max_seqs of the
/// first table), which hold its window and the new tokens of a
/// step, so prefill chunks are as long as the smallest share allows, and nobody ever waits for such a page. What
/// is said of pages here is of those of the first table. A table with a window may also be the only one,
/// without a prefix cache. A model whose layers all have a window shares prefixes with a first table too: it
/// names the whole sequences, in a pool of pages for which the device has no memory, and its copies and arrays
/// are left alone. With a cache, a request begins with the longest prefix that all tables can serve: the
/// cache has its pages, and each window table has kept the window at its end. Windows are kept at
/// the ends of prompts and of requests, and where a prompt has left what the cache knew before it.
///
/// With two steps in flight (`BatcherSpec::max_steps_in_flight`) the loop is one step ahead of the
/// device:
///
///     plan(k+1) → commit(k+1) → enqueue it → wait for step k → finish(k, its tokens) → plan(k+2) …
///
/// A request has then three lengths: what is *known* (its prompt and the tokens that finished steps
/// sampled), what is *submitted* (to the steps in flight) and what is *written* (by finished steps).
/// Whoever samples in step k goes on in step k+1 with a token that only the device knows; who has all
/// of its tokens does not. One that is stopped or cancelled while it takes part in a later step is
/// planned no more, ends with that step, and what it samples there does not count. Nobody is preempted
/// while a step is in flight: a plan without items then says that a step has to be finished first.
/// Steps run on the device in the order of their commits; a page that is handed out may still be read
/// by the steps before.
///
/// Every request that `submit` accepts is finished after a bounded number of steps, provided that
/// no one else keeps pages of the pool and that the tickets of transfers that others plan retire; the
/// proof stands in `src/batching/planner.hpp`.
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
  /// Likewise, with a prefix cache on the table's pool, whose state it keeps alive too. The cache may
  /// be used by others, as long as calls do not overlap in time; pages that they hold are not free.
  /// @throws Error also `kBadHandle` (the cache is on another pool), `kInvalidArgument` (the table has a
  ///   window: see above).
  Batcher(PageTable& table, PrefixCache& cache, const BatcherSpec& spec = {});
  /// With window tables, whose state it keeps alive and which nobody else uses.
  /// @param windows  Each has a window, at least the sequences and tokens of `table`, and pages enough that each
  ///                 sequence of `table` can hold the window and a new token of each step in flight (with a
  ///                 prefix cache, besides cached windows, and up to a page more).
  /// @throws Error also for those (`kInvalidArgument`).
  Batcher(PageTable& table, std::span<PageTable* const> windows, const BatcherSpec& spec = {});
  /// Likewise, with a prefix cache: see `BatcherSpec::cached_windows`.
  Batcher(PageTable& table, PrefixCache& cache, std::span<PageTable* const> windows,
          const BatcherSpec& spec = {});
  Batcher(Batcher&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  Batcher& operator=(Batcher&&) noexcept;  ///< Likewise; ends what it held as the destructor does.
  ~Batcher();                              ///< Destroys the sequences of its requests.

  /// Queues a request and its further samples. O(1) if it arrived last, and for each of these. Allowed
  /// at any time, also during a step.
  /// @return `kInvalidArgument` (a count below 1, an arrival that is not a number, an id in use,
  ///   another number of tokens than the prompt has, a retention out of range),
  ///   `kTooLong` (can never fit: too long for the table or larger than the pool), `kQueueFull`,
  ///   `kOutOfMemory`.
  Status submit(const Request& request) noexcept;

  /// Gives a request up, whether it waits or runs. If it takes part in steps in flight, it ends with
  /// the last one's `finish`, whose `ended` names it, and its last row is not asked for; else at once.
  /// Further samples that have not begun end with it.
  /// O(1) if it waits, O(pages + tokens) if it runs.
  /// @return `kInvalidArgument` (an id that is not in use, or was cancelled or stopped before).
  Status cancel(std::uint64_t request) noexcept;

  /// Plans the next step. Changes nothing but `plan`, which has no items if there is nothing to do, or
  /// nothing before a step in flight is finished.
  /// O(running + pages of the preempted); with a prefix cache, also O(known tokens) of each request
  /// that is admitted and of the one that comes after them.
  /// @return `kInvalidArgument` (a budget below 1, or too many steps are not finished);
  /// `kOutOfPages`,
  ///   `kQueueFull` (not even the oldest request fits: others keep pages or sequences),
  ///   `kBadHandle` (a sequence was destroyed or changed behind the batcher's back);
  ///   `kOutOfMemory`.
  Status plan(const StepBudget& budget, StepPlan& plan) const noexcept;

  /// Carries a plan out: preempts, admits, appends. Sets the items' `seq` and `plan.batch`.
  /// O(items + new pages + pages of the preempted + known tokens of those and of the admitted +
  /// evicted pages · log); O(num_pages of the pool) if it preempts and pages of the preempted are in
  /// the prefix cache.
  /// @param plan    The last plan, unchanged. A request submitted since does not matter.
  /// @param copies  Receives the copies to execute before the step (only sequences that were forked
  ///                need any).
  /// @return `kInvalidArgument` (not a plan for this step, or without items while a step is in flight),
  ///   `kBadHandle` (a sequence was destroyed
  ///   or changed behind the batcher's back), `kOutOfPages`, `kQueueFull` (pages or sequences were
  ///   taken since, or others hold pages that the prefix cache was to evict); `kOutOfMemory`. Nothing
  ///   has changed then, but that pages may have been evicted; plan again.
  Status commit(StepPlan& plan, std::vector<CopyOp>& copies) noexcept;

  /// Ends the oldest step in flight, which `plan` was committed as: each item that samples has one more
  /// token;
  /// requests that have all theirs, and the stopped ones, end and give their pages back. O(items +
  /// pages).
  /// @param stopped  Ids of sampling items, or of the samples that begin here, that end here (an end-of-text token, say); those that were
  ///                 stopped before may be named again.
  /// @param ended    Receives the ids of all requests that ended, in the order of arrival; then the
  ///                 further samples that ended before or as they began.
  /// @return `kInvalidArgument` (not the committed plan, an id that does not sample in it),
  ///   `kOutOfMemory`. Nothing has changed then.
  Status finish(const StepPlan& plan, std::span<const std::uint64_t> stopped,
                std::vector<std::uint64_t>& ended) noexcept {
    return finish(plan, {}, stopped, ended);
  }
  /// Likewise, and says which tokens were sampled, so that a prefix cache can share the pages of
  /// answers too. A request that samples in a step without it shares no later tokens.
  /// @param sampled  The `num_samples` new tokens of each item that samples, in the order of the items,
  ///                 those of the cancelled too; or empty.
  /// @return Likewise; `kInvalidArgument` (another number of tokens).
  Status finish(const StepPlan& plan, std::span<const std::int32_t> sampled,
                std::span<const std::uint64_t> stopped, std::vector<std::uint64_t>& ended) noexcept;

  /// @return True if nothing waits and nothing runs. O(1).
  [[nodiscard]] bool idle() const noexcept;
  /// @return Counters since construction, and the present state. O(1).
  [[nodiscard]] BatcherStats stats() const noexcept;

  /// Recomputes what must always hold, the invariants of the table, the pool and the prefix cache
  /// included. Allocates.
  /// @return `kInternal` with the first violation, `kOutOfMemory`.
  [[nodiscard]] Status check() const noexcept;

 private:
  friend struct internal::TestAccess;
  void add_windows(std::span<PageTable* const> windows);

  std::unique_ptr<internal::BatcherState> state_;
};

}  // namespace v0
}  // namespace quire
