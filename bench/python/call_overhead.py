#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the Python package adds to a call of the C ABI: medians over batches without requests.

usage: call_overhead.py [--calls N]

Every figure is the median of 1,000 short rounds, which a busy machine interrupts least. "C ABI" is
the call that `run()` makes, through ctypes, its arguments made beforehand. The last rows are one
decode of one key each, `attention()` as it is and as torch's custom operator.
"""

import argparse
import platform
import statistics
import sys
import time

import numpy as np

import quire
from quire import _library


def median_us(call, calls):
    rounds = []
    for _ in range(1000):
        begin = time.perf_counter_ns()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter_ns() - begin) / calls / 1e3)
    return statistics.median(rounds)


def kinds_of_arrays():
    yield "NumPy", lambda *shape: np.zeros(shape, np.float32)
    try:
        import torch
    except ImportError:
        return
    yield "torch", lambda *shape: torch.zeros(shape)


def runs(step, zeros):
    """The same call made by hand, with arrays and with views, by name."""
    attention, workspaces = step.attention, step.workspaces
    q, o = zeros(0, 32, 128), zeros(0, 32, 128)
    k, v = zeros(4, 16, 8, 128), zeros(4, 16, 8, 128)
    views = q_view, k_view, v_view, o_view = [quire.view(array) for array in (q, k, v, o)]
    arguments = (
        attention._handle,
        step.batch.packed,
        _library.tensors_header("quire_attention_tensors")
        + b"".join(view.packed for view in views)
        + _library.NO_TENSOR * 5,
        step._schedule,
        workspaces.schedule_bytes,
        step._scratch,
        workspaces.scratch_bytes,
        None,
    )
    function = _library.unlocked.quire_attention_run
    return {
        "C ABI": lambda: function(*arguments),
        "arrays": lambda: attention.run(step, q, k, v, o=o),
        "views": lambda: attention.run(step, q_view, k_view, v_view, o=o_view),
    }


def one_shots():
    """One decode of one key through `attention()`, and through the operator, by name."""
    try:
        import torch

        import quire.torch_ops
    except ImportError:
        return {}
    q, pages = torch.zeros(1, 8, 64), torch.zeros(1, 16, 8, 64)
    batch = {
        "qo_indptr": torch.tensor([0, 1], dtype=torch.int32),
        "kv_len": torch.tensor([1], dtype=torch.int32),
        "page_table": torch.tensor([[0]], dtype=torch.int32),
    }
    return {
        "attention()": lambda: quire.attention(q, pages, pages, return_lse=True, **batch),
        "torch.ops": lambda: torch.ops.quire.attention(q, pages, pages, **batch),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="per round")
    calls = parser.parse_args().calls

    spec = quire.AttentionSpec(num_qo_heads=32, num_kv_heads=8, head_dim_qk=128, q_dtype="float32")
    attention = quire.Attention(spec, quire.BatchLimits(64, 64, 4096))
    workspaces = attention.allocate_workspaces()
    indptr, lengths = np.zeros(1, np.int32), np.zeros(0, np.int32)
    table = np.zeros((0, 8), np.int32)
    batch = quire.Batch(indptr, kv_len=lengths, page_table=table)
    step = attention.schedule(batch, workspaces)

    print(f"quire {quire.version()}, Python {sys.version.split()[0]}, {platform.processor()}")
    us = median_us(lambda: quire.Batch(indptr, kv_len=lengths, page_table=table), calls)
    print(f"Batch()        {us:6.2f} us")
    us = median_us(lambda: attention.schedule(batch, workspaces), calls)
    print(f"schedule()     {us:6.2f} us")
    for kind, zeros in kinds_of_arrays():
        in_c = None
        for name, call in runs(step, zeros).items():
            us = median_us(call, calls)
            in_c = us if in_c is None else in_c
            print(f"run(), {name:7} {us:6.2f} us  {us - in_c:5.2f} above C  ({kind})")
    for name, call in one_shots().items():
        print(f"{name:14} {median_us(call, calls):6.2f} us")


if __name__ == "__main__":
    main()
