# SPDX-License-Identifier: Apache-2.0
"""Views of the caller's arrays, whoever made them, without copies.

NumPy arrays and torch tensors are read through their own attributes, which is fastest; everything
else through DLPack, `__cuda_array_interface__` or `__array_interface__`, whichever it has first.
"""

from __future__ import annotations

import ctypes
import dataclasses
import operator
import sys
from ctypes import (
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Callable, Optional

import numpy as np

from . import _library as c
from ._errors import InvalidArgument, invalid

_DTYPE_NAMES = {code: name for name, code in c.DTYPES.items()}
_DTYPE_SIZES: dict[str, int] = {
    name: c.locked.quire_dtype_size(code) for name, code in c.DTYPES.items()
}
# What others call the OCP format without infinities.
_DTYPE_ALIASES = {"float8_e4m3fn": "float8_e4m3"}
_ACCEPTED = "a NumPy array, a torch tensor or an object with DLPack or an array interface"


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

    Make one with `quire.view()`. It may be given wherever an array is expected and costs nothing to
    pass again: worth while for what stays the same over many calls, the KV caches above all. An
    array that is moved or resized needs a new view.
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


def view(array: Any, dtype: Any = None, *, device: Any = None) -> TensorView:
    """Views an array without copying it. O(1).

    Args:
      array: A NumPy array, a torch tensor, or an object with `__dlpack__`,
        `__cuda_array_interface__` or `__array_interface__`, of rank 0 to 4.
      dtype: What the elements are, where the array cannot say it: `view(bits, "bfloat16")` of a
        uint16 array, `view(codes, "float8_e4m3")` of a uint8 one. The size must be the same.
      device: On which GPU it lies, e.g. "cuda:1". Needed for arrays that have
        `__cuda_array_interface__` alone, which does not say it, where there are several.

    Raises:
      InvalidArgument: Not an array, or of a dtype, rank, stride or device that the library lacks.
    """
    try:
        return _view_as(array, dtype, device)
    except NotAnArray as error:
        raise invalid("quire", "array", str(error)) from None


def view_of(array: Any, where: str, name: str) -> TensorView:
    """`view()` for the parameter `name` of `where`, which its error names."""
    try:
        return _view_as(array, None, None)
    except NotAnArray as error:
        raise invalid(where, name, str(error)) from None


def written(array: Any, where: str, name: str) -> TensorView:
    """`view_of()` for what the library writes."""
    result = view_of(array, where, name)
    if result.readonly:
        raise _read_only(where, name)
    return result


def packed(array: Any, where: str, name: str, keep: list[TensorView]) -> bytes:
    """`quire_tensor` of an array that may be None: the step path's way, which makes no view where
    the array itself can be read. A view that must live until the call has ended joins `keep`."""
    if array is None:
        return c.NO_TENSOR
    packer = _PACKERS.get(type(array))
    try:
        if packer is not None:
            return packer(array)
        keep.append(_view_as(array, None, None))
        return keep[-1].packed
    except NotAnArray as error:
        raise invalid(where, name, str(error)) from None


def packed_written(array: Any, where: str, name: str, keep: list[TensorView]) -> bytes:
    """`packed()` for what the library writes."""
    kind = type(array)
    if kind is np.ndarray:
        readonly = not array.flags.writeable
    elif kind is TensorView:
        readonly = array.readonly
    elif array is None or kind in _PACKERS:
        readonly = False
    else:
        array = view_of(array, where, name)
        keep.append(array)
        readonly = array.readonly
    if readonly:
        raise _read_only(where, name)
    return packed(array, where, name, keep)


def _read_only(where: str, name: str) -> InvalidArgument:
    return invalid(where, name, "expected an array that may be written to, got a read-only one")


def empty_like(
    view: TensorView, shape: tuple[int, ...], dtype: str, where: str, name: str
) -> TensorView:
    """A new array of the kind and on the device of `view`, of its dtype or float32."""
    owner = view.owner
    same = dtype == view.dtype
    if isinstance(owner, np.ndarray):
        array: Any = np.empty(shape, owner.dtype if same else np.float32)
    elif _is_torch(owner):
        torch = sys.modules["torch"]
        array = torch.empty(
            shape, dtype=owner.dtype if same else torch.float32, device=owner.device
        )
    else:
        raise invalid(
            where, name, f"expected an array to write to, as none of {type(owner)} is made here"
        )
    return _view_as(array, view.dtype if same else None, None)


# ------------------------------------------ NumPy and torch ---------------------------------------


class _Layouts(dict[Any, bytes]):
    """`quire_tensor` without its pointer, by what the array says of itself. A serving loop sees few
    layouts many times; one that does not loses the memory of them, which is bounded."""

    def __init__(self, make: Callable[..., bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: tuple[Any, ...]) -> bytes:
        layout = self._make(*key)
        if len(self) >= _MAX_LAYOUTS:
            self.clear()
        self[key] = layout
        return layout


_MAX_LAYOUTS = 4096


def _layout(
    dtype: int, kind: int, index: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    rank = len(shape)
    if rank > c.MAX_RANK:
        raise NotAnArray(f"expected at most {c.MAX_RANK} axes, got shape {list(shape)}")
    rest = (0,) * (c.MAX_RANK - rank)
    return c.TENSOR_LAYOUT.pack(dtype, rank, kind, index, *shape, *rest, *strides, *rest)


def _numpy_layout(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    named: Optional[str] = None,
) -> bytes:
    code = _code(dtype.name if dtype.isnative else str(dtype), dtype.itemsize, named)
    return _layout(code, c.DEVICE_CPU, 0, shape, _in_elements(shape, strides, dtype.itemsize))


def _code(name: str, itemsize: int, named: Optional[str]) -> int:
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


def _in_elements(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> tuple[int, ...]:
    if any(stride % itemsize for stride, size in zip(strides, shape) if size > 1):
        raise NotAnArray(f"expected strides in multiples of {itemsize} bytes, got {list(strides)}")
    return tuple(stride // itemsize for stride in strides)


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _torch_layout(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: Any,
    device: Any,
    named: Optional[str] = None,
) -> bytes:
    if device.type not in ("cpu", "cuda"):
        raise NotAnArray(f"expected a tensor on cpu or cuda, got one on {device}")
    where = c_device(Device(device.type, device.index or 0))
    code = _code(str(dtype).rpartition(".")[2], dtype.itemsize, named)
    return _layout(code, where.type, where.index, shape, strides)


_numpy_layouts = _Layouts(_numpy_layout)
_torch_layouts = _Layouts(_torch_layout)
_pack_pointer = c.POINTER_SIZED.pack


class _ArrayStruct(ctypes.Structure):
    """`PyArrayInterface` of NumPy's protocol `__array_struct__`."""

    _fields_ = (
        ("two", c_int),
        ("nd", c_int),
        ("typekind", c_char),
        ("itemsize", c_int),
        ("flags", c_int),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("data", c_void_p),
        ("descr", c_void_p),
    )


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = c_void_p, (ctypes.py_object, c_char_p)
_capsule_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is_valid.argtypes = (ctypes.py_object, c_char_p)
_bytes_at = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


def _pack_numpy(array: np.ndarray[Any, Any], *named: str) -> bytes:
    layout = _numpy_layouts[(array.shape, array.strides, array.dtype, *named)]
    # `__array_interface__` says the same in a dictionary, which takes twice as long to make.
    interface = _capsule_pointer(array.__array_struct__, None)
    pointer: bytes = _bytes_at(interface + _ArrayStruct.data.offset, c.POINTER_SIZED.size)
    return pointer + layout


def _pack_torch(tensor: Any, *named: str) -> bytes:
    if tensor.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise NotAnArray("expected no gradient, as none is computed: call under torch.no_grad()")
    try:
        strides, pointer = tensor.stride(), tensor.data_ptr()
    except RuntimeError:  # it has none
        raise NotAnArray(f"expected a strided tensor, got {tensor.layout}") from None
    layout = _torch_layouts[(tensor.shape, strides, tensor.dtype, tensor.device, *named)]
    return _pack_pointer(pointer) + layout


#: What reads an array itself, by its type; torch's are added when the first one comes.
_PACKERS: dict[type, Callable[[Any], bytes]] = {
    np.ndarray: _pack_numpy,
    TensorView: operator.attrgetter("packed"),
}


def _view_as(array: Any, dtype: Any, device: Any) -> TensorView:
    named = () if dtype is None else (dtype_name(dtype),)
    if isinstance(array, TensorView):
        if not named:
            return array
        array = array.owner
    if isinstance(array, np.ndarray):
        return TensorView(array, _pack_numpy(array, *named), not array.flags.writeable)
    if _is_torch(array):
        _PACKERS[type(array)] = _pack_torch
        return TensorView(array, _pack_torch(array, *named), False)
    if hasattr(array, "__dlpack__"):
        return _view_dlpack(array, *named)
    if hasattr(array, "__cuda_array_interface__"):
        return _view_interface(array, array.__cuda_array_interface__, _cuda_device(device), *named)
    if hasattr(array, "__array_interface__"):
        return _view_interface(array, array.__array_interface__, Device("cpu"), *named)
    raise NotAnArray(f"expected {_ACCEPTED}, got {type(array).__name__}")


# ------------------------------------------ Array interfaces --------------------------------------


def _cuda_device(device: Any) -> Device:
    """Which GPU an array lies on that does not say it."""
    if device is not None:
        return as_device(device)
    num_gpus = c.unlocked.quire_device_count() - 1
    if num_gpus > 1:
        raise NotAnArray(
            "expected to be told which of several GPUs: quire.view(array, device='cuda:N')"
        )
    return Device("cuda")


def _view_interface(
    array: Any, interface: dict[str, Any], device: Device, named: Optional[str] = None
) -> TensorView:
    """Of `__array_interface__` and `__cuda_array_interface__`, which have the same keys."""
    if interface.get("data") is None or interface.get("mask") is not None:
        raise NotAnArray("expected an array interface with a data pointer and without a mask")
    dtype = np.dtype(interface["typestr"])
    code = _code(dtype.name if dtype.isnative else str(dtype), dtype.itemsize, named)
    shape = tuple(interface["shape"])
    pointer, readonly = interface["data"]
    strides = interface.get("strides")
    in_elements = (
        _packed_strides(shape)
        if strides is None
        else _in_elements(shape, tuple(strides), dtype.itemsize)
    )
    where = c_device(device)
    layout = _layout(code, where.type, where.index, shape, in_elements)
    return TensorView(array, _pack_pointer(pointer or 0) + layout, bool(readonly))


def _packed_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return tuple(strides)


# ------------------------------------------ DLPack ------------------------------------------------


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("type_code", c_uint8),
        ("type_bits", c_uint8),
        ("type_lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    )


_DL_DEVICES = {
    1: c.DEVICE_CPU,
    2: c.DEVICE_CUDA,
    3: c.DEVICE_CPU,  # page-locked host memory
    13: c.DEVICE_CUDA,  # managed memory
}
_DL_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_DL_FLOAT8 = {10: "float8_e4m3", 12: "float8_e5m2"}
_DL_READ_ONLY = 1


def _export(array: Any) -> Any:
    """The array's capsule. No stream is waited for: work is in order on the stream of the call."""
    on_gpu = array.__dlpack_device__()[0] in (2, 13)
    stream = {"stream": -1} if on_gpu else {}
    try:
        try:
            return array.__dlpack__(max_version=(1, 0), copy=False, **stream)
        except TypeError:  # an exporter older than DLPack 1.0
            return array.__dlpack__(**stream)
    except (BufferError, TypeError) as error:  # its dtype, its device, only a copy
        raise NotAnArray(f"expected an array that DLPack exports without a copy: {error}") from None


def _view_dlpack(array: Any, named: Optional[str] = None) -> TensorView:
    # The capsule is kept, not consumed: it frees the exporter's struct when the view goes.
    capsule = _export(array)
    readonly = False
    if _capsule_is_valid(capsule, b"dltensor_versioned"):
        managed = _DLManagedTensorVersioned.from_address(
            _capsule_pointer(capsule, b"dltensor_versioned")
        )
        tensor = managed.tensor
        readonly = bool(managed.flags & _DL_READ_ONLY)
    else:
        tensor = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    if tensor.device_type not in _DL_DEVICES:
        raise NotAnArray(f"expected memory of cpu or cuda, got DLPack's {tensor.device_type}")
    kind = _DL_KINDS.get(tensor.type_code, f"DLPack type {tensor.type_code} of bits ")
    name = _DL_FLOAT8.get(tensor.type_code, f"{kind}{tensor.type_bits}")
    if tensor.type_lanes != 1:
        name = f"{name} of {tensor.type_lanes} lanes"
    code = _code(name, tensor.type_bits * tensor.type_lanes // 8, named)
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _packed_strides(shape)
    kind_code = _DL_DEVICES[tensor.device_type]
    index = 0 if kind_code == c.DEVICE_CPU else tensor.device_id
    layout = _layout(code, kind_code, index, shape, strides)
    pointer = (tensor.data or 0) + tensor.byte_offset
    return TensorView(array, _pack_pointer(pointer) + layout, readonly, capsule)
