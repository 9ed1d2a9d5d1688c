# SPDX-License-Identifier: Apache-2.0
"""Calls that need no `Attention`: the one-shot, append and merge."""

from __future__ import annotations

from ctypes import byref
from typing import Any, Optional

from . import _library as c
from ._arrays import empty_like, packed, packed_written, view_of
from ._batch import Batch
from ._calls import CheckRecord, ThreadPool, enumerator, pack_call, pack_options, reference
from ._errors import invalid
from ._spec import AttentionSpec, KvLayout, KvScale, Mask
from ._tensors import TensorView, c_device

_ATTENTION_TENSORS = c.tensors_header("quire_attention_tensors")
_APPEND_TENSORS = c.tensors_header("quire_append_tensors")
_MERGE_TENSORS = c.tensors_header("quire_merge_tensors")


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    qo_indptr: Any,
    kv_len: Any = None,
    page_table: Any = None,
    kv_page_indptr: Any = None,
    kv_page_indices: Any = None,
    kv_last_page_len: Any = None,
    kv_indptr: Any = None,
    tree_mask: Any = None,
    full_mask: Any = None,
    full_mask_indptr: Any = None,
    kv_layout: KvLayout = "NHD",
    mask: Mask = "causal",
    window_left: int = -1,
    sm_scale: Optional[float] = None,
    logits_soft_cap: Optional[float] = None,
    sinks: Any = None,
    alibi_slopes: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    q_scale: Any = None,
    o: Any = None,
    o_dtype: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    checked: bool = False,
    stream: Any = None,
    executor: Optional[ThreadPool] = None,
    kernel: Optional[str] = None,
) -> Any:
    """Attention of one batch: for those who call once. Heads, dims, dtypes and the page size are
    what the arrays have. Allocates; a loop makes an `Attention`.

    Args:
      q: [total_q, num_qo_heads, head_dim_qk], float32, float16, bfloat16 or, with k and v of it,
        float8_e4m3.
      k: Pages, "NHD" = [num_pages, page_size, num_kv_heads, head_dim_qk] or
        "HND" = [num_pages, num_kv_heads, page_size, head_dim_qk]; with `kv_indptr` rows,
        [tokens, num_kv_heads, head_dim_qk] or [num_kv_heads, tokens, head_dim_qk].
      v: The same with head_dim_vo.
      qo_indptr, kv_len, page_table, kv_page_indptr, kv_page_indices, kv_last_page_len, kv_indptr,
        tree_mask, full_mask, full_mask_indptr: The requests, as `Batch` has them.
      kv_layout, mask, window_left, sm_scale, logits_soft_cap: As `AttentionSpec` has them.
      sinks: float32 [num_qo_heads]: unscaled logits that enter the denominator.
      alibi_slopes: float32 [num_qo_heads].
      k_scale, v_scale: float32 [1] or [num_kv_heads]; both or none.
      q_scale: float32 [1] or [num_qo_heads], for queries of float8_e4m3.
      o: Written: [total_q, num_qo_heads, head_dim_vo]. None allocates it, of the kind that q is.
      o_dtype: Of an o that is allocated: q's, which None takes ("bfloat16" for float8_e4m3), or
        "float32".
      lse: Written: float32 [total_q, num_qo_heads], natural logarithm.
      return_lse: Whether lse is returned too; allocated if it is not given.
      checked: On a GPU: verify page ids, lengths and offsets, wait for the result, and raise. On
        the CPU they are always verified.
      stream: CUDA stream; None takes torch's current one if q is torch's.
      executor: Threads of the CPU backend; None takes the process's pool.
      kernel: Forces the kernel of this name (`quire.kernels()`).

    Returns:
      o, or (o, lse) if `return_lse`.

    Raises:
      InvalidArgument, TooLong, Unsupported, Error: As `Attention`, its `schedule()` and `run()`.
    """
    where = "attention"
    keep: list[TensorView] = []
    batch = Batch(
        qo_indptr,
        kv_len=kv_len,
        page_table=page_table,
        kv_page_indptr=kv_page_indptr,
        kv_page_indices=kv_page_indices,
        kv_last_page_len=kv_last_page_len,
        kv_indptr=kv_indptr,
        tree_mask=tree_mask,
        full_mask=full_mask,
        full_mask_indptr=full_mask_indptr,
    )
    q_view, k_view, v_view = view_of(q, where, "q"), view_of(k, where, "k"), view_of(v, where, "v")
    is_paged = kv_indptr is None
    _expect_rank(q_view, 3, where, "q")
    _expect_rank(k_view, 4 if is_paged else 3, where, "k")
    _expect_rank(v_view, 4 if is_paged else 3, where, "v")
    tokens, heads = (-3, -2) if kv_layout == "NHD" else (-2, -3)
    if o is not None:
        o_dtype = view_of(o, where, "o").dtype
    spec = AttentionSpec(
        num_qo_heads=q_view.shape[1],
        num_kv_heads=k_view.shape[heads],
        head_dim_qk=q_view.shape[2],
        head_dim_vo=v_view.shape[-1],
        q_dtype=q_view.dtype,
        kv_dtype=k_view.dtype,
        o_dtype=o_dtype,
        kv_layout=kv_layout,
        page_size=k_view.shape[tokens] if is_paged else c.CONTIGUOUS_KV,
        mask=mask,
        window_left=window_left,
        sm_scale=sm_scale,
        logits_soft_cap=logits_soft_cap,
        sinks=sinks is not None,
        alibi=alibi_slopes is not None,
        kv_scale=_kv_scale(k_scale if k_scale is not None else v_scale, where),
    )
    rows = q_view.shape[:2]
    o_out, lse_out = o, lse
    if o is None:
        o_out = empty_like(q_view, (*rows, v_view.shape[-1]), spec.o_dtype, where, "o")
    if lse is None and return_lse:
        lse_out = empty_like(q_view, rows, "float32", where, "lse")
    tensors = (
        _ATTENTION_TENSORS,
        q_view.packed,
        k_view.packed,
        v_view.packed,
        packed_written(o_out, where, "o", keep),
        packed_written(lse_out, where, "lse", keep),
        packed(k_scale, where, "k_scale", keep),
        packed(v_scale, where, "v_scale", keep),
        packed(sinks, where, "sinks", keep),
        packed(alibi_slopes, where, "alibi_slopes", keep),
        packed(q_scale, where, "q_scale", keep),
    )
    device = q_view.device
    record = CheckRecord(device) if checked and device.type != "cpu" else None
    c.check(
        c.unlocked.quire_attention_once(
            c_device(device),
            byref(spec._packed()),
            batch.packed,
            b"".join(tensors),
            pack_call(q_view, q_view.packed, stream, record, where),
            reference(pack_options(executor, kernel)),
        )
    )
    if record is not None:
        record.raise_if_offended(stream=stream)
    o = o_out.owner if o is None else o
    if not return_lse:
        return o
    return o, (lse_out.owner if lse is None else lse)


def append(
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    slot_mapping: Any = None,
    batch: Optional[Batch] = None,
    kv_layout: KvLayout = "NHD",
    k_scale: Any = None,
    v_scale: Any = None,
    k_token_scale: Any = None,
    v_token_scale: Any = None,
    stream: Any = None,
    check: Optional[CheckRecord] = None,
    executor: Optional[ThreadPool] = None,
) -> None:
    """Writes new keys and values into their pages. O(rows · heads · head_dim).

    Does not allocate on the device, does not wait for it, and may be captured in a CUDA graph. Rows
    beyond the last request and rows before position 0 are skipped.

    Args:
      k: [total_q, num_kv_heads, head_dim_qk], float32, float16 or bfloat16; may be strided.
      v: [total_q, num_kv_heads, head_dim_vo], the same dtype.
      k_cache, v_cache: Written: pages in `kv_layout`; values are rounded to their dtype.
      slot_mapping: int64 [total_q]: page · page_size + offset of each row; negative skips it.
      batch: Without `slot_mapping`: row i of a request goes to position kv_len − qo_len + i.
      kv_layout: "NHD" or "HND", of the caches.
      k_scale, v_scale: float32 [1] or [num_kv_heads]: what is stored times the scale is k.
      k_token_scale, v_token_scale: Written: float32 [num_pages, num_kv_heads, page_size]: a scale
        for each token and head is computed, for an 8-bit cache of "per_token" scales; both or none.
      stream: CUDA stream; None takes torch's current one if k is torch's.
      check: Turns checked mode on.
      executor: Threads of the CPU backend; None takes the process's pool.

    Raises:
      InvalidArgument: A wrong shape, dtype, slot or page id; nothing was written then (on a GPU:
        for what the host can see).
      TooLong, Unsupported, Error: As the C ABI's `quire_append`.
    """
    where = "append"
    keep: list[TensorView] = []
    k_view = view_of(k, where, "k")
    v_view = view_of(v, where, "v")
    tensors = (
        _APPEND_TENSORS,
        k_view.packed,
        v_view.packed,
        packed_written(k_cache, where, "k_cache", keep),
        packed_written(v_cache, where, "v_cache", keep),
        packed(slot_mapping, where, "slot_mapping", keep),
        packed(k_scale, where, "k_scale", keep),
        packed(v_scale, where, "v_scale", keep),
        packed_written(k_token_scale, where, "k_token_scale", keep),
        packed_written(v_token_scale, where, "v_token_scale", keep),
    )
    c.check(
        c.unlocked.quire_append(
            c_device(k_view.device),
            enumerator(c.KV_LAYOUTS, kv_layout, where, "kv_layout"),
            None if batch is None else batch.packed,
            b"".join(tensors),
            pack_call(k_view, k_view.packed, stream, check, where),
            reference(pack_options(executor)),
        )
    )


def merge_states(
    o_parts: Any,
    lse_parts: Any,
    *,
    o: Any = None,
    lse: Any = None,
    stream: Any = None,
    executor: Optional[ThreadPool] = None,
) -> tuple[Any, Any]:
    """Joins results of the same queries over disjoint sets of keys into that over all of them:
    lse = log Σ exp(lse_p), o = Σ exp(lse_p − lse)·o_p, in the order of the parts.

    A sink belongs into one part only. Allocates only what is not given; does not wait for the
    device. O(size of o_parts).

    Args:
      o_parts: [num_parts, total_q, num_heads, head_dim_vo], float32, float16 or bfloat16.
      lse_parts: float32 [num_parts, total_q, num_heads], natural logarithm; −inf: no keys.
      o: Written: [total_q, num_heads, head_dim_vo]; part 0 itself or no overlap. None allocates it.
      lse: Written: float32 [total_q, num_heads]. None allocates it.
      stream: CUDA stream; None takes torch's current one if o_parts is torch's.
      executor: Threads of the CPU backend; None takes the process's pool.

    Returns:
      (o, lse).

    Raises:
      InvalidArgument: A wrong shape or dtype.
      Unsupported, Error: As the C ABI's `quire_merge_states`.
    """
    where = "merge_states"
    o_parts_view = view_of(o_parts, where, "o_parts")
    lse_parts_view = view_of(lse_parts, where, "lse_parts")
    shape = o_parts_view.shape[1:]
    o_out, lse_out = o, lse
    if o is None:
        o_out = empty_like(o_parts_view, shape, o_parts_view.dtype, where, "o")
    if lse is None:
        lse_out = empty_like(o_parts_view, shape[:2], "float32", where, "lse")
    keep: list[TensorView] = []
    tensors = (
        _MERGE_TENSORS,
        o_parts_view.packed,
        lse_parts_view.packed,
        packed_written(o_out, where, "o", keep),
        packed_written(lse_out, where, "lse", keep),
    )
    c.check(
        c.unlocked.quire_merge_states(
            c_device(o_parts_view.device),
            b"".join(tensors),
            pack_call(o_parts_view, o_parts_view.packed, stream, None, where),
            reference(pack_options(executor)),
        )
    )
    return (o_out.owner if o is None else o), (lse_out.owner if lse is None else lse)


def _expect_rank(view: TensorView, rank: int, where: str, name: str) -> None:
    if len(view.shape) != rank:
        raise invalid(where, name, f"expected {rank} axes, got shape {list(view.shape)}")


def _kv_scale(scale: Any, where: str) -> KvScale:
    """What the shape of a scale says: with one kv head, both are the same."""
    if scale is None:
        return "none"
    shape = view_of(scale, where, "k_scale").shape
    if len(shape) > 1:
        return "per_token"
    return "per_tensor" if shape in ((), (1,)) else "per_head"
