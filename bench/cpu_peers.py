#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times quire and PyTorch's attentions on a CPU, in one process, on the rows of course.json.

    PYTHONPATH=python QUIRE_LIBRARY=build/lib/libquire.so.0 bench/cpu_peers.py > FOLDER/peers.jsonl
        [--rows REGEX] [--impl REGEX] [--threads N] [--all]
    bench/cpu_peers.py --table FOLDER/peers.jsonl

Needs what requirements-cpu-peers.txt names. Routes: scaled_dot_product_attention and, compiled,
FlexAttention, once for each request, in a loop, on keys and values that lie contiguously: the
layout that they are made for, gathered before the clock starts; `torch_sdpa_gather`, which pays for
the gather as who has pages does; `torch_index_put` for append; and `quire` on the pages. The routes
of a row take turns, each after its caches were emptied, all on torch's memory, which is asked for
on huge pages. Outputs are held against double precision.
Prints JSON lines with the members of quire's own; lengths are divided by `cpu_scale`, as quire
bench divides them. What a route does not take or fails at goes to stderr. `--table` prints them as
Markdown, with the best peer's time over quire's.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read when torch is imported

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

SHORTEST = 64  # lengths below are not divided, so that a decode stays a decode
FLUSH_BYTES = 1 << 28  # several times the largest cache
TOLERANCE = 0.02  # of outputs that are averages of normal samples, in bfloat16


def divided(length, scale):
    """A length as quire bench divides it."""
    return -(-length // scale) if length >= SHORTEST else length


def expand(lengths, scale):
    """Lengths as the course writes them: a number, or [number, how often]."""
    entries = [entry if isinstance(entry, list) else [entry, 1] for entry in lengths]
    return [divided(length, scale) for length, count in entries for _ in range(count)]


class Batch:
    """A row of the course: queries and, in shuffled pages, keys and values of each request."""

    def __init__(self, row, scale, dtype):
        self.name, self.page_size, self.dim = row["name"], row["page_size"], row["head_dim"]
        self.appends = row.get("op") == "append"
        self.qo_heads, self.kv_heads = row["heads"]
        self.causal = row.get("mask", "causal") == "causal"
        self.window = divided(row.get("window_left", -1), scale)
        self.qo_len = expand(row["qo_len"], scale)
        self.kv_len = expand(row.get("kv_len", row["qo_len"]), scale)
        self.kv_len = [max(lengths) for lengths in zip(self.kv_len, self.qo_len, strict=True)]
        pages = [-(-keys // self.page_size) for keys in self.kv_len]
        ids = torch.randperm(sum(pages))
        self.table = list(ids.split(pages))
        for first, last, tokens in row.get("shared", []):
            shared = divided(tokens, scale) // self.page_size
            for seq in range(first, last):
                self.table[seq][:shared] = self.table[first][:shared]
        shape = (sum(pages), self.page_size, self.kv_heads, self.dim)
        self.k, self.v = (torch.randn(shape).to(dtype) for _ in range(2))
        self.q = [torch.randn(1, self.qo_heads, count, self.dim).to(dtype) for count in self.qo_len]
        if self.appends:
            shape = (sum(self.qo_len), self.kv_heads, self.dim)
            self.new = [torch.randn(shape).to(dtype) for _ in range(2)]
            self.slots = torch.cat([self.new_slots(seq) for seq in range(len(self.q))])

    def gather(self, seq):
        """Keys and values of a request [1, head, token, dim]."""
        keys = self.kv_len[seq]
        return (
            t[self.table[seq]].flatten(0, 1)[:keys].transpose(0, 1)[None].contiguous()
            for t in (self.k, self.v)
        )

    def new_slots(self, seq):
        """Where the new tokens of a request go, as page · page_size + offset."""
        at = torch.arange(self.kv_len[seq] - self.qo_len[seq], self.kv_len[seq])
        return self.table[seq][at // self.page_size] * self.page_size + at % self.page_size

    def first_key(self, position):
        return max(0, position - self.window) if self.window >= 0 else 0

    def flop(self):
        pairs = 0
        if self.appends:
            return 0
        for queries, keys in zip(self.qo_len, self.kv_len, strict=True):
            for position in range(keys - queries, keys):
                pairs += (position + 1 if self.causal else keys) - self.first_key(position)
        return 4 * self.dim * self.qo_heads * pairs

    def bytes(self):
        """As if no request shared pages with another: what each of them sees."""
        if self.appends:
            return 4 * self.new[0].nbytes
        read = sum(
            keys - self.first_key(keys - queries)
            for queries, keys in zip(self.qo_len, self.kv_len, strict=True)
        )
        rows = sum(self.qo_len) * self.qo_heads + read * self.kv_heads
        return 2 * self.q[0].element_size() * self.dim * rows


# A route returns its call, or nothing if it does not take the batch. The call returns the outputs
# of all requests.


def quire_route(batch):
    import quire

    lengths = torch.tensor(batch.kv_len, dtype=torch.int32)
    starts = torch.tensor([0, *batch.qo_len]).cumsum(0).int()
    table = torch.zeros(len(batch.table), max(map(len, batch.table)), dtype=torch.int32)
    for seq, pages in enumerate(batch.table):
        table[seq, : len(pages)] = pages
    requests = quire.Batch(qo_indptr=starts, kv_len=lengths, page_table=table)
    threads = quire.ThreadPool(torch.get_num_threads())
    if batch.appends:
        slots = batch.slots
        return lambda: quire.append(
            *batch.new, batch.k, batch.v, slot_mapping=slots, executor=threads
        )
    spec = quire.AttentionSpec(
        num_qo_heads=batch.qo_heads,
        num_kv_heads=batch.kv_heads,
        head_dim_qk=batch.dim,
        q_dtype=batch.k.dtype,
        kv_dtype=batch.k.dtype,
        page_size=batch.page_size,
        mask="causal" if batch.causal else "none",
        window_left=batch.window,
    )
    limits = quire.BatchLimits(len(batch.q), sum(batch.qo_len), max(batch.kv_len))
    attention = quire.Attention(spec, limits, device="cpu", executor=threads)
    schedule = attention.schedule(requests)
    q = torch.cat([each[0].transpose(0, 1) for each in batch.q]).contiguous()
    o = torch.empty_like(q)

    def call():
        attention.run(schedule, q, batch.k, batch.v, o=o)
        return [each.transpose(0, 1)[None] for each in o.split(batch.qo_len)]

    return call


def torch_index_put(batch):
    if not batch.appends:
        return None

    def call():
        for cache, new in zip((batch.k, batch.v), batch.new, strict=True):
            cache.flatten(0, 1).index_copy_(0, batch.slots, new)

    return call


def sdpa_of(batch, seq, k, v):
    queries, keys = batch.qo_len[seq], batch.kv_len[seq]
    mask = causal_lower_right(queries, keys) if batch.causal and 1 < queries < keys else None
    return functional.scaled_dot_product_attention(
        batch.q[seq],
        k,
        v,
        attn_mask=mask,
        is_causal=batch.causal and 1 < queries == keys,
        enable_gqa=True,
    )


def torch_sdpa(batch):
    if batch.appends or batch.window >= 0:
        return None  # a window would need a mask in memory
    kv = [tuple(batch.gather(seq)) for seq in range(len(batch.q))]
    return lambda: [sdpa_of(batch, seq, *kv[seq]) for seq in range(len(kv))]


def torch_sdpa_gather(batch):
    if batch.appends or batch.window >= 0:
        return None
    return lambda: [sdpa_of(batch, seq, *batch.gather(seq)) for seq in range(len(batch.q))]


def torch_flex(batch):
    if batch.appends:
        return None
    compiled = torch.compile(flex_attention, dynamic=False)
    calls = []
    masks = {}
    for seq, (queries, keys) in enumerate(zip(batch.qo_len, batch.kv_len, strict=True)):

        def sees(_b, _h, i, t, shift=keys - queries):
            visible = t >= 0
            if batch.causal:
                visible = visible & (t <= shift + i)
            if batch.window >= 0:
                visible = visible & (t >= shift + i - batch.window)
            return visible

        if (queries, keys) not in masks:
            masks[queries, keys] = create_block_mask(sees, None, None, queries, keys, device="cpu")
        k, v = batch.gather(seq)
        calls.append(
            partial(compiled, batch.q[seq], k, v, block_mask=masks[queries, keys], enable_gqa=True)
        )
    if len(masks) > 8:
        return None  # a compilation each
    return lambda: [call() for call in calls]


ROUTES = {
    "quire": quire_route,
    "torch_index_put": torch_index_put,
    "torch_sdpa": torch_sdpa,
    "torch_sdpa_gather": torch_sdpa_gather,
    "torch_flex": torch_flex,
}


def error_of(batch, outputs):
    """Largest error of the longest request's last query, in all heads, against double precision."""
    if batch.appends:
        stored = [cache.flatten(0, 1)[batch.slots] for cache in (batch.k, batch.v)]
        pairs = zip(stored, batch.new, strict=True)
        return max((a.float() - b.float()).abs().max().item() for a, b in pairs)
    seq = max(range(len(batch.kv_len)), key=lambda i: batch.kv_len[i])
    first = batch.first_key(batch.kv_len[seq] - 1)
    k, v = (
        t[0, :, first:].double().repeat_interleave(batch.qo_heads // batch.kv_heads, dim=0)
        for t in batch.gather(seq)
    )
    q = batch.q[seq][0, :, -1].double()
    weights = torch.einsum("hd,htd->ht", q, k).mul(batch.dim**-0.5).softmax(-1)
    expected = torch.einsum("ht,htd->hd", weights, v)
    return (outputs[seq][0, :, -1].double() - expected).abs().max().item()


def lap(call, options, cold):
    """Microseconds of a repetition, after the caches were emptied."""
    clock = time.thread_time if options.cpu_time else time.perf_counter
    cold.sum()
    start = clock()
    call()
    return 1e6 * (clock() - start)


def prepare(batch, names):
    """The calls of the routes that take the batch, compiled, and their errors."""
    calls, errors = {}, {}
    for name in names:
        torch._dynamo.reset()
        try:
            if (call := ROUTES[name](batch)) is None:
                continue
            errors[name] = error_of(batch, call())
            calls[name] = call
        except Exception as error:  # a peer's limit is not ours: the other routes go on
            print(f"{batch.name}: {name}: {str(error).splitlines()[:1]}", file=sys.stderr)
    return calls, errors


def take_turns(calls, options, cold):
    """Times of each route, sorted. A route that takes long is not asked as often."""
    times = {name: [] for name in calls}
    for _ in range(options.repetitions):
        for name, call in calls.items():
            if len(times[name]) < 3 or sum(times[name]) < 1e6 * options.max_time:
                times[name].append(lap(call, options, cold))
    return {name: sorted(each) for name, each in times.items()}


def machine():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.processor()


def line_of(name, batch, options, times, error):
    in_pages = name in ("quire", "torch_sdpa_gather", "torch_index_put")
    return {
        "schema": 1,
        "workload": batch.name,
        "impl": name,
        "kernel": "" if name == "quire" else f"torch {torch.__version__}",
        "device": "cpu",
        "dtype": options.dtype,
        "kv_dtype": options.dtype,
        "page_size": batch.page_size if in_pages else 0,
        "scale": options.scale,
        "us_median": statistics.median(times),
        "us_p5": times[int(0.05 * len(times))],
        "us_p95": times[int(0.95 * len(times))],
        "clock": "thread" if options.cpu_time else "wall",
        "repetitions": len(times),
        "bytes": batch.bytes(),
        "flop": batch.flop(),
        "max_error": error,
        "wrong_rows": int(not error < TOLERANCE),
        "commit": options.commit,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }


def print_table(path):
    rows = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rows.setdefault(record["workload"], {})[record["impl"]] = record
    routes = ["quire", "torch_sdpa", "torch_sdpa_gather", "torch_flex", "torch_index_put"]
    print("| workload |", " | ".join(f"{route} ms" for route in routes), "| best peer / quire |")
    print("| --- |" + " --- |" * (len(routes) + 1))
    ratios = []
    for name, row in rows.items():
        times = {route: row[route]["us_median"] / 1e3 for route in routes if route in row}
        peers = [time for route, time in times.items() if route != "quire"]
        if peers and "quire" in times:
            ratios.append(min(peers) / times["quire"])
        cells = [f"{times[route]:.2f}" if route in times else "–" for route in routes]
        ratio = f"{min(peers) / times['quire']:.2f}" if peers and "quire" in times else "–"
        print(f"| {name} |", " | ".join(cells), f"| {ratio} |")
    if not ratios:
        sys.exit(f"{path}: expected rows of quire and of a peer, got none")
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"\nGeometric mean of {len(ratios)} rows: {mean:.2f}; the least: {min(ratios):.2f}.")


def main():
    course = json.loads((Path(__file__).parent / "course.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", default="", metavar="REGEX", help="only rows with it in their name"
    )
    parser.add_argument("--impl", default="", metavar="REGEX", help="of " + ", ".join(ROUTES))
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0: torch's own choice")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--scale", type=int, default=course["cpu_scale"], metavar="N")
    parser.add_argument("--all", action="store_true", help="not only the first course")
    parser.add_argument("--repetitions", type=int, default=9, metavar="N")
    parser.add_argument("--max-time", type=float, default=3, metavar="SECONDS", help="of a route")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread: on a busy machine")
    parser.add_argument("--commit", default="", help="what the rows say was measured")
    parser.add_argument("--table", metavar="FILE", help="print rows that were measured, and exit")
    options = parser.parse_args()
    if options.table:
        return print_table(options.table)
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time: expected --threads 1, since it is the calling thread's time")
    if options.threads:
        torch.set_num_threads(options.threads)
    cold = torch.zeros(FLUSH_BYTES, dtype=torch.uint8)
    for row in course["workloads"]:
        skipped = row.get("op") == "schedule" or row.get("mask") == "tree" or "kv_dtype" in row
        wanted = options.all or options.rows or row.get("first")
        if skipped or not wanted or not re.search(options.rows, row["name"]):
            continue
        batch = Batch(row, options.scale, getattr(torch, options.dtype))
        calls, errors = prepare(batch, filter(re.compile(options.impl).search, ROUTES))
        for name, times in take_turns(calls, options, cold).items():
            print(json.dumps(line_of(name, batch, options, times, errors[name])), flush=True)
    return None


if __name__ == "__main__":
    main()
