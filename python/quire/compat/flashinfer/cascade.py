# SPDX-License-Identifier: Apache-2.0
"""States of attention over parts of the keys, and wrappers that merge them."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from ..._operations import merge_states as _merge
from ._checks import check_layout, dtype_of
from ._engine import LOG2E
from .decode import BatchDecodeWithPagedKVCacheWrapper
from .prefill import BatchPrefillWithPagedKVCacheWrapper, single_prefill_with_kv_cache


def merge_states(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Merges v [n, num_states, num_heads, head_dim] and s [n, num_states, num_heads], of base 2,
    into [n, num_heads, head_dim] and float32 [n, num_heads]."""
    o, lse = _merge(v.transpose(0, 1).contiguous(), s.float().transpose(0, 1).contiguous() / LOG2E)
    return o, lse * LOG2E


def merge_state(v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merges two states: v [n, num_heads, head_dim], s [n, num_heads] of base 2."""
    return merge_states(torch.stack((v_a, v_b), 1), torch.stack((s_a.float(), s_b.float()), 1))


def merge_state_in_place(
    v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor, mask: Optional[Tensor] = None
) -> None:
    """Merges another state into (v, s), in rows where `mask`, bool [n], is true if it is given."""
    o, lse = merge_state(v, s, v_other, s_other)
    if mask is not None:
        keep = mask.bool().logical_not()
        o = torch.where(keep.view(-1, 1, 1), v, o)
        lse = torch.where(keep.view(-1, 1), s.float(), lse)
    v.copy_(o)
    s.copy_(lse)


class MultiLevelCascadeAttentionWrapper:
    """Attention over levels of shared prefixes, from the root to the requests' own keys. Causal
    holds on the last level; the others are seen whole."""

    def __init__(
        self,
        num_levels: int,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf_arr: Optional[list[Tensor]] = None,
        paged_kv_indptr_buf_arr: Optional[list[Tensor]] = None,
        paged_kv_indices_buf_arr: Optional[list[Tensor]] = None,
        paged_kv_last_page_len_buf_arr: Optional[list[Tensor]] = None,
    ) -> None:
        check_layout(kv_layout)

        def buffer(array: Optional[list[Tensor]], level: int) -> Optional[Tensor]:
            if not use_cuda_graph:
                return None
            if array is None or len(array) != num_levels:
                raise ValueError(f"expected {num_levels} buffers of each kind in cudagraph mode")
            return array[level]

        self._levels = [
            BatchPrefillWithPagedKVCacheWrapper(
                float_workspace_buffer,
                kv_layout,
                use_cuda_graph,
                qo_indptr_buf=buffer(qo_indptr_buf_arr, level),
                paged_kv_indptr_buf=buffer(paged_kv_indptr_buf_arr, level),
                paged_kv_indices_buf=buffer(paged_kv_indices_buf_arr, level),
                paged_kv_last_page_len_buf=buffer(paged_kv_last_page_len_buf_arr, level),
            )
            for level in range(num_levels)
        ]
        self._use_cuda_graph = use_cuda_graph

    @property
    def is_cuda_graph_enabled(self) -> bool:
        """Whether it works in buffers of a fixed size."""
        return self._use_cuda_graph

    def reset_workspace_buffer(
        self, float_workspace_buffer: Tensor, int_workspace_buffers: Any = None
    ) -> None:
        """Takes another workspace from the next `plan()` on."""
        for level in self._levels:
            level.reset_workspace_buffer(float_workspace_buffer)

    def plan(
        self,
        qo_indptr_arr: list[Tensor],
        paged_kv_indptr_arr: list[Tensor],
        paged_kv_indices_arr: list[Tensor],
        paged_kv_last_page_len: list[Tensor],
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
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
    ) -> None:
        """Describes the levels, from the root on, each as a paged prefill does.

        Raises NotImplementedError for positions and windows, which end at no level's boundary."""
        if (window_left >= 0 or pos_encoding_mode == "ALIBI") and len(self._levels) > 1:
            raise NotImplementedError("windows and ALIBI over several levels: run the flat batch")
        levels = zip(
            self._levels,
            qo_indptr_arr,
            paged_kv_indptr_arr,
            paged_kv_indices_arr,
            paged_kv_last_page_len,
        )
        for wrapper, qo_indptr, indptr, indices, last_page_len in levels:
            wrapper.plan(
                qo_indptr,
                indptr,
                indices,
                last_page_len,
                num_qo_heads,
                num_kv_heads,
                head_dim,
                page_size,
                causal=causal and wrapper is self._levels[-1],
                pos_encoding_mode=pos_encoding_mode,
                sm_scale=sm_scale,
                window_left=window_left,
                logits_soft_cap=logits_soft_cap,
                q_data_type=q_data_type,
                kv_data_type=kv_data_type,
                o_data_type="float32",
            )
        self._o_dtype = dtype_of(q_data_type)

    begin_forward = plan

    def run(self, q: Tensor, paged_kv_cache: Any) -> Tensor:
        """o, of q's shape. Parts are merged in float32."""
        parts = [
            wrapper._run_pages(
                q, paged_kv_cache, (None, None, None), None, None, True, natural=True
            )
            for wrapper in self._levels
        ]
        if len(parts) == 1:
            only: Tensor = parts[0][0]
            return only.to(self._o_dtype)
        o, _ = _merge(torch.stack([o for o, _ in parts]), torch.stack([lse for _, lse in parts]))
        merged: Tensor = o
        return merged.to(self._o_dtype)

    forward = run

    def end_forward(self) -> None:
        """Nothing: kept for code of older versions."""


class BatchDecodeWithSharedPrefixPagedKVCacheWrapper:
    """Decode over a dense prefix that all requests share and pages of their own."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        self._kv_layout = kv_layout
        self._unique = BatchDecodeWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout)

    def reset_workspace_buffer(
        self, float_workspace_buffer: Tensor, int_workspace_buffer: Optional[Tensor] = None
    ) -> None:
        """Takes another workspace from the next `begin_forward()` on."""
        self._unique.reset_workspace_buffer(float_workspace_buffer)

    def begin_forward(
        self,
        unique_kv_indptr: Tensor,
        unique_kv_indices: Tensor,
        unique_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        data_type: Any = "float16",
    ) -> None:
        """Describes the requests' own keys, as `BatchDecodeWithPagedKVCacheWrapper.plan`."""
        self._unique.plan(
            unique_kv_indptr,
            unique_kv_indices,
            unique_kv_last_page_len,
            num_qo_heads,
            num_kv_heads,
            head_dim,
            page_size,
            data_type=data_type,
        )

    def forward(
        self, q: Tensor, k_shared: Tensor, v_shared: Tensor, unique_kv_cache: Any
    ) -> Tensor:
        """o of q [batch_size, num_qo_heads, head_dim]; k_shared, v_shared [n, num_kv_heads,
        head_dim]."""
        return _with_shared(
            q, k_shared, v_shared, self._unique.run(q, unique_kv_cache, return_lse=True), None
        )

    def end_forward(self) -> None:
        """Nothing: kept for code of older versions."""


class BatchPrefillWithSharedPrefixPagedKVCacheWrapper:
    """Prefill over a dense prefix that all requests share and pages of their own."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        self._unique = BatchPrefillWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout)

    def reset_workspace_buffer(
        self, float_workspace_buffer: Tensor, int_workspace_buffer: Optional[Tensor] = None
    ) -> None:
        """Takes another workspace from the next `begin_forward()` on."""
        self._unique.reset_workspace_buffer(float_workspace_buffer)

    def begin_forward(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
    ) -> None:
        """Describes the requests' own keys; q and the cache are float16, as there."""
        self._unique.plan(
            qo_indptr,
            paged_kv_indptr,
            paged_kv_indices,
            paged_kv_last_page_len,
            num_qo_heads,
            num_kv_heads,
            head_dim,
            page_size,
        )

    def forward(
        self,
        q: Tensor,
        k_shared: Tensor,
        v_shared: Tensor,
        unique_kv_cache: Any,
        causal: bool = False,
        use_fp16_qk_reduction: bool = False,
        sm_scale: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
    ) -> Tensor:
        """o of q [rows, num_qo_heads, head_dim]; causal holds among the requests' own keys."""
        own = self._unique.forward_return_lse(q, unique_kv_cache, causal=causal, sm_scale=sm_scale)
        return _with_shared(q, k_shared, v_shared, own, sm_scale)

    def end_forward(self) -> None:
        """Nothing: kept for code of older versions."""


def _with_shared(
    q: Tensor,
    k_shared: Tensor,
    v_shared: Tensor,
    own: tuple[Tensor, Tensor],
    sm_scale: Optional[float],
) -> Tensor:
    shared = single_prefill_with_kv_cache(q, k_shared, v_shared, sm_scale=sm_scale, return_lse=True)
    return merge_state(shared[0], shared[1], own[0], own[1])[0]
