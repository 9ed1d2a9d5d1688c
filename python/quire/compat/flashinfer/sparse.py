# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention: a row of blocks is a request whose pages are the row's blocks of keys."""

from __future__ import annotations

import functools
from typing import Any, Optional

import torch
from torch import Tensor

from ..._batch import Batch
from ._checks import check_dtypes, check_positions, check_written, dtype_of, make_spec, unsupported
from ._engine import limits_of
from ._paged import Wrapper
from .prefill import _mask_name, _packed_mask


def _indptr(lengths: Tensor) -> Tensor:
    """int32 [n + 1]: where each of the pieces of these lengths begins, and their end."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def _flat_mask(mask: Tensor, indptr: Tensor, num_rows: Tensor) -> Tensor:
    """A mask over blocks, bool [nnz, R, C], request by request: rows of a row of blocks, then its
    keys. The last row of blocks may have fewer than R rows."""
    _, block_rows, block_columns = mask.shape
    blocks = indptr[1:] - indptr[:-1]
    width = blocks * block_columns
    begin = _indptr(width * num_rows).long()
    row_of = torch.repeat_interleave(torch.arange(len(blocks)), blocks)
    nth = torch.arange(mask.shape[0]) - indptr[:-1][row_of]
    r, c = torch.arange(block_rows)[None, :, None], torch.arange(block_columns)[None, None, :]
    at = (begin[row_of] + nth * block_columns)[:, None, None] + r * width[row_of, None, None] + c
    kept = (r < num_rows[row_of, None, None]).expand_as(at)
    flat = torch.zeros(int(begin[-1]), dtype=torch.bool)
    flat[at[kept]] = mask.cpu().bool()[kept]
    return flat


class _SparseWrapper(Wrapper):
    def __init__(self, float_workspace_buffer: Tensor, backend: str = "auto") -> None:
        super().__init__(float_workspace_buffer, "NHD", False, backend, None)

    def _plan_blocks(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        page_size: int,
        mask: tuple[str, Optional[tuple[Tensor, Tensor]]],
        num_heads: tuple[int, int],
        head_dim: int,
        dtypes: tuple[torch.dtype, torch.dtype],
        logits_soft_cap: Optional[float],
        sm_scale: Optional[float],
    ) -> None:
        self._q_dtype, self._kv_dtype = dtypes
        name, bits = mask
        spec = make_spec(
            num_qo_heads=num_heads[0],
            num_kv_heads=num_heads[1],
            head_dim_qk=head_dim,
            q_dtype=dtypes[0],
            kv_dtype=dtypes[1],
            page_size=page_size,
            mask=name if bits is None else "full",
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
        )
        masks = {}
        if bits is not None:
            masks = {
                "full_mask": self._on_device(bits[0], torch.uint8),
                "full_mask_indptr": self._on_device(bits[1], torch.int64),
            }
        blocks = kv_indptr[1:] - kv_indptr[:-1]
        batch = Batch(
            self._on_device(qo_indptr),
            kv_len=self._on_device(blocks * page_size),
            kv_page_indptr=self._on_device(kv_indptr),
            kv_page_indices=self._on_device(kv_indices),
            **masks,
        )
        most = int(blocks.max()) * page_size if len(blocks) else 0
        self._engine.plan(spec, batch, limits_of(len(blocks), int(qo_indptr[-1]), most))
        self._plan_info = [len(blocks), int(qo_indptr[-1]), page_size]

    def workspace_size(self, *args: Any, **options: Any) -> tuple[int, int]:
        """As `BatchPrefillWithPagedKVCacheWrapper.workspace_size`."""
        return 16, 16


class BlockSparseAttentionWrapper(_SparseWrapper):
    """Attention through a mask of blocks: a matrix [M, N] in SciPy's BSR form, blocks [R, C]."""

    def plan(
        self,
        indptr: Optional[Tensor],
        indices: Optional[Tensor],
        M: int,  # noqa: N803
        N: int,  # noqa: N803
        R: int,  # noqa: N803
        C: int,  # noqa: N803
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        mask: Optional[Tensor] = None,
        packed_mask: Optional[Tensor] = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        logits_soft_cap: Optional[float] = None,
        sm_scale: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = "float16",
        non_blocking: bool = True,
        block_mask: Optional[Tensor] = None,
    ) -> None:
        """Describes the mask: indptr int32 [ceil(M / R) + 1] and indices int32 [nnz] of blocks, and
        within them, if they are not full, mask bool [nnz, R, C] or its packed form, row of blocks
        by row of blocks. Causal is aligned to the end of the keys that a row of blocks sees.

        Raises ValueError for blocks outside of the matrix, or an N that is no multiple of C,
        NotImplementedError for what quire does not serve."""
        unsupported(block_mask=block_mask)
        check_positions(pos_encoding_mode)
        if pos_encoding_mode == "ALIBI":
            raise NotImplementedError("ALIBI over blocks: keys have no distance there")
        if indptr is None or indices is None:
            raise ValueError("indptr and indices are required")
        if len(indptr) != -(-M // R) + 1 or N % C != 0:
            raise ValueError(
                f"expected indptr of {-(-M // R) + 1} and N a multiple of {C}, got indptr of "
                f"{len(indptr)} and N = {N}"
            )
        host, num_rows = indptr.cpu(), torch.full((len(indptr) - 1,), R, dtype=torch.int32)
        num_rows[-1:] = M - R * (len(num_rows) - 1)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < N // C:
            raise ValueError("indices out of bound")
        if mask is not None and packed_mask is None:
            mask = _flat_mask(mask, host, num_rows)
        bits = _packed_mask(mask, packed_mask, num_rows, (host[1:] - host[:-1]) * C)
        self._o_dtype, self._page_size, self._shape = dtype_of(o_data_type), C, (M, N)
        q_dtype = dtype_of(q_data_type)
        self._plan_blocks(
            _indptr(num_rows),
            host,
            indices,
            C,
            (_mask_name(causal), bits),
            (num_qo_heads, num_kv_heads),
            head_dim,
            (q_dtype, q_dtype if kv_data_type is None else dtype_of(kv_data_type)),
            logits_soft_cap,
            sm_scale,
        )

    begin_forward = plan

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale_q: Any = None,
        scale_k: Any = None,
        scale_v: Any = None,
        out: Optional[Tensor] = None,
        lse: Optional[Tensor] = None,
        return_lse: bool = False,
        enable_pdl: Optional[bool] = None,
    ) -> Any:
        """Attention of one layer: q [M, num_qo_heads, head_dim], k and v [N, num_kv_heads,
        head_dim]. Returns out, or (out, lse) with lse float32 [M, num_qo_heads] of base 2.

        Raises ValueError for shapes and dtypes other than those of the plan."""
        if self._plan_info is None:
            raise RuntimeError("plan() must be called before run()")
        check_dtypes(q, k, self._q_dtype, self._kv_dtype)
        if (q.shape[0], k.shape[0]) != self._shape:
            raise ValueError(f"expected {self._shape} rows of q and k, got {(len(q), len(k))}")
        check_written(out, q.shape, self._o_dtype, q, "out")
        check_written(lse, q.shape[:2], torch.float32, q, "lse")
        return self._engine.run(
            q,
            k.reshape(-1, self._page_size, *k.shape[1:]),
            v.reshape(-1, self._page_size, *v.shape[1:]),
            scales=(scale_q, scale_k, scale_v),
            out=out,
            out_dtype=self._o_dtype,
            lse=lse,
            return_lse=return_lse,
        )

    run_return_lse = functools.partialmethod(run, return_lse=True)


class VariableBlockSparseAttentionWrapper(_SparseWrapper):
    """Attention through a mask of blocks of any sizes, another one for each kv head."""

    def plan(
        self,
        block_mask_map: Tensor,
        block_row_sz: Tensor,
        block_col_sz: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        logits_soft_cap: Optional[float] = None,
        sm_scale: Optional[float] = None,
        rope_scale: Optional[float] = None,
        rope_theta: Optional[float] = None,
        non_blocking: bool = True,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
    ) -> None:
        """Describes the mask: block_mask_map bool [num_kv_heads, rows, columns] of blocks, whose
        heights are block_row_sz int32 [num_kv_heads, rows] and widths block_col_sz int32
        [num_kv_heads, columns].

        Raises ValueError for shapes that do not agree, NotImplementedError for what quire does not
        serve."""
        check_positions(pos_encoding_mode)
        if pos_encoding_mode == "ALIBI":
            raise NotImplementedError("ALIBI over blocks: keys have no distance there")
        seen = block_mask_map.bool()
        heights, widths = block_row_sz.to(seen.device), block_col_sz.to(seen.device)
        expected = (num_kv_heads, heights.shape[-1], widths.shape[-1])
        kv_len = int(widths[0].sum())
        sums = [each.sum(1).tolist() for each in (heights, widths)]
        if tuple(seen.shape) != expected or any(len(set(each)) != 1 for each in sums):
            raise ValueError(
                f"expected a map of {expected} blocks and as many queries and keys for every head, "
                f"got {tuple(seen.shape)}, heights of {sums[0]} and widths of {sums[1]}"
            )
        # Heads lie behind one another: the keys of head h begin at h · kv_len.
        counts, keys = [], []
        for head in range(num_kv_heads):
            visible = seen[head].repeat_interleave(widths[head], dim=1)
            counts.append(visible.sum(1))
            keys.append(visible.nonzero()[:, 1] + head * kv_len)
        self._num_kv_heads = num_kv_heads
        self._o_dtype = q_dtype = dtype_of(q_data_type)
        self._plan_blocks(
            _indptr(heights.flatten()).cpu(),
            _indptr(torch.cat(counts)).cpu(),
            torch.cat(keys),
            1,
            (_mask_name(causal), None),
            (num_qo_heads // num_kv_heads, 1),
            head_dim,
            (q_dtype, q_dtype if kv_data_type is None else dtype_of(kv_data_type)),
            logits_soft_cap,
            sm_scale,
        )

    begin_forward = plan

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Optional[Tensor] = None,
        lse: Optional[Tensor] = None,
        return_lse: bool = False,
        enable_pdl: Optional[bool] = None,
    ) -> Any:
        """Attention of one layer: q [num_qo_heads, qo_len, head_dim], k and v [num_kv_heads,
        kv_len, head_dim]. Returns o of q's shape, or (o, lse) with lse float32 [num_qo_heads,
        qo_len] of base 2.

        Raises ValueError for dtypes other than those of the plan."""
        unsupported(out=out, lse=lse)
        if self._plan_info is None:
            raise RuntimeError("plan() must be called before run()")
        check_dtypes(q, k, self._q_dtype, self._kv_dtype)
        num_heads, qo_len, head_dim = q.shape
        by_head = q.view(self._num_kv_heads, -1, qo_len, head_dim).transpose(1, 2)
        result = self._engine.run(
            by_head.reshape(self._num_kv_heads * qo_len, -1, head_dim),
            k.reshape(-1, 1, 1, head_dim),
            v.reshape(-1, 1, 1, head_dim),
            out_dtype=self._o_dtype,
            return_lse=return_lse,
        )
        o, found = result if return_lse else (result, None)
        o = o.view(self._num_kv_heads, qo_len, -1, head_dim).transpose(1, 2)
        o = o.reshape(num_heads, qo_len, head_dim)
        if found is None:
            return o
        found = found.view(self._num_kv_heads, qo_len, -1).transpose(1, 2)
        return o, found.reshape(num_heads, qo_len)

    run_return_lse = functools.partialmethod(run, return_lse=True)
