# SPDX-License-Identifier: Apache-2.0
"""Bits of masks."""

from __future__ import annotations

import torch
from torch import Tensor


def packbits(x: Tensor, bitorder: str = "big") -> Tensor:
    """Packs bool [n] into uint8 [⌈n / 8⌉], the rest zero; "big" puts the first into bit 7.

    Raises ValueError for another order."""
    if bitorder not in ("big", "little"):
        raise ValueError(f'bitorder: expected "big" or "little", got {bitorder!r}')
    bits = torch.nn.functional.pad(x.reshape(-1).ne(0).to(torch.uint8), (0, -x.numel() % 8))
    shifts = torch.arange(8, device=x.device, dtype=torch.uint8)
    weights = torch.bitwise_left_shift(torch.ones_like(shifts), shifts)
    if bitorder == "big":
        weights = weights.flip(0)
    return (bits.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def segment_packbits(x: Tensor, indptr: Tensor, bitorder: str = "big") -> tuple[Tensor, Tensor]:
    """Packs segments of bool [n], each from a byte boundary; indptr [num_segments + 1] are their
    offsets. Returns the bytes and the segments' offsets in them, int32. Waits for the device."""
    lengths = indptr[1:] - indptr[:-1]
    offsets = torch.zeros_like(indptr)
    offsets[1:] = torch.cumsum((lengths + 7) // 8, 0)
    num_bytes = int(offsets[-1])
    spread = torch.zeros(num_bytes * 8, dtype=torch.bool, device=x.device)
    lengths, starts = lengths.to(x.device).long(), indptr.to(x.device).long()
    segments = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths)
    at = torch.arange(starts[0], starts[-1], device=x.device)
    spread[at - starts[segments] + offsets.to(x.device).long()[segments] * 8] = x[at].ne(0)
    return packbits(spread, bitorder), offsets.to(torch.int32)
