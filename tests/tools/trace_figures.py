#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds what the command says of two public traces against figures that are counted here, and those
against the ones that the documentation states.

    trace_figures.py QUIRE FOLDER

FOLDER has AzureLLMInferenceTrace_conv.csv.gz (github.com/Azure/AzurePublicDataset) and
mooncake_conversation_trace.jsonl.gz (github.com/kvcache-ai/Mooncake).
"""

from __future__ import annotations

import csv
import gzip
import json
import pathlib
import subprocess
import sys
from typing import Any

# Cached pages of 512 tokens: % of the pages found, as documented; 0 is without a limit.
PAGES_FOUND = {0: 36.6, 500: 4.2, 3_000: 6.5, 10_000: 21.2, 30_000: 32.6, 100_000: 36.4}
TOKENS_FOUND = 37.4  # % without a limit
# Page size: % of the positions of all pages at the final lengths that hold no token.
WASTE = {16: 0.54, 32: 1.12, 64: 2.21, 128: 4.38, 256: 8.02}
BLOCK = 512
REPLAY_LIMIT_S = 30.0  # of 19,366 requests without attention; it takes one


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: expected {expected}, got {got}")
    print(f"{what}: {got}")


def run(quire: str, *arguments: str) -> Any:
    done = subprocess.run([quire, *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def pages_hit(prompts: list[list[int]], capacity: int) -> int:
    """An ordered dictionary that touches the pages of a prompt from the last to the first, so that
    its head is the most recent, and drops the oldest."""
    cache: dict[int, None] = {}
    hits = 0
    for prompt in prompts:
        for block in prompt:
            if block not in cache:
                break
            hits += 1
        for block in reversed(prompt):
            cache.pop(block, None)
            cache[block] = None
        while capacity and len(cache) > capacity:
            del cache[next(iter(cache))]
    return hits


def check_prefixes(quire: str, trace: pathlib.Path) -> None:
    with gzip.open(trace, "rt") as lines:
        requests = [json.loads(line) for line in lines]
    prompts = [request["hash_ids"] for request in requests]
    total = sum(len(prompt) for prompt in prompts)
    limits = ",".join(str(pages) for pages in PAGES_FOUND if pages)
    rates = run(quire, "prefixes", str(trace), "--capacity", limits)["hit_rates"]
    for rate, (capacity, percent) in zip(rates, PAGES_FOUND.items(), strict=True):
        expect("cached pages", rate["capacity_pages"] or 0, capacity)
        expect("pages", rate["pages"], total)
        expect("pages hit", rate["hit_pages"], pages_hit(prompts, capacity))
        expect("% of pages hit", round(100 * rate["hit_pages"] / total, 1), percent)
    expect(
        "% of tokens hit", round(100 * rates[0]["hit_tokens"] / rates[0]["tokens"], 1), TOKENS_FOUND
    )


def check_waste(quire: str, trace: pathlib.Path) -> None:
    with gzip.open(trace, "rt") as file:
        rows = list(csv.DictReader(file))
    lengths = [int(row["ContextTokens"]) + max(1, int(row["GeneratedTokens"])) for row in rows]
    replay = run(quire, "replay", str(trace), "--no-attention", "--arrivals", "trace")
    for size, percent in WASTE.items():
        paged = sum((length + size - 1) // size * size for length in lengths)
        counted = 100 * (paged - sum(lengths)) / paged
        told = replay["tail_waste_percent"][str(size)]
        expect(f"% of waste at {size}", [round(told, 2), round(counted, 2)], [percent, percent])
    expect("requests served", replay["requests_served"], len(rows))
    expect("pages lost", replay["lost_pages"], 0)
    expect("invariants hold", replay["passed"], True)
    expect(f"within {REPLAY_LIMIT_S} s", replay["wall_s"] < REPLAY_LIMIT_S, True)


def main() -> None:
    quire, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    check_prefixes(quire, folder / "mooncake_conversation_trace.jsonl.gz")
    check_waste(quire, folder / "AzureLLMInferenceTrace_conv.csv.gz")


if __name__ == "__main__":
    main()
