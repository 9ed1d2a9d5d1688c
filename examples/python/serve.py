# SPDX-License-Identifier: Apache-2.0
"""Serves prompts with pages, a prefix cache and continuous batching around a model.

The model is a small Llama of random weights (--model takes another one); without torch and
transformers, or with --toy, a toy in NumPy. Prints each answer, and how much was shared."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any, Protocol

import numpy as np

import quire

PAGE_SIZE, MAX_TOKENS, MAX_SEQS, MAX_LENGTH = 16, 96, 16, 1024


class Model(Protocol):
    """What the loop asks of a model."""

    spec: quire.AttentionSpec  # of every layer
    caches: list[tuple[Any, Any]]  # K and V of each layer, [num_pages, PAGE_SIZE, heads, head_dim]

    def forward(self, tokens: np.ndarray, positions: np.ndarray, attend: Any) -> np.ndarray:
        """Logits [rows, vocabulary] of tokens [total_q] at positions [total_q]. Each layer calls
        `attend(layer, q, k, v)` with rows [total_q, heads, head_dim] and gets o like q."""


# %% A model with nothing to download, and nothing to install but NumPy.
class ToyModel:
    """Two layers of attention and ReLU on random weights, with positions as waves."""

    def __init__(self, num_pages: int, vocabulary: int = 256) -> None:
        rng = np.random.default_rng(0)
        heads, kv_heads, dim, width = 4, 2, 16, 64

        def weights(*shape: int) -> np.ndarray:
            return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

        self.spec = quire.AttentionSpec(
            heads, kv_heads, dim, q_dtype="float32", page_size=PAGE_SIZE
        )
        self.embedding, self.output = weights(vocabulary, width) * 16, weights(width, vocabulary)
        sizes = [(width, n * dim) for n in (heads, kv_heads, kv_heads)]
        sizes += [(heads * dim, width), (width, width)]
        self.layers = [[weights(*size) for size in sizes] for _ in range(2)]
        shape = (num_pages, PAGE_SIZE, kv_heads, dim)
        self.caches = [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(2)]

    def forward(self, tokens: np.ndarray, positions: np.ndarray, attend: Any) -> np.ndarray:
        width = self.embedding.shape[1]
        angles = positions[:, None] / 100.0 ** (np.arange(width // 2) * 2 / width)
        x = self.embedding[tokens] + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        for layer, (wq, wk, wv, wo, wx) in enumerate(self.layers):
            x = (x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6)).astype(np.float32)
            q, k, v = (
                np.ascontiguousarray((x @ w).reshape(len(x), -1, self.spec.head_dim_qk))
                for w in (wq, wk, wv)
            )
            x = x + attend(layer, q, k, v).reshape(len(x), -1) @ wo
            x = x + np.maximum(x @ wx, 0)
        return x @ self.output


# %% Any causal model of transformers whose layers ask its attention interface and have no window.
class TransformersModel:
    """The interface hands q, k and v of a layer to `attend`; the cache is quire's pages."""

    def __init__(self, num_pages: int, name: str | None) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        self.torch, self.attend = torch, None
        transformers.AttentionInterface.register("quire_serve", self._attention)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if name is None:
            config = transformers.LlamaConfig(
                vocab_size=256,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
            model = transformers.AutoModelForCausalLM.from_config(config)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        model.set_attn_implementation("quire_serve")
        self.model = model.to(device).eval()
        config = self.model.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        dtype = str(self.model.dtype).rpartition(".")[2]
        self.spec = quire.AttentionSpec(heads, kv_heads, dim, q_dtype=dtype, page_size=PAGE_SIZE)
        shape = (num_pages, PAGE_SIZE, kv_heads, dim)
        self.caches = [
            tuple(torch.zeros(shape, dtype=self.model.dtype, device=device) for _ in range(2))
            for _ in range(config.num_hidden_layers)
        ]

    def _attention(self, module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> Any:
        rows = [each[0].transpose(0, 1) for each in (q, k, v)]  # of [1, heads, total_q, head_dim]
        return self.attend(module.layer_idx, *rows).unsqueeze(0), None

    def forward(self, tokens: np.ndarray, positions: np.ndarray, attend: Any) -> np.ndarray:
        self.attend = attend
        rows = [self.torch.tensor(each, device=self.model.device) for each in (tokens, positions)]
        with self.torch.no_grad():
            ids, at = (each.long().unsqueeze(0) for each in rows)
            logits = self.model(input_ids=ids, position_ids=at, use_cache=False).logits[0]
        return logits.float().cpu().numpy()


# %% The engine: who has which page, who computes what, and the calls of a step.
class Engine:
    def __init__(self, model: Model, num_pages: int) -> None:
        self.model = model
        self.pool = quire.PagePool(num_pages, PAGE_SIZE)
        self.table = quire.PageTable(self.pool, max_seqs=MAX_SEQS, max_tokens_per_seq=MAX_LENGTH)
        self.cache = quire.PrefixCache(self.pool)
        self.batcher = quire.Batcher(self.table, self.cache)
        self.builder = quire.BatchBuilder(self.table)
        self.device = quire.view(model.caches[0][0]).device
        limits = quire.BatchLimits(MAX_SEQS, MAX_TOKENS, MAX_LENGTH)
        self.attention = quire.Attention(model.spec, limits, device=self.device)
        self.workspaces = self.attention.allocate_workspaces()
        self.plan, self.copies = quire.StepPlan(), quire.CopyPlan()
        self.texts: dict[int, list[int]] = {}  # prompts and answers

    def submit(self, number: int, prompt: list[int], max_new_tokens: int) -> None:
        self.texts[number] = list(prompt)
        self.batcher.submit(quire.Request(number, prompt, max_new_tokens))

    def step(self) -> list[int]:
        """One step of the model; returns the requests that ended."""
        self.copies.clear()
        self.batcher.plan(max_tokens=MAX_TOKENS, max_seqs=MAX_SEQS, into=self.plan)
        self.batcher.commit(self.plan, self.copies)
        items = self.plan.items
        for cache in self.model.caches:
            self.copies.execute(*cache)  # pages that are shared in part
        staged = self.builder.build(self.plan)
        block = staged.bytes if self.device.type == "cpu" else self._upload(staged.bytes)
        batch, slots = staged.dense(block), staged.slots(block)
        schedule = self.attention.schedule(batch, self.workspaces)

        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            k_cache, v_cache = self.model.caches[layer]
            quire.append(k, v, k_cache, v_cache, slot_mapping=slots)
            return self.attention.run(schedule, q, k_cache, v_cache)

        tokens = [
            token
            for item in items
            for token in self.texts[item.request][item.position :][: item.num_new_tokens]
        ]
        logits = self.model.forward(np.array(tokens), staged.positions, attend)
        last_rows = staged.qo_indptr[1:] - 1
        sampled = []
        for item, row in zip(items, last_rows):
            if item.samples:
                sampled.append(int(logits[row].argmax()))
                self.texts[item.request].append(sampled[-1])
        return self.batcher.finish(self.plan, sampled)

    def _upload(self, block: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(block).to(str(self.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="the NumPy model, also with torch")
    parser.add_argument("--model", help="a causal model that transformers loads")
    parser.add_argument("--pages", type=int, default=40, help=f"of {PAGE_SIZE} tokens")
    options = parser.parse_args()
    installed = all(importlib.util.find_spec(each) for each in ("torch", "transformers"))
    toy = options.toy or (not installed and options.model is None)
    model = ToyModel(options.pages) if toy else TransformersModel(options.pages, options.model)
    engine = Engine(model, options.pages)

    system = list(range(3, 43))  # what all prompts begin with
    for number in range(8):
        engine.submit(number, system + [50 + number] * (5 + 9 * number), max_new_tokens=12)
    while not engine.batcher.idle:
        for number in engine.step():
            print(f"request {number}:", *engine.texts[number][-12:])
    stats = engine.batcher.stats
    print(f"{stats.steps} steps, {stats.hit_tokens} of {stats.asked_tokens} tokens were shared")


if __name__ == "__main__":
    main()
