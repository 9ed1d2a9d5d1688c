# SPDX-License-Identifier: Apache-2.0
"""Attention of one spec: workspaces, schedule once per step, run once per layer."""

from __future__ import annotations

import dataclasses
from ctypes import byref, c_size_t
from typing import Any, NamedTuple, Optional

from . import _library as c
from ._arrays import empty_like, packed, packed_written, view_of, written
from ._batch import Batch
from ._calls import CheckRecord, ThreadPool, empty_bytes, pack_call, pack_options, reference
from ._errors import invalid
from ._spec import AttentionSpec, BatchLimits
from ._tensors import Device, TensorView, as_device, c_device


class WorkspaceSizes(NamedTuple):
    """Bytes that an `Attention` needs.

    `schedule` is per spec and step: filled by `schedule()`, used by every `run()`. `scratch` is per
    stream: shared by everything that runs on it one after another.
    """

    schedule: int
    scratch: int


class Workspaces:
    """The memory that a step works in: on the attention's device, of any content.

    Args:
      schedule: An array without gaps of at least `WorkspaceSizes.schedule` bytes, aligned to 256.
      scratch: Likewise of `WorkspaceSizes.scratch` bytes. Several `Workspaces` may share it if they
        are used one after another on one stream.

    Steps that overlap in time need separate ones. `Attention.allocate_workspaces()` makes them.
    """

    __slots__ = ("_schedule", "_scratch", "device", "schedule_bytes", "scratch_bytes")

    def __init__(self, schedule: Any, scratch: Any) -> None:
        self._schedule = written(schedule, "Workspaces", "schedule")
        self._scratch = written(scratch, "Workspaces", "scratch")
        for name, each in (("schedule", self._schedule), ("scratch", self._scratch)):
            if not each.is_contiguous:
                raise invalid("Workspaces", name, f"expected no gaps, got strides {each.strides}")
            if each.device != self._schedule.device:
                raise invalid("Workspaces", name, f"expected both on one device, got {each.device}")
        self.device = self._schedule.device
        self.schedule_bytes = self._schedule.nbytes
        self.scratch_bytes = self._scratch.nbytes

    @property
    def schedule(self) -> Any:
        """The array that was given."""
        return self._schedule.owner

    @property
    def scratch(self) -> Any:
        """The array that was given."""
        return self._scratch.owner


class Schedule:
    """A batch that was cut into work: what `Attention.schedule()` returns and `run()` takes."""

    __slots__ = ("_schedule", "_scratch", "attention", "batch", "workspaces")

    def __init__(self, attention: Attention, batch: Batch, workspaces: Workspaces) -> None:
        self.attention = attention
        self.batch = batch
        self.workspaces = workspaces
        self._schedule = workspaces._schedule.pointer
        self._scratch = workspaces._scratch.pointer


_ATTENTION_TENSORS = c.tensors_header("quire_attention_tensors")


class Attention(c.Owner):
    """Attention of one spec on one device. Immutable: used from many threads and streams at once.

    Make one per kind of layer, `schedule()` once per step, `run()` once per layer::

        attention = quire.Attention(spec, quire.BatchLimits(max_num_seqs=64))
        workspaces = attention.allocate_workspaces()
        while True:
            step = attention.schedule(quire.Batch(qo_indptr, kv_len=…, page_table=…), workspaces)
            for layer in layers:
                attention.run(step, q, layer.k_cache, layer.v_cache, o=o)

    Args:
      spec: What the layers have in common.
      limits: The largest batch; None takes the defaults of `BatchLimits`.
      device: "cpu", "cuda", "cuda:1", or a torch.device.
      executor: Threads of the CPU backend; None takes the process's pool.
      kernel: Forces the kernel of this name (`quire.kernels()`).

    Raises:
      InvalidArgument: Spec and limits contradict themselves.
      Unsupported: No kernel serves the spec; the text names the nearest supported choice.
      Error: `DEVICE_ERROR` if there is no such device.
    """

    __slots__ = ("_device", "_sizes", "_spec")

    def __init__(
        self,
        spec: AttentionSpec,
        limits: Optional[BatchLimits] = None,
        *,
        device: Any = "cpu",
        executor: Optional[ThreadPool] = None,
        kernel: Optional[str] = None,
    ) -> None:
        self._device = as_device(device)
        handle = c.created(
            c.unlocked.quire_attention_create,
            c_device(self._device),
            byref(spec._packed()),
            byref((limits or BatchLimits())._packed()),
            reference(pack_options(executor, kernel)),
        )
        super().__init__(handle, c.unlocked.quire_attention_destroy)
        schedule, scratch = c_size_t(), c_size_t()
        c.check(c.unlocked.quire_attention_workspace_sizes(handle, byref(schedule), byref(scratch)))
        self._sizes = WorkspaceSizes(schedule.value, scratch.value)
        filled = c.AttentionSpec()
        c.check(c.unlocked.quire_attention_get_spec(handle, byref(filled)))
        self._spec = dataclasses.replace(spec, sm_scale=filled.sm_scale)

    @property
    def spec(self) -> AttentionSpec:
        """The spec with its defaults filled in."""
        return self._spec

    @property
    def device(self) -> Device:
        """Where it runs."""
        return self._device

    @property
    def kernel(self) -> str:
        """Name of the kernel that serves it."""
        return c.text(c.unlocked.quire_attention_kernel(self._handle))

    @property
    def workspace_sizes(self) -> WorkspaceSizes:
        """Bytes that `schedule()` and `run()` need."""
        return self._sizes

    def allocate_workspaces(self) -> Workspaces:
        """Workspaces of the sizes that are needed: NumPy's memory on the CPU, torch's on a GPU."""
        arrays = (
            empty_bytes(self._device, nbytes, "allocate_workspaces", name)
            for name, nbytes in self._sizes._asdict().items()
        )
        return Workspaces(*arrays)

    def schedule(
        self,
        batch: Batch,
        workspaces: Optional[Workspaces] = None,
        *,
        stream: Any = None,
        check: Optional[CheckRecord] = None,
    ) -> Schedule:
        """Cuts a batch into equal work; every layer of the spec reuses the result. O(num_seqs).

        Does not wait for the device and may be captured in a CUDA graph.

        Args:
          batch: Within the limits.
          workspaces: Used until the last `run()` of the step has ended. None allocates new ones.
          stream: CUDA stream; None takes torch's current one if the batch is torch's.
          check: Turns checked mode on.

        Raises:
          InvalidArgument: A wrong shape, dtype, stride or device; on the CPU wrong lengths and
            offsets too, elsewhere through `check`.
          TooLong: More than the limits allow, seen where wrong values are.
          Error: `WORKSPACE_TOO_SMALL` (or misaligned), `DEVICE_ERROR`.
        """
        workspaces = workspaces or self.allocate_workspaces()
        if workspaces.device != self._device:  # the library sees addresses only
            raise invalid(
                "schedule",
                "workspaces",
                f"expected memory on {self._device}, got it on {workspaces.device}",
            )
        result = Schedule(self, batch, workspaces)
        status = _schedule(
            self._handle,
            batch.packed,
            result._schedule,
            workspaces.schedule_bytes,
            pack_call(batch._arrays[0], batch.packed[c.SIZE.size :], stream, check, "schedule"),
        )
        if status:
            c.check(status)
        return result

    def run(
        self,
        schedule: Schedule,
        q: Any,
        k: Any,
        v: Any,
        *,
        o: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        k_scale: Any = None,
        v_scale: Any = None,
        sinks: Any = None,
        alibi_slopes: Any = None,
        q_scale: Any = None,
        stream: Any = None,
        check: Optional[CheckRecord] = None,
    ) -> Any:
        """Computes o (and lse) of one layer. Every row is written: rows that see no key and rows
        beyond the last request get o = 0 and lse = −inf.

        Allocates only what is returned and was not given. Does not wait for the device and may be
        captured in a CUDA graph.

        Args:
          schedule: Of this attention; ready for the next run afterwards.
          q: q_dtype [total_q, num_qo_heads, head_dim_qk]; token and head axes may be strided.
          k: kv_dtype, pages in the layout of the spec, or rows (contiguous).
          v: The same with head_dim_vo; strides independent of k's.
          o: Written: o_dtype [total_q, num_qo_heads, head_dim_vo]; must not overlap q, k, v. None
            allocates it, of the kind that q is.
          lse: Written: float32 [total_q, num_qo_heads], natural logarithm. None allocates it if
            `return_lse`.
          return_lse: Whether lse is returned too.
          k_scale, v_scale: float32 [1] or [num_kv_heads], as `kv_scale` of the spec says.
          sinks: float32 [num_qo_heads]: unscaled logits; given exactly if the spec says so.
          alibi_slopes: float32 [num_qo_heads]; given exactly if the spec says so.
          q_scale: float32 [1] or [num_qo_heads], positive, for queries of float8_e4m3: what they
            are to be multiplied by. None is 1.
          stream: CUDA stream; None takes torch's current one if q is torch's.
          check: Turns checked mode on.

        Returns:
          o, or (o, lse) if `return_lse`.

        Raises:
          As `schedule()`; InvalidArgument also for a schedule that was not made of this batch and,
          on the CPU, for page ids that the cache does not have.
        """
        if schedule.attention is not self:
            raise invalid("run", "schedule", "expected one of this attention, got another's")
        o_out, lse_out = o, lse
        if o is None:
            o_out = self._new_result(q, (self._spec.head_dim_vo,), self._spec.o_dtype, "o")
        if lse is None and return_lse:
            lse_out = self._new_result(q, (), "float32", "lse")
        keep: list[TensorView] = []
        packed_q = packed(q, "run", "q", keep)
        tensors = (
            _ATTENTION_TENSORS,
            packed_q,
            packed(k, "run", "k", keep),
            packed(v, "run", "v", keep),
            packed_written(o_out, "run", "o", keep),
            packed_written(lse_out, "run", "lse", keep),
            packed(k_scale, "run", "k_scale", keep),
            packed(v_scale, "run", "v_scale", keep),
            packed(sinks, "run", "sinks", keep),
            packed(alibi_slopes, "run", "alibi_slopes", keep),
            packed(q_scale, "run", "q_scale", keep),
        )
        workspaces = schedule.workspaces
        status = _run(
            self._handle,
            schedule.batch.packed,
            b"".join(tensors),
            schedule._schedule,
            workspaces.schedule_bytes,
            schedule._scratch,
            workspaces.scratch_bytes,
            pack_call(q, packed_q, stream, check, "run"),
        )
        if status:
            c.check(status)
        o = o_out.owner if o is None else o
        if not return_lse:
            return o
        return o, (lse_out.owner if lse is None else lse)

    @staticmethod
    def _new_result(q: Any, last: tuple[Any, ...], dtype: str, name: str) -> TensorView:
        view = view_of(q, "run", "q")
        return empty_like(view, (*view.shape[:2], *last), dtype, "run", name)


_schedule = c.unlocked.quire_attention_schedule
_run = c.unlocked.quire_attention_run
