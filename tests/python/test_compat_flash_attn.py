# SPDX-License-Identifier: Apache-2.0
"""quire.compat.flash_attn against the reference, as FlashAttention documents its functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quire
from reference import Array, attention, paged, random_requests

torch = pytest.importorskip("torch")

from quire.compat.flash_attn import (  # noqa: E402
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)

DEVICES = ["cpu"]
if torch.cuda.is_available() and len(quire.devices()) > 1:
    DEVICES.append("cuda")
LENGTHS = [(5, 70), (33, 33), (1, 40), (0, 20), (17, 129), (3, 2)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "window_size": (9, 0)},
    {"window_size": (9, 0)},
    {"causal": True, "softcap": 3.0, "softmax_scale": 0.2},
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def expected_of(q: Array, requests: Any, options: dict[str, Any]) -> tuple[Array, Array]:
    left, right = options.get("window_size", (-1, -1))
    return attention(
        q,
        requests,
        causal=options.get("causal", False) or right == 0,
        window_left=left,
        logits_soft_cap=options.get("softcap"),
        sm_scale=options.get("softmax_scale"),
    )


def close(got: Any, expected: Array, dtype: Any = torch.float32) -> None:
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    np.testing.assert_allclose(got.float().cpu(), expected, atol=tolerance, rtol=tolerance)


def rounded(array: Array, dtype: Any) -> Array:
    result: Array = torch.from_numpy(array).to(dtype).float().numpy()
    return result


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("page_size", [0, 1, 16])
def test_ragged_batches(device: str, options: dict[str, Any], dtype: Any, page_size: int) -> None:
    rng = np.random.default_rng(1)
    requests = random_requests(rng, LENGTHS, 2, 64)
    for rows in (requests.k, requests.v):
        rows[:] = [rounded(row, dtype) for row in rows]
    q = rounded(rng.standard_normal((59, 4, 64)).astype(np.float32), dtype)

    def on(array: Array, to: Any = None) -> Any:
        return torch.from_numpy(array).to(device, to)

    cu_seqlens_q = on(requests.qo_indptr)
    cu_seqlens_k = on(np.cumsum([0, *requests.kv_len]).astype(np.int32))
    keys = {}
    if page_size:
        cache = paged(rng, requests, page_size)
        k, v = on(cache.k, dtype), on(cache.v, dtype)
        keys["block_table"] = on(cache.page_table)
    else:
        k, v = (on(np.concatenate(rows), dtype) for rows in (requests.k, requests.v))
    attend: Any = flash_attn_varlen_func
    o, lse, _ = attend(
        on(q, dtype),
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        33,
        129,
        return_attn_probs=True,
        **keys,
        **options,
    )
    expected_o, expected_lse = expected_of(q, requests, options)
    assert lse.shape == (4, 59)
    close(o, expected_o, dtype)
    close(lse.transpose(0, 1), expected_lse, torch.float16)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seqlen_q", [1, 3])
@pytest.mark.parametrize("page_size", [0, 5, 16])
def test_the_cache_takes_new_keys_in_place(
    device: str, options: dict[str, Any], seqlen_q: int, page_size: int
) -> None:
    rng = np.random.default_rng(2)
    lengths = [(seqlen_q, kv_len) for kv_len in (37, 4, 90)]
    requests = random_requests(rng, lengths, 2, 64)
    q = rng.standard_normal((3, seqlen_q, 4, 64)).astype(np.float32)

    def on(array: Array) -> Any:
        return torch.from_numpy(array).to(device)

    keys = {}
    if page_size:
        cache = paged(rng, requests, page_size)
        full = [on(cache.k), on(cache.v)]
        keys["page_table"] = on(cache.page_table)
        table = cache.page_table
    else:
        full = [torch.full((4, 100, 2, 64), torch.nan, device=device) for _ in range(2)]
        rows = [2, 0, 3]
        for whole, parts in zip(full, (requests.k, requests.v)):
            for row, part in zip(rows, parts):
                whole[row, : len(part)] = on(part)
        keys["cache_batch_idx"] = torch.tensor(rows, dtype=torch.int32, device=device)
        table = np.array(rows)[:, None]
    size = page_size or 100
    old = [each.clone() for each in full]
    for each in old:  # what is new is not there yet
        for r, (_, kv_len) in enumerate(lengths):
            for t in range(kv_len - seqlen_q, kv_len):
                each[table[r, t // size], t % size] = torch.nan
    new = [on(np.stack([part[-seqlen_q:] for part in parts])) for parts in (requests.k, requests.v)]
    before = torch.tensor(
        [kv_len - seqlen_q for _, kv_len in lengths], dtype=torch.int32, device=device
    )
    attend: Any = flash_attn_with_kvcache
    o, lse = attend(
        on(q), *old, *new, cache_seqlens=before, return_softmax_lse=True, **keys, **options
    )
    expected_o, expected_lse = expected_of(q.reshape(-1, 4, 64), requests, options)
    close(o, expected_o.reshape(q.shape))
    assert lse.shape == (3, 4, seqlen_q)
    close(lse.transpose(1, 2).reshape(-1, 4), expected_lse)
    for got, expected in zip(old, full):
        assert torch.equal(got.nan_to_num(-7.0), expected.nan_to_num(-7.0))
    again = attend(on(q), *full, cache_seqlens=before + seqlen_q, **keys, **options)
    close(again, expected_o.reshape(q.shape))


def test_what_is_not_served_raises() -> None:
    q = torch.zeros(2, 1, 4, 64)
    cache = torch.zeros(2, 16, 2, 64)
    attend: Any = flash_attn_with_kvcache
    for options in (
        {"rotary_cos": q},
        {"cache_leftpad": torch.zeros(2)},
        {"qv": q},
        {"window_size": (3, 2)},
        {"k_descale": q},
    ):
        with pytest.raises(NotImplementedError, match=next(iter(options))):
            attend(q, cache, cache, **options)
    indptr = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="dropout_p"):
        flash_attn_varlen_func(q[:, 0], cache[0], cache[0], indptr, indptr, 2, 2, dropout_p=0.1)
    with pytest.raises(ValueError, match="cu_seqlens_k"):
        flash_attn_varlen_func(q[:, 0], cache[0], cache[0], indptr)
