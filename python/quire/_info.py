# SPDX-License-Identifier: Apache-2.0
"""What there is: the library, its kernels and devices, and what they serve."""

from __future__ import annotations

from ctypes import byref, c_char_p, c_size_t
from typing import Any, NamedTuple, Optional

from . import _library as c
from ._attention import WorkspaceSizes
from ._calls import ThreadPool, pack_options, reference
from ._errors import Unsupported
from ._spec import AttentionSpec, BatchLimits
from ._tensors import Device, as_device, c_device, device_of


class KernelInfo(NamedTuple):
    """A kernel and all that it serves, in words, from the table that dispatches."""

    name: str
    device_type: str
    summary: str
    q_dtypes: str
    kv_dtypes: str
    head_dims: str
    masks: str
    options: str
    kv_scales: str


class DeviceInfo(NamedTuple):
    """A device that this process can use; `facts` are lines `key: value`."""

    device: Device
    name: str
    facts: str


class Support(NamedTuple):
    """Whether a device serves a spec; true if it does.

    `kernel` is the name of the kernel that would; if there is none, `reason` says why, and what
    comes nearest.
    """

    kernel: Optional[str]
    reason: str

    def __bool__(self) -> bool:
        return self.kernel is not None


def version() -> str:
    """Version of the library that is loaded, e.g. "0.1.0"."""
    return c.text(c.locked.quire_version())


def kernels() -> list[KernelInfo]:
    """The kernels of this build, in the order in which they are considered."""
    result = []
    for index in range(c.locked.quire_kernel_count()):
        info = c.KernelInfo()
        c.check(c.locked.quire_kernel_get(index, byref(info)))
        device_type = device_of(info.device_type, 0).type
        fields = {name: c.text(getattr(info, name)) for name in _TEXTS}
        result.append(KernelInfo(device_type=device_type, **fields))
    return result


_TEXTS = [name for name in KernelInfo._fields if name != "device_type"]


def devices() -> list[DeviceInfo]:
    """The CPU, then the GPUs that are present. Counted at the first call, which may initialise the
    driver."""
    result = []
    for index in range(c.unlocked.quire_device_count()):
        info = c.DeviceInfo()
        c.check(c.unlocked.quire_device_get(index, byref(info)))
        device = device_of(info.device.type, info.device.index)
        result.append(DeviceInfo(device, c.text(info.name), c.text(info.facts)))
    return result


def supports(spec: AttentionSpec, device: Any = "cpu") -> Support:
    """Looks a spec up in the kernel table, without touching a device.

    Raises:
      InvalidArgument: The spec contradicts itself.
    """
    kernel = c_char_p()
    try:
        c.check(
            c.unlocked.quire_supports(
                c_device(as_device(device)), byref(spec._packed()), byref(kernel)
            )
        )
    except Unsupported as error:
        return Support(None, str(error))
    return Support(c.text(kernel.value), "")


def workspace_sizes(
    spec: AttentionSpec,
    limits: Optional[BatchLimits] = None,
    *,
    device: Any = "cpu",
    executor: Optional[ThreadPool] = None,
    kernel: Optional[str] = None,
) -> WorkspaceSizes:
    """Bytes that an `Attention` of the same arguments will need, computed without a device.

    Raises:
      InvalidArgument, Unsupported: As `Attention` does for spec and limits.
    """
    schedule, scratch = c_size_t(), c_size_t()
    c.check(
        c.unlocked.quire_workspace_sizes(
            c_device(as_device(device)),
            byref(spec._packed()),
            byref((limits or BatchLimits())._packed()),
            reference(pack_options(executor, kernel)),
            byref(schedule),
            byref(scratch),
        )
    )
    return WorkspaceSizes(schedule.value, scratch.value)


def info() -> str:
    """All of it as text: what a bug report should hold."""
    lines = [f"quire {version()}, {c.PATH}", "devices:"]
    for device in devices():
        lines.append(f"  {device.device}: {device.name}")
        lines += [f"    {fact}" for fact in device.facts.splitlines()]
    lines.append("kernels:")
    lines += [f"  {kernel.name}: {kernel.summary}" for kernel in kernels()]
    return "\n".join(lines)
