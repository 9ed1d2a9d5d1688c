# SPDX-License-Identifier: Apache-2.0
"""Attention against a float64 reference, whatever the batch and however its keys are found."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import quire
from reference import MIXED, Array, Cache, Requests, attention, paged, random_requests

TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def check(o: Array, lse: Array, expected: tuple[Array, Array], dtype: str = "float32") -> None:
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(o.astype(np.float64), expected[0], atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(lse, expected[1], atol=2e-5, rtol=2e-5)


def dense(cache: Cache) -> dict[str, Any]:
    return {"kv_len": cache.kv_len, "page_table": cache.page_table}


def csr(cache: Cache) -> dict[str, Any]:
    return {
        "kv_len": cache.kv_len,
        "kv_page_indptr": cache.kv_page_indptr,
        "kv_page_indices": cache.kv_page_indices,
    }


def csr_with_last_page_len(cache: Cache) -> dict[str, Any]:
    return {
        "kv_page_indptr": cache.kv_page_indptr,
        "kv_page_indices": cache.kv_page_indices,
        "kv_last_page_len": cache.kv_last_page_len,
    }


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261127)


def queries(
    rng: np.random.Generator, requests: Requests, heads: int, dim: int, dtype: Any = np.float32
) -> Array:
    return rng.standard_normal((requests.qo_indptr[-1], heads, dim)).astype(dtype)


@pytest.mark.parametrize("table", [dense, csr, csr_with_last_page_len])
@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 7, 16])
def test_mixed_batches_on_shuffled_pages(
    rng: np.random.Generator, table: Any, kv_layout: Any, page_size: int
) -> None:
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, page_size, kv_layout)
    q = queries(rng, requests, 6, 64)
    o, lse = quire.attention(
        q,
        cache.k,
        cache.v,
        qo_indptr=requests.qo_indptr,
        kv_layout=kv_layout,
        return_lse=True,
        **table(cache),
    )
    check(o, lse, attention(q, requests))


@pytest.mark.parametrize("group_size", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_random_ragged_batches(seed: int, group_size: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = []
    for _ in range(rng.integers(1, 9)):
        kv_len = int(rng.integers(0, 150))
        lengths.append((int(rng.integers(0, min(kv_len, 20) + 1)), kv_len))
    requests = random_requests(rng, lengths, num_kv_heads=2, head_dim_qk=72, head_dim_vo=40)
    cache = paged(rng, requests, page_size=int(rng.integers(1, 33)))
    q = queries(rng, requests, 2 * group_size, 72)
    o, lse = quire.attention(
        q, cache.k, cache.v, qo_indptr=requests.qo_indptr, return_lse=True, **dense(cache)
    )
    check(o, lse, attention(q, requests))


@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
def test_contiguous_keys_and_values(rng: np.random.Generator, kv_layout: Any) -> None:
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    k, v = np.concatenate(requests.k), np.concatenate(requests.v)
    if kv_layout == "HND":
        k, v = k.swapaxes(0, 1), v.swapaxes(0, 1)  # strided, not copied
    q = queries(rng, requests, 4, 64)
    kv_indptr = np.cumsum([0, *requests.kv_len]).astype(np.int32)
    o, lse = quire.attention(
        q,
        k,
        v,
        qo_indptr=requests.qo_indptr,
        kv_indptr=kv_indptr,
        kv_layout=kv_layout,
        return_lse=True,
    )
    check(o, lse, attention(q, requests))


@pytest.mark.parametrize(
    "options",
    [
        {"mask": "none"},
        {"window_left": 0},
        {"window_left": 20},
        {"mask": "none", "window_left": 9},
        {"logits_soft_cap": 1.5},
        {"sm_scale": 0.5},
        {"sinks": np.linspace(-2, 3, 4, dtype=np.float32)},
        {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.01], np.float32)},
        {
            "window_left": 30,
            "logits_soft_cap": 2.0,
            "sinks": np.zeros(4, np.float32),
            "sm_scale": 0.3,
        },
    ],
    ids=lambda options: ",".join(options),
)
def test_options(rng: np.random.Generator, options: dict[str, Any]) -> None:
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64)
    o, lse = quire.attention(
        q,
        cache.k,
        cache.v,
        qo_indptr=requests.qo_indptr,
        return_lse=True,
        **dense(cache),
        **options,
    )
    of_reference = dict(options)
    causal = of_reference.pop("mask", "causal") == "causal"
    check(o, lse, attention(q, requests, causal=causal, **of_reference))


def test_full_masks(rng: np.random.Generator) -> None:
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64)
    visible = [rng.random(shape) < 0.5 for shape in MIXED]
    bits = [np.packbits(mask, axis=None, bitorder="little") for mask in visible]
    o, lse = quire.attention(
        q,
        cache.k,
        cache.v,
        qo_indptr=requests.qo_indptr,
        mask="full",
        full_mask=np.concatenate(bits),
        full_mask_indptr=np.cumsum([0, *map(len, bits)]).astype(np.int64),
        return_lse=True,
        **dense(cache),
    )
    check(o, lse, attention(q, requests, visible=visible))


def test_tree_masks(rng: np.random.Generator) -> None:
    lengths = [(4, 40), (1, 9), (35, 50)]
    requests = random_requests(rng, lengths, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64)
    tree_mask = rng.integers(0, 2**32, (40, 2), dtype=np.uint32)
    bits = np.unpackbits(tree_mask.view(np.uint8), axis=1, bitorder="little").astype(bool)
    visible = []
    for r, (qo_len, kv_len) in enumerate(lengths):
        rows = bits[requests.qo_indptr[r] : requests.qo_indptr[r + 1], :qo_len]
        visible.append(np.hstack([np.ones((qo_len, kv_len - qo_len), bool), rows]))
    o, lse = quire.attention(
        q,
        cache.k,
        cache.v,
        qo_indptr=requests.qo_indptr,
        mask="tree",
        tree_mask=tree_mask,
        return_lse=True,
        **dense(cache),
    )
    check(o, lse, attention(q, requests, visible=visible))


def test_float16_with_a_result_in_float32(rng: np.random.Generator) -> None:
    requests = random_requests(rng, MIXED, 2, 64, dtype=np.float16)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64, np.float16)
    arguments: Any = {"qo_indptr": requests.qo_indptr, "return_lse": True, **dense(cache)}
    o, lse = quire.attention(q, cache.k, cache.v, **arguments)
    assert o.dtype == np.float16
    check(o, lse, attention(q, requests), "float16")
    o, lse = quire.attention(q, cache.k, cache.v, o_dtype="float32", **arguments)
    assert o.dtype == np.float32
    check(o, lse, attention(q, requests))


def test_bfloat16_as_ml_dtypes_has_it_and_as_bits(rng: np.random.Generator) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    requests = random_requests(rng, MIXED, 2, 64, dtype=ml_dtypes.bfloat16)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64, ml_dtypes.bfloat16)
    arguments: Any = {"qo_indptr": requests.qo_indptr, "return_lse": True, **dense(cache)}
    o, lse = quire.attention(q, cache.k, cache.v, **arguments)
    assert o.dtype == ml_dtypes.bfloat16
    check(o, lse, attention(q, requests), "bfloat16")

    as_bits = [quire.view(a.view(np.uint16), "bfloat16") for a in (q, cache.k, cache.v)]
    bits, same_lse = quire.attention(*as_bits, **arguments)
    assert bits.dtype == np.uint16
    np.testing.assert_array_equal(bits, o.view(np.uint16))
    np.testing.assert_array_equal(same_lse, lse)


def test_scales_per_tensor_and_per_head(rng: np.random.Generator) -> None:
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64)
    for k_scale, v_scale in (([0.5], [2.0]), ([0.5, 3.0], [2.0, 0.25])):
        scaled = Requests(
            requests.qo_len,
            requests.kv_len,
            [k * np.array(k_scale, np.float32)[:, None] for k in requests.k],
            [v * np.array(v_scale, np.float32)[:, None] for v in requests.v],
        )
        o, lse = quire.attention(
            q,
            cache.k,
            cache.v,
            qo_indptr=requests.qo_indptr,
            k_scale=np.array(k_scale, np.float32),
            v_scale=np.array(v_scale, np.float32),
            return_lse=True,
            **dense(cache),
        )
        check(o, lse, attention(q, scaled))


def test_queries_of_eight_bits(rng: np.random.Generator) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = ml_dtypes.float8_e4m3fn
    requests = random_requests(rng, MIXED, 2, 64, dtype=dtype)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64, dtype)
    arguments: Any = {"qo_indptr": requests.qo_indptr, "return_lse": True, **dense(cache)}
    o, _ = quire.attention(q, cache.k, cache.v, **arguments)
    assert o.dtype == ml_dtypes.bfloat16
    for scale in ([0.5], [0.5, 1.0, 2.0, 0.25]):
        q_scale = np.array(scale, np.float32)
        o, lse = quire.attention(
            q, cache.k, cache.v, q_scale=q_scale, o_dtype="float32", **arguments
        )
        check(o, lse, attention(q.astype(np.float32) * q_scale[:, None], requests))
    spec = quire.AttentionSpec(4, 2, 64, q_dtype="float8_e4m3")
    assert (spec.kv_dtype, spec.o_dtype) == ("float8_e4m3", "bfloat16")


def test_rows_beyond_the_last_request_become_zero(rng: np.random.Generator) -> None:
    requests = random_requests(rng, [(2, 5)], num_kv_heads=1, head_dim_qk=64)
    cache = paged(rng, requests, 4)
    q = np.full((4, 1, 64), np.nan, np.float32)
    q[:2] = rng.standard_normal((2, 1, 64))
    o, lse = quire.attention(
        q, cache.k, cache.v, qo_indptr=requests.qo_indptr, return_lse=True, **dense(cache)
    )
    check(o[:2], lse[:2], attention(q[:2], requests))
    assert not o[2:].any()
    assert np.isneginf(lse[2:]).all()


def make_attention(**options: Any) -> quire.Attention:
    spec = quire.AttentionSpec(
        num_qo_heads=4, num_kv_heads=2, head_dim_qk=64, q_dtype="float32", **options
    )
    return quire.Attention(spec, quire.BatchLimits(16, 256, 1024))


def test_one_schedule_serves_all_layers_and_workspaces_all_steps(rng: np.random.Generator) -> None:
    attend = make_attention()
    workspaces = attend.allocate_workspaces()
    for lengths in (MIXED, [(1, kv_len) for kv_len in range(1, 17)], []):
        requests = random_requests(rng, lengths or [(0, 0)], num_kv_heads=2, head_dim_qk=64)
        cache = paged(rng, requests, 16)
        batch = quire.Batch(requests.qo_indptr, **dense(cache))
        assert batch.num_seqs == len(requests.qo_len)
        step = attend.schedule(batch, workspaces)
        for _ in range(2):
            q = queries(rng, requests, 4, 64)
            o = np.full_like(q, np.nan)
            lse = np.full(q.shape[:2], np.nan, np.float32)
            assert attend.run(step, q, cache.k, cache.v, o=o, lse=lse) is o
            check(o, lse, attention(q, requests))
            new_o, new_lse = attend.run(step, q, cache.k, cache.v, return_lse=True)
            np.testing.assert_array_equal(new_o, o)
            np.testing.assert_array_equal(new_lse, lse)


def test_run_takes_views_and_strided_arrays(rng: np.random.Generator) -> None:
    attend = make_attention(sinks=True)
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    step = attend.schedule(quire.Batch(requests.qo_indptr, **csr(cache)))
    qkv = rng.standard_normal((requests.qo_indptr[-1], 8, 64)).astype(np.float32)
    q = qkv[:, :4]
    o_and_more = np.zeros((len(q), 8, 64), np.float32)
    sinks = np.ones(4, np.float32)
    o, lse = attend.run(
        step,
        quire.view(q),
        quire.view(cache.k),
        cache.v,
        o=o_and_more[:, 4:],
        sinks=sinks,
        return_lse=True,
    )
    check(o, lse, attention(q, requests, sinks=sinks))
    assert np.shares_memory(o, o_and_more)
    assert not o_and_more[:, :4].any()


class OnGpu:
    """Says that it is; its memory is not followed."""

    def __init__(self, array: Array) -> None:
        self.__cuda_array_interface__ = {**array.__array_interface__, "version": 3}
        self.array = array


def test_caller_given_workspaces_are_used_and_measured(rng: np.random.Generator) -> None:
    attend = make_attention()
    sizes = attend.workspace_sizes
    assert sizes == quire.workspace_sizes(attend.spec, quire.BatchLimits(16, 256, 1024))
    made = attend.allocate_workspaces()
    assert (made.schedule_bytes, made.scratch_bytes) == sizes
    batch = quire.Batch(
        np.array([0, 1], np.int32),
        kv_len=np.array([1], np.int32),
        page_table=np.array([[0]], np.int32),
    )
    shared = quire.Workspaces(made.schedule, made.scratch)
    assert attend.schedule(batch, shared).workspaces is shared
    with pytest.raises(quire.Error, match="workspace") as small:
        attend.schedule(batch, quire.Workspaces(made.schedule[:-1], made.scratch))
    assert small.value.code is quire.ErrorCode.WORKSPACE_TOO_SMALL
    with pytest.raises(quire.InvalidArgument, match="no gaps"):
        quire.Workspaces(made.schedule[::2], made.scratch)
    elsewhere = OnGpu(np.zeros(2**16, np.uint8))
    with pytest.raises(quire.InvalidArgument, match="expected both on one device, got cuda:0"):
        quire.Workspaces(made.schedule, elsewhere)
    with pytest.raises(quire.InvalidArgument, match="expected memory on cpu, got it on cuda:0"):
        attend.schedule(batch, quire.Workspaces(elsewhere, elsewhere))
    record = quire.CheckRecord("cuda", memory=elsewhere)
    with pytest.raises(
        quire.InvalidArgument, match=r"check: .* got quire\.CheckRecord\('cuda:0'\)"
    ):
        attend.schedule(batch, check=record)


def test_an_attention_is_used_from_many_threads(rng: np.random.Generator) -> None:
    attend = make_attention()
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64)
    batch = quire.Batch(requests.qo_indptr, **dense(cache))
    results: list[Array] = []

    def work() -> None:
        step = attend.schedule(batch)
        results.extend(attend.run(step, q, cache.k, cache.v) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_specs_are_filled_in_and_looked_up() -> None:
    spec = quire.AttentionSpec(32, 8, 128, q_dtype=np.float32)
    assert (spec.kv_dtype, spec.o_dtype, spec.head_dim_vo) == ("float32", "float32", 128)
    attend = quire.Attention(spec)
    assert attend.spec.sm_scale == pytest.approx(128**-0.5)
    assert attend.device == quire.Device("cpu")
    assert attend.kernel in [kernel.name for kernel in quire.kernels()]
    found = quire.supports(spec)
    assert found
    assert found.kernel == attend.kernel
    missing = quire.supports(quire.AttentionSpec(32, 8, 129))
    assert not missing
    assert "129" in missing.reason


def test_executors_give_the_same_bits_and_may_be_closed_early(rng: np.random.Generator) -> None:
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    q = queries(rng, requests, 4, 64)
    spec = quire.AttentionSpec(4, 2, 64, q_dtype="float32")
    with quire.ThreadPool(3) as pool:
        attend = quire.Attention(spec, executor=pool)
    step = attend.schedule(quire.Batch(requests.qo_indptr, **dense(cache)))
    o, lse = attend.run(step, q, cache.k, cache.v, return_lse=True)
    check(o, lse, attention(q, requests))
    with pytest.raises(quire.InvalidArgument, match="executor: expected an open"):
        quire.Attention(spec, executor=pool)


def test_checked_mode_records_the_first_offence() -> None:
    attend = make_attention()
    record = quire.CheckRecord()
    record.raise_if_offended()
    k = np.zeros((2, 16, 2, 64), np.float32)
    batch = quire.Batch(
        np.array([0, 1], np.int32),
        kv_len=np.array([17], np.int32),
        page_table=np.array([[0, 7]], np.int32),
    )
    step = attend.schedule(batch, check=record)
    with pytest.raises(quire.InvalidArgument, match=r"page_table\[0\]\[1\].*got 7"):
        attend.run(step, np.zeros((1, 4, 64), np.float32), k, k, check=record)
    with pytest.raises(quire.InvalidArgument, match="got 7"):
        record.raise_if_offended()
    record.clear()
    record.raise_if_offended()
