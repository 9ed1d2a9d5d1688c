# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests in, step plans out."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from ctypes import byref, c_size_t, c_void_p
from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from . import _library as c
from . import _serving_library as s
from ._calls import int32, int32_array, uint64
from ._errors import invalid
from ._pages import Copies, CopyPlan, PageTable, SeqId, copies_at
from ._prefix_cache import PrefixCache


class BatchEntry(NamedTuple):
    """One request of a step: a sequence whose last `new_tokens` tokens are computed in it."""

    seq: SeqId
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: a prompt to be continued.

    Attributes:
      id: The caller's, 0 to 2⁶⁴ − 1; unique among the requests not yet ended.
      prompt: int32 [prompt_tokens], what a prefix cache goes by; or how many tokens it has, a
        number, of a request that shares nothing.
      max_new_tokens: At least 1. The last one is never cached.
      arrival: In any unit. Earlier goes first; ties in the order of `submit()`.
      head_start: Its priority: it goes as if it had arrived so much earlier, so that the wait of
        the others is bounded.
      name_space: Whose pages of the prefix cache it may share.
      further_samples: Ids of further samples of the prompt: from the step on that samples the first
        token, which then samples one for each, they are requests of their own that share the
        prompt's pages.
      priority, time_to_live: Of what it leaves in the prefix cache: see `PrefixCache.publish()`.

    Raises:
      InvalidArgument: Not a number or array of tokens. Values are judged by `submit()`.
    """

    id: int
    prompt: Any
    max_new_tokens: int
    arrival: float = 0.0
    head_start: float = 0.0
    name_space: int = 0
    priority: int = 35
    time_to_live: int = 0
    further_samples: Sequence[int] = ()
    _packed: Any = dataclasses.field(init=False, repr=False, compare=False)
    _tokens: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = "Request"
        tokens = None
        if np.ndim(self.prompt) == 0:
            length = int32(self.prompt, where, "prompt")
        else:
            tokens = int32_array(self.prompt, where, "prompt", "tokens")
            length = tokens.size
        if not -(2**63) <= self.time_to_live < 2**63:
            raise invalid(where, "time_to_live", f"expected an int64, got {self.time_to_live}")
        samples = (ctypes.c_uint64 * len(self.further_samples))(
            *(uint64(each, where, "further_samples") for each in self.further_samples)
        )
        packed = s.Request(
            id=uint64(self.id, where, "id"),
            arrival=self.arrival,
            head_start=self.head_start,
            prompt=None if tokens is None else tokens.ctypes.data,
            name_space=uint64(self.name_space, where, "name_space"),
            prompt_tokens=length,
            max_new_tokens=int32(self.max_new_tokens, where, "max_new_tokens"),
            time_to_live=self.time_to_live,
            priority=int32(self.priority, where, "priority"),
            num_further_samples=len(self.further_samples),
            further_samples=ctypes.cast(samples, c_void_p).value,
        )
        object.__setattr__(self, "_tokens", (tokens, samples))  # kept alive for the pointers
        object.__setattr__(self, "_packed", packed)


@dataclasses.dataclass(frozen=True)
class StepItem:
    """One request's share of a step."""

    request: int  #: `Request.id`.
    index: int  #: 0 to max_requests − 1, the request's own until it ends.
    seq: SeqId  #: Its sequence. Of an admitted request: set by `commit()`.
    position: int  #: Of the first new token.
    num_new_tokens: int  #: At least 1.
    num_samples: int  #: Tokens that its last row yields: see `samples`.
    is_prefill: bool  #: Computes more than the token sampled last.
    #: Its last row yields the request's next token, and if that is its first one for each of its
    #: further samples, in their order.
    samples: bool
    admitted: bool  #: Starts, or restarts, in this step; what is before `position` was found.
    #: Its last new token is the one that the step in flight samples, which the host does not know.
    awaits_token: bool


class StepPlan(c.Owner):
    """A step: who computes what, and who has to make room. It changes nothing by itself. Reuse one
    from step to step and it stops allocating."""

    __slots__ = ()

    def __init__(self) -> None:
        handle = c.created(s.locked.quire_step_plan_create)
        super().__init__(handle, s.locked.quire_step_plan_destroy)

    @property
    def step(self) -> int:
        """Number of the step, from 0 on."""
        return int(s.locked.quire_step_plan_step(self._handle))

    @property
    def num_tokens(self) -> int:
        """New tokens of all items."""
        return c.count(s.locked.quire_step_plan_num_tokens(self._handle))

    @property
    def items(self) -> list[StepItem]:
        """Who runs, then who is admitted, by arrival. O(items)."""
        return [
            StepItem(
                item.request,
                item.index,
                SeqId(item.seq.slot, item.seq.generation),
                item.position,
                item.num_new_tokens,
                item.num_samples,
                bool(item.is_prefill),
                bool(item.samples),
                bool(item.admitted),
                bool(item.awaits_token),
            )
            for item in self._structs("quire_step_plan_items", s.StepItem)
        ]

    @property
    def preempted(self) -> list[int]:
        """Ids of those that lose their pages, newest first."""
        return list(self._structs("quire_step_plan_preempted", ctypes.c_uint64))

    @property
    def batch(self) -> list[BatchEntry]:
        """The items as `BatchBuilder.build()` takes them, once the plan is committed; empty before.
        (It takes the plan itself too.)"""
        return [
            BatchEntry(SeqId(entry.seq.slot, entry.seq.generation), entry.new_tokens)
            for entry in self._structs("quire_step_plan_batch", s.BatchEntry)
        ]

    def window(self, index: int) -> tuple[list[BatchEntry], Copies]:
        """What a committed step is in a window table of the batcher: the items as
        `BatchBuilder.build()` takes them, and the copies to execute before the step in its layers.

        Raises:
          InvalidArgument: A plan that is not committed, or without such a table.
        """
        lists = [(c_void_p(), c_size_t()) for _ in range(2)]
        c.check(
            s.locked.quire_step_plan_window(
                self._handle, index, *(byref(each) for pair in lists for each in pair)
            )
        )
        (entries, num_entries), (ops, num_ops) = ((a.value, n.value) for a, n in lists)
        batch: Any = ()
        if num_entries and entries is not None:
            batch = (s.BatchEntry * num_entries).from_address(entries)
        return (
            [BatchEntry(SeqId(e.seq.slot, e.seq.generation), e.new_tokens) for e in batch],
            copies_at(ops, num_ops),
        )

    @property
    def transfers(self) -> tuple[Copies, Copies]:
        """Of a prefix cache with a host tier: what goes to the host to make room, and what the
        admitted find there, once the plan is committed. Executed after the steps before, in this
        order, and before the copies of `Batcher.commit()`; it needs no `PrefixCache.retire()`."""
        lists = [(c_void_p(), c_size_t()) for _ in range(2)]
        c.check(
            s.locked.quire_step_plan_transfers(
                self._handle, *(byref(each) for pair in lists for each in pair)
            )
        )
        offloads, fetches = (copies_at(address.value, count.value) for address, count in lists)
        return offloads, fetches

    def _list(self, function: str) -> tuple[Optional[int], int]:
        address, count = c_void_p(), c_size_t()
        c.check(getattr(s.locked, function)(self._handle, byref(address), byref(count)))
        return address.value, count.value

    def _structs(self, function: str, struct: Any) -> Any:
        address, count = self._list(function)
        return (struct * count).from_address(address) if count and address is not None else ()


class BatcherStats(NamedTuple):
    """Counters since a batcher was made, and its present state."""

    steps: int  #: Committed.
    finished: int  #: Requests.
    preemptions: int  #: Times that a request lost its pages.
    prefill_tokens: int  #: Computed in prefill, recomputed ones included.
    decode_tokens: int  #: Computed in decode.
    recomputed_tokens: int  #: Cached tokens that preemptions took away.
    cancelled: int  #: Requests; not among the finished.
    asked_tokens: int  #: Known tokens of the admitted that a prefix cache may have.
    hit_tokens: int  #: Those of them that it had: they were not computed.
    waiting: int  #: Requests without pages.
    running: int  #: Requests with pages.
    used_pages: int  #: Pages of the pool in use, by whomever.
    idle_pages: int  #: Those of them that only a prefix cache holds.
    peak_used_pages: int  #: The most that a step had in use.
    #: Preemptions that left behind what it is quicker to get back from the host than to compute.
    swaps: int
    fetched_tokens: int  #: Those of `hit_tokens` that came from the host.


class Batcher(c.Owner):
    """Continuous batching as pure bookkeeping, first come, first served. A step is ::

        plan = batcher.plan(max_tokens=2048)
        batcher.commit(plan, copies)  # pages change hands here
        …                             # execute copies, build the batch, run the model, sample
        ended = batcher.finish(plan, sampled)

    Prefills are cut into chunks that fit the step and mixed with decodes; if pages run out, the
    newest request is preempted and computes its tokens again later; with a prefix cache, requests
    begin with the pages that it has and leave theirs in it; if that has a host tier, pages go there
    and come back, those of the preempted too (`StepPlan.transfers`). Every request that `submit()`
    accepts ends after a bounded number of steps, if no one else keeps pages of the pool.
    docs/concepts/batching.md explains, docs/concepts/contract.md says who may change what.

    Args:
      table: Where the sequences of the requests live: they may be read and forked, not changed.
      cache: On the table's pool; None: nothing is shared.
      windows: Tables of the layers with a window, on pools of their own, that nobody else uses: in
        each a running request has a sequence too (`StepPlan.window()`) and an equal share of the
        pages, so that none is ever missing.
      max_requests: Waiting and running.
      watermark_pages: Pages that must stay free when a request is admitted while others run.
      max_steps_in_flight: 1, or 2: the next step may be planned and committed while one runs. Then
        who samples in that one goes on with a token that only the device knows (`awaits_token`),
        and a plan without items says that a step has to be finished first.
      cached_windows: With a cache and window tables: ends of prefixes whose window is kept in each
        of these, for other requests to go on from.

    Raises:
      InvalidArgument: A number is out of range, or a window table has too few pages.
      BadHandle: The cache is on another pool.
    """

    __slots__ = ()

    def __init__(
        self,
        table: PageTable,
        cache: Optional[PrefixCache] = None,
        *,
        windows: Sequence[PageTable] = (),
        max_requests: int = 65536,
        watermark_pages: int = 0,
        max_steps_in_flight: int = 1,
        cached_windows: int = 0,
    ) -> None:
        where = "Batcher"
        spec = s.BatcherSpec(
            max_requests=int32(max_requests, where, "max_requests"),
            watermark_pages=int32(watermark_pages, where, "watermark_pages"),
            max_steps_in_flight=int32(max_steps_in_flight, where, "max_steps_in_flight"),
            cached_windows=int32(cached_windows, where, "cached_windows"),
        )
        if cache is not None and cache._handle is None:
            raise invalid(where, "cache", "expected an open quire.PrefixCache, got a closed one")
        prefixes = None if cache is None else cache._handle
        if windows:
            tables = (c_void_p * len(windows))(*(window._handle for window in windows))
            handle = c.created(
                s.locked.quire_batcher_create_windowed,
                table._handle,
                prefixes,
                tables,
                len(windows),
                byref(spec),
            )
        else:
            handle = c.created(s.locked.quire_batcher_create, table._handle, prefixes, byref(spec))
        super().__init__(handle, s.locked.quire_batcher_destroy)

    def submit(self, request: Request) -> None:
        """Queues a request. Allowed at any time, also during a step.

        Raises:
          InvalidArgument: A count below 1, an arrival that is not a number, an id in use, a
            priority or time out of range.
          TooLong: It can never fit the table or the pool.
          QueueFull: `max_requests` wait or run already.
        """
        c.check(s.locked.quire_batcher_submit(self._handle, byref(request._packed)))

    def cancel(self, request: int) -> None:
        """Gives a request up, whether it waits or runs. If it takes part in a step in flight, it
        ends with that step's `finish()`, which returns its id; else at once.

        Raises:
          InvalidArgument: An id that is not in use, or was cancelled before.
        """
        c.check(s.locked.quire_batcher_cancel(self._handle, uint64(request, "cancel", "request")))

    def plan(
        self, *, max_tokens: int = 2048, max_seqs: int = 256, into: Optional[StepPlan] = None
    ) -> StepPlan:
        """Plans the next step; changes nothing. A plan without items says that there is nothing to
        do.

        Args:
          max_tokens: New tokens of the step.
          max_seqs: Requests running at the same time.
          into: A plan to be used again; None makes one.

        Raises:
          InvalidArgument: A budget below 1, or the last step is not finished.
          OutOfPages, QueueFull: Not even the oldest request fits: others keep pages or sequences.
          BadHandle: A sequence was changed behind the batcher's back.
        """
        budget = s.StepBudget(
            max_tokens=int32(max_tokens, "plan", "max_tokens"),
            max_seqs=int32(max_seqs, "plan", "max_seqs"),
        )
        plan = StepPlan() if into is None else into
        c.check(s.locked.quire_batcher_plan(self._handle, byref(budget), plan._handle))
        return plan

    def commit(self, plan: StepPlan, copies: CopyPlan) -> None:
        """Carries a plan out: preempts, admits, appends. Sets the items' `seq` and `plan.batch`.

        Args:
          plan: The last plan. A request submitted since does not matter.
          copies: Receives the copies to execute before the step.

        Raises:
          InvalidArgument: Not a plan for this step.
          OutOfPages, QueueFull, BadHandle: Pages or sequences were taken or changed since. Nothing
            has changed, but that pages may have been evicted: plan again.
        """
        c.check(s.locked.quire_batcher_commit(self._handle, plan._handle, copies._handle))

    def finish(
        self,
        plan: StepPlan,
        sampled: Optional[npt.ArrayLike] = None,
        stopped: Sequence[int] = (),
    ) -> list[int]:
        """Ends the oldest step in flight, which `plan` was committed as: each item that samples has
        one more token; requests that have all theirs, and the stopped ones, end and give their
        pages back.

        Args:
          sampled: int32 [all `num_samples`], the new tokens in the order of the items, so that a
            prefix cache can share answers too; or None.
          stopped: Ids of sampling items that end here (an end-of-text token, say).

        Returns:
          Ids of all requests that ended, in the order of arrival.

        Raises:
          InvalidArgument: Not the committed plan, an id that does not sample in it, another number
            of tokens. Nothing has changed.
        """
        where = "finish"
        tokens = (
            np.empty(0, np.int32) if sampled is None else int32_array(sampled, where, "sampled")
        )
        ids = (ctypes.c_uint64 * len(stopped))(
            *(uint64(each, where, "stopped") for each in stopped)
        )
        address, count = c_void_p(), c_size_t()
        c.check(
            s.locked.quire_batcher_finish(
                self._handle,
                plan._handle,
                tokens.ctypes.data,
                tokens.size,
                ids,
                len(ids),
                byref(address),
                byref(count),
            )
        )
        if not count.value or address.value is None:
            return []
        return list((ctypes.c_uint64 * count.value).from_address(address.value))

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs. O(1)."""
        return bool(c.count(s.locked.quire_batcher_idle(self._handle)))

    @property
    def stats(self) -> BatcherStats:
        """Counters since it was made, and the present state. O(1)."""
        stats = s.BatcherStats()
        c.check(s.locked.quire_batcher_get_stats(self._handle, byref(stats)))
        return BatcherStats(*(getattr(stats, name) for name in BatcherStats._fields))

    def check(self) -> None:
        """Recomputes what must always hold, in table, pool and cache too. Raises `Error`
        (`INTERNAL`) with the first violation."""
        c.check(s.locked.quire_batcher_check(self._handle))
