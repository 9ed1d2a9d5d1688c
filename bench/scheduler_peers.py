#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a step of scheduling costs the host: quire, vLLM and the continuous batching of transformers.

    python3 -m venv peers
    peers/bin/pip install --no-deps vllm==0.33.0
    peers/bin/pip install --requirement bench/requirements-scheduler-peers.txt
    peers/bin/python bench/scheduler_peers.py --output rows.jsonl

All running sequences decode one token a step, at 8,192 tokens on average over the steps, pages of 16,
a pool that holds 14 % more; nobody samples, no model runs, no GPU is needed. Nothing of the peers is
replaced or stubbed: the schedulers are theirs, made as their engines make them.

- quire: `plan`, `commit`, `finish`; and with the arrays of both table forms, written anew or where they were in
  the step before. `step_benchmark`.
- vLLM: `Scheduler.schedule` and `update_from_output`, with and without its prefix cache. The block table
  of a step is the model runner's affair there and not included.
- transformers: `prepare_next_batch`, which makes the tensors of the step as well, and `update_batch`;
  with block tables, as on a GPU with FlashAttention (here the manager is told that there is one), and
  with read indices, as without.

Times are processor times of the thread; of each, the least and the median of the steps stand.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import host

TOKENS = 8192
PAGE_SIZE = 16
FOLDER = pathlib.Path(__file__).resolve().parent


def num_pages(seqs: int) -> int:
    return 150_000 * seqs // 256


def timed(steps: int, step: Callable[[], tuple[int, float]], seqs: int) -> list[float]:
    """Microseconds of each step. `step` says how many sequences took part, and its seconds."""
    gc.collect()
    gc.freeze()  # as vLLM's engine does once it has started
    times = []
    for _ in range(steps):
        served, seconds = step()
        if served != seqs:
            sys.exit(f"expected a decode of {seqs} sequences, got {served}")
        times.append(seconds * 1e6)
    gc.unfreeze()
    return times


def quire(seqs: int, _: int) -> Iterator[tuple[str, list[float]]]:
    command = [
        str(FOLDER.parent / "build" / "bench" / "step_benchmark"),
        f"--benchmark_filter=^(plan_and_commit|whole_step)/{seqs}/{num_pages(seqs)}/[03]/0$",
        "--benchmark_repetitions=40",
        "--benchmark_min_time=0.01",
        "--benchmark_enable_random_interleaving=true",
        "--benchmark_format=json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    rows = json.loads(done.stdout)["benchmarks"]
    for case, form, text in (
        ("plan_and_commit", 0, ""),
        ("whole_step", 3, ", arrays of both table forms"),
        ("whole_step", 0, ", arrays of both table forms written anew"),
    ):
        name = f"{case}/{seqs}/{num_pages(seqs)}/{form}/0"
        times = [
            row["cpu_time"]
            for row in rows
            if row["run_type"] == "iteration" and row["name"].startswith(name)
        ]
        yield f"quire{text}", times


def vllm(seqs: int, steps: int) -> Iterator[tuple[str, list[float]]]:
    for cached in (False, True):
        text = "its prefix cache on" if cached else "its prefix cache off"
        yield f"vLLM, {text}", vllm_steps(seqs, steps, cached)


def vllm_scheduler(seqs: int, cached: bool) -> Any:
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(small_llama()))
        model = ModelConfig(
            model=folder, skip_tokenizer_init=True, dtype="float16", max_model_len=2 * TOKENS
        )
    config = VllmConfig(
        model_config=model,
        device_config=DeviceConfig(device="cpu"),
        cache_config=CacheConfig(block_size=PAGE_SIZE, enable_prefix_caching=cached),
        scheduler_config=SchedulerConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs * TOKENS,
            max_model_len=2 * TOKENS,
            is_encoder_decoder=False,
        ),
    )
    config.cache_config.num_gpu_blocks = num_pages(seqs)
    spec = FullAttentionSpec(
        block_size=PAGE_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float16
    )
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_pages(seqs),
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=PAGE_SIZE,
        log_stats=False,
    )


def vllm_steps(seqs: int, steps: int, cached: bool) -> list[float]:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    scheduler = vllm_scheduler(seqs, cached)
    init_none_hash(sha256)
    hasher = get_request_block_hasher(PAGE_SIZE, sha256) if cached else None
    parameters = SamplingParams(max_tokens=2 * steps + 8, ignore_eos=True)
    parameters.update_from_generation_config({}, eos_token_id=0)
    for index in range(seqs):
        request = Request(
            request_id=str(index),
            prompt_token_ids=[index + 1] * (TOKENS - steps // 2),
            sampling_params=parameters,
            pooling_params=None,
            block_hasher=hasher,
        )
        scheduler.add_request(request)

    def step() -> tuple[int, float]:
        begin = time.thread_time()
        plan = scheduler.schedule()
        planned = time.thread_time()
        names = list(plan.num_scheduled_tokens)
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[1]] * len(names),
        )
        resumed = time.thread_time()
        scheduler.update_from_output(plan, output)
        return len(names), planned - begin + time.thread_time() - resumed

    step()  # the prefill of all
    step()
    return timed(steps, step, seqs)


def transformers(seqs: int, steps: int) -> Iterator[tuple[str, list[float]]]:
    yield "transformers, block tables", transformers_steps(seqs, steps, True)
    yield "transformers, read indices", transformers_steps(seqs, max(10, steps // 10), False)


def transformers_steps(seqs: int, steps: int, tables: bool) -> list[float]:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    torch.set_num_threads(1)
    model = LlamaForCausalLM(LlamaConfig(**small_llama()))
    model.config._attn_implementation = "paged|flash_attention_2"  # so no masks are made
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            block_size=PAGE_SIZE,
            num_blocks=num_pages(seqs),
            max_batch_tokens=seqs * TOKENS // 8,
            max_requests_per_batch=seqs,
            max_memory_percent=0.9,
            safety_margin=0.0,  # else the last requests would wait until others end
            use_async_batching=False,
            use_cuda_graph=False,
        ),
    )
    if tables:
        manager.continuous_batching_config.max_blocks_per_request = TOKENS // PAGE_SIZE + 64
    processor = manager._create_batch_processor()
    for index in range(seqs):
        manager.add_request(
            [index + 1] * (TOKENS - steps // 2), request_id=str(index), max_new_tokens=2 * steps + 8
        )

    def step() -> tuple[int, float]:
        begin = time.thread_time()
        with torch.no_grad():
            processor.prepare_next_batch()
            processor.update_batch()
        end = time.thread_time()
        batch = processor.inputs_and_outputs
        decodes = batch.num_q_tokens == seqs
        if decodes and batch.use_block_table != tables:
            sys.exit(f"expected block tables: {tables}, got {batch.use_block_table}")
        return batch.num_q_tokens if decodes else 0, end - begin

    for _ in range(10):  # the prefill of all
        step()
    return timed(steps, step, seqs)


def small_llama() -> dict[str, Any]:
    """A model of one small layer: its weights and its cache do not matter."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "max_position_embeddings": 2 * TOKENS,
    }


def version_of(impl: str) -> str:
    name = impl.split(",")[0].lower()
    return host.commit() if name == "quire" else importlib.metadata.version(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seqs", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", help="one of quire, vllm, transformers")
    parser.add_argument("--output", type=pathlib.Path, help="append JSON lines to this file")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.disable(logging.WARNING)
    print("| running | scheduler | version | least, µs | median, µs |")
    print("| --- | --- | --- | --- | --- |")
    for seqs in options.seqs:
        for peer in (quire, vllm, transformers):
            if options.only and peer.__name__ != options.only:
                continue
            for impl, times in peer(seqs, options.steps):
                least, median = min(times), statistics.median(times)
                version = version_of(impl)
                print(f"| {seqs} | {impl} | {version} | {least:.4g} | {median:.4g} |", flush=True)
                row = {
                    "workload": f"decode_step_{seqs}x{TOKENS}_page{PAGE_SIZE}",
                    "impl": impl,
                    "version": version,
                    "us_least": least,
                    "us_median": median,
                    "steps": len(times),
                }
                host.add_row(options.output, row)


if __name__ == "__main__":
    main()
