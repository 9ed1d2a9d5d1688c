#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times other libraries on the rows of course.json, as `quire bench --device cuda` times quire.

    bench/peers.py [--rows REGEX] [--impl REGEX] [--ceilings GB/s GFLOP/s] [--repetitions N]

Needs a GPU and PyTorch: its scaled_dot_product_attention and FlexAttention, both on contiguous K/V,
and FlashInfer on pages if it can be imported. Prints JSON lines with the members of quire's own. What
plans on the host or compiles does so before the clock starts. What a library does not take or fails
at goes to stderr.
"""

import argparse
import datetime
import json
import re
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

try:
    import flashinfer
except ImportError:
    flashinfer = None

DTYPE = torch.bfloat16
GPU = torch.device("cuda")
FLUSH_BYTES = 1 << 28  # several times the largest second-level cache
TOLERANCE = 0.02  # of outputs that are averages of normal samples, in bfloat16


def expand(lengths):
    """Lengths as the course writes them: a number, or [number, how often]."""
    return [n for entry in lengths for n in ([entry[0]] * entry[1] if isinstance(entry, list) else [entry])]


class Batch:
    """A row of the course: queries after one another, keys and values [page, slot, head, dim]."""

    def __init__(self, row):
        self.name, self.page_size, self.dim = row["name"], row["page_size"], row["head_dim"]
        self.qo_heads, self.kv_heads = row["heads"]
        self.causal = row.get("mask", "causal") == "causal"
        self.window = row.get("window_left", -1)
        self.qo_len = expand(row["qo_len"])
        self.kv_len = expand(row.get("kv_len", row["qo_len"]))
        self.first = [sum(self.qo_len[:i]) for i in range(len(self.qo_len) + 1)]
        num_pages = self.lay_out(row.get("shared", []))
        self.q = torch.randn(self.first[-1], self.qo_heads, self.dim, device=GPU, dtype=DTYPE)
        shape = (num_pages, self.page_size, self.kv_heads, self.dim)
        self.k, self.v = (torch.randn(shape, device=GPU, dtype=DTYPE) for _ in range(2))

    def lay_out(self, shared):
        """Shuffled tables; a shared prefix, larger groups first, is the same pages for its group."""
        count = 0
        self.table = [[None] * -(-keys // self.page_size) for keys in self.kv_len]
        groups = shared + [[i, i + 1, keys + self.page_size - 1] for i, keys in enumerate(self.kv_len)]
        for first, last, tokens in groups:
            for i in range(tokens // self.page_size):
                if self.table[first][i] is None:
                    self.table[first][i] = count
                    count += 1
                for pages in self.table[first:last]:
                    pages[i] = self.table[first][i]
        ids = torch.randperm(count).tolist()
        self.table = [[ids[i] for i in pages] for pages in self.table]
        return count

    def first_key(self, position):
        return max(0, position - self.window) if self.window >= 0 else 0

    def bytes_and_flop(self):
        """Each distinct key and value that a query sees is read once."""
        seen, pairs = set(), 0
        for queries, keys, pages in zip(self.qo_len, self.kv_len, self.table):
            for t in range(self.first_key(keys - queries), keys):
                seen.add(pages[t // self.page_size] * self.page_size + t % self.page_size)
            for position in range(keys - queries, keys):
                pairs += (position + 1 if self.causal else keys) - self.first_key(position)
        rows = self.first[-1] * self.qo_heads + len(seen) * self.kv_heads
        return 4 * self.dim * rows, 4 * self.dim * self.qo_heads * pairs

    def rectangle(self):
        """Contiguous q, k and v [request, head, token, dim], padded to the longest."""
        width = max(len(pages) for pages in self.table)
        table = torch.tensor([pages + [0] * (width - len(pages)) for pages in self.table], device=GPU)
        k, v = (t[table].flatten(1, 2)[:, : max(self.kv_len)].transpose(1, 2).contiguous()
                for t in (self.k, self.v))
        q = self.q.new_zeros(len(self.qo_len), self.qo_heads, max(self.qo_len), self.dim)
        for i, count in enumerate(self.qo_len):
            q[i, :, :count] = self.q[self.first[i] : self.first[i] + count].transpose(0, 1)
        return q, k, v


# A route returns its call and how to pick a query's row [head, dim] from the output, or nothing if it
# does not take the batch.


def torch_sdpa(batch):
    queries, keys = batch.qo_len[0], batch.kv_len[0]
    if len(set(batch.qo_len)) > 1 or len(set(batch.kv_len)) > 1 or batch.window >= 0:
        return None  # would need a mask in memory
    mask = causal_lower_right(queries, keys) if batch.causal and 1 < queries < keys else None
    call = partial(functional.scaled_dot_product_attention, *batch.rectangle(), attn_mask=mask,
                   is_causal=batch.causal and 1 < queries == keys, enable_gqa=True)
    return call, lambda o, seq, query: o[seq, :, query]


def torch_flex(batch):
    q, k, v = batch.rectangle()
    qo_len, kv_len = (torch.tensor(n, device=GPU) for n in (batch.qo_len, batch.kv_len))

    def sees(b, _, i, t):
        position = kv_len[b] - qo_len[b] + i
        visible = (i < qo_len[b]) & (t < kv_len[b])
        if batch.causal:
            visible = visible & (t <= position)
        if batch.window >= 0:
            visible = visible & (t >= position - batch.window)
        return visible

    mask = create_block_mask(sees, len(batch.qo_len), None, q.shape[2], k.shape[2], device=GPU,
                             _compile=True)
    call = partial(torch.compile(flex_attention, dynamic=False), q, k, v, block_mask=mask, enable_gqa=True)
    return call, lambda o, seq, query: o[seq, :, query]


def flashinfer_route(batch, decode=False, **options):
    if decode and max(batch.qo_len) > 1:
        return None
    ints = partial(torch.tensor, dtype=torch.int32, device=GPU)
    indptr = ints([0] + [len(pages) for pages in batch.table]).cumsum(0).int()
    last = ints([(keys - 1) % batch.page_size + 1 for keys in batch.kv_len])
    arrays = (indptr, ints(sum(batch.table, [])), last, batch.qo_heads, batch.kv_heads, batch.dim,
              batch.page_size)
    types = {"q_data_type": DTYPE, "kv_data_type": DTYPE, "window_left": batch.window}
    space = torch.empty(512 << 20, dtype=torch.uint8, device=GPU)
    if decode:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "NHD", **options)
        wrapper.plan(*arrays, **types)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(space, "NHD", **options)
        wrapper.plan(ints(batch.first), *arrays, causal=batch.causal, **types)
    call = partial(wrapper.run, batch.q, (batch.k, batch.v))
    return call, lambda o, seq, query: o[batch.first[seq] + query]


ROUTES = {"torch_sdpa": torch_sdpa, "torch_flex": torch_flex}
if flashinfer is not None:
    ROUTES |= {"flashinfer_cc": partial(flashinfer_route, decode=True, use_tensor_cores=False),
               "flashinfer_tc": partial(flashinfer_route, decode=True, use_tensor_cores=True),
               "flashinfer_fa2": partial(flashinfer_route, backend="fa2"),
               "flashinfer_fa3": partial(flashinfer_route, backend="fa3")}


class Timer:
    """Replays a graph with a cold second-level cache, between events."""

    def __init__(self, repetitions):
        self.repetitions = repetitions
        self.cold = torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device=GPU)

    def time(self, call):
        for _ in range(3):  # compiles, and makes ready what may not be captured
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        laps = []
        for _ in range(self.repetitions + 3):
            self.cold.amax()  # reads it, and keeps the GPU busy until the launch has been queued
            lap = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            lap[0].record()
            graph.replay()
            lap[1].record()
            laps.append(lap)
        torch.cuda.synchronize()
        return sorted(1000 * start.elapsed_time(stop) for start, stop in laps[3:]), output


def error_of(batch, output, pick):
    """Largest error of the longest request's last query, in all heads, against double precision."""
    seq = max(range(len(batch.kv_len)), key=lambda i: batch.kv_len[i])
    keys, query = batch.kv_len[seq], batch.qo_len[seq] - 1
    pages = torch.tensor(batch.table[seq], device=GPU)
    k, v = (t[pages].flatten(0, 1)[batch.first_key(keys - 1) : keys].double()
            .repeat_interleave(batch.qo_heads // batch.kv_heads, dim=1) for t in (batch.k, batch.v))
    q = batch.q[batch.first[seq] + query].double()
    weights = torch.einsum("hd,thd->ht", q, k).mul(batch.dim**-0.5).softmax(-1)
    expected = torch.einsum("ht,thd->hd", weights, v)
    return (pick(output, seq, query).double() - expected).abs().max().item()


def measure(name, batch, timer, ceilings):
    paged = name.startswith("flashinfer")
    made = ROUTES[name](batch)
    if made is None:
        return None
    times, output = timer.time(made[0])
    median = statistics.median(times)
    size, flop = batch.bytes_and_flop()
    floor = max(size / ceilings[0], flop / ceilings[1]) / 1e3
    error = error_of(batch, output, made[1])
    return {"schema": 1, "workload": batch.name, "impl": name,
            "kernel": (flashinfer if paged else torch).__version__,
            "device": "cuda:0", "dtype": "bfloat16", "kv_dtype": "bfloat16",
            "page_size": batch.page_size if paged else 0, "us_median": median,
            "us_p5": times[int(0.05 * len(times))], "us_p95": times[int(0.95 * len(times))],
            "repetitions": len(times), "bytes": size, "flop": flop, "floor_us": floor,
            "pct_of_ceiling": 100 * floor / median, "ceiling_gb_per_s": ceilings[0],
            "ceiling_gflop_per_s": ceilings[1], "max_error": error,
            "wrong_rows": int(not error < TOLERANCE), "machine": torch.cuda.get_device_name(),
            "date": datetime.date.today().isoformat()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows with it in their name")
    parser.add_argument("--impl", default="", metavar="REGEX", help="likewise of " + ", ".join(ROUTES))
    parser.add_argument("--ceilings", type=float, nargs=2, metavar=("GB/s", "GFLOP/s"),
                        help="what quire bench measured here; else those of the course's machine")
    parser.add_argument("--repetitions", type=int, default=50, metavar="N")
    options = parser.parse_args()
    course = json.loads((Path(__file__).parent / "course.json").read_text(encoding="utf-8"))
    timer = Timer(options.repetitions)
    ceilings = options.ceilings or [course["plain_read_gb_per_s"], 1e3 * course["matmul_tflop_per_s"]]
    for row in course["workloads"]:
        if "op" in row or "kv_dtype" in row or row.get("mask") == "tree":
            continue
        if not re.search(options.rows, row["name"]):
            continue
        batch = Batch(row)
        for name in filter(re.compile(options.impl).search, ROUTES):
            torch._dynamo.reset()
            try:
                if line := measure(name, batch, timer, ceilings):
                    print(json.dumps(line), flush=True)
            except Exception as error:  # a peer's limit is not ours: the other rows go on
                print(f"{batch.name}: {name}: {str(error).splitlines()[:1]}", file=sys.stderr)


if __name__ == "__main__":
    main()
