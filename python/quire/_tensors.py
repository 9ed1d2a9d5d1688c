# SPDX-License-Identifier: Apache-2.0
"""Devices, dtypes and `quire_tensor`: what a view of any array is made of."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, Optional

import numpy as np

from . import _library as c
from ._errors import invalid

_DTYPE_NAMES = {code: name for name, code in c.DTYPES.items()}
_DTYPE_SIZES: dict[str, int] = {
    name: c.locked.quire_dtype_size(code) for name, code in c.DTYPES.items()
}
# What others call the OCP format without infinities.
_DTYPE_ALIASES = {"float8_e4m3fn": "float8_e4m3"}


@dataclasses.dataclass(frozen=True)
class Device:
    """Where memory lies and work runs: `Device("cpu")`, `Device("cuda", 1)`."""

    type: str
    index: int = 0

    def __str__(self) -> str:
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"


def as_device(device: Any) -> Device:
    """Reads "cpu", "cuda" (= "cuda:0"), "cuda:1", a `Device` or a `torch.device`."""
    if isinstance(device, Device):
        return device
    kind, colon, index = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (colon and not index.isdecimal()):
        raise invalid("quire", "device", f'expected "cpu", "cuda" or "cuda:N", got {device!r}')
    return Device(kind, int(index or 0))


def c_device(device: Device) -> c.Device:
    """`quire_device`."""
    return c.Device(c.DEVICE_CPU if device.type == "cpu" else c.DEVICE_CUDA, device.index)


def device_of(kind: int, index: int) -> Device:
    """What `quire_device` names."""
    return Device("cpu" if kind == c.DEVICE_CPU else "cuda", index)


def dtype_name(dtype: Any) -> str:
    """The library's name of a dtype: a string, a NumPy, ml_dtypes or torch dtype."""
    if isinstance(dtype, str):
        name = dtype
    elif type(dtype).__module__ == "torch":
        name = str(dtype).rpartition(".")[2]
    else:
        name = np.dtype(dtype).name
    name = _DTYPE_ALIASES.get(name, name)
    if name not in c.DTYPES:
        raise invalid("quire", "dtype", f"expected one of {', '.join(c.DTYPES)}, got {name}")
    return name


class TensorView:
    """Where an array's elements lie, as the library reads it; keeps the array alive.

    Make one with `quire.view()`. It may be given wherever an array is expected and costs next to
    nothing to pass again: worth while for what stays the same over many calls, the KV caches above
    all. An array that is moved or resized needs a new view.
    """

    __slots__ = ("_capsule", "owner", "packed", "readonly")

    #: The array.
    owner: Any
    #: `quire_tensor`, as bytes.
    packed: bytes
    #: Whether the array may not be written to.
    readonly: bool

    def __init__(self, owner: Any, packed: bytes, readonly: bool, capsule: Any = None) -> None:
        self.owner = owner
        self.packed = packed
        self.readonly = readonly
        self._capsule = capsule  # the exporter may free its memory with it

    def _layout(self) -> tuple[int, ...]:
        return c.TENSOR_LAYOUT.unpack_from(self.packed, c.POINTER_SIZED.size)

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return int.from_bytes(self.packed[: c.POINTER_SIZED.size], sys.byteorder)

    @property
    def dtype(self) -> str:
        """Name of the element type, e.g. "bfloat16"."""
        return _DTYPE_NAMES[self._layout()[0]]

    @property
    def device(self) -> Device:
        """Where the elements lie."""
        _, _, kind, index, *_ = self._layout()
        return device_of(kind, index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        layout = self._layout()
        return layout[4 : 4 + layout[1]]

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps along the axes, in elements."""
        layout = self._layout()
        return layout[8 : 8 + layout[1]]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, gaps between them not counted."""
        return int(np.prod(self.shape, dtype=np.int64)) * _DTYPE_SIZES[self.dtype]

    @property
    def is_contiguous(self) -> bool:
        """Whether it is row-major without gaps, as what is empty always is."""
        step = 1
        if 0 in self.shape:
            return True
        for size, stride in zip(reversed(self.shape), reversed(self.strides)):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    def __repr__(self) -> str:
        return f"quire.TensorView({self.dtype} {list(self.shape)} on {self.device})"


class NotAnArray(TypeError):
    """What was given cannot be viewed; the text says what was expected and what came."""


pack_pointer = c.POINTER_SIZED.pack


def tensor_layout(
    dtype: int, kind: int, index: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    """`quire_tensor` without its pointer, which comes before it."""
    rank = len(shape)
    if rank > c.MAX_RANK:
        raise NotAnArray(f"expected at most {c.MAX_RANK} axes, got shape {list(shape)}")
    rest = (0,) * (c.MAX_RANK - rank)
    return c.TENSOR_LAYOUT.pack(dtype, rank, kind, index, *shape, *rest, *strides, *rest)


def dtype_code(name: str, itemsize: int, named: Optional[str]) -> int:
    """The library's code of a dtype, `named` by the caller or not."""
    name = _DTYPE_ALIASES.get(name, name)
    if named is None:
        if name in c.DTYPES:
            return c.DTYPES[name]
        hint = {1: "float8_e4m3", 2: "bfloat16"}.get(itemsize)
        advice = f'; if it holds bits of one, say so: quire.view(array, "{hint}")' if hint else ""
        raise NotAnArray(f"expected one of {', '.join(c.DTYPES)}, got {name}{advice}")
    if itemsize != _DTYPE_SIZES[named]:
        raise NotAnArray(f"expected elements of {_DTYPE_SIZES[named]} bytes ({named}), got {name}")
    return c.DTYPES[named]


def in_elements(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides as the library counts them, of strides in bytes."""
    if any(stride % itemsize for stride, size in zip(strides, shape) if size > 1):
        raise NotAnArray(f"expected strides in multiples of {itemsize} bytes, got {list(strides)}")
    return tuple(stride // itemsize for stride in strides)
