# SPDX-License-Identifier: Apache-2.0
"""How a call is made: its stream, checked mode, threads."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from . import _library as c
from ._arrays import written
from ._errors import invalid
from ._tensors import Device, TensorView, as_device, c_device


class CheckRecord:
    """What checked mode found: the first offence among page ids, lengths, offsets and slots.

    On a GPU the step path never waits, so wrong values in a batch cannot be raised where they are
    passed. Give a record to `schedule()`, `run()` and `append()` and read it once, when it suits:
    `raise_if_offended()` waits for the stream and raises the sentence. On the CPU the calls
    themselves check all of it and raise; a record is filled in as well.

    Args:
      device: "cpu", "cuda", "cuda:1" or a torch.device.
      memory: At least 32 bytes on the device, all zero, 8-byte aligned. Default: made with NumPy on
        the CPU and with torch on a GPU.

    Calls that overlap in time need separate records.
    """

    def __init__(self, device: Any = "cpu", *, memory: Any = None) -> None:
        self._device = as_device(device)
        if memory is None:
            memory = zeroed(self._device, c.CHECK_RECORD.size, "CheckRecord", "memory")
        self._memory = written(memory, "CheckRecord", "memory")
        if self._memory.nbytes < c.CHECK_RECORD.size or self._memory.device != self._device:
            raise invalid(
                "CheckRecord",
                "memory",
                f"expected {c.CHECK_RECORD.size} bytes on {self._device}, got {self._memory}",
            )
        self.pointer = self._memory.pointer
        self.device_bytes = self._memory.packed[_DEVICE]

    def raise_if_offended(self, *, stream: Any = None) -> None:
        """Waits for the stream; raises what was found, and leaves the record as it is.

        Raises:
          InvalidArgument, TooLong: What the CPU raises for the same offence.
        """
        call = pack_call(self._memory, self._memory.packed, stream, None, "CheckRecord")
        c.check(c.unlocked.quire_check_result(c_device(self._device), self.pointer, call))

    def __repr__(self) -> str:
        return f"quire.CheckRecord({str(self._device)!r})"

    def clear(self) -> None:
        """Makes it ready for the next step after an offence. On a GPU in order on the current
        stream of the library that made the memory."""
        owner = self._memory.owner
        if hasattr(owner, "zero_"):  # torch
            owner.zero_()
        else:
            owner.fill(0)


class ThreadPool(c.Owner):
    """Persistent threads of the CPU backend that sleep when there is no work.

    Args:
      num_threads: The calling thread included; 0 takes one per available core.

    Calls without an executor share one pool of the process, whose size `QUIRE_NUM_THREADS` sets.
    A pool may be closed before what was made with it, not while a call that names it runs.

    Raises:
      InvalidArgument: `num_threads` is negative.
      Error: `OUT_OF_MEMORY` if the threads cannot be started.
    """

    __slots__ = ()

    def __init__(self, num_threads: int = 0) -> None:
        count = int32(num_threads, "ThreadPool", "num_threads")
        handle = c.created(c.unlocked.quire_thread_pool_create, count)
        super().__init__(handle, c.unlocked.quire_executor_destroy)


class Fence(c.Owner):
    """A point in the work of a stream, to be waited for by the host or by other streams.

    Pages that copies on a stream read must not be given to others before a fence recorded behind
    the copies is reached. On the CPU, whose calls return when all is done, it is reached at once.

    Args:
      device: "cpu", "cuda", "cuda:1" or a torch.device.

    Raises:
      Error: `DEVICE_ERROR`, if there is no such device.
    """

    __slots__ = ()

    def __init__(self, device: Any = "cpu") -> None:
        handle = c.created(c.locked.quire_fence_create, c_device(as_device(device)))
        super().__init__(handle, c.locked.quire_fence_destroy)

    def record(self, stream: Any = 0) -> None:
        """Behind all work that is on the stream now; what was recorded before is forgotten."""
        c.check(c.locked.quire_fence_record(self._handle, stream_handle(stream, "Fence.record")))

    def query(self) -> bool:
        """Whether what was recorded is reached. Does not wait."""
        reached = ctypes.c_int32()
        c.check(c.locked.quire_fence_query(self._handle, byref(reached)))
        return bool(reached.value)

    def wait(self, stream: Any = 0) -> None:
        """Later work of the stream waits for the fence; the host does not."""
        c.check(c.locked.quire_fence_wait(self._handle, stream_handle(stream, "Fence.wait")))

    def synchronize(self) -> None:
        """Waits until it is reached."""
        c.check(c.unlocked.quire_fence_synchronize(self._handle))


def pack_call(
    array: Any, packed: bytes, stream: Any, check: Optional[CheckRecord], where: str
) -> Optional[bytes]:
    """`quire_call_options` of a call on the device of an array, None for all defaults.

    On a GPU the stream is the one given, or torch's current one if the array is a torch tensor:
    nothing is ever put on another stream silently.

    Args:
      array: As it was given, or a view of it.
      packed: Its `quire_tensor`.
    """
    device = packed[_DEVICE]
    if check is not None and check.device_bytes != device:
        raise invalid(where, "check", f"expected a record on the arrays' device, got {check}")
    if device == _CPU:
        if check is None:
            return None
        handle = 0
    elif stream is not None:
        handle = stream_handle(stream, where)
    else:
        torch = sys.modules.get("torch")
        owner = array.owner if isinstance(array, TensorView) else array
        if torch is None or not isinstance(owner, torch.Tensor):
            raise invalid(
                where,
                "stream",
                "expected a CUDA stream (0 is the default one), as only torch tensors tell theirs",
            )
        handle = torch.cuda.current_stream(owner.device).cuda_stream
    return c.CALL_OPTIONS.pack(c.CALL_OPTIONS.size, handle, 0 if check is None else check.pointer)


# `quire_tensor::device`, behind the pointer, dtype and rank.
_DEVICE = slice(c.POINTER_SIZED.size + 8, c.POINTER_SIZED.size + 16)
_CPU = bytes(c_device(Device("cpu")))


def stream_handle(stream: Any, where: str) -> int:
    """A `cudaStream_t` of an int, of a torch or CuPy stream, or of an object with
    `__cuda_stream__`."""
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for attribute in ("cuda_stream", "ptr"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    try:
        return int(stream)
    except (TypeError, ValueError):
        raise invalid(
            where, "stream", f"expected a CUDA stream or its handle, got {type(stream).__name__}"
        ) from None


def pack_options(
    executor: Optional[ThreadPool], kernel: Optional[str] = None
) -> Optional[c.AttentionOptions]:
    """`quire_attention_options`, None for all defaults."""
    if executor is None and kernel is None:
        return None
    if executor is not None and getattr(executor, "_handle", None) is None:
        raise invalid("quire", "executor", f"expected an open quire.ThreadPool, got {executor!r}")
    return c.AttentionOptions(
        executor=None if executor is None else executor._handle,
        kernel=None if kernel is None else kernel.encode(),
    )


def reference(struct: Any) -> Any:
    """A pointer to a ctypes struct that may be None."""
    return None if struct is None else byref(struct)


def int32(value: Any, where: str, name: str) -> int:
    """An integer that int32 holds: ctypes would cut it silently."""
    try:
        result = value.__index__()
    except AttributeError:
        raise invalid(where, name, f"expected an integer, got {value!r}") from None
    if not -(2**31) <= result < 2**31:
        raise invalid(where, name, f"expected an int32, got {result}")
    return int(result)


def uint64(value: Any, where: str, name: str) -> int:
    """An integer that uint64 holds: ctypes would cut it silently."""
    try:
        result = value.__index__()
    except AttributeError:
        raise invalid(where, name, f"expected an integer, got {value!r}") from None
    if not 0 <= result < 2**64:
        raise invalid(where, name, f"expected a uint64, got {result}")
    return int(result)


def int32_array(
    values: npt.ArrayLike, where: str, name: str, what: str = "int32"
) -> npt.NDArray[np.int32]:
    """A list of integers as int32 [len(values)] without gaps; one number is a list of it.

    Args:
      what: What they are, for the error text.
    """
    given = np.atleast_1d(np.asarray(values))
    if given.size == 0:
        given = given.astype(np.int32)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise invalid(where, name, f"expected {what}, got {given.dtype} {given.shape}")
    result = np.ascontiguousarray(given, np.int32)
    if result is not given and not np.array_equal(result, given):
        raise invalid(where, name, f"expected int32 {what}, got larger ones")
    return result


def enumerator(names: dict[str, int], value: Any, where: str, name: str) -> int:
    """The library's value of an enumerator's name."""
    try:
        return names[value]
    except (KeyError, TypeError):
        expected = ", ".join(f'"{each}"' for each in names)
        raise invalid(where, name, f"expected one of {expected}, got {value!r}") from None


def empty_bytes(device: Device, nbytes: int, where: str, name: str) -> Any:
    """A uint8 array on the device, aligned as workspaces must be."""
    if device.type == "cpu":
        block = np.empty(nbytes + c.WORKSPACE_ALIGNMENT, np.uint8)
        skipped = -block.__array_interface__["data"][0] % c.WORKSPACE_ALIGNMENT
        return block[skipped : skipped + nbytes]
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise invalid(
            where,
            name,
            f"expected {nbytes} bytes on {device}: without torch nothing here allocates on a GPU",
        ) from None
    return torch.empty(nbytes, dtype=torch.uint8, device=str(device))


def zeroed(device: Device, nbytes: int, where: str, name: str) -> Any:
    """`empty_bytes()` of zeros."""
    block = empty_bytes(device, nbytes, where, name)
    if device.type == "cpu":
        block.fill(0)
    else:
        block.zero_()
    return block
