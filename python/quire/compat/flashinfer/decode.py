# SPDX-License-Identifier: Apache-2.0
"""Decode: one query, or as many for each request, over a paged KV cache."""

from __future__ import annotations

import functools
import warnings
from typing import Any, Optional

import torch
from torch import Tensor

from ._checks import dtype_of, is_batch_invariant, unsupported
from ._paged import PagedWrapper
from .prefill import single_prefill_with_kv_cache

_LEGACY = (
    "pos_encoding_mode",
    "window_left",
    "logits_soft_cap",
    "q_data_type",
    "kv_data_type",
    "o_data_type",
    "data_type",
    "sm_scale",
    "rope_scale",
    "rope_theta",
    "non_blocking",
)


def single_decode_with_kv_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_tensor_cores: bool = False,
    q_scale: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    window_left: int = -1,
    logits_soft_cap: Optional[float] = None,
    sm_scale: Optional[float] = None,
    rope_scale: Optional[float] = None,
    rope_theta: Optional[float] = None,
    return_lse: bool = False,
) -> Any:
    """Attention of one query: q [num_qo_heads, head_dim], k and v [kv_len, num_kv_heads, head_dim]
    (or HND). Returns o, or (o, lse) with lse float32 [num_qo_heads] of base 2.

    Raises NotImplementedError for what quire does not serve, KeyError for an unknown layout."""
    result = single_prefill_with_kv_cache(
        q.unsqueeze(0),
        k,
        v,
        scale_q=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        causal=True,
        kv_layout=kv_layout,
        pos_encoding_mode=pos_encoding_mode,
        sm_scale=sm_scale,
        window_left=window_left,
        logits_soft_cap=logits_soft_cap,
        return_lse=return_lse,
    )
    return (result[0][0], result[1][0]) if return_lse else result[0]


class BatchDecodeWithPagedKVCacheWrapper(PagedWrapper):
    """Decode of a batch: `plan()` once a step, `run()` once a layer."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Optional[Tensor] = None,
        paged_kv_indices_buffer: Optional[Tensor] = None,
        paged_kv_last_page_len_buffer: Optional[Tensor] = None,
        backend: str = "auto",
        jit_args: Any = None,
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, backend, jit_args)
        self._use_tensor_cores = use_tensor_cores
        self._take_buffers(
            None,
            paged_kv_indptr_buffer,
            paged_kv_indices_buffer,
            paged_kv_last_page_len_buffer,
        )

    @property
    def use_tensor_cores(self) -> bool:
        """What was asked for; quire chooses its kernels itself."""
        return self._use_tensor_cores

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *deprecated_positional: Any,
        **options: Any,
    ) -> None:
        """Describes the batch: indptr int32 [batch_size + 1], indices int32 [≥ indptr[-1]],
        last_page_len int32 [batch_size], on any device.

        Raises ValueError for a batch that CUDA-graph buffers do not hold, NotImplementedError for
        what quire does not serve."""
        if len(deprecated_positional) > len(_LEGACY):
            raise TypeError(f"plan() accepts at most {len(_LEGACY)} options by position")
        if deprecated_positional:
            warnings.warn(
                "options of plan() by position are deprecated, name them",
                DeprecationWarning,
                stacklevel=2,
            )
        for name, value in zip(_LEGACY, deprecated_positional):
            if name in options:
                raise TypeError(f"plan() got multiple values for argument {name!r}")
            options[name] = value
        self._plan(
            indptr,
            indices,
            last_page_len,
            num_qo_heads,
            num_kv_heads,
            head_dim,
            page_size,
            **options,
        )

    def _plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        window_right: int = 0,
        logits_soft_cap: Optional[float] = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = None,
        data_type: Any = None,
        sm_scale: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
        non_blocking: bool = True,
        block_tables: Optional[Tensor] = None,
        seq_lens: Optional[Tensor] = None,
        fixed_split_size: Optional[int] = None,
        disable_split_kv: bool = False,
        q_len_per_req: int = 1,
        host_indptr: Optional[Tensor] = None,
    ) -> None:
        if fixed_split_size is not None and fixed_split_size > 0 and not self._use_tensor_cores:
            raise ValueError("fixed_split_size is only supported with use_tensor_cores=True")
        if window_right not in (0, -1):
            unsupported(window_right=window_right)
        q_data_type = data_type if q_data_type is None else q_data_type
        kv_data_type = data_type if kv_data_type is None else kv_data_type
        batch_size = last_page_len.shape[0]
        qo_indptr = torch.arange(batch_size + 1, dtype=torch.int32) * q_len_per_req
        self._q_len_per_req = q_len_per_req
        self._plan_pages(
            qo_indptr,
            indptr,
            indices,
            last_page_len,
            None,
            num_qo_heads,
            num_kv_heads,
            head_dim,
            head_dim,
            page_size,
            mask="causal",
            pos_encoding_mode=pos_encoding_mode,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
            q_dtype=dtype_of(q_data_type),
            kv_dtype=dtype_of(q_data_type if kv_data_type is None else kv_data_type),
            o_dtype=None if o_data_type is None else dtype_of(o_data_type),
            total_q=batch_size * q_len_per_req,
            host_indptr=host_indptr,
            batch_invariant=is_batch_invariant(fixed_split_size, disable_split_kv),
        )

    begin_forward = plan

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
        q_len_per_req: Optional[int] = None,
        skip_softmax_threshold_scale_factor: Optional[float] = None,
        kv_cache_sf: Any = None,
    ) -> Any:
        """Attention of one layer: q [batch_size · q_len_per_req, num_qo_heads, head_dim]. Returns
        out, or (out, lse) with lse float32 [rows, num_qo_heads] of base 2.

        Raises ValueError for shapes and dtypes other than those of the plan."""
        unsupported(
            skip_softmax_threshold_scale_factor=skip_softmax_threshold_scale_factor,
            kv_cache_sf=kv_cache_sf,
            args=args or None,
        )
        if q_len_per_req not in (None, getattr(self, "_q_len_per_req", 1)):
            raise ValueError(
                f"q_len_per_req={q_len_per_req} differs from the plan's {self._q_len_per_req}"
            )
        return self._run_pages(
            q,
            paged_kv_cache,
            (q_scale, k_scale, v_scale),
            out,
            lse,
            return_lse,
            window_left,
            sinks,
        )

    run_return_lse = functools.partialmethod(run, return_lse=True)

    def forward(
        self,
        q: Tensor,
        paged_kv_cache: Any,
        pos_encoding_mode: str = "NONE",
        q_scale: Any = None,
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
        self._replan(pos_encoding_mode, window_left, logits_soft_cap, sm_scale)
        return self.run(
            q,
            paged_kv_cache,
            q_scale=q_scale,
            k_scale=k_scale,
            v_scale=v_scale,
            return_lse=return_lse,
        )

    forward_return_lse = functools.partialmethod(forward, return_lse=True)


class CUDAGraphBatchDecodeWithPagedKVCacheWrapper(BatchDecodeWithPagedKVCacheWrapper):
    """`BatchDecodeWithPagedKVCacheWrapper` over buffers of a fixed batch size."""

    def __init__(
        self,
        workspace_buffer: Tensor,
        indptr_buffer: Tensor,
        indices_buffer: Tensor,
        last_page_len_buffer: Tensor,
        kv_layout: str = "NHD",
        use_tensor_cores: bool = False,
    ) -> None:
        super().__init__(
            workspace_buffer,
            kv_layout,
            use_cuda_graph=True,
            use_tensor_cores=use_tensor_cores,
            paged_kv_indptr_buffer=indptr_buffer,
            paged_kv_indices_buffer=indices_buffer,
            paged_kv_last_page_len_buffer=last_page_len_buffer,
        )


def fast_decode_plan(
    self: BatchDecodeWithPagedKVCacheWrapper,
    indptr: Tensor,
    indices: Tensor,
    last_page_len: Tensor,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    pos_encoding_mode: str = "NONE",
    window_left: int = -1,
    logits_soft_cap: Optional[float] = None,
    q_data_type: Any = None,
    kv_data_type: Any = None,
    data_type: Any = None,
    sm_scale: Optional[float] = None,
    rope_scale: Optional[float] = None,
    rope_theta: Optional[float] = None,
    non_blocking: bool = True,
    fixed_split_size: Optional[int] = None,
    disable_split_kv: bool = False,
    q_len_per_req: int = 1,
    global_override_indptr_cpu: Optional[Tensor] = None,
) -> None:
    """`plan()` with a host copy of indptr, if there is one; without it the plan waits for the
    device (but under CUDA graphs, where it never does)."""
    self._plan(
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        pos_encoding_mode=pos_encoding_mode,
        window_left=window_left,
        logits_soft_cap=logits_soft_cap,
        q_data_type=q_data_type or data_type or "float16",
        kv_data_type=kv_data_type or data_type,
        sm_scale=sm_scale,
        fixed_split_size=fixed_split_size,
        disable_split_kv=disable_split_kv,
        q_len_per_req=q_len_per_req,
        host_indptr=global_override_indptr_cpu,
    )
