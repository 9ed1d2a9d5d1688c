# SPDX-License-Identifier: Apache-2.0
"""Traces, and replays of them on a clock of their own."""

from __future__ import annotations

import gzip
import json
import pathlib
from typing import Any

import numpy as np
import pytest

import quire
from quire.replay import TraceRequest, read_trace, replay

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:01,1,0
"""
MOONCAKE = [
    {"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]},
    {"timestamp": 4000, "input_length": 512, "output_length": 1, "hash_ids": [7]},
    {"timestamp": 4000, "input_length": 3, "output_length": 1},
]


def make(pages: int = 64, cached: bool = False, **spec: Any) -> quire.Batcher:
    pool = quire.PagePool(pages, 4)
    cache = quire.PrefixCache(pool) if cached else None
    return quire.Batcher(quire.PageTable(pool), cache, **spec)


def test_traces_of_both_kinds_are_read(tmp_path: pathlib.Path) -> None:
    azure = tmp_path / "trace.csv"
    azure.write_text(AZURE)
    first, second, third = read_trace(azure)
    assert (first.arrival, first.prompt_tokens, first.new_tokens, first.blocks) == (0, 374, 44, ())
    assert second.arrival == pytest.approx(4.314579, abs=1e-6)
    assert third == TraceRequest(pytest.approx(14.31941, abs=1e-6), 1, 0)  # type: ignore[arg-type]
    mooncake = tmp_path / "trace.jsonl.gz"
    with gzip.open(mooncake, "wt") as file:
        file.write("\n".join(json.dumps(line) for line in MOONCAKE))
    assert read_trace(mooncake) == [
        TraceRequest(0.0, 600, 5, (7, 9)),
        TraceRequest(2.5, 512, 1, (7,)),
        TraceRequest(2.5, 3, 1),
    ]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("trace.txt", "", "expected .csv or .jsonl, .gz or not, got trace.txt"),
        ("a.csv", "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,3\n", "request 1: KeyError"),
        ("a.csv", AZURE + "2023-11-16 18:16:02,x,1\n", "request 4: ValueError"),
        ("a.csv", AZURE + "2023-11-16 18:16:02,0,1\n", "request 4: expected a prompt of 1 token"),
        (
            "a.jsonl",
            '{"timestamp": 0, "input_length": 3, "output_length": 1, "hash_ids": [-1]}',
            "request 1: expected a prompt of 1 token",
        ),
        ("a.jsonl", "{}", "request 1: KeyError"),
        ("a.jsonl", "[1", "request 1: JSONDecodeError"),
    ],
)
def test_what_is_no_trace_is_named(
    tmp_path: pathlib.Path, name: str, text: str, sentence: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(quire.InvalidArgument) as error:
        read_trace(file)
    assert sentence in str(error.value)


def test_an_empty_trace_is_a_trace(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("")
    assert read_trace(file) == []
    batcher = make()
    assert replay([], batcher, lambda plan, copies: 1.0).steps == 0


def test_prompts_are_equal_where_blocks_are() -> None:
    one = TraceRequest(0, 1100, 1, (5, 6, 7)).prompt(0)
    other = TraceRequest(0, 1030, 1, (5, 8, 7)).prompt(1)
    assert one.dtype == np.int32
    assert len(one) == 1100
    assert np.array_equal(one[:512], other[:512])
    assert not np.any(one[512:1024] == other[512:1024])
    assert np.array_equal(one[1024:1030], other[1024:1030])
    unnamed = [TraceRequest(0, 700, 1, (5,)).prompt(number) for number in (0, 1)]
    assert np.array_equal(unnamed[0][:512], unnamed[1][:512])
    assert not np.any(unnamed[0][512:] == unnamed[1][512:])


def test_the_clock_moves_by_steps_and_jumps_over_idleness() -> None:
    batcher = make()
    recorder = quire.Recorder()
    trace = [TraceRequest(0, 5, 2), TraceRequest(0.5, 3, 1), TraceRequest(10, 4, 1)]
    seen = []

    def step(plan: quire.StepPlan, copies: quire.CopyPlan) -> float:
        seen.append([(item.request, item.num_new_tokens) for item in plan.items])
        return 0.25 * plan.num_tokens

    report = replay(trace, batcher, step, recorder=recorder)
    # A prompt of 5 for 1.25 s, in which the second came; then both; the third on its own.
    assert seen == [[(0, 5)], [(0, 1), (1, 3)], [(2, 4)]]
    assert (report.requests, report.refused, report.steps) == (3, 0, 3)
    assert report.seconds == 11.0
    assert recorder.kept.ended == 3
    assert batcher.idle
    assert report.stats.finished == 3


def test_all_at_once_in_steps_of_a_budget() -> None:
    batcher = make()
    trace = [TraceRequest(1000.0 * i, 4, 1) for i in range(6)]
    report = replay(trace, batcher, lambda plan, copies: 1, timed=False, max_tokens=8, max_seqs=2)
    assert (report.steps, report.seconds) == (3, 3)


def test_a_full_queue_waits_and_what_never_fits_is_counted() -> None:
    batcher = make(pages=4, max_requests=2)
    trace = [TraceRequest(0, tokens, 1) for tokens in (4, 100, 4, 4, 4)]
    report = replay(trace, batcher, lambda plan, copies: 0.0)
    assert (report.requests, report.refused) == (4, 1)
    assert report.stats.finished == 4


def test_a_prefix_cache_finds_equal_blocks() -> None:
    batcher = make(pages=600, cached=True)
    trace = [TraceRequest(i, 600, 2, (1, i)) for i in range(4)]
    computed = []

    def step(plan: quire.StepPlan, copies: quire.CopyPlan) -> tuple[float, list[int]]:
        computed.append(plan.num_tokens)
        return 0.1, [1] * sum(item.num_samples for item in plan.items)

    report = replay(trace, batcher, step, shares_prompts=True)
    assert computed == [600, 1, 88, 1, 88, 1, 88, 1]
    assert report.stats.hit_tokens == 3 * 512
    batcher.check()


def test_what_a_step_returns_is_a_time() -> None:
    for time in (-1.0, float("nan"), float("inf")):
        batcher = make()

        def step(plan: quire.StepPlan, copies: quire.CopyPlan, time: float = time) -> float:
            return time

        with pytest.raises(quire.InvalidArgument, match="expected seconds"):
            replay([TraceRequest(0, 1, 1)], batcher, step)


def test_a_busy_batcher_is_refused() -> None:
    batcher = make()
    batcher.submit(quire.Request(1, 3, 1))
    with pytest.raises(quire.InvalidArgument, match="nothing waiting or running"):
        replay([], batcher, lambda plan, copies: 1.0)
