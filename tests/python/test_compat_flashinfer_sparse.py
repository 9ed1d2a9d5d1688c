# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention of quire.compat.flashinfer against attention through a dense mask."""

from __future__ import annotations

import math
from typing import Any, Optional

import pytest

import quire

torch = pytest.importorskip("torch")

import quire.compat.flashinfer as fi  # noqa: E402

DEVICES = ["cpu"]
if torch.cuda.is_available() and len(quire.devices()) > 1:
    DEVICES.append("cuda")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def draw(device: str) -> Any:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).half().to(device)

    normal.chance = lambda *shape, p: torch.rand(*shape, generator=generator) < p  # type: ignore[attr-defined]
    return normal


def dense(q: Any, k: Any, v: Any, visible: Any, cap: Optional[float] = None) -> tuple[Any, Any]:
    """(o, lse of base 2) of q [m, heads, d] through a mask [m, n]; rows that see nothing are 0."""
    group = q.shape[1] // k.shape[1]
    k, v = (each.float().repeat_interleave(group, dim=1) for each in (k, v))
    scores = torch.einsum("mhd,nhd->mhn", q.float(), k) / math.sqrt(q.shape[-1])
    if cap:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible[:, None].to(q.device), -math.inf)
    lse = scores.logsumexp(-1)
    p = (scores - lse[..., None]).exp().nan_to_num(0.0)
    return torch.einsum("mhn,nhd->mhd", p, v), lse / math.log(2.0)


def check(got: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    torch.testing.assert_close(got[0].float(), expected[0], atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(got[1], expected[1], atol=2e-3, rtol=1e-4)


def bsr(blocks: Any) -> tuple[Any, Any]:
    """(indptr, indices) of a map of blocks, bool [rows, columns]."""
    indptr = torch.nn.functional.pad(blocks.sum(1).cumsum(0), (1, 0)).int()
    return indptr, blocks.nonzero()[:, 1].int()


def workspace(device: str) -> Any:
    return torch.empty(1 << 20, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (4, 16), (16, 4)])
@pytest.mark.parametrize("masked", ["blocks", "mask", "packed"])
def test_block_sparse_is_dense_attention(
    device: str, draw: Any, size: tuple[int, int], masked: str
) -> None:
    rows, columns = size
    m, n = 3 * rows * 4 - (rows - 1), 48  # the last row of blocks is not full
    blocks = draw.chance(-(-m // rows), n // columns, p=0.4)
    blocks[1] = False
    indptr, indices = bsr(blocks)
    inside = draw.chance(len(indices), rows, columns, p=0.6) | (masked == "blocks")
    visible = torch.zeros(len(blocks) * rows, n, dtype=torch.bool)
    for nth, (i, j) in enumerate(blocks.nonzero().tolist()):
        visible[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = inside[nth]
    visible = visible[:m]
    masks: dict[str, Any] = {}
    if masked == "mask":
        masks["mask"] = inside.to(device)
    elif masked == "packed":
        wide = blocks.repeat_interleave(columns, dim=1)
        pieces = [visible[i * rows : (i + 1) * rows, each].flatten() for i, each in enumerate(wide)]
        sizes = torch.tensor([0, *map(len, pieces)]).cumsum(0)
        masks["packed_mask"] = fi.segment_packbits(torch.cat(pieces), sizes, bitorder="little")[0]
    q, k, v = draw(m, 4, 64), draw(n, 2, 64), draw(n, 2, 64)
    wrapper = fi.BlockSparseAttentionWrapper(workspace(device))
    wrapper.plan(indptr, indices, m, n, rows, columns, 4, 2, 64, **masks)
    check(wrapper.run(q, k, v, return_lse=True), dense(q, k, v, visible))
    out = torch.empty_like(q)
    assert wrapper.run(q, k, v, out=out) is out
    torch.testing.assert_close(out, wrapper.run(q, k, v))


def test_block_sparse_scales_of_8_bits(device: str, draw: Any) -> None:
    indptr, indices = bsr(draw.chance(8, 8, p=0.5))
    q, k, v = draw(32, 2, 64), draw(32, 2, 64), draw(32, 2, 64)
    scales = [each.float().abs().amax((0, 2)) / 448 for each in (q, k, v)]
    narrow = [
        (each / scale[None, :, None]).to(torch.float8_e4m3fn)
        for each, scale in zip((q, k, v), scales)
    ]
    exact = [each.float() * scale[None, :, None] for each, scale in zip(narrow, scales)]
    visible = torch.zeros(32, 32, dtype=torch.bool)
    for i, (begin, end) in enumerate(zip(indptr[:-1], indptr[1:])):
        for j in indices[begin:end]:
            visible[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = True
    wrapper = fi.BlockSparseAttentionWrapper(workspace(device), backend="fa3")
    wrapper.plan(indptr, indices, 32, 32, 4, 4, 2, 2, 64, q_data_type=torch.float8_e4m3fn)
    o = wrapper.run(*narrow, *scales)
    assert o.dtype == torch.float16
    expected, _ = dense(exact[0], exact[1], exact[2], visible)
    torch.testing.assert_close(o.float(), expected, atol=8e-3, rtol=8e-3)


def test_blocks_of_any_sizes(device: str, draw: Any) -> None:
    blocks = draw.chance(2, 3, 4, p=0.6)
    blocks[:, 0, 0] = True
    heights = torch.tensor([[5, 1, 10], [4, 8, 4]])
    widths = torch.tensor([[7, 2, 20, 3], [1, 1, 15, 15]])
    q, k, v = draw(4, 16, 64), draw(2, 32, 64), draw(2, 32, 64)
    wrapper = fi.VariableBlockSparseAttentionWrapper(workspace(device))
    wrapper.plan(blocks.to(device), heights, widths, 4, 2, 64, logits_soft_cap=5.0)
    o, lse = wrapper.run(q, k, v, return_lse=True)
    assert torch.equal(wrapper.run(q, k, v), o)
    for head in range(2):
        visible = blocks[head].repeat_interleave(heights[head], 0)
        visible = visible.repeat_interleave(widths[head], 1)
        mine = slice(2 * head, 2 * head + 2)
        one = slice(head, head + 1)
        inputs = [each.transpose(0, 1) for each in (q[mine], k[one], v[one])]
        got = o[mine].transpose(0, 1), lse[mine].transpose(0, 1)
        check(got, dense(inputs[0], inputs[1], inputs[2], visible, 5.0))


def test_what_block_sparse_refuses(device: str, draw: Any) -> None:
    wrapper = fi.BlockSparseAttentionWrapper(workspace(device))
    indptr, indices = torch.tensor([0, 1, 2]), torch.tensor([0, 4])
    with pytest.raises(RuntimeError, match="plan"):
        wrapper.run(draw(8, 2, 64), draw(16, 2, 64), draw(16, 2, 64))
    with pytest.raises(ValueError, match="out of bound"):
        wrapper.plan(indptr, indices, 8, 16, 4, 4, 2, 2, 64)
    with pytest.raises(ValueError, match="out of bound"):
        wrapper.plan(indptr, torch.tensor([0, -1]), 8, 16, 4, 4, 2, 2, 64)
    with pytest.raises(ValueError, match="indptr of 3"):
        wrapper.plan(indptr, torch.tensor([0, 3]), 12, 16, 4, 4, 2, 2, 64)
    with pytest.raises(ValueError, match="N a multiple of 4"):
        wrapper.plan(indptr, torch.tensor([0, 3]), 8, 15, 4, 4, 2, 2, 64)
    with pytest.raises(NotImplementedError, match="ALIBI"):
        wrapper.plan(indptr, indices - 1, 8, 16, 4, 4, 2, 2, 64, pos_encoding_mode="ALIBI")
    variable = fi.VariableBlockSparseAttentionWrapper(workspace(device))
    with pytest.raises(ValueError, match="blocks"):
        variable.plan(torch.ones(1, 2, 2), torch.ones(1, 2), torch.ones(1, 3), 2, 1, 64)
