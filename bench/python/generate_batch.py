# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of transformers' `generate_batch`, stock and on quire; do tokens agree?

    PYTHONPATH=python QUIRE_LIBRARY=build/cuda/lib/libquire.so.0 \\
        python bench/python/generate_batch.py [--implementations paged|sdpa paged|quire]

A Llama of random weights (16 layers, 32 / 8 heads, hidden size 2048, bfloat16), 64 requests of 12
to 1,500 tokens, 64 new ones each. Every implementation runs in a process of its own, since stock
ones may run out of memory: once to warm up, then `--rounds` times. `--check` generates with the
same model in float32 (TF32 off) through quire and through `eager`, request by request, and compares
tokens. Prints a JSON line for each.
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
    model: Any, prompts: list[list[int]], arguments: argparse.Namespace, graphs: bool
) -> list[list[int]]:
    is_cuda = arguments.device != "cpu"
    outputs = model.generate_batch(
        prompts,
        generation_config=greedy(arguments),
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            num_blocks=arguments.num_blocks,
            block_size=arguments.block_size,
            max_batch_tokens=arguments.max_batch_tokens,
            use_cuda_graph=graphs and is_cuda,
            use_async_batching=graphs and is_cuda,
        ),
        progress_bar=False,
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


def measure(arguments: argparse.Namespace, implementation: str) -> dict[str, Any]:
    model = make_model(arguments, torch.bfloat16, implementation)
    prompts = make_prompts(arguments)
    # Stock implementations run as transformers sets them up: with a mask, without graphs.
    graphs = implementation == "paged|quire"
    seconds = []
    for _ in range(arguments.rounds + 1):
        synchronize(arguments)
        begin = time.perf_counter()
        tokens = generate(model, prompts, arguments, graphs)
        synchronize(arguments)
        seconds.append(time.perf_counter() - begin)
    new = sum(map(len, tokens))
    rates = [new / each for each in seconds[1:]]
    return {
        "tokens_per_s_median": statistics.median(rates),
        "tokens_per_s_min": min(rates),
        "tokens_per_s_max": max(rates),
        "new_tokens": new,
        "prompt_tokens": sum(map(len, prompts)),
        "cuda_graph": graphs and arguments.device != "cpu",
    }


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model = make_model(arguments, torch.float32, "eager")
    prompts = make_prompts(arguments)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=arguments.device)
        with torch.no_grad():
            out = model.generate(ids, generation_config=greedy(arguments))
        expected.append(out[0, len(prompt) :].tolist())
    model.set_attn_implementation("paged|quire")
    got = generate(model, prompts, arguments, True)
    differing = [i for i, (a, b) in enumerate(zip(got, expected)) if a != b]
    return {"requests": len(prompts), "equal": len(prompts) - len(differing), "differ": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--implementations", nargs="+", default=["paged|sdpa", "paged|quire"])
    parser.add_argument("--check", action="store_true")
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
        import quire.integrations.transformers  # noqa: F401

        name = arguments.only
        found = check(arguments) if name == "check" else measure(arguments, name)
        machine = torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu"
        print(json.dumps({"workload": "generate_batch", "impl": name, "device": machine, **found}))
        return
    names = ["check"] if arguments.check else arguments.implementations
    for name in names:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in run.stdout.splitlines() if line.startswith('{"workload"')]
        failure = json.dumps({"impl": name, "error": run.stderr.strip()[-300:]})
        print(lines[-1] if lines else failure, flush=True)


if __name__ == "__main__":
    main()
