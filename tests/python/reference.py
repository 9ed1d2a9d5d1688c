# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, a query after the other, and random batches to compare it on."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclasses.dataclass
class Requests:
    """Lengths of the requests, and K and V of each as rows [kv_len, num_kv_heads, head_dim]."""

    qo_len: list[int]
    kv_len: list[int]
    k: list[Array]
    v: list[Array]

    @property
    def qo_indptr(self) -> Array:
        return np.cumsum([0, *self.qo_len]).astype(np.int32)


def attention(
    q: Array,
    requests: Requests,
    *,
    causal: bool = True,
    visible: Optional[list[Array]] = None,
    window_left: int = -1,
    sm_scale: Optional[float] = None,
    logits_soft_cap: Optional[float] = None,
    sinks: Optional[Array] = None,
    alibi_slopes: Optional[Array] = None,
) -> tuple[Array, Array]:
    """o and lse. `visible`, bool [qo_len, kv_len] of each request, takes the place of causal."""
    total_q, num_qo_heads, head_dim = q.shape
    head_dim_vo = requests.v[0].shape[-1]
    o = np.zeros((total_q, num_qo_heads, head_dim_vo))
    lse = np.full((total_q, num_qo_heads), -np.inf)
    scale = head_dim**-0.5 if sm_scale is None else sm_scale
    first = 0
    for r, (qo_len, kv_len) in enumerate(zip(requests.qo_len, requests.kv_len)):
        k, v = requests.k[r].astype(np.float64), requests.v[r].astype(np.float64)
        for i in range(qo_len):
            position = kv_len - qo_len + i
            keys = np.arange(kv_len)
            if visible is not None:
                seen = visible[r][i].copy()
            else:
                seen = keys <= position if causal else np.ones(kv_len, bool)
            if window_left >= 0:
                seen &= keys >= position - window_left
            if not seen.any():
                continue
            for h in range(num_qo_heads):
                kv_head = h // (num_qo_heads // k.shape[1])
                s = k[seen, kv_head] @ q[first + i, h].astype(np.float64) * scale
                if logits_soft_cap is not None:
                    s = logits_soft_cap * np.tanh(s / logits_soft_cap)
                if alibi_slopes is not None:
                    s = s - alibi_slopes[h] * np.abs(position - keys[seen])
                all_s = s if sinks is None else np.append(s, sinks[h])
                top = all_s.max()
                lse[first + i, h] = top + np.log(np.exp(all_s - top).sum())
                o[first + i, h] = np.exp(s - lse[first + i, h]) @ v[seen, kv_head]
        first += qo_len
    return o, lse


@dataclasses.dataclass
class Cache:
    """The K and V of requests on shuffled pages; what belongs to no token is NaN."""

    k: Array
    v: Array
    kv_len: Array
    page_table: Array
    kv_page_indptr: Array
    kv_page_indices: Array
    kv_last_page_len: Array


def random_requests(
    rng: np.random.Generator,
    lengths: list[tuple[int, int]],
    num_kv_heads: int,
    head_dim_qk: int,
    head_dim_vo: Optional[int] = None,
    dtype: npt.DTypeLike = np.float32,
) -> Requests:
    """Of (qo_len, kv_len) each."""

    def rows(kv_len: int, head_dim: int) -> Array:
        return rng.standard_normal((kv_len, num_kv_heads, head_dim)).astype(dtype)

    return Requests(
        [qo_len for qo_len, _ in lengths],
        [kv_len for _, kv_len in lengths],
        [rows(kv_len, head_dim_qk) for _, kv_len in lengths],
        [rows(kv_len, head_dim_vo or head_dim_qk) for _, kv_len in lengths],
    )


def paged(
    rng: np.random.Generator, requests: Requests, page_size: int, kv_layout: str = "NHD"
) -> Cache:
    """Lays requests out on pages in random order, with free pages between and longer tables."""
    num_pages = [-(-kv_len // page_size) for kv_len in requests.kv_len]
    shuffled = rng.permutation(sum(num_pages) + 3).astype(np.int32)
    kv_page_indptr = np.cumsum([0, *num_pages]).astype(np.int32)
    width = max(num_pages) + 2
    page_table = np.full((len(num_pages), width), 2**31 - 1, np.int32)  # must not be followed
    caches = []
    for rows in (requests.k, requests.v):
        _, num_kv_heads, head_dim = rows[0].shape
        cache = np.full((len(shuffled), page_size, num_kv_heads, head_dim), np.nan, rows[0].dtype)
        for r, request in enumerate(rows):
            pages = shuffled[kv_page_indptr[r] : kv_page_indptr[r + 1]]
            page_table[r, : len(pages)] = pages
            for t, row in enumerate(request):
                cache[pages[t // page_size], t % page_size] = row
        caches.append(cache if kv_layout == "NHD" else np.ascontiguousarray(cache.swapaxes(1, 2)))
    return Cache(
        caches[0],
        caches[1],
        np.array(requests.kv_len, np.int32),
        page_table,
        kv_page_indptr,
        shuffled[: kv_page_indptr[-1]].copy(),
        np.array([(kv_len - 1) % page_size + 1 for kv_len in requests.kv_len], np.int32),
    )


#: Decode, append, prompt, an empty request, one without keys, one with more queries than keys.
MIXED = [(1, 37), (5, 70), (33, 33), (0, 20), (2, 0), (4, 3), (1, 1), (7, 129)]
