# SPDX-License-Identifier: Apache-2.0
"""Views of the caller's arrays, whoever made them, without copies.

NumPy arrays and torch tensors are read through their own attributes, which is fastest; everything
else through DLPack, `__cuda_array_interface__` or `__array_interface__`, whichever it has first.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from ctypes import c_char, c_int, c_void_p
from typing import Any, Callable, Optional

import numpy as np

from . import _library as c
from ._errors import InvalidArgument, invalid
from ._protocols import capsule_pointer, cuda_device, view_dlpack, view_interface
from ._tensors import (
    Device,
    NotAnArray,
    TensorView,
    c_device,
    dtype_code,
    dtype_name,
    in_elements,
    pack_pointer,
    tensor_layout,
)

_ACCEPTED = "a NumPy array, a torch tensor or an object with DLPack or an array interface"


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
    """A new array of the kind and on the device of `view`, of its dtype or a wider one."""
    owner = view.owner
    same = dtype == view.dtype
    if isinstance(owner, np.ndarray):
        array: Any = np.empty(shape, owner.dtype if same else _numpy_dtype(dtype, owner.dtype))
    elif _is_torch(owner):
        torch = sys.modules["torch"]
        array = torch.empty(
            shape, dtype=owner.dtype if same else getattr(torch, dtype), device=owner.device
        )
    else:
        raise invalid(
            where, name, f"expected an array to write to, as none of {type(owner)} is made here"
        )
    return _view_as(array, dtype, None)


def _numpy_dtype(name: str, beside: Any) -> Any:
    """Of a result beside an array of codes: bfloat16 of ml_dtypes where that is in use, or bits."""
    if name != "bfloat16":
        return np.dtype(name)
    in_use = beside.type.__module__ == "ml_dtypes"
    return sys.modules["ml_dtypes"].bfloat16 if in_use else np.uint16


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


def _numpy_layout(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    named: Optional[str] = None,
) -> bytes:
    code = dtype_code(dtype.name if dtype.isnative else str(dtype), dtype.itemsize, named)
    return tensor_layout(code, c.DEVICE_CPU, 0, shape, in_elements(shape, strides, dtype.itemsize))


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
    code = dtype_code(str(dtype).rpartition(".")[2], dtype.itemsize, named)
    return tensor_layout(code, where.type, where.index, shape, strides)


_numpy_layouts = _Layouts(_numpy_layout)
_torch_layouts = _Layouts(_torch_layout)


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


_bytes_at = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


def _pack_numpy(array: np.ndarray[Any, Any], *named: str) -> bytes:
    layout = _numpy_layouts[(array.shape, array.strides, array.dtype, *named)]
    # `__array_interface__` says the same in a dictionary, which takes twice as long to make.
    interface = capsule_pointer(array.__array_struct__, None)
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
    return pack_pointer(pointer) + layout


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
    if isinstance(array, np.ma.MaskedArray):
        raise NotAnArray("expected an array without a mask, got a masked one")
    if isinstance(array, np.ndarray):
        return TensorView(array, _pack_numpy(array, *named), not array.flags.writeable)
    if _is_torch(array):
        _PACKERS[type(array)] = _pack_torch
        return TensorView(array, _pack_torch(array, *named), False)
    if hasattr(array, "__dlpack__"):
        return view_dlpack(array, *named)
    if hasattr(array, "__cuda_array_interface__"):
        return view_interface(array, array.__cuda_array_interface__, cuda_device(device), *named)
    if hasattr(array, "__array_interface__"):
        return view_interface(array, array.__array_interface__, Device("cpu"), *named)
    raise NotAnArray(f"expected {_ACCEPTED}, got {type(array).__name__}")
