# SPDX-License-Identifier: Apache-2.0
"""Attention: what a layer kind fixes, the batch of a step, schedule and run, and the one-shot."""

from __future__ import annotations

import dataclasses
from ctypes import byref, c_size_t
from typing import Any, Literal, NamedTuple, Optional

from . import _library as c
from ._arrays import (
    Device,
    TensorView,
    as_device,
    c_device,
    dtype_name,
    empty_like,
    packed,
    packed_written,
    view_of,
    written,
)
from ._calls import (
    CheckRecord,
    ThreadPool,
    empty_bytes,
    enumerator,
    int32,
    pack_call,
    pack_options,
    reference,
)
from ._errors import invalid

KvLayout = Literal["NHD", "HND"]
Mask = Literal["none", "causal", "tree", "full"]
KvScale = Literal["none", "per_tensor", "per_head"]

#: `AttentionSpec.page_size` of K and V that are not paged: rows found through `kv_indptr`.
CONTIGUOUS_KV = c.CONTIGUOUS_KV


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """What a kind of layer fixes. Kernels are chosen from this, once.

    Attributes:
      num_qo_heads: Heads of q and o.
      num_kv_heads: Divides `num_qo_heads`; their quotient is the group size.
      head_dim_qk: Components of a query and of a key.
      head_dim_vo: Components of a value; None takes `head_dim_qk`.
      q_dtype: Name of q's dtype; NumPy and torch dtypes are taken too.
      kv_dtype: The caches' dtype; None takes `q_dtype`.
      o_dtype: `q_dtype` or "float32"; None takes `q_dtype`.
      kv_layout: "NHD" = [page, page_size, num_kv_heads, head_dim] or
        "HND" = [page, num_kv_heads, page_size, head_dim].
      page_size: Tokens per page, or `CONTIGUOUS_KV`.
      mask: "none", "causal" (aligned to the end), "tree" (`Batch.tree_mask` over the new keys) or
        "full" (`Batch.full_mask`).
      window_left: w ≥ 0 hides keys before position − w (w + 1 keys with its own); −1 is off.
      sm_scale: Factor of q·k; None takes 1 / sqrt(head_dim_qk).
      logits_soft_cap: c > 0: a score s becomes c·tanh(s / c); None is off.
      sinks: Whether `run(sinks=…)` enters the denominator.
      alibi: Whether `run(alibi_slopes=…)` is applied.
      kv_scale: "none", or the shape of `k_scale` and `v_scale`: "per_tensor" float32 [1],
        "per_head" float32 [num_kv_heads].

    Raises:
      InvalidArgument: A name that does not exist. Numbers are judged where a spec is used.
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: Optional[int] = None
    q_dtype: Any = "bfloat16"
    kv_dtype: Any = None
    o_dtype: Any = None
    kv_layout: KvLayout = "NHD"
    page_size: int = 16
    mask: Mask = "causal"
    window_left: int = -1
    sm_scale: Optional[float] = None
    logits_soft_cap: Optional[float] = None
    sinks: bool = False
    alibi: bool = False
    kv_scale: KvScale = "none"

    def __post_init__(self) -> None:
        fill = object.__setattr__  # it is frozen for everybody else
        fill(self, "q_dtype", dtype_name(self.q_dtype))
        for name in ("kv_dtype", "o_dtype"):
            given = getattr(self, name)
            fill(self, name, self.q_dtype if given is None else dtype_name(given))
        if self.head_dim_vo is None:
            fill(self, "head_dim_vo", self.head_dim_qk)
        self._packed()  # names and ranges

    def _packed(self) -> c.AttentionSpec:
        where = "AttentionSpec"
        if self.sm_scale == 0:  # the library's word for "not given"
            raise invalid(where, "sm_scale", "expected None or a number other than 0, got 0")
        integers = ("num_qo_heads", "num_kv_heads", "head_dim_qk", "head_dim_vo", "page_size")
        return c.AttentionSpec(
            **{name: int32(getattr(self, name), where, name) for name in integers},
            q_dtype=c.DTYPES[self.q_dtype],
            kv_dtype=c.DTYPES[self.kv_dtype],
            o_dtype=c.DTYPES[self.o_dtype],
            kv_layout=enumerator(c.KV_LAYOUTS, self.kv_layout, where, "kv_layout"),
            mask=enumerator(c.MASKS, self.mask, where, "mask"),
            window_left=int32(self.window_left, where, "window_left"),
            sm_scale=self.sm_scale or 0.0,
            logits_soft_cap=self.logits_soft_cap or 0.0,
            sinks=bool(self.sinks),
            alibi=bool(self.alibi),
            kv_scale=enumerator(c.KV_SCALES, self.kv_scale, where, "kv_scale"),
        )


@dataclasses.dataclass(frozen=True)
class BatchLimits:
    """The largest batch that will be scheduled. Workspaces depend on these, not on the batch, so
    that a captured CUDA graph stays valid for every batch within them.

    Attributes:
      max_num_seqs: Requests of one step.
      max_total_q: Rows of q, padding included.
      max_kv_len: Keys of one request.
    """

    max_num_seqs: int = 256
    max_total_q: int = 8192
    max_kv_len: int = 131072

    def _packed(self) -> c.BatchLimits:
        names = ("max_num_seqs", "max_total_q", "max_kv_len")
        return c.BatchLimits(
            **{name: int32(getattr(self, name), "BatchLimits", name) for name in names}
        )


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


class Batch:
    """The requests of one step. All tensors lie on the attention's device and are read, not copied,
    when the work runs: keep them unchanged until then. Exactly one way to find keys is given:

    | keys are found through | arrays | length of a request |
    | --- | --- | --- |
    | a dense table | `page_table` | `kv_len` |
    | a CSR table | `kv_page_indptr`, `kv_page_indices` | `kv_len` or `kv_last_page_len` |
    | contiguous K and V | `kv_indptr` | its differences, or `kv_len` ≤ them |

    Tables may be larger than the lengths need; what lies beyond, or wholly before the window, is
    never read. A request may have no queries, no keys, or fewer keys than queries.

    Args:
      qo_indptr: int32 [num_seqs + 1]: offsets of the requests' rows in q, from 0 on.
      kv_len: int32 [num_seqs]: keys in cache, the new ones included.
      page_table: int32 [num_seqs, ≥ ceil(kv_len / page_size)]; rows may be strided.
      kv_page_indptr: int32 [num_seqs + 1].
      kv_page_indices: int32 [≥ kv_page_indptr[num_seqs]].
      kv_last_page_len: int32 [num_seqs], 1 to page_size.
      kv_indptr: int32 [num_seqs + 1]: offsets of the requests' rows in k and v.
      tree_mask: uint32 [total_q, ≥ ceil(max new keys / 32)]: bit j % 32 of word j / 32 of a row
        says whether the query sees the key of the request's j-th new token.
      full_mask: uint8, packed bits, little-endian in a byte, each request from a byte boundary: bit
        i·kv_len + t of a request says whether its query i sees key t.
      full_mask_indptr: int64 [num_seqs + 1]: byte offsets of the requests in `full_mask`.

    Raises:
      InvalidArgument: Something is not an array. Shapes and values are judged by `schedule()`.
    """

    __slots__ = ("_arrays", "_views", "packed")

    #: `quire_batch`, as bytes.
    packed: bytes

    def __init__(
        self,
        qo_indptr: Any,
        *,
        kv_len: Any = None,
        page_table: Any = None,
        kv_page_indptr: Any = None,
        kv_page_indices: Any = None,
        kv_last_page_len: Any = None,
        kv_indptr: Any = None,
        tree_mask: Any = None,
        full_mask: Any = None,
        full_mask_indptr: Any = None,
    ) -> None:
        # What the library reads as long as the batch is used: the arrays, and views of some.
        self._arrays = (
            qo_indptr,
            kv_len,
            page_table,
            kv_page_indptr,
            kv_page_indices,
            kv_last_page_len,
            kv_indptr,
            tree_mask,
            full_mask,
            full_mask_indptr,
        )
        self._views: list[TensorView] = []
        self.packed = _BATCH + b"".join(
            [
                packed(array, "Batch", name, self._views)
                for name, array in zip(c.TENSORS["quire_batch"], self._arrays)
            ]
        )

    @property
    def num_seqs(self) -> int:
        """Requests of the batch."""
        return view_of(self._arrays[0], "Batch", "qo_indptr").shape[0] - 1


class Schedule:
    """A batch that was cut into work: what `Attention.schedule()` returns and `run()` takes."""

    __slots__ = ("_schedule", "_scratch", "attention", "batch", "workspaces")

    def __init__(self, attention: Attention, batch: Batch, workspaces: Workspaces) -> None:
        self.attention = attention
        self.batch = batch
        self.workspaces = workspaces
        self._schedule = workspaces._schedule.pointer
        self._scratch = workspaces._scratch.pointer


_BATCH = c.tensors_header("quire_batch")
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
