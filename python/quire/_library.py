# SPDX-License-Identifier: Apache-2.0
"""The C ABI: where the library is found, and its structs and functions as ctypes sees them.

Everything here repeats `quire/quire.h`; tests/python/test_header.py compiles that and compares.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import struct
import weakref
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any, Callable

from ._errors import error_of

# ------------------------------------------ Structs ----------------------------------------------


class Device(ctypes.Structure):
    """`quire_device`."""

    _fields_ = (("type", c_int32), ("index", c_int32))


class SeqId(ctypes.Structure):
    """`quire_seq_id`."""

    _fields_ = (("slot", c_uint32), ("generation", c_uint32))


class CopyOp(ctypes.Structure):
    """`quire_copy_op`."""

    _fields_ = (
        ("src", c_int32),
        ("dst", c_int32),
        ("tokens", c_int32),
        ("src_begin", c_int32),
        ("dst_begin", c_int32),
    )


class Sized(ctypes.Structure):
    """A struct that may grow: it begins with its size, and zero is never its default."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class AttentionSpec(Sized):
    """`quire_attention_spec`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("num_qo_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim_qk", c_int32),
        ("head_dim_vo", c_int32),
        ("q_dtype", c_int32),
        ("kv_dtype", c_int32),
        ("o_dtype", c_int32),
        ("kv_layout", c_int32),
        ("page_size", c_int32),
        ("mask", c_int32),
        ("window_left", c_int32),
        ("sm_scale", c_float),
        ("logits_soft_cap", c_float),
        ("sinks", c_int32),
        ("alibi", c_int32),
        ("kv_scale", c_int32),
        ("no_shared_prefixes", c_int32),
        ("batch_invariant", c_int32),
    )


class BatchLimits(Sized):
    """`quire_batch_limits`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("max_num_seqs", c_int32),
        ("max_total_q", c_int32),
        ("max_kv_len", c_int32),
        ("reserved", c_int32),
    )


class AttentionOptions(Sized):
    """`quire_attention_options`."""

    _fields_ = (("struct_size", c_size_t), ("executor", c_void_p), ("kernel", c_char_p))


class PagePoolSpec(Sized):
    """`quire_page_pool_spec`."""

    _fields_ = (("struct_size", c_size_t), ("num_pages", c_int32), ("page_size", c_int32))


class PageTableSpec(Sized):
    """`quire_page_table_spec`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("max_seqs", c_int32),
        ("max_tokens_per_seq", c_int32),
        ("window_left", c_int32),
        ("reserved", c_int32),
    )


class KernelInfo(Sized):
    """`quire_kernel_info`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("summary", c_char_p),
        ("q_dtypes", c_char_p),
        ("kv_dtypes", c_char_p),
        ("head_dims", c_char_p),
        ("masks", c_char_p),
        ("options", c_char_p),
        ("kv_scales", c_char_p),
        ("device_type", c_int32),
        ("reserved", c_int32),
    )


class DeviceInfo(Sized):
    """`quire_device_info`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("device", Device),
        ("name", c_char_p),
        ("facts", c_char_p),
    )


# Structs of the step path are packed as bytes: that costs a third of filling in ctypes fields.

#: `quire_tensor` but its pointer: dtype, rank, device type and index, shape [4], strides [4].
TENSOR_LAYOUT = struct.Struct("@4i4q4q")
#: A pointer, which begins a `quire_tensor`.
POINTER_SIZED = struct.Struct("@P")
#: `quire_tensor` that is not given.
NO_TENSOR = bytes(POINTER_SIZED.size + TENSOR_LAYOUT.size)
#: `size_t`, which begins structs that may grow.
SIZE = struct.Struct("@N")
#: `quire_call_options`: struct_size, stream, check.
CALL_OPTIONS = struct.Struct("@NPP")
#: `quire_check_record`: what, seq, position, value, bound.
CHECK_RECORD = struct.Struct("@2i3q")

#: Fields of the structs that are a size and tensors.
TENSORS: dict[str, tuple[str, ...]] = {
    "quire_batch": (
        "qo_indptr",
        "kv_len",
        "page_table",
        "kv_page_indptr",
        "kv_page_indices",
        "kv_last_page_len",
        "kv_indptr",
        "tree_mask",
        "full_mask",
        "full_mask_indptr",
        "prefix_leaders",
        "prefix_pages",
    ),
    "quire_attention_tensors": (
        "q",
        "k",
        "v",
        "o",
        "lse",
        "k_scale",
        "v_scale",
        "sinks",
        "alibi_slopes",
        "q_scale",
    ),
    "quire_append_tensors": (
        "k",
        "v",
        "k_cache",
        "v_cache",
        "slot_mapping",
        "k_scale",
        "v_scale",
        "k_token_scale",
        "v_token_scale",
    ),
    "quire_merge_tensors": ("o_parts", "lse_parts", "o", "lse"),
}


def tensors_header(name: str) -> bytes:
    """The `struct_size` that begins a struct of `TENSORS`; its packed tensors follow in order."""
    return SIZE.pack(SIZE.size + len(NO_TENSOR) * len(TENSORS[name]))


# ------------------------------------------ Enumerators -------------------------------------------

DTYPES = {
    "float32": 1,
    "float16": 2,
    "bfloat16": 3,
    "int8": 4,
    "float8_e4m3": 5,
    "float8_e5m2": 6,
    "int32": 7,
    "int64": 8,
    "uint8": 9,
    "uint32": 10,
}
DTYPE_NONE = 0
DEVICE_CPU, DEVICE_CUDA = 0, 1
KV_LAYOUTS = {"NHD": 0, "HND": 1}
MASKS = {"none": 0, "causal": 1, "tree": 2, "full": 3}
KV_SCALES = {"none": 0, "per_tensor": 1, "per_head": 2, "per_token": 3}
CONTIGUOUS_KV = 0
MAX_PREFIX_LEVELS = 3
WORKSPACE_ALIGNMENT = 256
MAX_RANK = 4

# ------------------------------------------ Functions ---------------------------------------------

_STATUS = c_int32
_HANDLE = c_void_p  # of an attention, a pool, …: opaque
_STRUCT = c_void_p  # packed bytes, or ctypes.byref()

#: Result and parameters of each function that may run long: called without Python's lock.
UNLOCKED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "quire_thread_pool_create": (_STATUS, (c_int32, POINTER(c_void_p))),
    "quire_executor_destroy": (None, (_HANDLE,)),
    "quire_supports": (_STATUS, (Device, _STRUCT, POINTER(c_char_p))),
    "quire_workspace_sizes": (
        _STATUS,
        (Device, _STRUCT, _STRUCT, _STRUCT, POINTER(c_size_t), POINTER(c_size_t)),
    ),
    "quire_attention_create": (
        _STATUS,
        (Device, _STRUCT, _STRUCT, _STRUCT, POINTER(c_void_p)),
    ),
    "quire_attention_destroy": (None, (_HANDLE,)),
    "quire_attention_get_spec": (_STATUS, (_HANDLE, _STRUCT)),
    "quire_attention_kernel": (c_char_p, (_HANDLE,)),
    "quire_attention_workspace_sizes": (
        _STATUS,
        (_HANDLE, POINTER(c_size_t), POINTER(c_size_t)),
    ),
    "quire_attention_schedule": (_STATUS, (_HANDLE, _STRUCT, c_void_p, c_size_t, _STRUCT)),
    "quire_attention_run": (
        _STATUS,
        (_HANDLE, _STRUCT, _STRUCT, c_void_p, c_size_t, c_void_p, c_size_t, _STRUCT),
    ),
    "quire_attention_once": (_STATUS, (Device, _STRUCT, _STRUCT, _STRUCT, _STRUCT, _STRUCT)),
    "quire_check_result": (_STATUS, (Device, c_void_p, _STRUCT)),
    "quire_append": (_STATUS, (Device, c_int32, _STRUCT, _STRUCT, _STRUCT, _STRUCT)),
    "quire_merge_states": (_STATUS, (Device, _STRUCT, _STRUCT, _STRUCT)),
    "quire_execute_copies": (
        _STATUS,
        (Device, c_int32, c_void_p, c_size_t, _STRUCT, c_size_t, _STRUCT),
    ),
    "quire_fence_synchronize": (_STATUS, (_HANDLE,)),
    "quire_device_count": (c_size_t, ()),
    "quire_device_get": (_STATUS, (c_size_t, _STRUCT)),
}

#: The same of short functions: called with Python's lock held, where there is one. A pool and its
#: page tables have one owner at a time, and with the lock all threads of Python are one.
LOCKED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "quire_last_error": (c_char_p, ()),
    "quire_version": (c_char_p, ()),
    "quire_dtype_size": (c_size_t, (c_int32,)),
    "quire_page_pool_create": (_STATUS, (_STRUCT, POINTER(c_void_p))),
    "quire_page_pool_destroy": (None, (_HANDLE,)),
    "quire_page_pool_num_free": (c_int32, (_HANDLE,)),
    "quire_page_pool_num_used": (c_int32, (_HANDLE,)),
    "quire_page_pool_ref_count": (c_int32, (_HANDLE, c_int32)),
    "quire_page_pool_allocate": (_STATUS, (_HANDLE, c_void_p, c_size_t)),
    "quire_page_pool_retain": (_STATUS, (_HANDLE, c_void_p, c_size_t)),
    "quire_page_pool_release": (_STATUS, (_HANDLE, c_void_p, c_size_t)),
    "quire_page_pool_check": (_STATUS, (_HANDLE,)),
    "quire_copy_plan_create": (_STATUS, (POINTER(c_void_p),)),
    "quire_copy_plan_destroy": (None, (_HANDLE,)),
    "quire_copy_plan_clear": (_STATUS, (_HANDLE,)),
    "quire_copy_plan_size": (c_size_t, (_HANDLE,)),
    "quire_copy_plan_ops": (c_void_p, (_HANDLE,)),
    "quire_fence_create": (_STATUS, (Device, POINTER(c_void_p))),
    "quire_fence_destroy": (None, (_HANDLE,)),
    "quire_fence_record": (_STATUS, (_HANDLE, c_void_p)),
    "quire_fence_query": (_STATUS, (_HANDLE, POINTER(c_int32))),
    "quire_fence_wait": (_STATUS, (_HANDLE, c_void_p)),
    "quire_page_table_create": (_STATUS, (_HANDLE, _STRUCT, POINTER(c_void_p))),
    "quire_page_table_destroy": (None, (_HANDLE,)),
    "quire_page_table_create_seq": (_STATUS, (_HANDLE, POINTER(SeqId))),
    "quire_page_table_fork_seq": (_STATUS, (_HANDLE, SeqId, c_int32, POINTER(SeqId))),
    "quire_page_table_append": (_STATUS, (_HANDLE, SeqId, c_int32, _HANDLE)),
    "quire_page_table_truncate": (_STATUS, (_HANDLE, SeqId, c_int32)),
    "quire_page_table_slide": (_STATUS, (_HANDLE, SeqId, c_int32)),
    "quire_page_table_num_holes": (c_int32, (_HANDLE, SeqId)),
    "quire_page_table_accept_tree": (
        _STATUS,
        (_HANDLE, SeqId, c_int32, c_void_p, c_size_t, _HANDLE),
    ),
    "quire_page_table_destroy_seq": (_STATUS, (_HANDLE, SeqId)),
    "quire_page_table_num_seqs": (c_int32, (_HANDLE,)),
    "quire_page_table_length": (c_int32, (_HANDLE, SeqId)),
    "quire_page_table_pages": (
        _STATUS,
        (_HANDLE, SeqId, POINTER(c_void_p), POINTER(c_size_t)),
    ),
    "quire_page_table_slot": (c_int64, (_HANDLE, SeqId, c_int32)),
    "quire_page_table_pages_needed": (c_int32, (_HANDLE, SeqId, c_int32)),
    "quire_page_table_reclaimable_pages": (c_int32, (_HANDLE, SeqId)),
    "quire_page_table_check": (_STATUS, (_HANDLE,)),
    "quire_kernel_count": (c_size_t, ()),
    "quire_kernel_get": (_STATUS, (c_size_t, _STRUCT)),
}

_SONAME = "libquire.so.0"


def _find() -> str:
    """`QUIRE_LIBRARY` if it is set (another build, a distribution's), else the package's own."""
    named = os.environ.get("QUIRE_LIBRARY")
    if named:
        return named
    own = pathlib.Path(__file__).with_name(_SONAME)
    if own.exists():
        return str(own)
    raise ImportError(
        f"quire: {own} is missing: install the package (pip install .) "
        f"or let QUIRE_LIBRARY name a built {_SONAME}"
    )


def declare(opened: ctypes.CDLL, functions: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Gives functions their results and parameters.

    Raises:
      ImportError: The library has no such function.
    """
    for name, (result, parameters) in functions.items():
        try:
            function = getattr(opened, name)
        except AttributeError:
            raise ImportError(f"quire: {PATH} is too old for this package: no {name}") from None
        function.restype, function.argtypes = result, parameters


#: The file that is loaded.
PATH = _find()
try:
    unlocked = ctypes.CDLL(PATH)
    locked = ctypes.PyDLL(PATH)
except OSError as error:
    raise ImportError(f"quire: {PATH} cannot be loaded: {error}") from None
declare(unlocked, UNLOCKED)
declare(locked, LOCKED)


def check(status: int) -> None:
    """Raises what the last call of this thread reported, if it failed."""
    if status:
        raise error_of(status, locked.quire_last_error().decode())


def text(value: bytes | None) -> str:
    """A string of the library."""
    return "" if value is None else value.decode()


class Owner:
    """An object of the library, destroyed with its Python object or, before, by `close()`."""

    __slots__ = ("__weakref__", "_finalizer", "_handle")

    def __init__(self, handle: int, destroy: Callable[[int], None]) -> None:
        self._handle: int | None = handle
        self._finalizer = weakref.finalize(self, destroy, handle)

    def close(self) -> None:
        """Releases it now, unless a call on another thread uses it; later calls fail with `Error`.
        Closing again does nothing."""
        self._handle = None  # NULL, which every function refuses with a sentence
        self._finalizer()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def count(result: int) -> int:
    """A number of an object of the library; −1 says that it is closed, the only way to be none."""
    if result < 0:
        check(_BAD_HANDLE)
    return int(result)


_BAD_HANDLE = 4


def created(create: Callable[..., int], *arguments: Any) -> int:
    """The handle that a `…_create` function writes behind its arguments."""
    handle = c_void_p()
    check(create(*arguments, ctypes.byref(handle)))
    assert handle.value is not None
    return handle.value
