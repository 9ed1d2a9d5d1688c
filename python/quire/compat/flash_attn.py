# SPDX-License-Identifier: Apache-2.0
"""FlashAttention's interface to KV caches and ragged batches, served by quire: docs/compat.md.

Names and defaults are those of FlashAttention 2 and, where it has others, 3: `page_table` and
`block_table` say the same. Causal is aligned to the end. There are no gradients and no dropout;
what quire does not serve raises NotImplementedError.
"""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor

from .._batch import Batch
from .._errors import Unsupported
from .._operations import append, attention

__all__ = ["flash_attn_varlen_func", "flash_attn_with_kvcache"]

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name} is not served by quire, got {value!r:.60}")


def _mask(causal: bool, window_size: tuple[Optional[int], Optional[int]]) -> tuple[Any, int]:
    """(mask, window_left) of a window (left, right)."""
    left, right = (-1 if side is None else side for side in window_size)
    if right > 0 and not causal:
        raise NotImplementedError(
            f"window_size: expected a right side of -1 or 0, got {right}: quire's windows end at "
            "the query"
        )
    return ("causal" if causal or right == 0 else "none"), left


def _scores(softcap: float) -> Optional[float]:
    return softcap if softcap and softcap > 0 else None


def _int32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.int32 else tensor.int()


def _arange(n: int, step: int, device: torch.device) -> Tensor:
    return torch.arange(n + 1, dtype=torch.int32, device=device) * step


def _attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    if q.dtype in _FLOAT8:
        raise NotImplementedError("8-bit queries: give them as bfloat16 or float16")
    try:
        o, lse = attention(q, k, v, return_lse=True, **options)
    except Unsupported as error:
        raise NotImplementedError(str(error)) from None
    return o, lse


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Optional[Tensor] = None,
    *,
    seqused_q: Optional[Tensor] = None,
    seqused_k: Optional[Tensor] = None,
    qv: Optional[Tensor] = None,
    q_descale: Optional[Tensor] = None,
    k_descale: Optional[Tensor] = None,
    v_descale: Optional[Tensor] = None,
    num_splits: int = 0,
    pack_gqa: Optional[bool] = None,
    sm_margin: int = 0,
    page_table: Optional[Tensor] = None,
    return_softmax_lse: bool = False,
    s_aux: Optional[Tensor] = None,
    out: Optional[Tensor] = None,
) -> Any:
    """Attention of a ragged batch.

    Args:
      q: [total_q, num_heads, head_dim], float16, bfloat16 or float32.
      k, v: [total_k, num_heads_k, head_dim], or with a page table
        [num_pages, page_size, num_heads_k, head_dim].
      cu_seqlens_q, cu_seqlens_k: int32 [batch_size + 1].
      max_seqlen_q, max_seqlen_k: Not needed.
      softmax_scale: None takes 1 / sqrt(head_dim).
      window_size: (left, right): keys from position − left on; right is −1 or 0.
      softcap: 0 is off.
      alibi_slopes: float32 [num_heads].
      return_attn_probs: FlashAttention 2: (out, lse, None) is returned. No probabilities are made.
      block_table, page_table: int32 [batch_size, max_pages]; entries beyond a length are not read.
      seqused_k: int32 [batch_size]: keys of each request, in place of the differences of
        cu_seqlens_k.
      return_softmax_lse: FlashAttention 3: (out, lse) is returned.
      s_aux: [num_heads]: sinks.
      out: Written if given.

    Returns:
      out [total_q, num_heads, head_dim_v], or with lse float32 [num_heads, total_q], natural
      logarithm, −inf for a row that sees no key.

    Raises:
      NotImplementedError: dropout, `qv`, `seqused_q`, descaling, windows that end after the query.
    """
    _refuse(dropout_p=dropout_p or None, qv=qv, seqused_q=seqused_q)
    _refuse(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    table = block_table if page_table is None else page_table
    mask, window_left = _mask(causal, window_size)
    keys: dict[str, Any] = {}
    if table is None:
        if cu_seqlens_k is None:
            raise ValueError("cu_seqlens_k: expected int32 [batch_size + 1] without a page table")
        keys["kv_indptr"] = _int32(cu_seqlens_k)
        if seqused_k is not None:
            keys["kv_len"] = _int32(seqused_k)
    else:
        lengths = seqused_k
        if lengths is None:
            if cu_seqlens_k is None:
                raise ValueError("expected cu_seqlens_k or seqused_k with a page table")
            lengths = cu_seqlens_k[1:] - cu_seqlens_k[:-1]
        keys = {"page_table": _int32(table), "kv_len": _int32(lengths)}
    o, lse = _attend(
        q,
        k,
        v,
        qo_indptr=_int32(cu_seqlens_q),
        **keys,
        mask=mask,
        window_left=window_left,
        sm_scale=softmax_scale,
        logits_soft_cap=_scores(softcap),
        alibi_slopes=alibi_slopes,
        sinks=None if s_aux is None else s_aux.float(),
        o=out,
    )
    if return_attn_probs:
        return o, lse.transpose(0, 1), None
    return (o, lse.transpose(0, 1)) if return_softmax_lse else o


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Optional[Tensor] = None,
    v: Optional[Tensor] = None,
    rotary_cos: Optional[Tensor] = None,
    rotary_sin: Optional[Tensor] = None,
    cache_seqlens: Optional[Union[int, Tensor]] = None,
    cache_batch_idx: Optional[Tensor] = None,
    cache_leftpad: Optional[Tensor] = None,
    block_table: Optional[Tensor] = None,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Optional[Tensor] = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    qv: Optional[Tensor] = None,
    page_table: Optional[Tensor] = None,
    cu_seqlens_q: Optional[Tensor] = None,
    cu_seqlens_k_new: Optional[Tensor] = None,
    max_seqlen_q: Optional[int] = None,
    rotary_seqlens: Optional[Tensor] = None,
    q_descale: Optional[Tensor] = None,
    k_descale: Optional[Tensor] = None,
    v_descale: Optional[Tensor] = None,
    scheduler_metadata: Any = None,
    pack_gqa: Optional[bool] = None,
    sm_margin: int = 0,
    s_aux: Optional[Tensor] = None,
) -> Any:
    """Attention over a KV cache, which new keys and values join first if they are given.

    Args:
      q: [batch_size, seqlen_q, num_heads, head_dim], or with `cu_seqlens_q`
        [total_q, num_heads, head_dim].
      k_cache, v_cache: [batch_size_cache, seqlen_cache, num_heads_k, head_dim], or with a page
        table [num_pages, page_size, num_heads_k, head_dim]. Written if k and v are given.
      k, v: [batch_size, seqlen_new, num_heads_k, head_dim], or with `cu_seqlens_k_new`
        [total_new, num_heads_k, head_dim]: they go behind the `cache_seqlens` keys.
      cache_seqlens: int32 [batch_size] or a number: keys in the cache before k joins. None takes
        the cache's length.
      cache_batch_idx: int32 [batch_size]: rows of a cache that is not paged.
      block_table, page_table: int32 [batch_size, max_pages].
      softmax_scale, causal, window_size, softcap, alibi_slopes, s_aux: As
        `flash_attn_varlen_func`.
      return_softmax_lse: Whether lse is returned too.

    Returns:
      out of q's shape, or (out, lse), lse float32 [batch_size, num_heads, seqlen_q] (with
      `cu_seqlens_q` [num_heads, total_q]), natural logarithm.

    Raises:
      NotImplementedError: Rotary embedding, left padding, `qv`, descaling, windows that end after
        the query.
    """
    _refuse(rotary_cos=rotary_cos, rotary_sin=rotary_sin, rotary_seqlens=rotary_seqlens)
    _refuse(cache_leftpad=cache_leftpad, qv=qv)
    _refuse(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    table = block_table if page_table is None else page_table
    if (k is None) != (v is None):
        raise ValueError("k and v: expected both or none")
    device = q.device
    is_ragged = cu_seqlens_q is not None
    if cu_seqlens_q is not None:
        batch_size, rows, qo_indptr = cu_seqlens_q.shape[0] - 1, q, _int32(cu_seqlens_q)
    else:
        batch_size, seqlen_q = q.shape[:2]
        rows = q.reshape(-1, *q.shape[2:])
        qo_indptr = _arange(batch_size, seqlen_q, device)
    if table is None:  # a row of the cache is one page
        if cache_batch_idx is None:
            cache_batch_idx = torch.arange(batch_size, device=device)
        table = cache_batch_idx.view(-1, 1)
    elif cache_batch_idx is not None:
        raise NotImplementedError("cache_batch_idx together with a page table")
    if cache_seqlens is None:
        cache_seqlens = k_cache.shape[1] * table.shape[1]
    if not isinstance(cache_seqlens, Tensor):
        cache_seqlens = torch.full((batch_size,), cache_seqlens, dtype=torch.int32, device=device)
    kv_len, table = _int32(cache_seqlens), _int32(table)
    if k is not None and v is not None:
        if cu_seqlens_k_new is not None:
            new_indptr = _int32(cu_seqlens_k_new)
        else:
            new_indptr = _arange(batch_size, k.shape[1], device)
            k, v = (each.reshape(-1, *each.shape[2:]) for each in (k, v))
        kv_len = kv_len + (new_indptr[1:] - new_indptr[:-1])
        append(k, v, k_cache, v_cache, batch=Batch(new_indptr, kv_len=kv_len, page_table=table))
    mask, window_left = _mask(causal, window_size)
    o, lse = _attend(
        rows,
        k_cache,
        v_cache,
        qo_indptr=qo_indptr,
        kv_len=kv_len,
        page_table=table,
        mask=mask,
        window_left=window_left,
        sm_scale=softmax_scale,
        logits_soft_cap=_scores(softcap),
        alibi_slopes=alibi_slopes,
        sinks=None if s_aux is None else s_aux.float(),
    )
    if is_ragged:
        return (o, lse.transpose(0, 1)) if return_softmax_lse else o
    o = o.view(*q.shape[:2], *o.shape[1:])
    if not return_softmax_lse:
        return o
    return o, lse.view(*q.shape[:2], -1).transpose(1, 2)
