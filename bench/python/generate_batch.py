# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of transformers' `generate_batch`, stock and on quire; do tokens agree?

    PYTHONPATH=python QUIRE_LIBRARY=build/cuda/lib/libquire.so.0 \\
        python bench/python/generate_batch.py [--runs paged|sdpa:stock paged|quire:graphs-kept]

A Llama of random weights (16 layers, 32 / 8 heads, hidden size 2048, bfloat16), 64 requests of 12
to 1,500 tokens, 64 new ones each. A run is an implementation of attention and how transformers is
set up (`SETTINGS`), each in a process of its own, since stock ones may run out of memory: once to
warm up, then `--rounds` times. `--check` generates with the same model in float32 (TF32 off)
through quire and through `eager`, request by request, in `--shares` processes, and compares tokens.
Prints a JSON line for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import transformers

NEW_TOKENS = 64
# Options of ContinuousBatchingConfig, and of generate_batch under "call": docs/compat.md says what
# each is for. Prompts share nothing, and a manager that is kept would find those of the round
# before in its cache: no blocks are shared then.
_GRAPHS = {"use_cuda_graph": True, "use_async_batching": True}
# A graph of steps without block tables serves all numbers of requests: fewer captures in one call.
_ONCE = {"max_blocks_per_request": 0}
_FEW = {**_GRAPHS, "kv_padding_interval_size": 1 << 30, "allow_block_sharing": False}
_KEPT = {"persistent_manager": True, "warmup": False}
# Attention stays outside of what is compiled, and so whole graphs cannot be had.
_COMPILED = dict.fromkeys(
    ("varlen_compile_config", "decode_compile_config"),
    transformers.CompileConfig(fullgraph=False, dynamic=True),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "stock": {},
    "kept": {"scheduler_type": "prefill_first", "allow_block_sharing": False, "call": _KEPT},
    "kept-compiled": {
        "scheduler_type": "prefill_first",
        "allow_block_sharing": False,
        **_COMPILED,
        "call": _KEPT,
    },
    "graphs": {**_GRAPHS, **_ONCE},
    "graphs-once": {**_FEW, **_ONCE, "call": {"warmup": False}},
    "graphs-kept": {**_FEW, "call": _KEPT},
    "graphs-compiled": {**_FEW, **_COMPILED, "call": _KEPT},
}
RUNS = ["paged|sdpa:stock", "paged|sdpa:kept", "paged|quire:graphs-once", "paged|quire:graphs-kept"]


def make_model(arguments: argparse.Namespace, dtype: Any, implementation: str) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    config.dtype = dtype
    with torch.device(arguments.device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager"
        )
    model.set_attn_implementation(implementation)
    return model.eval()


def make_prompts(arguments: argparse.Namespace) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(12, arguments.longest, arguments.requests).int().tolist()
    order = torch.randperm(len(lengths), generator=generator).tolist()
    return [torch.randint(1, 32000, (lengths[i],), generator=generator).tolist() for i in order]


def generate(
    model: Any, prompts: list[list[int]], arguments: argparse.Namespace, settings: str
) -> list[list[int]]:
    options = dict(SETTINGS[settings])
    call = options.pop("call", {})
    if arguments.device == "cpu":
        options = {name: each for name, each in options.items() if name not in _GRAPHS}
    outputs = model.generate_batch(
        prompts,
        generation_config=greedy(arguments),
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            num_blocks=arguments.num_blocks,
            block_size=arguments.block_size,
            max_batch_tokens=arguments.max_batch_tokens,
            **options,
        ),
        progress_bar=False,
        **call,
    )
    tokens = {tuple(each.prompt_ids): each.generated_tokens for each in outputs.values()}
    return [tokens[tuple(prompt)] for prompt in prompts]


def greedy(arguments: argparse.Namespace) -> Any:
    return transformers.GenerationConfig(
        max_new_tokens=arguments.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )


def synchronize(arguments: argparse.Namespace) -> None:
    if arguments.device != "cpu":
        torch.cuda.synchronize()


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    implementation, _, settings = name.partition(":")
    model = make_model(arguments, torch.bfloat16, implementation)
    prompts = make_prompts(arguments)
    seconds = []
    for _ in range(arguments.rounds + 1):
        synchronize(arguments)
        begin = time.perf_counter()
        tokens = generate(model, prompts, arguments, settings or "stock")
        synchronize(arguments)
        seconds.append(time.perf_counter() - begin)
    new = sum(map(len, tokens))
    rates = [new / each for each in seconds[1:]]
    return {
        "tokens_per_s_median": statistics.median(rates),
        "tokens_per_s_min": min(rates),
        "tokens_per_s_max": max(rates),
        "first_s": seconds[0],
        "max_batch_tokens": arguments.max_batch_tokens,
        "new_tokens": new,
        "prompt_tokens": sum(map(len, prompts)),
    }


def check(arguments: argparse.Namespace, share: int) -> dict[str, Any]:
    """Of every `--shares`-th request: does it differ, where, and how close were eager's logits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model = make_model(arguments, torch.float32, "paged|quire")
    prompts = make_prompts(arguments)
    got = generate(model, prompts, arguments, "graphs-once")
    model.set_attn_implementation("eager")
    mine = range(share, len(prompts), arguments.shares)
    differing = []
    for i in mine:
        ids = torch.tensor([prompts[i]], device=arguments.device)
        with torch.no_grad():
            out = model.generate(ids, generation_config=greedy(arguments))
        expected = out[0, len(prompts[i]) :].tolist()
        if got[i] != expected:
            at = next((n for n, (a, b) in enumerate(zip(got[i], expected)) if a != b), len(got[i]))
            with torch.no_grad():
                top = model(out[:, : len(prompts[i]) + at]).logits[0, -1].topk(2).values
            differing.append({"request": i, "token": at, "gap": float(top[0] - top[1])})
    return {"requests": len(mine), "equal": len(mine) - len(differing), "differ": differing}


def run_only(arguments: argparse.Namespace) -> None:
    """One run or one share of the check, in this process."""
    import quire.integrations.transformers  # noqa: F401

    name, _, share = arguments.only.partition("=")
    found = check(arguments, int(share)) if name == "check" else measure(arguments, name)
    machine = torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu"
    print(json.dumps({"workload": "generate_batch", "impl": name, "device": machine, **found}))


def start(name: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def finish(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    lines = [line for line in out.splitlines() if line.startswith('{"workload"')]
    found: dict[str, Any] = {"impl": name, "error": err.strip()[-300:]}
    if lines:
        found = json.loads(lines[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=RUNS, help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--shares", type=int, default=4, help="processes of --check")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--longest", type=int, default=1500)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--num-blocks", type=int, default=512)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run_only(arguments)
    elif arguments.check:
        names = [f"check={share}" for share in range(arguments.shares)]
        processes = [start(name) for name in names]
        for name, process in zip(names, processes):
            print(json.dumps(finish(name, process)), flush=True)
    else:
        for name in arguments.runs:
            print(json.dumps(finish(name, start(name))), flush=True)


if __name__ == "__main__":
    main()
