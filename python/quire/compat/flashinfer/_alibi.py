# SPDX-License-Identifier: Apache-2.0
"""What quire's kernels do not compute of FlashInfer's ALiBi, in torch.

FlashInfer counts queries from the first one of a request: s · sm_scale + slope · (key − query),
which goes on growing to the right of a query, and its soft cap takes that sum, scaled once more.
quire's bias falls on both sides of a query at the end of the keys and comes after the soft cap. For
causal queries without a soft cap the two give the same o; all else is done here, one request after
another, in float32: right, not fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from ..._spec import AttentionSpec
from ._checks import unsupported
from ._engine import LOG2E


class DenseAlibi:
    """ALiBi over the requests of a plan.

    Args:
      spec: Of the plan: its mask, window, scale and soft cap.
      slopes: float32 [num_qo_heads].
      qo_len, kv_len: int [num_seqs] on the host.
      full_mask: Bits and their byte offsets, of a spec whose mask is "full".
    """

    def __init__(
        self,
        spec: AttentionSpec,
        slopes: Tensor,
        qo_len: Tensor,
        kv_len: Tensor,
        full_mask: Optional[tuple[Tensor, Tensor]] = None,
    ) -> None:
        self._spec, self._slopes = spec, slopes
        self._lengths = list(zip(qo_len.tolist(), kv_len.tolist()))
        self._bits = full_mask[0] if full_mask is not None else None
        self._begins = full_mask[1].tolist() if full_mask is not None else []

    def is_needed(self, wants_lse: bool) -> bool:
        """Whether quire's kernels would give something else."""
        spec = self._spec
        return wants_lse or spec.mask != "causal" or spec.logits_soft_cap is not None

    def run(
        self,
        q: Tensor,
        keys_of: Callable[[int], tuple[Tensor, Tensor]],
        out: Optional[Tensor],
        out_dtype: Optional[torch.dtype],
        lse: Optional[Tensor],
        return_lse: bool,
        scales: tuple[Any, Any, Any] = (None, None, None),
    ) -> Any:
        """o, or (o, lse) with lse of base 2; `keys_of(i)` gives k and v of request i, [kv_len,
        num_kv_heads, head_dim] each."""
        unsupported(**dict(zip(("q_scale", "k_scale", "v_scale"), scales)))
        if out is None:
            shape = (*q.shape[:2], self._spec.head_dim_vo)
            out = torch.empty(shape, dtype=out_dtype or q.dtype, device=q.device)
        if lse is None:
            lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        row = 0
        for i, (rows, _) in enumerate(self._lengths):
            mine = slice(row, row + rows)
            o_i, lse_i = self._attend(i, q[mine], *keys_of(i))
            out[mine], lse[mine] = o_i.to(out.dtype), lse_i
            row += rows
        return (out, lse) if return_lse else out

    def _attend(self, i: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        spec, (rows, keys) = self._spec, self._lengths[i]
        k, v = (each.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
        at_q = torch.arange(rows, device=q.device)[:, None]
        at_k = torch.arange(keys, device=q.device)
        scale = spec.sm_scale or spec.head_dim_qk**-0.5
        scores = torch.einsum("mhd,nhd->hmn", q.float(), k) * scale
        scores += self._slopes[:, None, None] * (at_k - at_q)
        if spec.logits_soft_cap:
            scores = (scores * (scale / spec.logits_soft_cap)).tanh() * spec.logits_soft_cap
        visible = at_k <= at_q + (keys - rows) if spec.mask == "causal" else at_k >= 0
        if self._bits is not None:
            packed = self._bits[self._begins[i] : self._begins[i + 1], None].to(q.device)
            bits = packed >> torch.arange(8, device=q.device) & 1
            visible = bits.flatten()[: rows * keys].view(rows, keys).bool()
        if spec.window_left >= 0:
            visible = visible & (at_k + rows + spec.window_left >= keys + at_q)
        scores.masked_fill_(~visible, float("-inf"))
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp_().nan_to_num_(0.0)  # rows that see no key
        return torch.einsum("hmn,nhd->mhd", weights, v), (lse * LOG2E).T
