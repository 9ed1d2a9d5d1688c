# SPDX-License-Identifier: Apache-2.0
"""examples/python/serve.py answers as its models do for each request alone, without pages."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from reference import Requests, attention

PATH = pathlib.Path(__file__).parents[2] / "examples" / "python" / "serve.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("serve", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = load()
PROMPTS = [[*range(3, 43), *([50 + n] * (5 + 9 * n))] for n in range(5)]


def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
    o, _ = attention(q, Requests([len(q)], [len(q)], [k], [v]))
    return o.astype(np.float32)


def alone(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """The answer of a model that sees the whole text again for each token."""
    text = list(prompt)
    for _ in range(new_tokens):
        logits = model.forward(np.array(text), np.arange(len(text)), attend)
        text.append(int(logits[-1].argmax()))
    return text


@pytest.mark.parametrize("num_pages", [14, 64])
def test_the_toy_answers_as_without_pages(num_pages: int) -> None:
    model = serve.ToyModel(num_pages)
    engine = serve.Engine(model, num_pages)
    for number, prompt in enumerate(PROMPTS):
        engine.submit(number, prompt, 9)
    ended = []
    for _ in range(200):
        if engine.batcher.idle:
            break
        ended += engine.step()
        engine.batcher.check()
    assert sorted(ended) == list(range(len(PROMPTS)))
    for number, prompt in enumerate(PROMPTS):
        assert engine.texts[number] == alone(model, prompt, 9)
    assert engine.batcher.stats.hit_tokens > 0


def test_the_transformers_model_answers_as_its_own_generate() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = serve.TransformersModel(64, None)
    engine = serve.Engine(model, 64)
    for number, prompt in enumerate(PROMPTS):
        engine.submit(number, prompt, 9)
    while not engine.batcher.idle:
        engine.step()
    model.model.set_attn_implementation("eager")
    for number, prompt in enumerate(PROMPTS):
        text = torch.tensor([prompt], device=model.model.device)
        with torch.no_grad():
            for _ in range(9):
                logits = model.model(input_ids=text, use_cache=False).logits[0, -1]
                text = torch.cat([text, logits.argmax().view(1, 1)], dim=1)
        assert engine.texts[number] == text[0].tolist()


def test_the_program_prints_answers_and_what_was_shared() -> None:
    run = subprocess.run(
        [sys.executable, PATH, "--toy"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PATH.parents[2] / "python")},
    )
    *answers, last = run.stdout.splitlines()
    assert [line.split(":")[0] for line in answers] == [f"request {n}" for n in range(8)]
    assert last.endswith("248 of 604 tokens were shared")


def test_the_loop_is_short() -> None:
    assert len(PATH.read_text(encoding="utf-8").splitlines()) <= 200
