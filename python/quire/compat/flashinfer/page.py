# SPDX-License-Identifier: Apache-2.0
"""Appending to a paged KV cache."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from ..._operations import append
from ._checks import check_layout, check_written, unpack_pages
from ._engine import FLOAT8


def get_batch_indices_positions(
    append_indptr: Tensor,
    seq_lens: Tensor,
    nnz: int,
    batch_indices: Optional[Tensor] = None,
    positions: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """For each of `nnz` new tokens its request and its position in it, int32 [nnz] each; −1 and 0
    for rows beyond the last request. Does not wait for the device."""
    check_written(batch_indices, (nnz,), torch.int32, append_indptr, "batch_indices")
    check_written(positions, (nnz,), torch.int32, append_indptr, "positions")
    num_seqs = append_indptr.shape[0] - 1
    rows = torch.arange(nnz, device=append_indptr.device)
    ends = append_indptr[1:].long()
    seqs = torch.searchsorted(ends, rows, right=True)
    inside = seqs < num_seqs
    if num_seqs:
        known = seqs.clamp(max=num_seqs - 1)
        at = torch.where(inside, seq_lens.long()[known] - ends[known] + rows, 0).int()
    else:
        at = torch.zeros_like(rows, dtype=torch.int32)
    seqs = torch.where(inside, seqs, -1).int()
    return (
        seqs if batch_indices is None else batch_indices.copy_(seqs),
        at if positions is None else positions.copy_(at),
    )


def get_seq_lens(kv_indptr: Tensor, kv_last_page_len: Tensor, page_size: int) -> Tensor:
    """int32 [batch_size]: keys of each request; of one without pages, its last_page_len."""
    pages = kv_indptr[1:] - kv_indptr[:-1]
    return (pages - 1).clamp(min=0) * page_size + kv_last_page_len


def append_paged_kv_cache(
    append_key: Tensor,
    append_value: Tensor,
    batch_indices: Tensor,
    positions: Tensor,
    paged_kv_cache: Any,
    kv_indices: Tensor,
    kv_indptr: Tensor,
    kv_last_page_len: Tensor,
    kv_layout: str = "NHD",
) -> None:
    """Writes new keys and values, [nnz, num_kv_heads, head_dim] each, to the positions of their
    requests. Rows of a negative request are skipped. Does not wait for the device."""
    check_layout(kv_layout)
    if append_key.shape[0] == 0:
        return
    k_cache, v_cache = unpack_pages(paged_kv_cache, kv_layout)
    page_size = k_cache.shape[1 if kv_layout == "NHD" else 2]
    seqs, at = batch_indices.long(), positions.long()
    entries = kv_indptr.long()[seqs.clamp(min=0)] + at // page_size
    pages = kv_indices.long()[entries.clamp(max=kv_indices.shape[0] - 1)]
    slots = torch.where(seqs >= 0, pages * page_size + at % page_size, -1)
    if append_key.dtype in FLOAT8:  # exact there and back
        append_key, append_value = append_key.half(), append_value.half()
    append(append_key, append_value, k_cache, v_cache, slot_mapping=slots, kv_layout=kv_layout)  # type: ignore[arg-type]


def append_paged_mla_kv_cache(*args: Any, **options: Any) -> None:
    """Not served."""
    raise NotImplementedError("MLA caches are not served by quire.compat.flashinfer")
