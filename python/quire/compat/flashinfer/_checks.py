# SPDX-License-Identifier: Apache-2.0
"""What the wrappers refuse, and how they read what they are given."""

from __future__ import annotations

import functools
import math
from typing import Any, Optional

import torch
from torch import Tensor

from ..._spec import AttentionSpec

LAYOUTS = ("NHD", "HND")
POSITIONS = ("NONE", "ROPE_LLAMA", "ALIBI")


def check_layout(kv_layout: str) -> None:
    """Raises KeyError for a layout that does not exist."""
    if kv_layout not in LAYOUTS:
        raise KeyError(f"Invalid kv_layout {kv_layout}")


def check_positions(mode: str) -> None:
    """Raises for a mode of positions that does not exist or is not served."""
    if mode not in POSITIONS:
        raise KeyError(f"Invalid pos_encoding_mode {mode}")
    if mode == "ROPE_LLAMA":
        raise NotImplementedError(
            "pos_encoding_mode ROPE_LLAMA: quire does not rotate inside attention; "
            "rotate q and k before the keys are cached"
        )


def unsupported(**options: Any) -> None:
    """Raises NotImplementedError for the first option that is given: other than None or False."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name} is not served by quire, got {type(value).__name__}")


def check_backend(backend: str) -> None:
    """quire chooses its kernels itself: backends that differ in speed only are taken."""
    if backend not in ("auto", "fa2", "fa3"):
        raise NotImplementedError(f'backend "{backend}": expected "auto", "fa2" or "fa3"')


def check_workspace(workspace: Tensor, name: str = "float_workspace_buffer") -> None:
    """Raises ValueError for one that is not aligned to 16 bytes."""
    if workspace.data_ptr() % 16:
        raise ValueError(
            f"{name} must be 16-byte aligned, got an address of {workspace.data_ptr() % 16} "
            "modulo 16"
        )


def dtype_of(name: Any) -> torch.dtype:
    """A torch dtype, of itself or of its name."""
    return name if isinstance(name, torch.dtype) else getattr(torch, str(name))


def check_written(
    tensor: Optional[Tensor], shape: Any, dtype: Any, like: Tensor, name: str
) -> None:
    """Raises ValueError for an output of another shape, dtype or device."""
    if tensor is None:
        return
    for what, expected, got in (
        ("shape", tuple(shape), tuple(tensor.shape)),
        ("dtype", dtype, tensor.dtype),
        ("device", like.device, tensor.device),
    ):
        if expected != got:
            raise ValueError(f"Invalid {what} of {name}: expected {expected}, got {got}")


def check_dtypes(q: Tensor, k: Tensor, q_dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    """Raises ValueError for dtypes other than those of the plan."""
    for name, got, planned in (("q", q.dtype, q_dtype), ("kv", k.dtype, kv_dtype)):
        if got != planned:
            raise ValueError(
                f"The dtype of {name} {got} does not match the {name}_data_type {planned} "
                "specified in plan function."
            )


def unpack_pages(paged_kv_cache: Any, kv_layout: str) -> tuple[Tensor, Tensor]:
    """K and V as four axes each, of a pair or of one tensor of five; of a page size of 1 the axis
    of the page may be missing."""
    if isinstance(paged_kv_cache, (tuple, list)):
        k, v = paged_kv_cache
    elif isinstance(paged_kv_cache, Tensor):
        k, v = paged_kv_cache[:, 0], paged_kv_cache[:, 1]
    else:
        raise KeyError(
            f"Unrecognized paged_kv_cache type {type(paged_kv_cache)}, expected a tensor or a tuple"
        )
    if k.dtype == torch.uint8:
        raise NotImplementedError("a KV cache of nvfp4: quire has float, half and 8-bit caches")
    if k.ndim == 3:
        axis = 1 if kv_layout == "NHD" else 2
        k, v = k.unsqueeze(axis), v.unsqueeze(axis)
    return k, v


def is_batch_invariant(fixed_split_size: Optional[int], disable_split_kv: bool) -> bool:
    """Whether a plan asks for results that do not depend on the batch: FlashInfer's way to say so
    is how keys are split, which quire then chooses by the request alone."""
    return disable_split_kv or (fixed_split_size or 0) > 0


def make_spec(
    *,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim_qk: int,
    head_dim_vo: Optional[int] = None,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    kv_layout: str = "NHD",
    page_size: int = 0,
    mask: str = "causal",
    window_left: int = -1,
    logits_soft_cap: Optional[float] = None,
    sm_scale: Optional[float] = None,
    batch_invariant: bool = False,
) -> AttentionSpec:
    """The spec of a plan. Queries of 8 bits are computed as float16, which holds them exactly."""
    is_float8 = q_dtype.itemsize == 1
    cap = logits_soft_cap if logits_soft_cap is not None and logits_soft_cap > 0 else None
    return AttentionSpec(
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        head_dim_vo or head_dim_qk,
        q_dtype=torch.float16 if is_float8 else q_dtype,
        kv_dtype=kv_dtype,
        kv_layout=kv_layout,  # type: ignore[arg-type]
        page_size=page_size,
        mask=mask,  # type: ignore[arg-type]
        window_left=max(window_left, -1),
        logits_soft_cap=cap,
        sm_scale=1.0 / math.sqrt(head_dim_qk) if sm_scale is None else float(sm_scale),
        batch_invariant=batch_invariant,
    )


@functools.lru_cache(maxsize=64)  # a captured graph holds its address
def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """float32 [num_heads]: the slopes of Press et al., "Train short, test long", §3."""
    power = 1 << (num_heads.bit_length() - 1)
    base = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    rest = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return torch.tensor(base + rest, dtype=torch.float32, device=device)
