# SPDX-License-Identifier: Apache-2.0
"""quire.compat.flashinfer against the reference, as FlashInfer documents its functions."""

from __future__ import annotations

import functools
import math
from typing import Any, Optional

import numpy as np
import pytest

import quire
from reference import Array, Cache, Requests, attention, paged, random_requests

torch = pytest.importorskip("torch")

import quire.compat.flashinfer as fi  # noqa: E402

DEVICES = ["cpu"]
if torch.cuda.is_available() and len(quire.devices()) > 1:
    DEVICES.append("cuda")
TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
LOG2E = math.log2(math.e)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Case:
    """Requests of shuffled pages on a device, of values that the dtype holds exactly."""

    def __init__(
        self,
        device: str,
        lengths: list[tuple[int, int]],
        *,
        page_size: int = 16,
        layout: str = "NHD",
        dtype: str = "float16",
        heads: tuple[int, int] = (4, 2),
        dims: tuple[int, int] = (64, 64),
    ) -> None:
        rng = np.random.default_rng(7)
        self.dtype = getattr(torch, dtype)
        self.requests: Requests = random_requests(rng, lengths, heads[1], *dims)
        q = rng.standard_normal((self.requests.qo_indptr[-1], heads[0], dims[0]))
        for rows in (self.requests.k, self.requests.v):
            rows[:] = [self._rounded(row) for row in rows]
        self.q_rows = self._rounded(q.astype(np.float32))
        self.cache: Cache = paged(rng, self.requests, page_size, layout)
        self.device, self.heads, self.dims, self.page_size = device, heads, dims, page_size
        self.q, self.k, self.v = (
            self.on(array, self.dtype) for array in (self.q_rows, self.cache.k, self.cache.v)
        )
        self.qo_indptr = self.on(self.requests.qo_indptr)
        self.indptr = self.on(self.cache.kv_page_indptr)
        self.indices = self.on(self.cache.kv_page_indices)
        self.last_page_len = self.on(self.cache.kv_last_page_len)
        self.workspace = torch.empty(32 << 20, dtype=torch.uint8, device=device)

    def _rounded(self, array: Array) -> Array:
        result: Array = torch.from_numpy(array).to(self.dtype).float().numpy()
        return result

    def on(self, array: Array, dtype: Any = None) -> Any:
        return torch.from_numpy(array).to(self.device, dtype)

    @property
    def table(self) -> tuple[Any, Any, Any]:
        return self.indptr, self.indices, self.last_page_len

    def check(self, o: Any, lse: Optional[Any] = None, **options: Any) -> None:
        expected_o, expected_lse = attention(self.q_rows, self.requests, **options)
        tolerance = TOLERANCE[str(self.dtype).rpartition(".")[2]]
        assert o.device.type == self.device
        np.testing.assert_allclose(o.float().cpu(), expected_o, atol=tolerance, rtol=tolerance)
        if lse is not None:
            np.testing.assert_allclose(lse.cpu(), expected_lse * LOG2E, atol=2e-3, rtol=1e-4)


DECODE = [(1, 37), (1, 1), (1, 128), (1, 16), (1, 300)]
PREFILL = [(5, 70), (33, 33), (1, 40), (0, 20), (17, 129)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 5, 16])
@pytest.mark.parametrize("heads", [(4, 4), (7, 1), (8, 2)])
def test_batch_decode(
    device: str, dtype: str, layout: str, page_size: int, heads: tuple[int, int]
) -> None:
    case = Case(device, DECODE, page_size=page_size, layout=layout, dtype=dtype, heads=heads)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace, layout)
    wrapper.plan(*case.table, *heads, 64, page_size, q_data_type=dtype, kv_data_type=case.dtype)
    o, lse = wrapper.run(case.q, (case.k, case.v), return_lse=True)
    assert o.dtype == case.dtype
    case.check(o, lse)
    one = torch.stack((case.k, case.v), 1)
    assert torch.equal(wrapper.run(case.q, one), o)
    out = torch.empty_like(o)
    assert wrapper.run(case.q, one, out=out) is out
    assert torch.equal(out, o)


@pytest.mark.parametrize(
    "options", [{"window_left": 7}, {"logits_soft_cap": 3.0}, {"sm_scale": 0.3}]
)
def test_batch_decode_options(device: str, options: dict[str, Any]) -> None:
    case = Case(device, DECODE)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace)
    wrapper.plan(*case.table, 4, 2, 64, 16, **options)
    case.check(*wrapper.run_return_lse(case.q, (case.k, case.v)), **options)


def test_decode_of_several_tokens_a_request_is_causal(device: str) -> None:
    case = Case(device, [(3, 37), (3, 3), (3, 70)])
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace, use_tensor_cores=True)
    wrapper.plan(*case.table, 4, 2, 64, 16, q_len_per_req=3)
    case.check(wrapper.run(case.q, (case.k, case.v)))


def test_scales_fold_into_scores_and_output(device: str) -> None:
    case = Case(device, DECODE)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace)
    wrapper.plan(*case.table, 4, 2, 64, 16)
    o = wrapper.run(case.q, (case.k, case.v), q_scale=0.5, k_scale=1.5, v_scale=2.0)
    case.check(o / 2.0, sm_scale=0.75 / 8)
    scales = (torch.tensor(1.5, device=device), torch.tensor([2.0], device=device))
    try:
        o = wrapper.run(case.q, (case.k, case.v), k_scale=scales[0], v_scale=scales[1])
    except NotImplementedError as error:
        assert "kv_scale" in str(error)
    else:
        case.check(o / 2.0, sm_scale=1.5 / 8)


def test_a_planned_wrapper_takes_the_next_plan(device: str) -> None:
    for lengths in (DECODE, DECODE[:2], DECODE * 9):
        case = Case(device, lengths)
        if lengths is DECODE:
            wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace)
        wrapper.plan(*case.table, 4, 2, 64, 16)
        case.check(*wrapper.run(case.q, (case.k, case.v), return_lse=True))


def test_graph_wrapper_works_in_its_buffers(device: str) -> None:
    case = Case(device, DECODE)
    wrapper = fi.CUDAGraphBatchDecodeWithPagedKVCacheWrapper(
        case.workspace,
        torch.zeros_like(case.indptr),
        torch.zeros(100, dtype=torch.int32, device=device),
        torch.zeros_like(case.last_page_len),
    )
    wrapper.plan(*case.table, 4, 2, 64, 16)
    case.check(wrapper.run(case.q, (case.k, case.v)))
    assert wrapper.is_cuda_graph_enabled
    other = Case(device, DECODE[:2])
    with pytest.raises(ValueError, match="batch size should be fixed"):
        wrapper.plan(*other.table, 4, 2, 64, 16)
    with pytest.raises(ValueError, match="less than or equal to the allocated buffer"):
        wrapper.plan(
            case.indptr, torch.zeros(101, dtype=torch.int32), case.last_page_len, 4, 2, 64, 16
        )


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
@pytest.mark.parametrize("k_scale", [None, 2.0])
def test_a_captured_graph_follows_later_plans(k_scale: Optional[float]) -> None:
    first, second = Case("cuda", DECODE), Case("cuda", DECODE[::-1])
    wrapper = fi.CUDAGraphBatchDecodeWithPagedKVCacheWrapper(
        first.workspace,
        torch.zeros_like(first.indptr),
        torch.zeros(100, dtype=torch.int32, device="cuda"),
        torch.zeros_like(first.last_page_len),
    )
    q, k, v = (torch.empty_like(each) for each in (first.q, first.k, first.v))
    wrapper.plan(*first.table, 4, 2, 64, 16)
    wrapper.run(q, (k, v), k_scale=k_scale)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, lse = wrapper.run(q, (k, v), k_scale=k_scale, return_lse=True)
    for case in (first, second):
        for here, there in ((q, case.q), (k, case.k), (v, case.v)):
            here.copy_(there)
        wrapper.plan(*case.table, 4, 2, 64, 16)
        graph.replay()
        torch.cuda.synchronize()
        case.check(o, lse, sm_scale=(k_scale or 1.0) / 8)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("page_size", [1, 5, 16])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128)])
def test_paged_prefill(
    device: str, causal: bool, page_size: int, layout: str, dims: tuple[int, int]
) -> None:
    case = Case(device, PREFILL, page_size=page_size, layout=layout, dims=dims)
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace, layout)
    wrapper.plan(
        case.qo_indptr, *case.table, 4, 2, dims[0], page_size, head_dim_vo=dims[1], causal=causal
    )
    case.check(*wrapper.run(case.q, (case.k, case.v), return_lse=True), causal=causal)


@pytest.mark.parametrize("options", [{"window_left": 7}, {"logits_soft_cap": 3.0}])
@pytest.mark.parametrize("causal", [True, False])
def test_paged_prefill_options(device: str, causal: bool, options: dict[str, Any]) -> None:
    case = Case(device, PREFILL)
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace)
    wrapper.plan(case.qo_indptr, *case.table, 4, 2, 64, 16, causal=causal, **options)
    case.check(*wrapper.run_return_lse(case.q, (case.k, case.v)), causal=causal, **options)
    o = wrapper.forward(case.q, (case.k, case.v), causal=not causal)
    case.check(o, causal=not causal)


def _masks(case: Case) -> tuple[list[Array], Any]:
    rng = np.random.default_rng(3)
    masks = [rng.random(shape) < 0.6 for shape in zip(case.requests.qo_len, case.requests.kv_len)]
    return masks, case.on(np.concatenate([mask.ravel() for mask in masks]))


@pytest.mark.parametrize("is_packed", [True, False])
def test_custom_masks_take_the_place_of_causal(device: str, is_packed: bool) -> None:
    case = Case(device, PREFILL)
    masks, flat = _masks(case)
    options = {"custom_mask": flat}
    if is_packed:
        indptr = np.cumsum([0, *(mask.size for mask in masks)]).astype(np.int32)
        bits, _ = fi.segment_packbits(flat, case.on(indptr), bitorder="little")
        options = {"packed_custom_mask": bits}
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace)
    wrapper.plan(case.qo_indptr, *case.table, 4, 2, 64, 16, causal=True, **options)
    case.check(*wrapper.run(case.q, (case.k, case.v), return_lse=True), visible=masks)
    ragged = fi.BatchPrefillWithRaggedKVCacheWrapper(case.workspace)
    k, v, kv_indptr = _contiguous(case)
    ragged.plan(case.qo_indptr, kv_indptr, 4, 2, 64, causal=True, **options)
    case.check(*ragged.run(case.q, k, v, return_lse=True), visible=masks)


def _contiguous(case: Case) -> tuple[Any, Any, Any]:
    k, v = (
        case.on(np.concatenate(rows), case.dtype) for rows in (case.requests.k, case.requests.v)
    )
    return k, v, case.on(np.cumsum([0, *case.requests.kv_len]).astype(np.int32))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dims", [(64, 64), (192, 128)])
def test_ragged_prefill(device: str, causal: bool, dtype: str, dims: tuple[int, int]) -> None:
    case = Case(device, PREFILL, dtype=dtype, dims=dims)
    k, v, kv_indptr = _contiguous(case)
    wrapper = fi.BatchPrefillWithRaggedKVCacheWrapper(case.workspace)
    wrapper.plan(case.qo_indptr, kv_indptr, 4, 2, *dims, causal=causal, q_data_type=dtype)
    case.check(*wrapper.run(case.q, k, v, return_lse=True), causal=causal)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(1, 33), (17, 40), (5, 3)])
def test_single_prefill(device: str, layout: str, causal: bool, lengths: tuple[int, int]) -> None:
    case = Case(device, [lengths])
    k, v, _ = _contiguous(case)
    if layout == "HND":
        k, v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
    o, lse = fi.single_prefill_with_kv_cache_return_lse(
        case.q, k, v, causal=causal, kv_layout=layout
    )
    case.check(o, lse, causal=causal)
    masks, flat = _masks(case)
    mask = flat.view(lengths)
    o = fi.single_prefill_with_kv_cache(case.q, k, v, custom_mask=mask, kv_layout=layout)
    case.check(o, visible=masks)


def test_single_decode(device: str) -> None:
    case = Case(device, [(1, 33)])
    k, v, _ = _contiguous(case)
    o, lse = fi.single_decode_with_kv_cache(case.q[0], k, v, window_left=9, return_lse=True)
    case.check(o[None], lse[None], window_left=9)


def test_alibi_of_causal_queries(device: str) -> None:
    case = Case(device, PREFILL)
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace)
    plan = (case.qo_indptr, *case.table, 4, 2, 64, 16)
    wrapper.plan(*plan, causal=True, pos_encoding_mode="ALIBI")
    slopes = np.array([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
    o = wrapper.run(case.q, (case.k, case.v))
    case.check(o, alibi_slopes=slopes)
    # With lse, which depends on where positions are counted from, torch computes it.
    o_lse, lse = wrapper.run(case.q, (case.k, case.v), return_lse=True)
    torch.testing.assert_close(o_lse, o, atol=4e-3, rtol=4e-3)
    _, expected = attention(case.q_rows, case.requests, alibi_slopes=slopes)
    requests = case.requests
    offsets = [
        np.full(end - begin, keys.shape[0] - (end - begin))
        for begin, end, keys in zip(requests.qo_indptr[:-1], requests.qo_indptr[1:], requests.k)
    ]
    expected = (expected + slopes * np.concatenate(offsets)[:, None]) * LOG2E
    np.testing.assert_allclose(lse.cpu(), expected, atol=2e-3, rtol=1e-4)


def alibi_attention(
    q: Any, k: Any, v: Any, visible: Any, cap: Optional[float] = None
) -> tuple[Any, Any]:
    """As FlashInfer's variant of attention has it: query and key counted from 0, the sum scaled
    again under a soft cap."""
    k, v = (each.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    scores = torch.einsum("qhd,khd->qhk", q.float(), k) / 8
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], device=q.device)
    distance = (
        torch.arange(len(k), device=q.device) - torch.arange(len(q), device=q.device)[:, None]
    )
    scores += slopes[None, :, None] * distance[:, None, :]
    if cap:
        scores = cap * torch.tanh(scores / 8 / cap)
    scores = scores.masked_fill(~visible[:, None, :], -math.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    return torch.einsum("qhk,khd->qhd", weights, v), scores.logsumexp(-1) * LOG2E


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("masked", ["none", "causal", "full"])
def test_alibi_that_kernels_do_not_compute(device: str, masked: str, cap: Optional[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [(7, 11), (1, 20), (5, 3), (4, 32)]

    def rows(n: int, heads: int) -> Any:
        return torch.randn(n, heads, 64, generator=generator).half().to(device)

    q = [rows(m, 4) for m, _ in lengths]
    k, v = ([rows(n, 2) for _, n in lengths] for _ in range(2))
    visible = []
    for m, n in lengths:
        causal = torch.ones(m, n).tril(n - m).bool()
        full = torch.rand(m, n, generator=generator) < 0.5
        every = torch.ones(m, n).bool()
        visible.append({"none": every, "causal": causal, "full": full}[masked].to(device))
    expected = [alibi_attention(*each, cap) for each in zip(q, k, v, visible)]
    options: dict[str, Any] = {"causal": masked == "causal", "pos_encoding_mode": "ALIBI"}
    options["logits_soft_cap"] = cap
    masks = visible if masked == "full" else [None] * len(lengths)

    def check(got: tuple[Any, Any], o: Any, lse: Any) -> None:
        torch.testing.assert_close(got[0].float(), o, atol=4e-3, rtol=4e-3)
        torch.testing.assert_close(got[1], lse, atol=2e-3, rtol=1e-4)

    single = fi.single_prefill_with_kv_cache
    for inputs, mask, (o, lse) in zip(zip(q, k, v), masks, expected):
        check(single(*inputs, custom_mask=mask, return_lse=True, **options), o, lse)
        check((single(*inputs, custom_mask=mask, **options), lse), o, lse)
    o, lse = (torch.cat(each) for each in zip(*expected))
    flat = torch.cat([each.flatten() for each in visible])
    if masked == "full":
        options["custom_mask"] = flat
    qo_indptr, kv_indptr = (
        torch.tensor([0, *each]).cumsum(0).int().to(device) for each in zip(*lengths)
    )
    workspace = torch.empty(1 << 20, dtype=torch.uint8, device=device)
    ragged = fi.BatchPrefillWithRaggedKVCacheWrapper(workspace)
    ragged.plan(qo_indptr, kv_indptr, 4, 2, 64, **options)
    check(ragged.run(torch.cat(q), torch.cat(k), torch.cat(v), return_lse=True), o, lse)
    check((ragged.run(torch.cat(q), torch.cat(k), torch.cat(v)), lse), o, lse)
    for layout in ("NHD", "HND"):
        pages = torch.tensor([0, 3, 5, 1, 4, 2], dtype=torch.int32, device=device)
        indptr = torch.tensor([0, 1, 3, 4, 6], dtype=torch.int32)
        last = torch.tensor([(n - 1) % 16 + 1 for _, n in lengths], dtype=torch.int32)
        caches = []
        for each in (k, v):
            cache = torch.zeros(6, 16, 2, 64, dtype=torch.float16, device=device)
            for i, one in enumerate(each):
                for at, page in enumerate(pages[indptr[i] : indptr[i + 1]].tolist()):
                    part = one[16 * at : 16 * at + 16]
                    cache[page, : len(part)] = part
            caches.append(cache if layout == "NHD" else cache.transpose(1, 2).contiguous())
        paged_wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(workspace, layout)
        paged_wrapper.plan(qo_indptr, indptr, pages, last, 4, 2, 64, 16, **options)
        check(paged_wrapper.run(torch.cat(q), tuple(caches), return_lse=True), o, lse)


@pytest.mark.parametrize("causal", [True, False])
def test_batch_attention_returns_both(device: str, causal: bool) -> None:
    case = Case(device, [(1, 37), (17, 70), (2, 0), (7, 3), (1, 300)], dtype="bfloat16")
    wrapper = fi.BatchAttention(device=device)
    kv_len = case.on(case.cache.kv_len)
    wrapper.plan(case.qo_indptr, case.indptr, case.indices, kv_len, 4, 2, 64, 64, 16, causal=causal)
    case.check(*wrapper.run(case.q, (case.k, case.v)), causal=causal)
    with pytest.raises(ValueError, match="logits_soft_cap"):
        wrapper.run(case.q, (case.k, case.v), logits_soft_cap=5.0)


@pytest.mark.parametrize("causal", [True, False])
def test_cascade_equals_the_flat_batch(device: str, causal: bool) -> None:
    # Two requests share their first 32 keys, on pages 0 and 1.
    rng = np.random.default_rng(5)
    qo_indptr = torch.tensor([0, 3, 5], dtype=torch.int32, device=device)
    k, v = (
        torch.from_numpy(rng.standard_normal((6, 16, 2, 64))).to(device, torch.float16)
        for _ in range(2)
    )
    q = torch.from_numpy(rng.standard_normal((5, 4, 64))).to(device, torch.float16)

    def ints(*values: int) -> Any:
        return torch.tensor(values, dtype=torch.int32, device=device)

    workspace = torch.empty(32 << 20, dtype=torch.uint8, device=device)
    flat = fi.BatchPrefillWithPagedKVCacheWrapper(workspace)
    flat.plan(
        qo_indptr, ints(0, 3, 7), ints(0, 1, 2, 0, 1, 3, 4), ints(9, 5), 4, 2, 64, 16, causal=causal
    )
    cascade = fi.MultiLevelCascadeAttentionWrapper(2, workspace)
    cascade.plan(
        [ints(0, 5), qo_indptr],
        [ints(0, 2), ints(0, 1, 3)],
        [ints(0, 1), ints(2, 3, 4)],
        [ints(16), ints(9, 5)],
        4,
        2,
        64,
        16,
        causal=causal,
    )
    expected = flat.run(q, (k, v))
    torch.testing.assert_close(cascade.run(q, (k, v)), expected, atol=2e-3, rtol=2e-3)
    shared = fi.BatchPrefillWithSharedPrefixPagedKVCacheWrapper(workspace)
    shared.begin_forward(qo_indptr, ints(0, 1, 3), ints(2, 3, 4), ints(9, 5), 4, 2, 64, 16)
    prefix = [each[:2].reshape(32, 2, 64) for each in (k, v)]
    o = shared.forward(q, prefix[0], prefix[1], (k, v), causal=causal)
    torch.testing.assert_close(o, expected, atol=2e-3, rtol=2e-3)
    if causal:
        last = q[[2, 4]]
        decode = fi.BatchDecodeWithSharedPrefixPagedKVCacheWrapper(workspace)
        decode.begin_forward(ints(0, 1, 3), ints(2, 3, 4), ints(9, 5), 4, 2, 64, 16)
        o = decode.forward(last, prefix[0], prefix[1], (k, v))
        torch.testing.assert_close(o, expected[[2, 4]], atol=2e-3, rtol=2e-3)


def test_states_merge_in_base_2(device: str) -> None:
    torch.manual_seed(0)
    v = torch.randn(6, 3, 4, 64, device=device)
    s = torch.randn(6, 3, 4, device=device) * 5
    s[0, 1] = -torch.inf
    s[1] = -torch.inf
    weights = torch.exp2(s - s.amax(1, keepdim=True).nan_to_num(neginf=0.0))
    total = weights.sum(1)
    expected_v = (weights.unsqueeze(-1) * v).sum(1) / total.clamp(min=1e-30).unsqueeze(-1)
    expected_s = torch.log2(total) + s.amax(1).nan_to_num(neginf=0.0)
    merged_v, merged_s = fi.merge_states(v, s)
    torch.testing.assert_close(merged_v, expected_v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged_s, expected_s, atol=1e-5, rtol=1e-5)
    half_v, half_s = fi.merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1])
    both = fi.merge_state(half_v, half_s, v[:, 2], s[:, 2])
    torch.testing.assert_close(both[0], expected_v, atol=1e-5, rtol=1e-5)
    mask = torch.tensor([True, False, True, False, True, True], device=device)
    into_v, into_s = v[:, 0].clone(), s[:, 0].clone()
    fi.merge_state_in_place(into_v, into_s, v[:, 1], s[:, 1], mask=mask)
    assert torch.equal(into_v[~mask], v[:, 0][~mask])
    assert torch.equal(into_s[~mask], s[:, 0][~mask])
    torch.testing.assert_close(into_v[mask], half_v[mask])


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 5, 16])
def test_append_writes_what_attention_reads(device: str, layout: str, page_size: int) -> None:
    lengths = [(kv_len, kv_len) for _, kv_len in PREFILL]
    case = Case(device, lengths, page_size=page_size, layout=layout)
    k, v, kv_indptr = _contiguous(case)
    nnz = k.shape[0]
    seq_lens = fi.get_seq_lens(case.indptr, case.last_page_len, page_size)
    assert seq_lens.tolist() == case.requests.kv_len
    seqs, positions = fi.get_batch_indices_positions(kv_indptr, seq_lens, nnz + 2)
    assert (seqs.dtype, positions.dtype) == (torch.int32, torch.int32)
    assert seqs.tolist()[-3:] == [4, -1, -1]
    assert positions.tolist()[:3] == [0, 1, 2]
    filler = torch.zeros(2, *k.shape[1:], device=device, dtype=case.dtype)
    caches = torch.full_like(case.k, torch.nan), torch.full_like(case.v, torch.nan)
    new_k, new_v = (torch.cat((each, filler)) for each in (k, v))
    table = (case.indices, case.indptr, case.last_page_len)
    fi.append_paged_kv_cache(new_k, new_v, seqs, positions, caches, *table, layout)
    for written, expected in zip(caches, (case.k, case.v)):
        assert torch.equal(written.nan_to_num(-7.0), expected.nan_to_num(-7.0))


@pytest.mark.parametrize("bitorder", ["big", "little"])
@pytest.mark.parametrize("n", [0, 1, 8, 77])
def test_packbits_is_numpys(device: str, bitorder: Any, n: int) -> None:
    bits = np.random.default_rng(n).random(n) < 0.5
    on = torch.from_numpy(bits).to(device)
    assert fi.packbits(on, bitorder).tolist() == np.packbits(bits, bitorder=bitorder).tolist()
    indptr = torch.tensor([0, n // 3, n // 3, n], dtype=torch.int32, device=device)
    packed, offsets = fi.segment_packbits(on, indptr, bitorder)
    parts = [
        np.packbits(bits[a:b], bitorder=bitorder)
        for a, b in zip(indptr.tolist(), indptr[1:].tolist())
    ]
    assert packed.tolist() == np.concatenate(parts).tolist()
    assert offsets.tolist() == np.cumsum([0, *(len(part) for part in parts)]).tolist()


INVARIANT: list[dict[str, Any]] = [{"fixed_split_size": 128}, {"disable_split_kv": True}]


@pytest.mark.parametrize("options", INVARIANT)
@pytest.mark.parametrize("kind", ["decode", "fast decode", "paged", "ragged"])
def test_results_do_not_depend_on_the_batch(
    device: str, kind: str, options: dict[str, Any]
) -> None:
    lengths = [(3, 700), (1, 40), (4, 2000), (2, 9), (6, 300)]
    if "decode" in kind:
        lengths = [(1, keys) for _, keys in lengths]
    case = Case(device, lengths)
    kv_indptr = torch.tensor([0, *(keys for _, keys in lengths)]).cumsum(0).int()
    contiguous = [
        torch.from_numpy(np.concatenate(each)) for each in (case.requests.k, case.requests.v)
    ]
    k, v = (each.to(device, case.dtype) for each in contiguous)

    def run(count: int) -> tuple[Any, Any]:
        """The first requests alone."""
        qo_indptr = case.qo_indptr[: count + 1]
        q = case.q[: int(qo_indptr[-1])]
        table = (case.indptr[: count + 1], case.indices, case.last_page_len[:count])
        wrapper: Any
        if kind == "ragged":
            wrapper = fi.BatchPrefillWithRaggedKVCacheWrapper(case.workspace)
            wrapper.plan(qo_indptr, kv_indptr[: count + 1], 4, 2, 64, causal=True, **options)
            assert wrapper._engine.spec.batch_invariant
            keys = int(kv_indptr[count])
            return wrapper.run(q, k[:keys], v[:keys], return_lse=True)  # type: ignore[no-any-return]
        if kind == "paged":
            wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace)
            wrapper.plan(qo_indptr, *table, 4, 2, 64, 16, causal=True, **options)
        else:
            wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace, use_tensor_cores=True)
            plan = wrapper.plan
            if kind == "fast decode":
                plan = functools.partial(fi.fast_decode_plan, wrapper)
            plan(*table, 4, 2, 64, 16, **options)
        assert wrapper._engine.spec.batch_invariant
        return wrapper.run(q, (case.k, case.v), return_lse=True)  # type: ignore[no-any-return]

    o, lse = run(len(lengths))
    case.check(o, lse)
    for count in (1, 2, 3):
        some_o, some_lse = run(count)
        assert torch.equal(o[: len(some_o)], some_o)
        assert torch.equal(lse[: len(some_o)], some_lse)


def test_what_is_not_served_raises(device: str) -> None:
    case = Case(device, DECODE)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace)
    cache = (case.k, case.v)
    with pytest.raises(NotImplementedError, match="rotate q and k"):
        decode.plan(*case.table, 4, 2, 64, 16, pos_encoding_mode="ROPE_LLAMA")
    with pytest.raises(KeyError, match="Invalid pos_encoding_mode"):
        decode.plan(*case.table, 4, 2, 64, 16, pos_encoding_mode="SPIRAL")
    with pytest.raises(KeyError, match="Invalid kv_layout"):
        fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace, "DNH")
    with pytest.raises(NotImplementedError, match="backend"):
        fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace, backend="cudnn")
    with pytest.raises(NotImplementedError, match="jit_args"):
        fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace, jit_args=["uri"])
    with pytest.raises(ValueError, match="float_workspace_buffer must be 16-byte aligned"):
        fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace[1:])
    with pytest.raises(ValueError, match="int_workspace_buffer must be 16-byte aligned"):
        decode.reset_workspace_buffer(case.workspace, case.workspace[1:])
    with pytest.raises(RuntimeError, match=r"plan\(\) must be called"):
        decode.run(case.q, cache)
    decode.plan(*case.table, 4, 2, 64, 16)
    with pytest.raises(ValueError, match="does not match the q_data_type"):
        decode.run(case.q.bfloat16(), cache)
    with pytest.raises(ValueError, match="Invalid shape of out"):
        decode.run(case.q, cache, out=case.q[:1])
    with pytest.raises(KeyError, match="paged_kv_cache"):
        decode.run(case.q, {"k": case.k})
    with pytest.raises(ValueError, match="does not match the 5 rows"):
        decode.run(case.q[:2], cache)
    with pytest.raises(NotImplementedError, match="kv_cache_sf"):
        decode.run(case.q, cache, kv_cache_sf=case.k)
    with pytest.raises(ValueError, match="fixed_split_size"):
        decode.plan(*case.table, 4, 2, 64, 16, fixed_split_size=64)
    prefill = fi.BatchPrefillWithPagedKVCacheWrapper(case.workspace)
    with pytest.raises(NotImplementedError, match="prefix_len_ptr"):
        prefill.plan(case.qo_indptr, *case.table, 4, 2, 64, 16, prefix_len_ptr=case.indptr)


@pytest.mark.parametrize("narrow", ["float8_e4m3fn", "float8_e5m2"])
def test_data_type_is_that_of_the_cache(device: str, narrow: str) -> None:
    case = Case(device, DECODE)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace)
    decode.plan(*case.table, 4, 2, 64, 16, data_type=getattr(torch, narrow))
    k, v = (each.to(getattr(torch, narrow)) for each in (case.k, case.v))
    o = decode.run(case.q, (k, v), k_scale=0.5, v_scale=2.0)
    decode.plan(*case.table, 4, 2, 64, 16)
    exact = decode.run(case.q, (0.5 * k.half(), 2.0 * v.half()))
    torch.testing.assert_close(o, exact, atol=4e-3, rtol=4e-3)


def test_options_of_decode_plans_by_position_warn(device: str) -> None:
    case = Case(device, DECODE)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(case.workspace)
    with pytest.warns(DeprecationWarning, match="by position"):
        decode.plan(*case.table, 4, 2, 64, 16, "NONE", 7)
    case.check(decode.run(case.q, (case.k, case.v)), window_left=7)
    fi.fast_decode_plan(
        decode, *case.table, 4, 2, 64, 16, global_override_indptr_cpu=case.indptr.cpu()
    )
    case.check(decode.run(case.q, (case.k, case.v)))
