# SPDX-License-Identifier: Apache-2.0
"""What the steps of a batcher did."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from ctypes import byref
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _library as c
from . import _serving_library as s
from ._batcher import Batcher, Request, StepPlan
from ._calls import int32, uint64


class EventKind(enum.IntEnum):
    """What happens to a request: `kind` of `Recorder.events`."""

    SUBMIT = 0  #: It began to wait. `num_tokens`: of its prompt.
    ADMIT = 1  #: It got its first pages, or pages again. `num_tokens`: found in them.
    PREFILL = 2  #: A chunk of its known tokens was computed.
    DECODE = 3  #: The tokens that it sampled last were computed, in steps one after the other.
    PREEMPT = 4  #: It lost its pages. `num_tokens`: cached ones thrown away.
    FINISH = 5  #: It ended. `num_tokens`: sampled in its whole life.


class RecordCounts(NamedTuple):
    """Numbers of records of each kind."""

    events: int
    steps: int
    ended: int


class Recorder(c.Owner):
    """Records what a `Batcher` did, for timelines and latencies. Each call follows the one of the
    batcher that it is named after, once that has succeeded: `submit()` → `submitted()`, and so on.
    Times are the caller's, in any unit; they should not go backwards. When a kind of record is
    full, the oldest makes room and is counted in `lost`.

    Args:
      max_events: About 7 a request; 56 bytes each.
      max_steps: 80 bytes each.
      max_ended: Requests that have ended; 72 bytes each.
      max_requests: Waiting and running, as the batcher's.

    Raises:
      InvalidArgument: A number is out of range.
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        max_events: int = 1 << 18,
        max_steps: int = 1 << 16,
        max_ended: int = 1 << 16,
        max_requests: int = 65536,
    ) -> None:
        where = "Recorder"
        spec = s.RecorderSpec(
            max_events=int32(max_events, where, "max_events"),
            max_steps=int32(max_steps, where, "max_steps"),
            max_ended=int32(max_ended, where, "max_ended"),
            max_requests=int32(max_requests, where, "max_requests"),
        )
        handle = c.created(s.locked.quire_recorder_create, byref(spec))
        super().__init__(handle, s.locked.quire_recorder_destroy)

    def submitted(self, request: Request, time: float) -> None:
        """The batcher has accepted a request, which waits since `time`."""
        c.check(s.locked.quire_recorder_submitted(self._handle, byref(request._packed), time))

    def committed(self, plan: StepPlan, batcher: Batcher, time: float) -> None:
        """The batcher has committed a plan: its step begins. O(items + preempted)."""
        c.check(
            s.locked.quire_recorder_committed(self._handle, plan._handle, batcher._handle, time)
        )

    def cancelled(self, request: int, time: float) -> None:
        """The batcher has ended a cancelled request at once. (One that takes part in a step in
        flight is among those that `finish()` returns.)"""
        number = uint64(request, "cancelled", "request")
        c.check(s.locked.quire_recorder_cancelled(self._handle, number, time))

    def finished(self, ended: Sequence[int], time: float, stopped: Sequence[int] = ()) -> None:
        """The batcher has finished its oldest step. O(items + ended).

        Args:
          ended: What `finish()` returned.
          stopped: What it was given: what they sample in steps that were planned ahead does not
            count.
        """
        stops = (ctypes.c_uint64 * len(stopped))(
            *(uint64(each, "finished", "stopped") for each in stopped)
        )
        ids = (ctypes.c_uint64 * len(ended))(*(uint64(each, "finished", "ended") for each in ended))
        c.check(
            s.locked.quire_recorder_finished(self._handle, ids, len(ids), stops, len(stops), time)
        )

    @property
    def events(self) -> npt.NDArray[np.void]:
        """What happened to requests, by the time at which it began: a structured array [events] of
        request, first_step, last_step, begin, end, position, num_tokens, kind (`EventKind`). A
        copy."""
        return self._records("quire_recorder_events", s.RequestEvent, self.kept.events)

    @property
    def steps(self) -> npt.NDArray[np.void]:
        """What steps were made of and the state that they left: a structured array [steps] of step,
        begin, end, cached_tokens, prefill_tokens, decode_tokens, reused_tokens, num_prefills,
        num_decodes, num_admitted, num_preempted, num_ended, waiting, running, used_pages. A
        copy."""
        return self._records("quire_recorder_steps", s.StepRecord, self.kept.steps)

    @property
    def ended(self) -> npt.NDArray[np.void]:
        """The lives of the requests that have ended, in the order of their end: a structured array
        [requests] of request, submitted, admitted, first_token, finished, longest_gap (times, NaN
        where unseen), prompt_tokens, new_tokens, num_preemptions, recomputed_tokens, reused_tokens.
        A copy."""
        return self._records("quire_recorder_ended", s.RequestRecord, self.kept.ended)

    @property
    def kept(self) -> RecordCounts:
        """How many records there are. O(1)."""
        return self._counts()[0]

    @property
    def lost(self) -> RecordCounts:
        """How many were displaced by newer ones, or are of requests that were not tracked. O(1)."""
        return self._counts()[1]

    def _counts(self) -> tuple[RecordCounts, RecordCounts]:
        kept, lost = s.RecordCounts(), s.RecordCounts()
        c.check(s.locked.quire_recorder_counts(self._handle, byref(kept), byref(lost)))
        return (
            RecordCounts(kept.events, kept.steps, kept.ended),
            RecordCounts(lost.events, lost.steps, lost.ended),
        )

    def _records(self, function: str, struct: Any, count: int) -> npt.NDArray[np.void]:
        records: npt.NDArray[np.void] = np.zeros(count, np.dtype(struct))
        c.check(getattr(s.locked, function)(self._handle, 0, records.ctypes.data, count))
        return records
