# SPDX-License-Identifier: Apache-2.0
"""Replays of request traces through a `Batcher`: `read_trace()` and `replay()`.

The batcher decides what each step computes; whoever calls computes it, or says how long it would
take. `quire replay` does the same on the command line, with attention on pages, a cost model and
reports.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import gzip
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional, TextIO, Union

import numpy as np
import numpy.typing as npt

from ._batcher import Batcher, BatcherStats, Request, StepPlan
from ._errors import QueueFull, TooLong, invalid
from ._pages import CopyPlan
from ._recorder import Recorder

#: Tokens of a block of `TraceRequest.blocks`.
BLOCK_TOKENS = 512


class TraceRequest(NamedTuple):
    """A request as traces have it."""

    arrival: float  #: Seconds since the first request of the trace.
    prompt_tokens: int  #: At least 1.
    new_tokens: int  #: At least 0; `replay()` asks for one at least.
    #: What stands in each block of `BLOCK_TOKENS` tokens of the prompt and before it, as a number
    #: from 0 to 2³¹ − 1; the last block may be partial. Empty if the trace does not say.
    blocks: tuple[int, ...] = ()

    def prompt(self, number: int) -> npt.NDArray[np.int32]:
        """Tokens without meaning: those of equal blocks are equal, all others are `number`'s own.

        Returns:
          int32 [prompt_tokens].
        """
        tokens = np.full(self.prompt_tokens, -1 - number, np.int32)
        blocks = np.repeat(np.array(self.blocks, np.int32), BLOCK_TOKENS)[: self.prompt_tokens]
        tokens[: blocks.size] = blocks
        return tokens


def read_trace(path: Union[str, os.PathLike[str]]) -> list[TraceRequest]:
    """Reads a trace: Azure's LLM inference CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) or
    Mooncake's JSON lines (`timestamp` in ms, `input_length`, `output_length`, `hash_ids`), `.gz` or
    not, by the file's name.

    Raises:
      InvalidArgument: Another name, or a line that is no request; it is named.
      OSError: The file cannot be read.
    """
    file = pathlib.Path(path)
    suffixes = [suffix for suffix in file.suffixes if suffix != ".gz"]
    readers = {".csv": _read_azure, ".jsonl": _read_mooncake}
    reader = readers.get(suffixes[-1] if suffixes else "")
    if reader is None:
        raise invalid("read_trace", "path", f"expected .csv or .jsonl, .gz or not, got {file.name}")
    opener: Any = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt") as text:
        requests = list(_checked(reader(text), file.name))
    return [each._replace(arrival=each.arrival - requests[0].arrival) for each in requests]


def _checked(requests: Iterator[TraceRequest], name: str) -> Iterator[TraceRequest]:
    """The same, up to one that is none."""
    for number in itertools.count(1):
        try:
            request = next(requests)
        except StopIteration:
            return
        except (KeyError, TypeError, ValueError) as error:
            raise invalid("read_trace", name, f"request {number}: {error!r}") from error
        blocks_fit = all(0 <= block < 2**31 for block in request.blocks)
        if request.prompt_tokens < 1 or request.new_tokens < 0 or not blocks_fit:
            expected = "expected a prompt of 1 token or more, an answer of 0 or more, int32 blocks"
            raise invalid("read_trace", name, f"request {number}: {expected}, got {request}")
        yield request


def _read_azure(text: TextIO) -> Iterator[TraceRequest]:
    for row in csv.DictReader(text):
        time, _, fraction = row["TIMESTAMP"].partition(".")
        whole = datetime.datetime.fromisoformat(time).replace(tzinfo=datetime.timezone.utc)
        arrival = whole.timestamp() + float(f"0.{fraction or 0}")
        yield TraceRequest(arrival, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _read_mooncake(text: TextIO) -> Iterator[TraceRequest]:
    for line in text:
        row = json.loads(line)
        blocks = tuple(int(block) for block in row.get("hash_ids", ()))
        yield TraceRequest(
            row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"]), blocks
        )


@dataclasses.dataclass(frozen=True)
class ReplayReport:
    """What a replay did."""

    requests: int  #: Taken in.
    refused: int  #: Could never fit into the table or the pool.
    steps: int
    seconds: float  #: On the replay's clock, at its end.
    stats: BatcherStats  #: The batcher's, at the end.


#: Computes a step, or says how long it would take: seconds, and the tokens sampled (int32, in the
#: order of the plan's items) where a prefix cache is to know them.
StepFunction = Callable[[StepPlan, CopyPlan], Union[float, tuple[float, Any]]]


def replay(
    requests: Sequence[TraceRequest],
    batcher: Batcher,
    step: StepFunction,
    *,
    timed: bool = True,
    shares_prompts: bool = False,
    max_tokens: int = 2048,
    max_seqs: int = 256,
    recorder: Optional[Recorder] = None,
) -> ReplayReport:
    """Serves a trace to its end, step after step, on a clock that only steps move: a second that
    `step` returns is a second in which requests arrive. When nobody waits or runs, it jumps to the
    next arrival. ::

        pool = quire.PagePool(8192, 16)
        table = quire.PageTable(pool)
        trace = quire.replay.read_trace("AzureLLMInferenceTrace_conv.csv.gz")
        report = quire.replay.replay(trace, quire.Batcher(table), lambda plan, copies: 0.02)

    Args:
      requests: In the order of arrival. Ids are their places.
      batcher: With nothing waiting or running, and one step in flight at most.
      step: Called with each committed plan and the copies to execute before it.
      timed: Requests come at the trace's times; else all at once.
      shares_prompts: Prompts are tokens (`TraceRequest.prompt()`), so that a prefix cache of the
        batcher finds equal blocks; else they are lengths.
      max_tokens, max_seqs: Of a step: see `Batcher.plan()`.
      recorder: Told of all that happens, in the clock's seconds.

    Raises:
      InvalidArgument: `step` returned no time, or the batcher is not idle.
    """
    where = "replay"
    if not batcher.idle:
        raise invalid(where, "batcher", "expected one with nothing waiting or running")
    clock, upcoming, refused, steps = 0.0, 0, 0, 0
    plan, copies = StepPlan(), CopyPlan()

    def take_in() -> int:
        """Hands over whom the clock has reached. Returns how many were refused."""
        nonlocal clock, upcoming
        too_long = 0
        while upcoming < len(requests):
            trace = requests[upcoming]
            if timed and batcher.idle:
                clock = max(clock, trace.arrival)
            if timed and trace.arrival > clock:
                break
            prompt = trace.prompt(upcoming) if shares_prompts else trace.prompt_tokens
            arrival = trace.arrival if timed else 0.0
            request = Request(upcoming, prompt, max(1, trace.new_tokens), arrival)
            try:
                batcher.submit(request)
            except QueueFull:
                break
            except TooLong:
                too_long += 1
            else:
                if recorder is not None:
                    recorder.submitted(request, arrival if timed else clock)
            upcoming += 1
        return too_long

    while True:
        refused += take_in()
        batcher.plan(max_tokens=max_tokens, max_seqs=max_seqs, into=plan)
        if not plan.items:
            break  # nobody is left: whoever comes next has been waited for
        copies.clear()
        batcher.commit(plan, copies)
        if recorder is not None:
            recorder.committed(plan, batcher, clock)
        result = step(plan, copies)
        seconds, sampled = result if isinstance(result, tuple) else (result, None)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise invalid(where, "step", f"expected seconds, 0 or more, got {seconds}")
        ended = batcher.finish(plan, sampled)
        clock += seconds
        steps += 1
        if recorder is not None:
            recorder.finished(ended, clock)
    return ReplayReport(upcoming - refused, refused, steps, clock, batcher.stats)
