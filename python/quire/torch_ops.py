# SPDX-License-Identifier: Apache-2.0
"""The operations as torch custom operators, for `torch.compile` and `torch.export`.

Importing this module registers `torch.ops.quire.attention`, `torch.ops.quire.append` and
`torch.ops.quire.merge_states`, with fake implementations. They are functions of tensors only, so
each call of `attention` makes an `Attention` of its own; an engine that runs layer after layer
without a compiler calls `quire.Attention` itself. None has a gradient.

In a schema, what may be left out is None or has the default of the function in `quire`.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from ._batch import Batch
from ._operations import append as _append
from ._operations import attention as _attention
from ._operations import merge_states as _merge_states
from ._spec import KvLayout

__all__ = ["append", "attention", "merge_states"]

_library = torch.library.Library("quire", "FRAGMENT")

_BATCH = (
    "Tensor qo_indptr, Tensor? kv_len=None, Tensor? page_table=None, "
    "Tensor? kv_page_indptr=None, Tensor? kv_page_indices=None, Tensor? kv_last_page_len=None, "
    "Tensor? kv_indptr=None"
)
_library.define(
    f"attention(Tensor q, Tensor k, Tensor v, *, {_BATCH}, Tensor? tree_mask=None, "
    "Tensor? full_mask=None, Tensor? full_mask_indptr=None, str kv_layout='NHD', "
    "str mask='causal', int window_left=-1, float? sm_scale=None, float? logits_soft_cap=None, "
    "Tensor? sinks=None, Tensor? alibi_slopes=None, Tensor? k_scale=None, Tensor? v_scale=None, "
    "ScalarType? o_dtype=None, Tensor? q_scale=None) -> (Tensor o, Tensor lse)"
)
_library.define(
    "append(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, *, "
    "Tensor? slot_mapping=None, Tensor? qo_indptr=None, Tensor? kv_len=None, "
    "Tensor? page_table=None, Tensor? kv_page_indptr=None, Tensor? kv_page_indices=None, "
    "Tensor? kv_last_page_len=None, str kv_layout='NHD', Tensor? k_scale=None, "
    "Tensor? v_scale=None) -> ()"
)
_library.define("merge_states(Tensor o_parts, Tensor lse_parts) -> (Tensor o, Tensor lse)")


def _run_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    qo_indptr: Tensor,
    o_dtype: Optional[torch.dtype] = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    o, lse = _attention(q, k, v, qo_indptr=qo_indptr, o_dtype=o_dtype, return_lse=True, **options)
    return o, lse


def _fake_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    qo_indptr: Tensor,
    o_dtype: Optional[torch.dtype] = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    default = torch.bfloat16 if q.dtype == torch.float8_e4m3fn else q.dtype
    o = q.new_empty((*q.shape[:2], v.shape[-1]), dtype=o_dtype or default)
    return o, q.new_empty(q.shape[:2], dtype=torch.float32)


def _run_append(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    slot_mapping: Optional[Tensor] = None,
    qo_indptr: Optional[Tensor] = None,
    kv_layout: KvLayout = "NHD",
    k_scale: Optional[Tensor] = None,
    v_scale: Optional[Tensor] = None,
    **batch: Optional[Tensor],
) -> None:
    _append(
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping=slot_mapping,
        batch=None if qo_indptr is None else Batch(qo_indptr, **batch),
        kv_layout=kv_layout,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def _fake_append(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, **options: Any) -> None:
    """It returns nothing, and what it writes keeps its shape."""


def _run_merge_states(o_parts: Tensor, lse_parts: Tensor) -> tuple[Tensor, Tensor]:
    o, lse = _merge_states(o_parts, lse_parts)
    return o, lse


def _fake_merge_states(o_parts: Tensor, lse_parts: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(o_parts[0]), torch.empty_like(lse_parts[0])


for _name, _run, _fake in (
    ("attention", _run_attention, _fake_attention),
    ("append", _run_append, _fake_append),
    ("merge_states", _run_merge_states, _fake_merge_states),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _run, _device)
    torch.library.register_fake(f"quire::{_name}", _fake, lib=_library)

attention = torch.ops.quire.attention
append = torch.ops.quire.append
merge_states = torch.ops.quire.merge_states
