# SPDX-License-Identifier: Apache-2.0
"""Prefill and append: many queries for each request, over paged or contiguous K and V."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Optional

import torch
from torch import Tensor

from ..._batch import Batch
from ._alibi import DenseAlibi
from ._checks import (
    alibi_slopes,
    check_backend,
    check_dtypes,
    check_layout,
    check_positions,
    check_written,
    dtype_of,
    is_batch_invariant,
    make_spec,
    unsupported,
)
from ._engine import FLOAT8, Engine, limits_of
from ._paged import PagedWrapper, Wrapper
from .quantization import packbits, segment_packbits


def _mask_name(causal: bool) -> str:
    return "causal" if causal else "none"


def single_prefill_with_kv_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale_q: Any = None,
    scale_k: Any = None,
    scale_v: Any = None,
    o_dtype: Optional[torch.dtype] = None,
    custom_mask: Optional[Tensor] = None,
    packed_custom_mask: Optional[Tensor] = None,
    causal: bool = False,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_fp16_qk_reduction: bool = False,
    sm_scale: Optional[float] = None,
    window_left: int = -1,
    logits_soft_cap: Optional[float] = None,
    rope_scale: Optional[float] = None,
    rope_theta: Optional[float] = None,
    backend: str = "auto",
    return_lse: bool = False,
    kv_cache_sf: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
) -> Any:
    """Attention of one request: q [qo_len, num_qo_heads, head_dim_qk], k [kv_len, num_kv_heads,
    head_dim_qk], v [kv_len, num_kv_heads, head_dim_vo] (or HND). Returns o, or (o, lse) with lse
    float32 [qo_len, num_qo_heads] of base 2. A custom mask, bool [qo_len, kv_len] or packed bits,
    little-endian, takes the place of causal.

    Raises NotImplementedError for what quire does not serve, KeyError for an unknown layout."""
    check_layout(kv_layout)
    check_backend(backend)
    check_positions(pos_encoding_mode)
    unsupported(kv_cache_sf=kv_cache_sf)
    if k.dtype == torch.uint8:
        unsupported(nvfp4=True)
    if kv_layout == "HND":
        k, v = k.transpose(0, 1), v.transpose(0, 1)
    qo_len, kv_len = q.shape[0], k.shape[0]
    bits = None
    if packed_custom_mask is not None:
        bits = packed_custom_mask
    elif custom_mask is not None:
        bits = packbits(custom_mask.contiguous().view(-1), bitorder="little")
    mask = "full" if bits is not None else _mask_name(causal)
    spec = make_spec(
        num_qo_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim_qk=q.shape[2],
        head_dim_vo=v.shape[2],
        q_dtype=q.dtype,
        kv_dtype=k.dtype,
        mask=mask,
        window_left=window_left,
        logits_soft_cap=logits_soft_cap,
        sm_scale=sm_scale,
    )
    slopes = None
    if pos_encoding_mode == "ALIBI":
        slopes = alibi_slopes(q.shape[1], q.device)
        spec = dataclasses.replace(spec, alibi=True)

    def offsets(n: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor([0, n], dtype=dtype, device=q.device)

    masks = {}
    if bits is not None:
        masks = {"full_mask": bits, "full_mask_indptr": offsets(bits.numel(), torch.int64)}
    if o_dtype is None:
        o_dtype = torch.float16 if q.dtype in FLOAT8 else q.dtype
    scales = (
        scale_q,
        scale_k if k_scale is None else k_scale,
        scale_v if v_scale is None else v_scale,
    )
    if slopes is not None:
        one = (torch.tensor([qo_len]), torch.tensor([kv_len]))
        whole = None if bits is None else (bits, masks["full_mask_indptr"])
        dense = DenseAlibi(spec, slopes, *one, whole)
        if dense.is_needed(return_lse):
            return dense.run(q, lambda _: (k, v), None, o_dtype, None, return_lse, scales)
    engine = Engine(None, q.device)
    batch = Batch(offsets(qo_len), kv_indptr=offsets(kv_len), **masks)
    engine.plan(spec, batch, limits_of(1, qo_len, kv_len))
    return engine.run(
        q,
        k,
        v,
        scales=scales,
        out_dtype=o_dtype,
        return_lse=return_lse,
        alibi_slopes=slopes,
    )


single_prefill_with_kv_cache_return_lse = functools.partial(
    single_prefill_with_kv_cache, return_lse=True
)


def _packed_mask(
    custom_mask: Optional[Tensor],
    packed_custom_mask: Optional[Tensor],
    qo_len: Tensor,
    kv_len: Tensor,
) -> Optional[tuple[Tensor, Tensor]]:
    """Packed bits and their byte offsets, int64 [batch_size + 1], of either form of a mask."""
    if custom_mask is None and packed_custom_mask is None:
        return None
    bits = qo_len.cpu().long() * kv_len.cpu().long()
    bit_indptr = torch.cat([torch.zeros(1, dtype=torch.int64), bits.cumsum(0)])
    if packed_custom_mask is not None:
        byte_indptr = torch.zeros_like(bit_indptr)
        byte_indptr[1:] = ((bits + 7) // 8).cumsum(0)
        return packed_custom_mask, byte_indptr
    assert custom_mask is not None
    return segment_packbits(
        custom_mask.contiguous().view(-1), bit_indptr.to(custom_mask.device), bitorder="little"
    )


class BatchPrefillWithPagedKVCacheWrapper(PagedWrapper):
    """Prefill and append of a batch over a paged KV cache."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Optional[Tensor] = None,
        paged_kv_indptr_buf: Optional[Tensor] = None,
        paged_kv_indices_buf: Optional[Tensor] = None,
        paged_kv_last_page_len_buf: Optional[Tensor] = None,
        custom_mask_buf: Optional[Tensor] = None,
        mask_indptr_buf: Optional[Tensor] = None,
        backend: str = "auto",
        jit_args: Any = None,
        jit_kwargs: Any = None,
    ) -> None:
        super().__init__(
            float_workspace_buffer, kv_layout, use_cuda_graph, backend, jit_args, jit_kwargs
        )
        if use_cuda_graph and not isinstance(qo_indptr_buf, Tensor):
            raise ValueError("qo_indptr_buf should be a torch.Tensor in CUDA graph mode")
        self._take_buffers(
            qo_indptr_buf, paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf
        )
        self._custom_mask_buf, self._mask_indptr_buf = custom_mask_buf, mask_indptr_buf

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: Optional[int] = None,
        custom_mask: Optional[Tensor] = None,
        packed_custom_mask: Optional[Tensor] = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: Optional[float] = None,
        window_left: int = -1,
        logits_soft_cap: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = None,
        non_blocking: bool = True,
        prefix_len_ptr: Optional[Tensor] = None,
        token_pos_in_items_ptr: Optional[Tensor] = None,
        token_pos_in_items_len: int = 0,
        max_item_len_ptr: Optional[Tensor] = None,
        seq_lens: Optional[Tensor] = None,
        seq_lens_q: Optional[Tensor] = None,
        block_tables: Optional[Tensor] = None,
        max_token_per_sequence: Optional[int] = None,
        max_sequence_kv: Optional[int] = None,
        fixed_split_size: Optional[int] = None,
        disable_split_kv: bool = False,
    ) -> None:
        """Describes the batch: qo_indptr and paged_kv_indptr int32 [batch_size + 1],
        paged_kv_indices int32 [≥ paged_kv_indptr[-1]], paged_kv_last_page_len int32 [batch_size].

        Raises ValueError for a batch that CUDA-graph buffers do not hold, NotImplementedError for
        what quire does not serve."""
        unsupported(
            prefix_len_ptr=prefix_len_ptr,
            token_pos_in_items_ptr=token_pos_in_items_ptr,
            max_item_len_ptr=max_item_len_ptr,
        )
        full_mask = None
        if custom_mask is not None or packed_custom_mask is not None:
            pages = paged_kv_indptr[1:].cpu() - paged_kv_indptr[:-1].cpu()
            kv_len = (pages - 1).clamp(min=0) * page_size + paged_kv_last_page_len.cpu()
            kv_len = kv_len * (pages > 0)
            full_mask = _packed_mask(
                custom_mask, packed_custom_mask, qo_indptr[1:].cpu() - qo_indptr[:-1].cpu(), kv_len
            )
        if full_mask is not None:
            full_mask = self._mask_in_buffers(*full_mask)
        self._plan_pages(
            qo_indptr,
            paged_kv_indptr,
            paged_kv_indices,
            paged_kv_last_page_len,
            None,
            num_qo_heads,
            num_kv_heads,
            head_dim_qk,
            head_dim_vo or head_dim_qk,
            page_size,
            mask=_mask_name(causal),
            pos_encoding_mode=pos_encoding_mode,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
            q_dtype=dtype_of(q_data_type),
            kv_dtype=dtype_of(q_data_type if kv_data_type is None else kv_data_type),
            o_dtype=None if o_data_type is None else dtype_of(o_data_type),
            full_mask=full_mask,
            batch_invariant=is_batch_invariant(fixed_split_size, disable_split_kv),
        )

    begin_forward = plan

    def _mask_in_buffers(self, bits: Tensor, indptr: Tensor) -> tuple[Tensor, Tensor]:
        """The mask where a CUDA graph reads it: the caller's buffer and an int64 one of ours."""
        if not self._use_cuda_graph:
            return self._on_device(bits, torch.uint8), self._on_device(indptr, torch.int64)
        if self._custom_mask_buf is None or self._mask_indptr_buf is None:
            raise ValueError(
                "custom_mask_buf must be initialized with a torch.Tensor in cudagraph mode if "
                "a custom mask is planned"
            )
        held = self._filled(self._custom_mask_buf, bits, "custom_mask")
        known: Optional[Tensor] = getattr(self, "_own_mask_indptr", None)
        if known is None:
            self._own_mask_indptr = known = self._on_device(indptr, torch.int64)
        else:
            known.copy_(indptr)
        return held, known

    def run(
        self,
        q: Tensor,
        paged_kv_cache: Any,
        *args: Any,
        q_scale: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        out: Optional[Tensor] = None,
        lse: Optional[Tensor] = None,
        return_lse: bool = False,
        enable_pdl: Optional[bool] = None,
        window_left: Optional[int] = None,
        sinks: Optional[Tensor] = None,
        kv_cache_sf: Any = None,
        skip_softmax_threshold_scale_factor: Optional[float] = None,
        use_fp16_softmax: Optional[bool] = None,
        uses_spcompress: Optional[bool] = None,
    ) -> Any:
        """Attention of one layer: q [qo_indptr[-1], num_qo_heads, head_dim_qk]. Returns out, or
        (out, lse) with lse float32 [rows, num_qo_heads] of base 2.

        Raises ValueError for shapes and dtypes other than those of the plan."""
        unsupported(
            kv_cache_sf=kv_cache_sf,
            skip_softmax_threshold_scale_factor=skip_softmax_threshold_scale_factor,
            uses_spcompress=uses_spcompress,
        )
        scales = _scales((q_scale, k_scale, v_scale), args, q)
        return self._run_pages(q, paged_kv_cache, scales, out, lse, return_lse, window_left, sinks)

    run_return_lse = functools.partialmethod(run, return_lse=True)

    def forward(
        self,
        q: Tensor,
        paged_kv_cache: Any,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        k_scale: Any = None,
        v_scale: Any = None,
        window_left: int = -1,
        logits_soft_cap: Optional[float] = None,
        sm_scale: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
        return_lse: bool = False,
    ) -> Any:
        """The older spelling: `run()` with options that take the place of the plan's."""
        self._replan(pos_encoding_mode, window_left, logits_soft_cap, sm_scale, causal)
        return self.run(q, paged_kv_cache, k_scale=k_scale, v_scale=v_scale, return_lse=return_lse)

    forward_return_lse = functools.partialmethod(forward, return_lse=True)


def _scales(named: tuple[Any, Any, Any], args: tuple[Any, ...], q: Tensor) -> tuple[Any, Any, Any]:
    """(q, k, v): of 8-bit queries they come by position."""
    if not args:
        return named
    if len(args) > 3 or q.dtype not in FLOAT8:
        raise NotImplementedError(
            "arguments of custom variants: quire compiles nothing at run time"
        )
    padded = (*args, None, None)
    q_scale, k_scale, v_scale = (
        given if keyword is None else keyword for given, keyword in zip(padded, named)
    )
    return q_scale, k_scale, v_scale


class BatchPrefillWithRaggedKVCacheWrapper(Wrapper):
    """Prefill of a batch over K and V in one piece, requests after one another."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Optional[Tensor] = None,
        kv_indptr_buf: Optional[Tensor] = None,
        custom_mask_buf: Optional[Tensor] = None,
        mask_indptr_buf: Optional[Tensor] = None,
        backend: str = "auto",
        jit_args: Any = None,
        jit_kwargs: Any = None,
    ) -> None:
        super().__init__(
            float_workspace_buffer, kv_layout, use_cuda_graph, backend, jit_args, jit_kwargs
        )
        if use_cuda_graph:
            for name, buffer in (("qo", qo_indptr_buf), ("kv", kv_indptr_buf)):
                if not isinstance(buffer, Tensor):
                    raise ValueError(
                        f"{name}_indptr_buf should be a torch.Tensor in cudagraph mode"
                    )
            unsupported(custom_mask_buf=custom_mask_buf, mask_indptr_buf=mask_indptr_buf)
        self._qo_indptr_buf, self._kv_indptr_buf = qo_indptr_buf, kv_indptr_buf
        self._most = (0, 0)

    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: Optional[int] = None,
        custom_mask: Optional[Tensor] = None,
        packed_custom_mask: Optional[Tensor] = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        window_left: int = -1,
        logits_soft_cap: Optional[float] = None,
        sm_scale: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = None,
        non_blocking: bool = True,
        prefix_len_ptr: Optional[Tensor] = None,
        token_pos_in_items_ptr: Optional[Tensor] = None,
        token_pos_in_items_len: int = 0,
        max_item_len_ptr: Optional[Tensor] = None,
        fixed_split_size: Optional[int] = None,
        disable_split_kv: bool = False,
        seq_lens: Optional[Tensor] = None,
        seq_lens_q: Optional[Tensor] = None,
        max_token_per_sequence: Optional[int] = None,
        max_sequence_kv: Optional[int] = None,
        v_indptr: Optional[Tensor] = None,
        o_indptr: Optional[Tensor] = None,
    ) -> None:
        """Describes the batch: qo_indptr and kv_indptr int32 [batch_size + 1].

        Raises ValueError for a batch that CUDA-graph buffers do not hold, NotImplementedError for
        what quire does not serve."""
        unsupported(
            prefix_len_ptr=prefix_len_ptr,
            token_pos_in_items_ptr=token_pos_in_items_ptr,
            max_item_len_ptr=max_item_len_ptr,
            v_indptr=v_indptr,
            o_indptr=o_indptr,
        )
        check_positions(pos_encoding_mode)
        batch_size = qo_indptr.shape[0] - 1
        if kv_indptr.shape[0] != batch_size + 1:
            raise ValueError("The kv_indptr length should be equal to qo_indptr length.")
        held = self._qo_indptr_buf
        if self._use_cuda_graph and held is not None and held.shape[0] != batch_size + 1:
            raise ValueError(
                "The batch size should be fixed in cudagraph mode, the runtime batch size "
                f"{batch_size} mismatches the batch size set during initialization "
                f"{held.shape[0] - 1}"
            )
        qo_host, kv_host = qo_indptr.cpu(), kv_indptr.cpu()
        qo_len, kv_len = qo_host[1:] - qo_host[:-1], kv_host[1:] - kv_host[:-1]
        self._total_q = int(qo_host[-1])
        most_kv = int(kv_len.max()) if batch_size else 0
        if self._use_cuda_graph:
            # A captured graph keeps the limits of the first plan: all keys may be one request's.
            keys = int(kv_host[-1])
            self._most = (max(self._most[0], self._total_q), max(self._most[1], keys))
        else:
            self._most = (self._total_q, most_kv)
        full_mask = _packed_mask(custom_mask, packed_custom_mask, qo_len, kv_len)
        mask = "full" if full_mask is not None else _mask_name(causal)
        is_alibi = pos_encoding_mode == "ALIBI"
        self._alibi = alibi_slopes(num_qo_heads, self.device) if is_alibi else None
        self._q_dtype = dtype_of(q_data_type)
        self._kv_dtype = dtype_of(q_data_type if kv_data_type is None else kv_data_type)
        self._o_dtype = None if o_data_type is None else dtype_of(o_data_type)
        self._head_dim_vo = head_dim_vo or head_dim_qk
        spec = make_spec(
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim_qk=head_dim_qk,
            head_dim_vo=head_dim_vo,
            q_dtype=self._q_dtype,
            kv_dtype=self._kv_dtype,
            mask=mask,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
            batch_invariant=is_batch_invariant(fixed_split_size, disable_split_kv),
        )
        masks = {}
        if full_mask is not None:
            masks = {
                "full_mask": self._on_device(full_mask[0], torch.uint8),
                "full_mask_indptr": self._on_device(full_mask[1], torch.int64),
            }
        batch = Batch(
            self._filled(self._qo_indptr_buf, qo_indptr, "qo_indptr"),
            kv_indptr=self._filled(self._kv_indptr_buf, kv_indptr, "kv_indptr"),
            **masks,
        )
        spec = dataclasses.replace(spec, alibi=is_alibi)
        self._dense: Optional[DenseAlibi] = None
        if self._alibi is not None:
            if self._use_cuda_graph:
                raise NotImplementedError("ALIBI under CUDA graphs, but over pages")
            self._kv_rows = kv_host.tolist()
            self._dense = DenseAlibi(spec, self._alibi, qo_len, kv_len, full_mask)
        self._engine.plan(spec, batch, limits_of(batch_size, *self._most))
        self._plan_info = [batch_size, self._total_q]

    begin_forward = plan

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *args: Any,
        q_scale: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        o_scale: Any = None,
        out: Optional[Tensor] = None,
        lse: Optional[Tensor] = None,
        return_lse: bool = False,
        enable_pdl: Optional[bool] = None,
        kv_cache_sf: Any = None,
    ) -> Any:
        """Attention of one layer: q [qo_indptr[-1], num_qo_heads, head_dim_qk], k and v
        [kv_indptr[-1], num_kv_heads, head_dim]. Returns out, or (out, lse) with lse of base 2.

        Raises ValueError for shapes and dtypes other than those of the plan."""
        unsupported(kv_cache_sf=kv_cache_sf, o_scale=o_scale)
        if self._plan_info is None:
            raise RuntimeError("plan() must be called before run()")
        check_dtypes(q, k, self._q_dtype, self._kv_dtype)
        if q.shape[0] != self._total_q:
            raise ValueError(
                f"q.shape[0] ({q.shape[0]}) does not match qo_indptr[-1] ({self._total_q})"
            )
        o_dtype = self._o_dtype or (torch.float16 if q.dtype in FLOAT8 else q.dtype)
        check_written(out, (*q.shape[:-1], self._head_dim_vo), o_dtype, q, "out")
        check_written(lse, q.shape[:2], torch.float32, q, "lse")
        scales = _scales((q_scale, k_scale, v_scale), args, q)
        if self._dense is not None and self._dense.is_needed(return_lse or lse is not None):

            def keys_of(i: int) -> tuple[Tensor, Tensor]:
                rows = slice(self._kv_rows[i], self._kv_rows[i + 1])
                return k[rows], v[rows]

            return self._dense.run(q, keys_of, out, o_dtype, lse, return_lse, scales)
        return self._engine.run(
            q,
            k,
            v,
            scales=scales,
            out=out,
            out_dtype=o_dtype,
            lse=lse,
            return_lse=return_lse,
            alibi_slopes=self._alibi,
        )

    run_return_lse = functools.partialmethod(run, return_lse=True)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        window_left: int = -1,
        logits_soft_cap: Optional[float] = None,
        sm_scale: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
        return_lse: bool = False,
    ) -> Any:
        """The older spelling: `run()` with options that take the place of the plan's."""
        check_positions(pos_encoding_mode)
        engine, spec = self._engine, self._engine.spec
        if spec is None:
            raise RuntimeError("plan() must be called before forward()")
        if (pos_encoding_mode == "ALIBI") != (self._alibi is not None):
            raise NotImplementedError("ALIBI is planned, not given to forward() alone")
        engine.spec = dataclasses.replace(
            spec,
            mask=spec.mask if spec.mask == "full" else "causal" if causal else "none",
            window_left=max(window_left, -1),
            logits_soft_cap=logits_soft_cap if (logits_soft_cap or 0.0) > 0 else None,
            sm_scale=spec.head_dim_qk**-0.5 if sm_scale is None else sm_scale,
        )
        return self.run(q, k, v, return_lse=return_lse)

    forward_return_lse = functools.partialmethod(forward, return_lse=True)

    def workspace_size(self, *args: Any, **options: Any) -> tuple[int, int]:
        """As `BatchPrefillWithPagedKVCacheWrapper.workspace_size`."""
        return 16, 16
