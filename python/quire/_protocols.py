# SPDX-License-Identifier: Apache-2.0
"""Views of arrays that are known by a protocol only: DLPack and the array interfaces."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, Optional

import numpy as np

from . import _library as c
from ._tensors import (
    Device,
    NotAnArray,
    TensorView,
    as_device,
    c_device,
    dtype_code,
    in_elements,
    pack_pointer,
    tensor_layout,
)

# ------------------------------------------ Array interfaces --------------------------------------


def cuda_device(device: Any) -> Device:
    """Which GPU an array lies on that does not say it."""
    if device is not None:
        return as_device(device)
    num_gpus = c.unlocked.quire_device_count() - 1
    if num_gpus > 1:
        raise NotAnArray(
            "expected to be told which of several GPUs: quire.view(array, device='cuda:N')"
        )
    return Device("cuda")


def view_interface(
    array: Any, interface: dict[str, Any], device: Device, named: Optional[str] = None
) -> TensorView:
    """Of `__array_interface__` and `__cuda_array_interface__`, which have the same keys."""
    if interface.get("data") is None or interface.get("mask") is not None:
        raise NotAnArray("expected an array interface with a data pointer and without a mask")
    dtype = np.dtype(interface["typestr"])
    code = dtype_code(dtype.name if dtype.isnative else str(dtype), dtype.itemsize, named)
    shape = tuple(interface["shape"])
    pointer, readonly = interface["data"]
    strides = interface.get("strides")
    steps = (
        _packed_strides(shape)
        if strides is None
        else in_elements(shape, tuple(strides), dtype.itemsize)
    )
    where = c_device(device)
    layout = tensor_layout(code, where.type, where.index, shape, steps)
    return TensorView(array, pack_pointer(pointer or 0) + layout, bool(readonly))


def _packed_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return tuple(strides)


# ------------------------------------------ DLPack ------------------------------------------------

capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = c_void_p, (ctypes.py_object, c_char_p)
_capsule_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is_valid.argtypes = (ctypes.py_object, c_char_p)


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


def view_dlpack(array: Any, named: Optional[str] = None) -> TensorView:
    # The capsule is kept, not consumed: it frees the exporter's struct when the view goes.
    capsule = _export(array)
    readonly = False
    if _capsule_is_valid(capsule, b"dltensor_versioned"):
        managed = _DLManagedTensorVersioned.from_address(
            capsule_pointer(capsule, b"dltensor_versioned")
        )
        tensor = managed.tensor
        readonly = bool(managed.flags & _DL_READ_ONLY)
    else:
        tensor = _DLTensor.from_address(capsule_pointer(capsule, b"dltensor"))
    if tensor.device_type not in _DL_DEVICES:
        raise NotAnArray(f"expected memory of cpu or cuda, got DLPack's {tensor.device_type}")
    kind = _DL_KINDS.get(tensor.type_code, f"DLPack type {tensor.type_code} of bits ")
    name = _DL_FLOAT8.get(tensor.type_code, f"{kind}{tensor.type_bits}")
    if tensor.type_lanes != 1:
        name = f"{name} of {tensor.type_lanes} lanes"
    code = dtype_code(name, tensor.type_bits * tensor.type_lanes // 8, named)
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _packed_strides(shape)
    kind_code = _DL_DEVICES[tensor.device_type]
    index = 0 if kind_code == c.DEVICE_CPU else tensor.device_id
    layout = tensor_layout(code, kind_code, index, shape, strides)
    pointer = (tensor.data or 0) + tensor.byte_offset
    return TensorView(array, pack_pointer(pointer) + layout, readonly, capsule)
