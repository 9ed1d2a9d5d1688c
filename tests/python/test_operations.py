# SPDX-License-Identifier: Apache-2.0
"""Append and merge against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quire
from reference import MIXED, attention, paged, random_requests


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
def test_append_through_a_slot_mapping(rng: np.random.Generator, kv_layout: Any) -> None:
    shape = (5, 8, 2, 64) if kv_layout == "NHD" else (5, 2, 8, 64)
    k_cache, v_cache = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    k = rng.standard_normal((6, 2, 64)).astype(np.float32)
    v = rng.standard_normal((6, 2, 64)).astype(np.float32)
    slots = np.array([39, 0, -1, 17, 8, -1])
    quire.append(k, v, k_cache, v_cache, slot_mapping=slots, kv_layout=kv_layout)
    for rows, cache in ((k, k_cache), (v, v_cache)):
        tokens = (cache if kv_layout == "NHD" else cache.swapaxes(1, 2)).reshape(40, 2, 64)
        np.testing.assert_array_equal(tokens[slots[slots >= 0]], rows[slots >= 0])
        assert np.isnan(np.delete(tokens, slots[slots >= 0], axis=0)).all()


def test_append_derives_slots_and_converts(rng: np.random.Generator) -> None:
    requests = random_requests(rng, MIXED, num_kv_heads=2, head_dim_qk=64)
    cache = paged(rng, requests, 16)
    batch = quire.Batch(requests.qo_indptr, kv_len=cache.kv_len, page_table=cache.page_table)
    # The last qo_len rows of each request; those that would be before position 0 are skipped.
    new = []
    for rows in (requests.k, requests.v):
        blocks = []
        for qo_len, kv_len, request in zip(requests.qo_len, requests.kv_len, rows):
            skipped = max(qo_len - kv_len, 0)
            blocks += [np.full((skipped, 2, 64), np.nan), request[kv_len - qo_len + skipped :]]
        new.append(np.concatenate(blocks).astype(np.float32))
    new_k, new_v = new
    before_k, before_v = cache.k.copy(), cache.v.copy()
    for qo_len, kv_len, pages in zip(requests.qo_len, requests.kv_len, cache.page_table):
        for t in range(max(kv_len - qo_len, 0), kv_len):
            cache.k[pages[t // 16], t % 16] = np.nan
            cache.v[pages[t // 16], t % 16] = np.nan
    k_half, v_half = cache.k.astype(np.float16), cache.v.astype(np.float16)
    quire.append(new_k, new_v, cache.k, cache.v, batch=batch)
    np.testing.assert_array_equal(cache.k, before_k)
    np.testing.assert_array_equal(cache.v, before_v)
    quire.append(new_k, new_v, k_half, v_half, batch=batch)
    np.testing.assert_array_equal(k_half, before_k.astype(np.float16))
    np.testing.assert_array_equal(v_half, before_v.astype(np.float16))


@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
def test_append_computes_a_scale_for_each_token_and_head(
    rng: np.random.Generator, kv_layout: Any
) -> None:
    shape = (5, 8, 2, 64) if kv_layout == "NHD" else (5, 2, 8, 64)
    k_cache, v_cache = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
    k_scale, v_scale = np.full((5, 2, 8), np.nan, np.float32), np.ones((5, 2, 8), np.float32)
    k = rng.standard_normal((3, 2, 64)).astype(np.float32)
    v = np.zeros((3, 2, 64), np.float32)
    slots = np.array([39, 8, -1])
    quire.append(
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping=slots,
        kv_layout=kv_layout,
        k_token_scale=k_scale,
        v_token_scale=v_scale,
    )
    tokens = (k_cache if kv_layout == "NHD" else k_cache.swapaxes(1, 2)).reshape(40, 2, 64)
    scales = k_scale.swapaxes(1, 2).reshape(40, 2)
    expected = np.abs(k[:2]).max(axis=-1) / np.float32(127)
    np.testing.assert_array_equal(scales[[39, 8]], expected)
    np.testing.assert_array_equal(tokens[[39, 8]], np.rint(k[:2] / expected[..., None]))
    assert np.isnan(np.delete(scales, [39, 8], axis=0)).all()
    assert (v_scale == 1).all()
    with pytest.raises(quire.InvalidArgument, match="v_token_scale: expected float32"):
        quire.append(
            k,
            v,
            k_cache,
            v_cache,
            slot_mapping=slots,
            kv_layout=kv_layout,
            k_token_scale=k_scale,
        )


def test_append_divides_by_scales() -> None:
    k = np.full((1, 2, 64), 6, np.float32)
    cache = np.zeros((2, 1, 2, 64), np.float32)
    quire.append(
        k,
        k,
        cache[:1],
        cache[1:],
        slot_mapping=np.array([0]),
        k_scale=np.array([2], np.float32),
        v_scale=np.array([3, 0.5], np.float32),
    )
    np.testing.assert_array_equal(cache[0, 0, :, 0], [3, 3])
    np.testing.assert_array_equal(cache[1, 0, :, 0], [2, 12])


def test_a_bad_slot_is_named_and_nothing_is_written() -> None:
    k = np.ones((2, 1, 64), np.float32)
    cache = np.zeros((1, 4, 1, 64), np.float32)
    with pytest.raises(quire.InvalidArgument, match=r"\[append\] slot_mapping\[1\].*got 4"):
        quire.append(k, k, cache, cache.copy(), slot_mapping=np.array([0, 4]))
    assert not cache.any()


def test_parts_are_merged_into_the_whole(rng: np.random.Generator) -> None:
    requests = random_requests(rng, [(3, 50)], num_kv_heads=2, head_dim_qk=64)
    q = rng.standard_normal((3, 4, 64)).astype(np.float32)
    parts = []
    for begin, end in ((0, 20), (20, 50), (50, 50)):
        part = random_requests(rng, [(3, end - begin)], num_kv_heads=2, head_dim_qk=64)
        part.k, part.v = [requests.k[0][begin:end]], [requests.v[0][begin:end]]
        parts.append(attention(q, part, causal=False))
    o_parts = np.stack([o for o, _ in parts]).astype(np.float32)
    lse_parts = np.stack([lse for _, lse in parts]).astype(np.float32)
    expected_o, expected_lse = attention(q, requests, causal=False)

    o, lse = quire.merge_states(o_parts, lse_parts)
    np.testing.assert_allclose(o, expected_o, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)

    # In place, into part 0.
    same_o, same_lse = quire.merge_states(o_parts, lse_parts, o=o_parts[0], lse=np.empty_like(lse))
    assert np.shares_memory(same_o, o_parts)
    np.testing.assert_array_equal(o_parts[0], o)
    np.testing.assert_array_equal(same_lse, lse)


def test_merging_parts_without_keys_gives_rows_without_keys() -> None:
    o, lse = quire.merge_states(
        np.zeros((2, 1, 1, 64), np.float32), np.full((2, 1, 1), -np.inf, np.float32)
    )
    assert not o.any()
    assert np.isneginf(lse).all()
