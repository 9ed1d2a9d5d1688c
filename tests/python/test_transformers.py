# SPDX-License-Identifier: Apache-2.0
"""`generate_batch` of transformers on quire, against its own eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import quire

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")

import quire.integrations.transformers  # noqa: E402

DEVICES = ["cpu"]
if torch.cuda.is_available() and len(quire.devices()) > 1:
    DEVICES.append("cuda")
# transformers warns of deprecations of its own.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    old = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield str(request.param)
    torch.backends.cuda.matmul.allow_tf32 = old


def make_model(device: str, window: bool = False) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if window:
        config = transformers.Qwen2Config(
            **options,
            use_sliding_window=True,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    else:
        config = transformers.LlamaConfig(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():  # so that tokens differ clearly
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(device).eval()


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 128, (n,), generator=generator).tolist() for n in lengths]


def greedy(n: int) -> Any:
    return transformers.GenerationConfig(
        max_new_tokens=n, do_sample=False, eos_token_id=-1, pad_token_id=0
    )


def one_by_one(model: Any, prompts: list[list[int]], n: int) -> list[list[int]]:
    results = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        with torch.no_grad():
            out = model.generate(ids, generation_config=greedy(n))
            results.append(out[0, len(prompt) :].tolist())
    return results


def continuous(
    model: Any, prompts: list[list[int]], n: int, kept: bool = False, **options: Any
) -> list[list[int]]:
    config = transformers.ContinuousBatchingConfig(
        num_blocks=64, block_size=16, max_batch_tokens=64, **options
    )
    outputs = model.generate_batch(
        prompts,
        generation_config=greedy(n),
        continuous_batching_config=config,
        progress_bar=False,
        persistent_manager=kept,
        warmup=not kept,
    )
    found = [outputs[name] for name in outputs]
    by_prompt = {tuple(each.prompt_ids): each.generated_tokens for each in found}
    return [by_prompt[tuple(prompt)] for prompt in prompts]


LENGTHS = [12, 1, 100, 37, 16, 70]


@pytest.fixture
def block_tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls of attention came with one, as it grows."""
    calls: list[int] = []
    name, attend = "paged|quire", quire.integrations.transformers.paged_attention

    def counted(*arguments: Any, **options: Any) -> Any:
        if options.get("block_table") is not None:
            calls.append(options["block_table"].shape[1])
        return attend(*arguments, **options)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, name, counted)
    return calls


@pytest.mark.parametrize("most_blocks", [0, 7, None])
def test_block_tables_come_in_decode_steps(
    device: str, block_tables: list[int], most_blocks: Any
) -> None:
    model = make_model(device)
    prompts = prompts_of(LENGTHS)
    expected = one_by_one(model, prompts, 12)
    model.set_attn_implementation("paged|quire")
    assert continuous(model, prompts, 12, max_blocks_per_request=most_blocks) == expected
    assert bool(block_tables) == (most_blocks != 0)
    # Layers with windows have none, and stock implementations are left alone.
    del block_tables[:]
    window = make_model(device, window=True)
    window.set_attn_implementation("paged|quire")
    continuous(window, prompts, 2, max_blocks_per_request=most_blocks)
    model.set_attn_implementation("paged|sdpa")
    assert continuous(model, prompts, 12, max_blocks_per_request=most_blocks) == expected
    assert not block_tables


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("use_cuda_graph", [False, True])
def test_tokens_are_those_of_eager(device: str, window: bool, use_cuda_graph: bool) -> None:
    if use_cuda_graph and device == "cpu":
        pytest.skip("CUDA graphs need a GPU")
    model = make_model(device, window)
    prompts = prompts_of(LENGTHS)
    expected = one_by_one(model, prompts, 12)
    model.set_attn_implementation("paged|quire")
    got = continuous(model, prompts, 12, use_cuda_graph=use_cuda_graph)
    assert got == expected


def test_a_kept_manager_gives_the_same_tokens(device: str) -> None:
    # As docs/compat.md advises: graphs of the first call serve later ones, of any number of keys.
    model = make_model(device)
    calls = [prompts_of(LENGTHS), prompts_of([90, 3, 50]), prompts_of(LENGTHS[::-1])]
    expected = [one_by_one(model, prompts, 12) for prompts in calls]
    model.set_attn_implementation("paged|quire")
    options: dict[str, Any] = {"allow_block_sharing": False, "kept": True}
    if device == "cuda":
        options.update(use_cuda_graph=True, use_async_batching=True)
        options.update(kv_padding_interval_size=1 << 30)
    try:
        assert [continuous(model, prompts, 12, **options) for prompts in calls] == expected
    finally:
        model.destroy_cached_continuous_batching_manager()


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("name", ["paged|quire", "quire"])
def test_plain_generate_still_works(device: str, name: str, window: bool) -> None:
    model = make_model(device, window)
    prompts = prompts_of([12, 40])
    expected = one_by_one(model, prompts, 8)
    model.set_attn_implementation(name)
    assert one_by_one(model, prompts, 8) == expected


def test_padding_reaches_the_plain_implementation(device: str) -> None:
    model = make_model(device)
    prompts = prompts_of([5, 9])
    expected = one_by_one(model, prompts, 8)
    ids = torch.tensor([[0] * 4 + prompts[0], prompts[1]], device=device)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    model.set_attn_implementation("quire")
    out = model.generate(ids, attention_mask=mask, generation_config=greedy(8))
    assert out[:, 9:].tolist() == expected
    model.set_attn_implementation("paged|quire")
    with pytest.raises(NotImplementedError, match="padding is not told"):
        model.generate(ids, attention_mask=mask, generation_config=greedy(8))
