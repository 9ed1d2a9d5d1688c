# SPDX-License-Identifier: Apache-2.0
"""Page pool, page tables and copy plans: who has which page of a KV cache."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref, c_size_t, c_void_p
from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from . import _library as c
from ._arrays import packed, written
from ._calls import enumerator, int32, int32_array, pack_call
from ._errors import invalid
from ._spec import KvLayout
from ._tensors import TensorView, c_device

#: No page: pads dense page tables.
NO_PAGE = -1

Pages = npt.NDArray[np.int32]


class PagePool(c.Owner):
    """Which pages of a KV cache are free, and how many references hold each of the others. It knows
    page ids only: the cache itself is your array.

    Args:
      num_pages: Pages of the cache.
      page_size: Tokens per page.

    A pool and its page tables together have one owner at a time: threads that share them take turns
    with a lock of their own.

    Raises:
      InvalidArgument: A number is out of range.
    """

    __slots__ = ("num_pages", "page_size")

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        self.num_pages = int32(num_pages, "PagePool", "num_pages")
        self.page_size = int32(page_size, "PagePool", "page_size")
        spec = c.PagePoolSpec(num_pages=self.num_pages, page_size=self.page_size)
        handle = c.created(c.locked.quire_page_pool_create, byref(spec))
        super().__init__(handle, c.locked.quire_page_pool_destroy)

    @property
    def num_free(self) -> int:
        """Pages that nothing refers to. O(1)."""
        return c.count(c.locked.quire_page_pool_num_free(self._handle))

    @property
    def num_used(self) -> int:
        """Pages that something refers to. O(1)."""
        return c.count(c.locked.quire_page_pool_num_used(self._handle))

    def ref_count(self, page: int) -> int:
        """References to a page, the page tables' included; 0 for an id that is not the pool's."""
        page = int32(page, "ref_count", "page")
        return c.count(c.locked.quire_page_pool_ref_count(self._handle, page))

    def allocate(self, count: int = 1) -> Pages:
        """Free pages, int32 [count], each with one reference of the caller.

        Raises:
          OutOfPages: There are fewer; none was taken.
        """
        if not 0 <= int32(count, "allocate", "count") <= self.num_pages:
            raise invalid("allocate", "count", f"expected 0 to {self.num_pages}, got {count}")
        pages = np.empty(count, np.int32)
        c.check(c.locked.quire_page_pool_allocate(self._handle, pages.ctypes.data, count))
        return pages

    def retain(self, pages: npt.ArrayLike) -> None:
        """Adds a reference of the caller to each page, once per occurrence.

        Raises:
          BadHandle: A page is free or unknown; nothing was changed.
        """
        ids = int32_array(pages, "retain", "pages", "page ids")
        c.check(c.locked.quire_page_pool_retain(self._handle, ids.ctypes.data, ids.size))

    def release(self, pages: npt.ArrayLike) -> None:
        """Takes back a reference of the caller from each page, once per occurrence.

        Raises:
          BadHandle: The caller does not hold that many; nothing was changed.
        """
        ids = int32_array(pages, "release", "pages", "page ids")
        c.check(c.locked.quire_page_pool_release(self._handle, ids.ctypes.data, ids.size))

    def check(self) -> None:
        """Recomputes what must always hold. O(num_pages). Raises `Error` (`INTERNAL`)."""
        c.check(c.locked.quire_page_pool_check(self._handle))


class CopyOp(NamedTuple):
    """Copy `tokens` tokens of page `src`, those from `src_begin` on, to page `dst`, to `dst_begin`
    and the places behind it, in K and V of every layer."""

    src: int
    dst: int
    tokens: int
    src_begin: int = 0
    dst_begin: int = 0


class Copies:
    """Copies in the order in which they are executed: a sequence of `CopyOp`s."""

    __slots__ = ("_list",)

    def __init__(self, ops: Pages) -> None:
        self._list = ops

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[CopyOp]:
        return iter([CopyOp(*each) for each in self.to_numpy().tolist()])

    def to_numpy(self) -> Pages:
        """The copies, int32 [len, 5] of src, dst, tokens, src_begin, dst_begin: a copy of the
        list."""
        return self._list.copy()

    def execute(
        self,
        *caches: Any,
        sources: Sequence[Any] = (),
        kv_layout: KvLayout = "NHD",
        stream: Any = None,
    ) -> None:
        """Executes the copies in caches, K and V of one layer or of many, as if one op came after
        another. On a GPU the copies run on the stream and the call does not wait for them: see
        `Fence`. O(len · caches · tokens · heads · head_dim).

        Args:
          caches: Written: pages of any dtype in `kv_layout`, all on one device; on a GPU also in
            pinned memory of the host (`device="cuda"` memory and such may be mixed by `sources`).
          sources: Caches that pages come from, one for each of `caches`; none: the caches
            themselves.
          kv_layout: "NHD" or "HND".
          stream: On a GPU, as everywhere: default torch's current one.

        Raises:
          InvalidArgument: A wrong shape, stride or device, a page outside a cache; nothing was
            copied.
        """
        views = [written(cache, "execute", "caches") for cache in caches]
        if not views or len(sources) not in (0, len(views)):
            raise invalid(
                "execute",
                "sources",
                f"expected none or one for each of at least one cache, got {len(sources)} "
                f"for {len(views)}",
            )
        keep: list[TensorView] = []
        tensors = b"".join(
            view.packed + packed(source, "execute", "sources", keep)
            for view, source in zip(views, sources or [None] * len(views))
        )
        # A list of its own: Python's lock is free during the call, and the plan may change.
        ops = self.to_numpy()
        layout = enumerator(c.KV_LAYOUTS, kv_layout, "execute", "kv_layout")
        call = pack_call(views[0], views[0].packed, stream, None, "execute")
        device = c_device(views[0].device)
        c.check(
            c.unlocked.quire_execute_copies(
                device, layout, ops.ctypes.data, len(ops), tensors, len(views), call
            )
        )


def copies_at(address: Optional[int], count: int) -> Copies:
    """A copy of `count` ops that the library has at `address`."""
    ops = np.empty((count, 5), np.int32)
    if count and address is not None:
        ctypes.memmove(ops.ctypes.data, address, ops.nbytes)
    return Copies(ops)


class CopyPlan(c.Owner):
    """Copies that page tables ask for, in the order in which they are executed: after the writes of
    earlier steps, before those of the step that they were made for. A sequence of `CopyOp`s.
    """

    __slots__ = ()

    def __init__(self) -> None:
        handle = c.created(c.locked.quire_copy_plan_create)
        super().__init__(handle, c.locked.quire_copy_plan_destroy)

    def __len__(self) -> int:
        return int(c.locked.quire_copy_plan_size(self._handle))

    def __iter__(self) -> Iterator[CopyOp]:
        return iter(self._copies())

    def to_numpy(self) -> Pages:
        """The copies, int32 [len(plan), 5] of src, dst, tokens, src_begin, dst_begin: a copy of the
        list."""
        return self._copies().to_numpy()

    def clear(self) -> None:
        """Empties it; its memory is kept for the next step."""
        c.check(c.locked.quire_copy_plan_clear(self._handle))

    def execute(
        self,
        *caches: Any,
        sources: Sequence[Any] = (),
        kv_layout: KvLayout = "NHD",
        stream: Any = None,
    ) -> None:
        """`Copies.execute()` of the plan."""
        self._copies().execute(*caches, sources=sources, kv_layout=kv_layout, stream=stream)

    def _copies(self) -> Copies:
        count = len(self)
        return copies_at(c.locked.quire_copy_plan_ops(self._handle) if count else None, count)


class SeqId(NamedTuple):
    """A sequence of a page table. Once it is destroyed it is never valid again, though its slot, 0
    to max_seqs − 1, is reused."""

    slot: int
    generation: int


class PageTable(c.Owner):
    """Sequences over the pages of a pool, with sharing and copy-on-write.

    A sequence of `length` tokens has exactly ceil(length / page_size) pages; token t is in slot
    pages[t // page_size] · page_size + t % page_size. Forks share pages, the partial one included;
    whoever first writes to a shared page gets a copy. Every call that changes a table does all or
    nothing.

    Args:
      pool: Several tables may share one; it may be closed before them.
      max_seqs: Live sequences.
      max_tokens_per_seq: Tokens of one.
      window_left: Of the layers whose pages these are: a query sees so many keys before its own;
        −1: all. With a window `slide()` gives pages back, whose entries become `NO_PAGE`. A model
        with layers of several kinds has a table for each kind, on a pool of its own.

    Raises:
      InvalidArgument: A number is out of range.
    """

    __slots__ = ("max_seqs", "max_tokens_per_seq", "page_size", "window_left")

    def __init__(
        self,
        pool: PagePool,
        *,
        max_seqs: int = 256,
        max_tokens_per_seq: int = 131072,
        window_left: int = -1,
    ) -> None:
        where = "PageTable"
        self.page_size = pool.page_size
        self.max_seqs = int32(max_seqs, where, "max_seqs")
        self.max_tokens_per_seq = int32(max_tokens_per_seq, where, "max_tokens_per_seq")
        self.window_left = int32(window_left, where, "window_left")
        spec = c.PageTableSpec(
            max_seqs=self.max_seqs,
            max_tokens_per_seq=self.max_tokens_per_seq,
            window_left=self.window_left,
        )
        handle = c.created(c.locked.quire_page_table_create, pool._handle, byref(spec))
        super().__init__(handle, c.locked.quire_page_table_destroy)

    def create(self) -> SeqId:
        """Makes an empty sequence. O(1).

        Raises:
          QueueFull: There are `max_seqs` already.
        """
        seq = c.SeqId()
        c.check(c.locked.quire_page_table_create_seq(self._handle, byref(seq)))
        return SeqId(seq.slot, seq.generation)

    def fork(self, seq: SeqId, length: Optional[int] = None) -> SeqId:
        """Makes a sequence of the first `length` tokens of `seq`, sharing their pages. O(pages).

        Args:
          seq: Live.
          length: 0 to the length of `seq`; None takes all of it. These tokens have been written, or
            will be before any copy of a later append is executed.

        Raises:
          BadHandle, InvalidArgument, QueueFull: Nothing was changed.
        """
        count = self.length(seq) if length is None else int32(length, "fork", "length")
        forked = c.SeqId()
        c.check(c.locked.quire_page_table_fork_seq(self._handle, seq_of(seq), count, byref(forked)))
        return SeqId(forked.slot, forked.generation)

    def append(self, seq: SeqId, n: int, copies: CopyPlan) -> None:
        """Makes room for `n` more tokens at the end. O(new pages).

        If the last page is partial and shared, the sequence gets one of its own in its place and
        `copies` one copy more: execute it before the new tokens are written.

        Raises:
          OutOfPages, TooLong, BadHandle, InvalidArgument: Nothing was changed.
        """
        n = int32(n, "append", "n")
        c.check(c.locked.quire_page_table_append(self._handle, seq_of(seq), n, copies._handle))

    def truncate(self, seq: SeqId, length: int) -> None:
        """Forgets the tokens from `length` on and gives back the pages that held nothing else.

        Raises:
          BadHandle, InvalidArgument: Nothing was changed.
        """
        length = int32(length, "truncate", "length")
        c.check(c.locked.quire_page_table_truncate(self._handle, seq_of(seq), length))

    def slide(self, seq: SeqId, position: int) -> None:
        """Says that no query before `position` will come any more, and gives back the pages whose
        tokens none behind it sees. Does nothing without a window. O(pages given back).

        Raises:
          InvalidArgument: Not a position in 0…length.
        """
        position = int32(position, "slide", "position")
        c.check(c.locked.quire_page_table_slide(self._handle, seq_of(seq), position))

    def num_holes(self, seq: SeqId) -> int:
        """Pages at the beginning that a sequence has given back; −1 if it is not live. O(1)."""
        return int(c.locked.quire_page_table_num_holes(self._handle, seq_of(seq)))

    def accept_tree(self, seq: SeqId, length: int, path: npt.ArrayLike, copies: CopyPlan) -> None:
        """Keeps, of the tokens from `length` on, those on an accepted path of a token tree; they
        move up in order, and the rest is forgotten. The last step of tree speculation.

        Args:
          seq: Live.
          length: The tokens before the tree.
          path: int32 [kept]: which tokens to keep, 0 is the one at `length`, each greater than the
            one before.
          copies: Receives what moves, to be executed before anything is written behind the path.

        Raises:
          BadHandle, InvalidArgument: A length or path that is not there, or a token would move onto
            a page that is shared. Nothing was changed.
        """
        length = int32(length, "accept_tree", "length")
        kept = int32_array(path, "accept_tree", "path")
        c.check(
            c.locked.quire_page_table_accept_tree(
                self._handle, seq_of(seq), length, kept.ctypes.data, kept.size, copies._handle
            )
        )

    def destroy(self, seq: SeqId) -> None:
        """Ends a sequence: its pages lose a reference, its id is never valid again.

        Raises:
          BadHandle: It is not live.
        """
        c.check(c.locked.quire_page_table_destroy_seq(self._handle, seq_of(seq)))

    @property
    def num_seqs(self) -> int:
        """Live sequences. O(1)."""
        return c.count(c.locked.quire_page_table_num_seqs(self._handle))

    def length(self, seq: SeqId) -> int:
        """Tokens of a live sequence. O(1).

        Raises:
          BadHandle: It is not live.
        """
        return self._known(seq, c.locked.quire_page_table_length(self._handle, seq_of(seq)))

    def pages(self, seq: SeqId) -> Pages:
        """The pages of a sequence in the order of its tokens, int32 [pages]: a copy. O(pages).

        Raises:
          BadHandle: It is not live.
        """
        address, count = c_void_p(), c_size_t()
        c.check(
            c.locked.quire_page_table_pages(self._handle, seq_of(seq), byref(address), byref(count))
        )
        pages = np.empty(count.value, np.int32)
        if address.value is not None:
            ctypes.memmove(pages.ctypes.data, address.value, pages.nbytes)
        return pages

    def slot(self, seq: SeqId, position: int) -> int:
        """page · page_size + offset of the token at `position`. O(1).

        Raises:
          BadHandle: The sequence is not live.
          InvalidArgument: There is no such token, or its page was given back.
        """
        result = c.locked.quire_page_table_slot(
            self._handle, seq_of(seq), int32(position, "slot", "position")
        )
        if result < 0:
            first = self.num_holes(seq) * self.page_size if self.length(seq) else 0
            last = self.length(seq) - 1
            raise invalid("slot", "position", f"expected {first} to {last}, got {position}")
        return int(result)

    def slots(self, seq: SeqId, begin: int = 0, end: Optional[int] = None) -> npt.NDArray[np.int64]:
        """`slot_mapping` of the tokens [begin, end) of a sequence, int64 [end − begin].

        Raises:
          BadHandle: The sequence is not live.
          InvalidArgument: There are no such tokens.
        """
        length = self.length(seq)
        end = length if end is None else end
        first = self.num_holes(seq) * self.page_size
        if not 0 <= begin <= end <= length or (begin < end and begin < first):
            within = f"{length}" if first == 0 else f"[{first}, {length}]"
            raise invalid("slots", "[begin, end)", f"expected within {within}, got {begin}, {end}")
        positions = np.arange(begin, end, dtype=np.int64)
        pages = self.pages(seq)[positions // self.page_size].astype(np.int64)
        return pages * self.page_size + positions % self.page_size

    def pages_needed(self, seq: SeqId, n: int) -> int:
        """Free pages that appending `n` tokens would take, copy-on-write included. O(1).

        Raises:
          BadHandle: The sequence is not live.
          InvalidArgument: n < 0, or it would become too long.
        """
        n = int32(n, "pages_needed", "n")
        result = int(c.locked.quire_page_table_pages_needed(self._handle, seq_of(seq), n))
        if result < 0:
            room = self.max_tokens_per_seq - self.length(seq)
            raise invalid("pages_needed", "n", f"expected 0 to {room}, got {n}")
        return result

    def reclaimable_pages(self, seq: SeqId) -> int:
        """Pages that destroying the sequence would give back, 0 if it is not live. O(pages)."""
        return c.count(c.locked.quire_page_table_reclaimable_pages(self._handle, seq_of(seq)))

    def check(self) -> None:
        """Recomputes what must always hold, in the pool too. O(num_pages + entries). Raises `Error`
        (`INTERNAL`) with the first violation."""
        c.check(c.locked.quire_page_table_check(self._handle))

    def dense(self, seqs: Sequence[SeqId], *, out: Optional[Pages] = None) -> Pages:
        """`page_table` of a batch of these sequences, int32 [len(seqs), most pages], padded with
        `NO_PAGE`; written to the beginning of `out` if that is given, which may be larger.

        Raises:
          BadHandle: One is not live.
          InvalidArgument: `out` is too small.
        """
        rows = [self.pages(seq) for seq in seqs]
        width = max((len(row) for row in rows), default=0)
        if out is None:
            out = np.empty((len(rows), width), np.int32)
        if out.ndim != 2 or out.shape[0] < len(rows) or out.shape[1] < width:
            raise invalid("dense", "out", f"expected [≥{len(rows)}, ≥{width}], got {out.shape}")
        for index, row in enumerate(rows):
            out[index, : len(row)] = row
            out[index, len(row) :] = NO_PAGE
        return out

    def csr(self, seqs: Sequence[SeqId]) -> tuple[Pages, Pages, Pages]:
        """(`kv_page_indptr`, `kv_page_indices`, `kv_len`) of a batch of these sequences, all int32.

        Raises:
          BadHandle: One is not live.
        """
        rows = [self.pages(seq) for seq in seqs]
        indptr = np.zeros(len(rows) + 1, np.int32)
        np.cumsum([len(row) for row in rows], out=indptr[1:])
        return indptr, np.concatenate(rows or [indptr[:0]]), self.kv_len(seqs)

    def kv_len(self, seqs: Sequence[SeqId]) -> Pages:
        """Lengths of these sequences, int32 [len(seqs)].

        Raises:
          BadHandle: One is not live.
        """
        return np.array([self.length(seq) for seq in seqs], np.int32)

    def _known(self, seq: SeqId, result: int) -> int:
        """A number of a sequence; −1 says that there is none."""
        if result < 0:
            self.pages(seq)  # raises what is wrong with the table or the sequence
        return int(result)


def seq_of(seq: SeqId) -> c.SeqId:
    """`quire_seq_id`."""
    try:
        slot, generation = seq
        return c.SeqId(slot, generation)
    except (TypeError, ValueError):
        raise invalid("PageTable", "seq", f"expected a quire.SeqId, got {seq!r}") from None
