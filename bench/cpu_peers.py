#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyTorch's attentions on a CPU, on the rows of course.json, as `quire bench` times quire.

    bench/cpu_peers.py [--rows REGEX] [--impl REGEX] [--threads N]

Routes: scaled_dot_product_attention and, compiled, FlexAttention, once for each request, in a loop,
on keys and values that lie contiguously: the layout that they are made for, gathered before the
clock starts; and `torch_sdpa_gather`, which pays for the gather as who has pages does. Outputs are
held against double precision. Prints JSON lines with the members of quire's own; lengths are
divided by `cpu_scale`, as quire bench divides them. What a route does not take or fails at goes to stderr.
"""

import argparse
import datetime
import json
import platform
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path

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
        self.qo_heads, self.kv_heads = row["heads"]
        self.causal = row.get("mask", "causal") == "causal"
        self.window = divided(row.get("window_left", -1), scale)
        self.qo_len = expand(row["qo_len"], scale)
        self.kv_len = expand(row.get("kv_len", row["qo_len"]), scale)
        self.kv_len = [max(lengths) for lengths in zip(self.kv_len, self.qo_len, strict=True)]
        pages = [-(-keys // self.page_size) for keys in self.kv_len]
        ids = torch.randperm(sum(pages))
        self.table = list(ids.split(pages))
        shape = (sum(pages), self.page_size, self.kv_heads, self.dim)
        self.k, self.v = (torch.randn(shape).to(dtype) for _ in range(2))
        self.q = [torch.randn(1, self.qo_heads, count, self.dim).to(dtype) for count in self.qo_len]

    def gather(self, seq):
        """Keys and values of a request [1, head, token, dim]."""
        keys = self.kv_len[seq]
        return (
            t[self.table[seq]].flatten(0, 1)[:keys].transpose(0, 1)[None].contiguous()
            for t in (self.k, self.v)
        )

    def first_key(self, position):
        return max(0, position - self.window) if self.window >= 0 else 0

    def flop(self):
        pairs = 0
        for queries, keys in zip(self.qo_len, self.kv_len, strict=True):
            for position in range(keys - queries, keys):
                pairs += (position + 1 if self.causal else keys) - self.first_key(position)
        return 4 * self.dim * self.qo_heads * pairs

    def bytes(self):
        read = sum(
            keys - self.first_key(keys - queries)
            for queries, keys in zip(self.qo_len, self.kv_len, strict=True)
        )
        rows = sum(self.qo_len) * self.qo_heads + read * self.kv_heads
        return 2 * self.q[0].element_size() * self.dim * rows


# A route returns its call, or nothing if it does not take the batch. The call returns the outputs
# of all requests.


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
    if batch.window >= 0:
        return None  # would need a mask in memory
    kv = [tuple(batch.gather(seq)) for seq in range(len(batch.q))]
    return lambda: [sdpa_of(batch, seq, *kv[seq]) for seq in range(len(kv))]


def torch_sdpa_gather(batch):
    if batch.window >= 0:
        return None
    return lambda: [sdpa_of(batch, seq, *batch.gather(seq)) for seq in range(len(batch.q))]


def torch_flex(batch):
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
    "torch_sdpa": torch_sdpa,
    "torch_sdpa_gather": torch_sdpa_gather,
    "torch_flex": torch_flex,
}


def error_of(batch, outputs):
    """Largest error of the longest request's last query, in all heads, against double precision."""
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


def laps(call, min_seconds, cold):
    """Microseconds of each repetition, after the caches were emptied, and what came out."""
    outputs = call()  # compiles, touches memory
    times, spent = [], 0.0
    while (spent < min_seconds or len(times) < 5) and spent < 10 * min_seconds and len(times) < 200:
        cold.sum()
        start = time.perf_counter()
        outputs = call()
        times.append(1e6 * (time.perf_counter() - start))
        spent += times[-1] / 1e6
    return sorted(times), outputs


def machine():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.processor()


def measure(name, batch, options, cold):
    call = ROUTES[name](batch)
    if call is None:
        return None
    times, outputs = laps(call, options.min_time, cold)
    error = error_of(batch, outputs)
    return {
        "schema": 1,
        "workload": batch.name,
        "impl": name,
        "kernel": torch.__version__,
        "device": "cpu",
        "dtype": options.dtype,
        "kv_dtype": options.dtype,
        "page_size": batch.page_size if name.endswith("gather") else 0,
        "scale": options.scale,
        "us_median": statistics.median(times),
        "us_p5": times[int(0.05 * len(times))],
        "us_p95": times[int(0.95 * len(times))],
        "repetitions": len(times),
        "bytes": batch.bytes(),
        "flop": batch.flop(),
        "max_error": error,
        "wrong_rows": int(not error < TOLERANCE),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }


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
    parser.add_argument("--min-time", type=float, default=0.5, metavar="SECONDS")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    cold = torch.zeros(FLUSH_BYTES, dtype=torch.uint8)
    for row in course["workloads"]:
        skipped = "op" in row or row.get("mask") == "tree" or "shared" in row
        if skipped or not re.search(options.rows, row["name"]):
            continue
        batch = Batch(row, options.scale, getattr(torch, options.dtype))
        for name in filter(re.compile(options.impl).search, ROUTES):
            torch._dynamo.reset()
            try:
                if line := measure(name, batch, options, cold):
                    print(json.dumps(line), flush=True)
            except Exception as error:  # a peer's limit is not ours: the other rows go on
                print(f"{batch.name}: {name}: {str(error).splitlines()[:1]}", file=sys.stderr)


if __name__ == "__main__":
    main()
