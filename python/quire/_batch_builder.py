# SPDX-License-Identifier: Apache-2.0
"""Batches made of the sequences of a page table, in one block of bytes each."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from . import _library as c
from . import _serving_library as s
from ._arrays import view_of, written
from ._batch import MAX_PREFIX_LEVELS, Batch
from ._batcher import BatchEntry, StepPlan
from ._calls import empty_bytes, int32
from ._errors import invalid
from ._pages import PageTable, seq_of
from ._tensors import Device, TensorView, c_device, pack_pointer, tensor_layout

#: As `BatchShape.pages_per_seq` or `total_pages`: the block is without that form of the table.
OMITTED = s.OMITTED


class BatchShape(NamedTuple):
    """The sizes of a batch's arrays. The layout of a block depends on them alone: with a fixed
    shape every step's arrays are at the same addresses, as a captured graph wants them."""

    num_seqs: int  #: Rows of the table; requests beyond the entries are empty.
    total_q: int  #: Tokens; slots beyond the entries' tokens are −1.
    pages_per_seq: int = OMITTED  #: Columns of the dense table, or `OMITTED`.
    total_pages: int = OMITTED  #: Entries of `kv_page_indices`, or `OMITTED`.


class StagedBatch:
    """A batch in its block: all arrays are views of `bytes`, so that one upload moves them all.

    Attributes:
      shape: Sizes of the arrays, padding included.
      num_seqs, num_tokens: Entries and their new tokens, without padding.
      max_q_len, max_kv_len: Most new tokens of an entry; longest sequence.
      bytes: uint8, the part of the block in use.
      qo_indptr: int32 [shape.num_seqs + 1].
      kv_len: int32 [shape.num_seqs], new tokens included.
      positions: int32 [shape.total_q] in the sequence; padding 0.
      slot_mapping: int64 [shape.total_q]; padding −1.
      page_table: int32 [shape.num_seqs, shape.pages_per_seq], padded with `NO_PAGE`, or None.
      kv_page_indptr: int32 [shape.num_seqs + 1], or None.
      kv_page_indices: int32 [shape.total_pages], or None.
      kv_last_page_len: int32 [shape.num_seqs], 0 for a request without pages, or None.
    """

    __slots__ = (
        "_begins",
        "bytes",
        "kv_last_page_len",
        "kv_len",
        "kv_page_indices",
        "kv_page_indptr",
        "max_kv_len",
        "max_q_len",
        "num_seqs",
        "num_tokens",
        "page_table",
        "positions",
        "qo_indptr",
        "shape",
        "slot_mapping",
    )

    qo_indptr: npt.NDArray[np.int32]
    kv_len: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    slot_mapping: npt.NDArray[np.int64]
    page_table: Optional[npt.NDArray[np.int32]]
    kv_page_indptr: Optional[npt.NDArray[np.int32]]
    kv_page_indices: Optional[npt.NDArray[np.int32]]
    kv_last_page_len: Optional[npt.NDArray[np.int32]]

    def __init__(self, staging: npt.NDArray[np.uint8], staged: s.StagedBatch) -> None:
        shape = staged.shape
        self.shape = BatchShape(
            shape.num_seqs, shape.total_q, shape.pages_per_seq, shape.total_pages
        )
        self.num_seqs: int = staged.num_seqs
        self.num_tokens: int = staged.num_tokens
        self.max_q_len: int = staged.max_q_len
        self.max_kv_len: int = staged.max_kv_len
        self.bytes = staging[: staged.num_bytes]
        self._begins = {
            name: (getattr(staged, name) or staged.bytes) - staged.bytes for name in _DTYPES
        }
        for name in _DTYPES:
            setattr(self, name, self._array(name))

    def dense(
        self, base: Any = None, *, prefix_leaders: Any = None, prefix_pages: Any = None
    ) -> Batch:
        """The batch as `Attention` takes it, with the dense table. O(1).

        Args:
          base: Where `bytes` was copied to: a uint8 array of at least as many bytes on the device,
            aligned to 16; None takes the block itself.
          prefix_leaders, prefix_pages: On the device, what `BatchBuilder.find_prefixes()` made.

        Raises:
          InvalidArgument: The dense table was omitted, or `base` is too small.
        """
        self._expect("page_table", "dense")
        parts = self._parts(("qo_indptr", "kv_len", "page_table"), base, "dense")
        return Batch(**parts, prefix_leaders=prefix_leaders, prefix_pages=prefix_pages)

    def csr(
        self, base: Any = None, *, prefix_leaders: Any = None, prefix_pages: Any = None
    ) -> Batch:
        """Likewise, with the CSR table."""
        self._expect("kv_page_indptr", "csr")
        names = ("qo_indptr", "kv_len", "kv_page_indptr", "kv_page_indices", "kv_last_page_len")
        parts = self._parts(names, base, "csr")
        return Batch(**parts, prefix_leaders=prefix_leaders, prefix_pages=prefix_pages)

    def slots(self, base: Any = None) -> Any:
        """`slot_mapping` as `append()` takes it, int64 [shape.total_q]. @param base: Likewise."""
        return self._parts(("slot_mapping",), base, "slots")["slot_mapping"]

    def _expect(self, table: str, where: str) -> None:
        if getattr(self, table) is None:
            raise invalid(where, table, "expected it in the batch, got a shape that omits it")

    def _shape_of(self, name: str) -> Optional[tuple[int, ...]]:
        seqs, tokens, columns, pages = self.shape
        if pages == OMITTED and name in ("kv_page_indptr", "kv_page_indices", "kv_last_page_len"):
            return None
        if columns == OMITTED and name == "page_table":
            return None
        return {
            "qo_indptr": (seqs + 1,),
            "kv_len": (seqs,),
            "kv_page_indptr": (seqs + 1,),
            "kv_last_page_len": (seqs,),
            "positions": (tokens,),
            "slot_mapping": (tokens,),
            "kv_page_indices": (pages,),
            "page_table": (seqs, columns),
        }[name]

    def _array(self, name: str) -> Optional[npt.NDArray[Any]]:
        shape = self._shape_of(name)
        if shape is None:
            return None
        dtype = np.dtype(_DTYPES[name])
        begin = self._begins[name]
        part = self.bytes[begin : begin + int(np.prod(shape)) * dtype.itemsize]
        return part.view(dtype).reshape(shape)

    def _parts(self, names: Sequence[str], base: Any, where: str) -> dict[str, Any]:
        if base is None:
            return {name: getattr(self, name) for name in names}
        block = view_of(base, where, "base")
        if block.nbytes < self.bytes.nbytes or not block.is_contiguous:
            raise invalid(
                where, "base", f"expected {self.bytes.nbytes} bytes without gaps, got {block}"
            )
        return {name: self._elsewhere(name, block) for name in names}

    def _elsewhere(self, name: str, block: TensorView) -> TensorView:
        shape = self._shape_of(name)
        assert shape is not None  # its caller has asked
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        device = c_device(block.device)
        dtype = c.DTYPES[_DTYPES[name]]
        layout = tensor_layout(dtype, device.type, device.index, shape, strides)
        pointer = pack_pointer(block.pointer + self._begins[name])
        return TensorView(block.owner, pointer + layout, False)


_DTYPES = {
    "qo_indptr": "int32",
    "kv_len": "int32",
    "kv_page_indptr": "int32",
    "kv_last_page_len": "int32",
    "positions": "int32",
    "slot_mapping": "int64",
    "kv_page_indices": "int32",
    "page_table": "int32",
}

#: What a batch is built of: pairs of a sequence and its new tokens, or a committed plan.
Entries = Union[Sequence[BatchEntry], StepPlan]


class BatchBuilder(c.Owner):
    """Turns sequences of a `PageTable` into the arrays of a `Batch`: page tables, lengths,
    positions and slots, in one block that a step uploads at once.

    Args:
      table: Its sequences; its state is kept alive.
    """

    __slots__ = ()

    def __init__(self, table: PageTable) -> None:
        handle = c.created(s.locked.quire_batch_builder_create, table._handle)
        super().__init__(handle, s.locked.quire_batch_builder_destroy)

    @staticmethod
    def staging_size(shape: BatchShape) -> int:
        """Bytes of a block for `shape`, and enough for every shape that is nowhere larger.

        Raises:
          InvalidArgument: A size is out of range.
        """
        size = int(s.locked.quire_staging_size(_c_shape(shape, "staging_size")))
        if size == 0:
            raise invalid("staging_size", "shape", f"expected sizes in range, got {shape}")
        return size

    def tight_shape(self, entries: Entries) -> BatchShape:
        """The smallest shape that holds the entries, both tables included.

        Raises:
          BadHandle, InvalidArgument, TooLong: As `build()`.
        """
        packed, count = _packed(entries, "tight_shape")
        shape = s.BatchShape()
        c.check(s.locked.quire_batch_builder_tight_shape(self._handle, packed, count, byref(shape)))
        return BatchShape(shape.num_seqs, shape.total_q, shape.pages_per_seq, shape.total_pages)

    def build(
        self,
        entries: Entries,
        *,
        shape: Optional[BatchShape] = None,
        staging: Any = None,
    ) -> StagedBatch:
        """Writes the arrays of a batch into a block. O(entries + tokens + entries of the tables).

        Args:
          entries: A live sequence and its new tokens each, for which `append()` has made room; or a
            committed `StepPlan`.
          shape: What the arrays are padded to; None takes the tight one.
          staging: Written: a contiguous uint8 array of the host, at least `staging_size(shape)`
            bytes, aligned to 16 (pinned memory, say). None allocates it.

        Raises:
          BadHandle: A sequence is not live.
          InvalidArgument: A sequence twice, or new tokens outside 0 to length or in a page that the
            sequence shares.
          TooLong: It does not fit the shape.
          Error: `WORKSPACE_TOO_SMALL` if `staging` is too small or misaligned. It is untouched
            then.
        """
        where = "build"
        packed, count = _packed(entries, where)
        if staging is None:
            size = self.staging_size(self.tight_shape(entries) if shape is None else shape)
            staging = empty_bytes(Device("cpu"), size, where, "staging")
        block = _host_bytes(staging, where)
        staged = s.StagedBatch()
        padded = None if shape is None else byref(_c_shape(shape, where))
        c.check(
            s.locked.quire_batch_builder_build(
                self._handle, packed, count, padded, block.ctypes.data, block.size, byref(staged)
            )
        )
        return StagedBatch(block, staged)

    def update(self, entries: Entries, *, shape: BatchShape, staging: Any) -> StagedBatch:
        """As `build()`, into a block that still holds what this builder's last call wrote there,
        with the same shape: of the tables only what has changed since is written. If the last call
        wrote elsewhere, or with another shape, everything is. The bytes are those that `build()`
        writes, and all of them are to be uploaded.

        A builder knows one block; with two in turn, take two builders. Sequences are best kept in
        their order. O(entries + tokens + sizes of the shape but the tables' + entries of the tables
        that change or move).

        Args:
          entries: As for `build()`.
          shape: What the arrays are padded to.
          staging: Written; as for `build()`. Nobody else may have written to it since.

        Raises:
          BadHandle, InvalidArgument, TooLong, Error: As `build()`.
        """
        where = "update"
        packed, count = _packed(entries, where)
        block = _host_bytes(staging, where)
        staged = s.StagedBatch()
        padded = byref(_c_shape(shape, where))
        c.check(
            s.locked.quire_batch_builder_update(
                self._handle, packed, count, padded, block.ctypes.data, block.size, byref(staged)
            )
        )
        return StagedBatch(block, staged)

    def find_prefixes(
        self, entries: Entries, *, num_seqs: Optional[int] = None
    ) -> npt.NDArray[np.int32]:
        """Finds which entries' tables begin with the same pages, for `Attention.schedule()`, which
        then compares no tables::

            leaders, pages = builder.find_prefixes(entries)
            batch = builder.build(entries).dense(prefix_leaders=leaders, prefix_pages=pages)

        Looks at entries that may share, of 1 to 64 new tokens, and at the whole pages before these.
        O(entries · log entries + pages of prefixes, for each entry that has them).

        Args:
          entries: As for `build()`.
          num_seqs: Of the batch's shape: at least the entries; None takes as many.

        Returns:
          int32 [2, MAX_PREFIX_LEVELS, num_seqs]: `prefix_leaders` and `prefix_pages` of the batch,
          in one array for one upload.

        Raises:
          BadHandle, InvalidArgument, TooLong: As `build()`; TooLong also if `num_seqs` is too
            small.
        """
        where = "find_prefixes"
        packed, count = _packed(entries, where)
        columns = int32(count if num_seqs is None else num_seqs, where, "num_seqs")
        groups = np.empty((2, MAX_PREFIX_LEVELS, max(columns, 0)), np.int32)
        c.check(
            s.locked.quire_batch_builder_find_prefixes(
                self._handle, packed, count, columns, groups[0].ctypes.data, groups[1].ctypes.data
            )
        )
        return groups


def _c_shape(shape: BatchShape, where: str) -> s.BatchShape:
    return s.BatchShape(*(int32(size, where, "shape") for size in BatchShape(*shape)))


def _packed(entries: Entries, where: str) -> tuple[Any, int]:
    """`quire_batch_entry` [count]."""
    if isinstance(entries, StepPlan):
        return entries._list("quire_step_plan_batch")
    packed = (s.BatchEntry * len(entries))()
    for entry, given in zip(packed, entries):
        seq, new_tokens = given
        entry.seq = seq_of(seq)
        entry.new_tokens = int32(new_tokens, where, "new_tokens")
    return packed, len(packed)


def _host_bytes(staging: Any, where: str) -> npt.NDArray[np.uint8]:
    block = written(staging, where, "staging")
    if block.device != Device("cpu") or block.dtype != "uint8" or len(block.shape) != 1:
        raise invalid(where, "staging", f"expected uint8 [bytes] on cpu, got {block}")
    array = block.owner if isinstance(block.owner, np.ndarray) else np.asarray(block.owner)
    if not array.flags.c_contiguous:
        raise invalid(where, "staging", "expected bytes without gaps, got a strided array")
    return array
