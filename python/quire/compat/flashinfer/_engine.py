# SPDX-License-Identifier: Apache-2.0
"""What all wrappers share: a planned batch, run by the `Attention` that its spec asks for."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Optional

import torch
from torch import Tensor

from ... import _errors as errors
from ..._attention import Attention, Schedule, Workspaces
from ..._batch import Batch
from ..._spec import AttentionSpec, BatchLimits

_ALIGNMENT = 256
LOG2E = math.log2(math.e)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@functools.lru_cache(maxsize=256)
def _attention(spec: AttentionSpec, limits: BatchLimits, device: str) -> Attention:
    try:
        return Attention(spec, limits, device=device)
    except errors.Unsupported as error:
        raise NotImplementedError(str(error)) from None


def _aligned(block: Tensor, nbytes: int) -> Optional[Tensor]:
    """`nbytes` of a block of bytes, from an aligned address; None if it does not hold them."""
    skipped = -block.data_ptr() % _ALIGNMENT
    return block[skipped : skipped + nbytes] if block.numel() >= skipped + nbytes else None


def _empty_bytes(nbytes: int, device: torch.device) -> Tensor:
    block = _aligned(torch.empty(nbytes + _ALIGNMENT, dtype=torch.uint8, device=device), nbytes)
    assert block is not None
    return block


def limits_of(num_seqs: int, total_q: int, kv_len: int) -> BatchLimits:
    """Limits that hold the batch, rounded up so that few are ever made."""

    def up(size: int, least: int) -> int:
        return max(least, 1 << max(size - 1, 0).bit_length())

    return BatchLimits(up(num_seqs, 16), up(total_q, 64), up(kv_len, 1024))


class Engine:
    """A planned batch of one spec. Scratch lies in the caller's workspace if that holds it; what a
    plan writes lies in memory of the engine's own, which outlives re-plans under CUDA graphs.

    Args:
      scratch: uint8, may be shared by wrappers that run one after another; None allocates.
      device: Of everything.
      is_captured: Whether runs may be captured in CUDA graphs, which make no schedule: a plan
        then renews every schedule that a run has used.
    """

    def __init__(
        self, scratch: Optional[Tensor], device: torch.device, is_captured: bool = False
    ) -> None:
        self._is_captured = is_captured
        self.scratch = None if scratch is None else scratch.view(-1).view(torch.uint8)
        self.device = device
        self.spec: Optional[AttentionSpec] = None
        self._limits: Optional[BatchLimits] = None
        self._workspaces: dict[tuple[AttentionSpec, BatchLimits], Workspaces] = {}
        self._schedules: dict[AttentionSpec, Schedule] = {}

    def plan(self, spec: AttentionSpec, batch: Batch, limits: BatchLimits) -> None:
        """Schedules a batch on the current stream."""
        is_same = self.spec == spec and self._limits == limits
        used = list(self._schedules) if self._is_captured and is_same else []
        self.spec, self._batch, self._limits = spec, batch, limits
        self._schedules = {}
        for each in (spec, *used):
            self._schedule(each)

    def _schedule(self, spec: AttentionSpec) -> Schedule:
        known = self._schedules.get(spec)
        if known is not None:
            return known
        assert self._limits is not None
        attention = _attention(spec, self._limits, str(self.device))
        key = (spec, self._limits)
        workspaces = self._workspaces.get(key)
        if workspaces is None:
            sizes = attention.workspace_sizes
            scratch = None if self.scratch is None else _aligned(self.scratch, sizes.scratch)
            if scratch is None:
                scratch = _empty_bytes(sizes.scratch, self.device)
            workspaces = Workspaces(_empty_bytes(sizes.schedule, self.device), scratch)
            self._workspaces[key] = workspaces
        schedule = attention.schedule(self._batch, workspaces)
        self._schedules[spec] = schedule
        return schedule

    def forget_scratch(self, scratch: Tensor) -> None:
        """Takes another block as scratch from the next plan on."""
        self.scratch = scratch.view(-1).view(torch.uint8)
        self._workspaces = {}
        self._schedules = {}

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scales: tuple[Any, Any, Any] = (None, None, None),
        out: Optional[Tensor] = None,
        out_dtype: Optional[torch.dtype] = None,
        lse: Optional[Tensor] = None,
        return_lse: bool = False,
        natural: bool = False,
        sinks: Optional[Tensor] = None,
        alibi_slopes: Optional[Tensor] = None,
    ) -> Any:
        """o, or (o, lse) with lse of base 2 unless `natural`.

        Args:
          scales: Of q, k and v: None, a number, or a tensor of one element or one a head.
          out: Written if given.
          out_dtype: Of an `out` that is allocated; None takes that of the plan.
        """
        if self.spec is None:
            raise RuntimeError("plan() must be called before run()")
        spec = self.spec
        q_scale, k_scale, v_scale = scales
        if isinstance(q_scale, Tensor):
            per_head = q_scale.float().view(1, -1, 1)
            q = (q.float() * per_head).to(torch.float16 if q.dtype in FLOAT8 else q.dtype)
            q_scale = None
        if q.dtype in FLOAT8:
            q = q.to(torch.float16)  # exact
        factor = 1.0
        for scale in (q_scale, k_scale):
            if scale is not None and not isinstance(scale, Tensor):
                factor *= float(scale)
        if factor != 1.0:
            base = spec.sm_scale if spec.sm_scale is not None else spec.head_dim_qk**-0.5
            spec = dataclasses.replace(spec, sm_scale=base * factor)
        k_tensor, v_tensor, kind = self._scale_tensors(k_scale, v_scale, spec.num_kv_heads)
        o_dtype = out.dtype if out is not None else out_dtype or q.dtype
        direct = o_dtype in (q.dtype, torch.float32)
        spec = dataclasses.replace(
            spec,
            o_dtype=o_dtype if direct else torch.float32,
            kv_scale=kind,
            sinks=sinks is not None,
            alibi=alibi_slopes is not None,
        )
        schedule = self._schedule(spec)
        result = schedule.attention.run(
            schedule,
            q,
            k,
            v,
            o=out if direct else None,
            lse=lse,
            return_lse=return_lse or lse is not None,
            k_scale=k_tensor,
            v_scale=v_tensor,
            sinks=sinks,
            alibi_slopes=alibi_slopes,
        )
        o, lse = result if isinstance(result, tuple) else (result, None)
        if v_scale is not None and not isinstance(v_scale, Tensor) and v_scale != 1.0:
            o.mul_(float(v_scale))
        if not direct:
            o = o.to(o_dtype) if out is None else out.copy_(o)
        if not return_lse:
            return o
        return o, lse if natural or lse is None else lse.mul_(LOG2E)

    def _scale_tensors(
        self, k_scale: Any, v_scale: Any, num_kv_heads: int
    ) -> tuple[Optional[Tensor], Optional[Tensor], Any]:
        tensors = [each for each in (k_scale, v_scale) if isinstance(each, Tensor)]
        if not tensors:
            return None, None, "none"
        size = max(each.numel() for each in tensors)
        if size not in (1, num_kv_heads):
            raise NotImplementedError(
                f"a scale of {size} elements: expected one, or one for each of {num_kv_heads} heads"
            )

        def filled(scale: Any) -> Tensor:
            if not isinstance(scale, Tensor):
                return torch.ones(size, dtype=torch.float32, device=self.device)
            return scale.to(self.device, torch.float32).reshape(-1).expand(size).contiguous()

        return filled(k_scale), filled(v_scale), "per_tensor" if size == 1 else "per_head"
