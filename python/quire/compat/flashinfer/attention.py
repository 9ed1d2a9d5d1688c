# SPDX-License-Identifier: Apache-2.0
"""Mixed batches in one call."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from ._checks import dtype_of, unsupported
from ._paged import PagedWrapper


class BatchAttention(PagedWrapper):
    """Prefill, append and decode together; lengths come as such, not as a last page."""

    def __init__(self, kv_layout: str = "NHD", device: Any = "cuda") -> None:
        empty = torch.empty(0, dtype=torch.uint8, device=device)
        super().__init__(empty, kv_layout, False, "auto", None)

    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_len_arr: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        causal: bool = False,
        sm_scale: Optional[float] = None,
        logits_soft_cap: Optional[float] = None,
        q_data_type: Any = torch.bfloat16,
        kv_data_type: Any = torch.bfloat16,
        use_profiler: bool = False,
    ) -> None:
        """Describes the batch; kv_len_arr int32 [batch_size] counts keys, the new ones included."""
        unsupported(use_profiler=use_profiler)
        self._plan_pages(
            qo_indptr,
            kv_indptr,
            kv_indices,
            None,
            kv_len_arr,
            num_qo_heads,
            num_kv_heads,
            head_dim_qk,
            head_dim_vo,
            page_size,
            mask="causal" if causal else "none",
            pos_encoding_mode="NONE",
            window_left=-1,
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
            q_dtype=dtype_of(q_data_type),
            kv_dtype=dtype_of(kv_data_type),
            o_dtype=None,
        )

    def run(
        self,
        q: Tensor,
        kv_cache: Any,
        out: Optional[Tensor] = None,
        lse: Optional[Tensor] = None,
        k_scale: Any = None,
        v_scale: Any = None,
        logits_soft_cap: float = 0.0,
        profiler_buffer: Optional[Tensor] = None,
        kv_cache_sf: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """(out, lse), lse of base 2. The soft cap is that of the plan.

        Raises ValueError for a soft cap that was not planned."""
        unsupported(profiler_buffer=profiler_buffer, kv_cache_sf=kv_cache_sf)
        planned = self._planned[0].logits_soft_cap or 0.0
        if logits_soft_cap > 0.0 and planned != logits_soft_cap:
            raise ValueError(
                f"logits_soft_cap: expected the plan's {planned}, got {logits_soft_cap} in run()"
            )
        result: tuple[Tensor, Tensor] = self._run_pages(
            q, kv_cache, (None, k_scale, v_scale), out, lse, True
        )
        return result
