# SPDX-License-Identifier: Apache-2.0
"""What wrappers over paged KV caches have in common."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import torch
from torch import Tensor

from ..._batch import Batch
from ..._spec import AttentionSpec
from ._alibi import DenseAlibi
from ._checks import (
    alibi_slopes,
    check_backend,
    check_dtypes,
    check_layout,
    check_positions,
    check_workspace,
    check_written,
    make_spec,
    unpack_pages,
    unsupported,
)
from ._engine import Engine, limits_of


class Wrapper:
    """A layout, a workspace and the engine in it."""

    def __init__(
        self,
        workspace: Tensor,
        kv_layout: str,
        use_cuda_graph: bool,
        backend: str,
        jit_args: Any,
        jit_kwargs: Any = None,
    ) -> None:
        check_layout(kv_layout)
        check_backend(backend)
        unsupported(jit_args=jit_args, jit_kwargs=jit_kwargs)
        check_workspace(workspace)
        self._kv_layout = kv_layout
        self._use_cuda_graph = use_cuda_graph
        self.device = workspace.device
        self._float_workspace_buffer = workspace
        self._engine = Engine(workspace, workspace.device, use_cuda_graph)
        self._backend = backend
        self._plan_info: Optional[list[int]] = None

    @property
    def is_cuda_graph_enabled(self) -> bool:
        """Whether it works in buffers of a fixed size."""
        return self._use_cuda_graph

    def reset_workspace_buffer(
        self, float_workspace_buffer: Tensor, int_workspace_buffer: Optional[Tensor] = None
    ) -> None:
        """Takes another workspace from the next `plan()` on."""
        check_workspace(float_workspace_buffer)
        if int_workspace_buffer is not None:
            check_workspace(int_workspace_buffer, "int_workspace_buffer")
        self._float_workspace_buffer = float_workspace_buffer
        self._engine.forget_scratch(float_workspace_buffer)

    def end_forward(self) -> None:
        """Nothing: kept for code of older versions."""

    def _on_device(self, tensor: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
        return tensor.to(self.device, dtype, non_blocking=True)

    def _filled(self, buffer: Optional[Tensor], values: Tensor, name: str) -> Tensor:
        """`values` on the device: in the caller's buffer, where a CUDA graph reads them."""
        if buffer is None:
            return self._on_device(values)
        if values.shape[0] > buffer.shape[0]:
            raise ValueError(
                f"The size of {name} should be less than or equal to the allocated buffer: "
                f"expected at most {buffer.shape[0]}, got {values.shape[0]}"
            )
        buffer[: values.shape[0]].copy_(values, non_blocking=True)
        return buffer


class PagedWrapper(Wrapper):
    """A wrapper over a CSR page table."""

    _qo_indptr_buf: Optional[Tensor] = None
    _indptr_buf: Optional[Tensor] = None
    _indices_buf: Optional[Tensor] = None
    _last_page_len_buf: Optional[Tensor] = None
    _total_q: int = 0
    _most_q: int = 0

    def _take_buffers(
        self,
        qo_indptr: Optional[Tensor],
        indptr: Optional[Tensor],
        indices: Optional[Tensor],
        last_page_len: Optional[Tensor],
    ) -> None:
        if not self._use_cuda_graph:
            return
        for name, buffer in (
            ("paged_kv_indptr", indptr),
            ("paged_kv_indices", indices),
            ("paged_kv_last_page_len", last_page_len),
        ):
            if not isinstance(buffer, Tensor):
                raise ValueError(f"{name}_buffer should be a torch.Tensor in cudagraph mode")
        assert indptr is not None and last_page_len is not None
        self._fixed_batch_size = last_page_len.shape[0]
        if indptr.shape[0] != self._fixed_batch_size + 1:
            raise ValueError("The size of paged_kv_indptr_buffer should be batch_size + 1")
        self._qo_indptr_buf, self._indptr_buf = qo_indptr, indptr
        self._indices_buf, self._last_page_len_buf = indices, last_page_len

    def _plan_pages(
        self,
        qo_indptr: Tensor,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Optional[Tensor],
        kv_len: Optional[Tensor],
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        *,
        mask: str,
        pos_encoding_mode: str,
        window_left: int,
        logits_soft_cap: Optional[float],
        sm_scale: Optional[float],
        q_dtype: torch.dtype,
        kv_dtype: torch.dtype,
        o_dtype: Optional[torch.dtype],
        total_q: Optional[int] = None,
        host_indptr: Optional[Tensor] = None,
        full_mask: Optional[tuple[Tensor, Tensor]] = None,
        batch_invariant: bool = False,
    ) -> None:
        check_positions(pos_encoding_mode)
        batch_size = indptr.shape[0] - 1
        if self._use_cuda_graph and batch_size != self._fixed_batch_size:
            raise ValueError(
                "The batch size should be fixed in cudagraph mode, the runtime batch size "
                f"{batch_size} mismatches the batch size set during initialization "
                f"{self._fixed_batch_size}"
            )
        if total_q is None:
            total_q = int(qo_indptr[-1])
        if self._use_cuda_graph:
            assert self._indices_buf is not None
            max_kv_len = self._indices_buf.shape[0] * page_size
        else:
            host = indptr.cpu() if host_indptr is None else host_indptr
            max_kv_len = int((host[1:] - host[:-1]).max()) * page_size if batch_size else 0
        # A captured graph holds grids and addresses of the first plan: later ones keep its limits.
        self._most_q = max(self._most_q, total_q) if self._use_cuda_graph else total_q
        self._total_q, self._page_size = total_q, page_size
        self._q_dtype, self._kv_dtype, self._o_dtype = q_dtype, kv_dtype, o_dtype
        self._head_dim_vo = head_dim_vo
        self._alibi = (
            alibi_slopes(num_qo_heads, self.device) if pos_encoding_mode == "ALIBI" else None
        )
        spec = make_spec(
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim_qk=head_dim_qk,
            head_dim_vo=head_dim_vo,
            q_dtype=q_dtype,
            kv_dtype=kv_dtype,
            kv_layout=self._kv_layout,
            page_size=page_size,
            mask="full" if full_mask is not None else mask,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
            batch_invariant=batch_invariant,
        )
        self._dense: Optional[DenseAlibi] = None
        if self._alibi is not None:
            spec = dataclasses.replace(spec, alibi=True)
            self._plan_alibi(spec, qo_indptr, indptr, indices, last_page_len, kv_len, full_mask)
        lengths: dict[str, Optional[Tensor]] = {}
        if last_page_len is not None:
            lengths["kv_last_page_len"] = self._filled(
                self._last_page_len_buf, last_page_len, "last_page_len"
            )
        if kv_len is not None:
            lengths["kv_len"] = self._on_device(kv_len)
        masks = {} if full_mask is None else {"full_mask": full_mask[0]}
        if full_mask is not None:
            masks["full_mask_indptr"] = self._on_device(full_mask[1], torch.int64)
        batch = Batch(
            self._filled(self._qo_indptr_buf, qo_indptr, "qo_indptr")
            if self._qo_indptr_buf is not None
            else self._qo_rows(qo_indptr),
            kv_page_indptr=self._filled(self._indptr_buf, indptr, "indptr"),
            kv_page_indices=self._filled(self._indices_buf, indices, "indices"),
            **lengths,
            **masks,
        )
        self._planned = (spec, batch, limits_of(batch_size, self._most_q, max_kv_len))
        self._engine.plan(*self._planned)
        self._plan_info = [batch_size, total_q, page_size]

    def _plan_alibi(
        self,
        spec: AttentionSpec,
        qo_indptr: Tensor,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Optional[Tensor],
        kv_len: Optional[Tensor],
        full_mask: Optional[tuple[Tensor, Tensor]],
    ) -> None:
        assert self._alibi is not None
        if self._use_cuda_graph:
            if spec.mask != "causal" or spec.logits_soft_cap is not None:
                raise NotImplementedError("ALIBI under CUDA graphs: causal, without a soft cap")
            return
        pages = indptr[1:].cpu() - indptr[:-1].cpu()
        if kv_len is None:
            assert last_page_len is not None
            kv_len = (pages - 1).clamp(min=0) * self._page_size + last_page_len.cpu()
        kv_len = kv_len.cpu() * (pages > 0)
        counts = [*pages.tolist(), len(indices) - int(pages.sum())]
        self._pages_of = torch.split(self._on_device(indices, torch.int64), counts)
        self._kv_len = kv_len.tolist()
        qo_len = qo_indptr[1:].cpu() - qo_indptr[:-1].cpu()
        self._dense = DenseAlibi(spec, self._alibi, qo_len, kv_len, full_mask)

    def _qo_rows(self, qo_indptr: Tensor) -> Tensor:
        """qo_indptr on the device; under CUDA graphs always in the same place."""
        if not self._use_cuda_graph:
            return self._on_device(qo_indptr)
        known: Optional[Tensor] = getattr(self, "_own_qo_indptr", None)
        if known is None or known.shape != qo_indptr.shape:
            self._own_qo_indptr = known = self._on_device(qo_indptr)
        else:
            known.copy_(qo_indptr, non_blocking=True)
        return known

    def _replan(
        self,
        pos_encoding_mode: str,
        window_left: int,
        logits_soft_cap: Optional[float],
        sm_scale: Optional[float],
        causal: bool = True,
    ) -> None:
        check_positions(pos_encoding_mode)
        if (pos_encoding_mode == "ALIBI") != (self._alibi is not None):
            raise NotImplementedError("ALIBI is planned, not given to forward() alone")
        spec, batch, limits = self._planned
        spec = dataclasses.replace(
            spec,
            window_left=max(window_left, -1),
            logits_soft_cap=logits_soft_cap if (logits_soft_cap or 0.0) > 0 else None,
            sm_scale=spec.head_dim_qk**-0.5 if sm_scale is None else sm_scale,
            mask=spec.mask if spec.mask == "full" else "causal" if causal else "none",
        )
        if spec != self._planned[0]:
            self._planned = (spec, batch, limits)
            self._engine.plan(*self._planned)

    def _run_pages(
        self,
        q: Tensor,
        paged_kv_cache: Any,
        scales: tuple[Any, Any, Any],
        out: Optional[Tensor],
        lse: Optional[Tensor],
        return_lse: bool,
        window_left: Optional[int] = None,
        sinks: Optional[Tensor] = None,
        natural: bool = False,
    ) -> Any:
        if self._plan_info is None:
            raise RuntimeError("plan() must be called before run()")
        k, v = unpack_pages(paged_kv_cache, self._kv_layout)
        check_dtypes(q, k, self._q_dtype, self._kv_dtype)
        if window_left is not None:
            assert max(window_left, -1) == self._planned[0].window_left, (
                f"window_left {window_left} differs from the plan's"
            )
        if q.shape[0] != self._total_q:
            raise ValueError(
                f"q.shape[0] ({q.shape[0]}) does not match the {self._total_q} rows of the plan"
            )
        o_dtype = self._o_dtype or (out.dtype if out is not None else None)
        o_dtype = o_dtype or (torch.float16 if q.dtype.itemsize == 1 else q.dtype)
        check_written(out, (*q.shape[:-1], self._head_dim_vo), o_dtype, q, "out")
        check_written(lse, q.shape[:2], torch.float32, q, "lse")
        wants_lse = return_lse or lse is not None
        if self._dense is not None and self._dense.is_needed(wants_lse):

            def keys_of(i: int) -> tuple[Tensor, Tensor]:
                rows = [each[self._pages_of[i]] for each in (k, v)]
                if self._kv_layout == "HND":
                    rows = [each.transpose(1, 2) for each in rows]
                k_rows, v_rows = (each.flatten(0, 1)[: self._kv_len[i]] for each in rows)
                return k_rows, v_rows

            return self._dense.run(q, keys_of, out, o_dtype, lse, return_lse, scales)
        if self._alibi is not None and wants_lse:
            raise NotImplementedError("lse with ALIBI under CUDA graphs")
        return self._engine.run(
            q,
            k,
            v,
            scales=scales,
            out=out,
            out_dtype=o_dtype,
            lse=lse,
            return_lse=return_lse,
            natural=natural,
            sinks=sinks,
            alibi_slopes=self._alibi,
        )

    def workspace_size(self, *args: Any, **options: Any) -> tuple[int, int]:
        """Bytes of (float, int) workspaces that serve any batch: quire takes memory of its own
        where the float workspace is too small, and needs no int workspace."""
        return 16, 16
