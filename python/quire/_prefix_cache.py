# SPDX-License-Identifier: Apache-2.0
"""Prefix cache: which pages hold the keys and values of which tokens."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int32, c_size_t, c_void_p
from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

from . import _library as c
from . import _serving_library as s
from ._calls import int32, int32_array, uint64
from ._errors import invalid
from ._pages import PagePool, Pages, PageTable, SeqId, seq_of
from ._tiers import HostMatch, TierCosts, TransferPlan

#: Tokens of a prompt: integers that int32 holds, in whatever NumPy reads as one.
Tokens = npt.ArrayLike


class PrefixEvent(NamedTuple):
    """A page came into the index or left it: parents before their children when pages are stored,
    after them when they are removed. One that moves between device and host comes into the one,
    then leaves the other."""

    stored: bool  #: It came; else it left.
    name_space: int  #: Whose page it is.
    page: int  #: The page.
    parent: int  #: The page before it; `NO_PAGE` of a first page.
    tokens: tuple[int, ...]  #: Of this page.
    on_host: bool = False  #: `page` is one of the host.
    parent_on_host: bool = False  #: `parent` is one of the host.


class PrefixCacheStats(NamedTuple):
    """Counters since a cache was made, and its present state."""

    lookups: int  #: Calls of `match()`.
    asked_tokens: int  #: Tokens of all lookups.
    hit_tokens: int  #: Those of them that were found.
    stored: int  #: Pages of the device that were published into the index.
    evicted: int  #: Pages of the device that left the index for want of room or time.
    erased: int  #: Pages that `erase()` took out of the index.
    pages: int  #: Pages of the device in the index.
    leases: int  #: Live leases that hold a page.
    offloaded: int  #: Pages that moved to the host.
    fetched: int  #: Pages that moved back.
    fetched_tokens: int  #: Tokens found on these.
    declined: int  #: Pages that were left on the host, computing them being quicker.
    host_evicted: int  #: Pages of the host that left the index for want of room or time.
    host_pages: int  #: Pages of the host in the index.
    in_flight: int  #: Copies that have not retired.


class PrefixLease(c.Owner):
    """What `PrefixCache.match()` found. While it lives its pages stay in the index and keep their
    contents; `close()`, or the end of a `with` block, lets them go."""

    __slots__ = ()

    def __init__(self, handle: int) -> None:
        super().__init__(handle, s.locked.quire_prefix_lease_destroy)

    @property
    def num_tokens(self) -> int:
        """Tokens that were found, from the first on. O(1)."""
        return c.count(s.locked.quire_prefix_lease_num_tokens(self._handle))

    @property
    def num_pages(self) -> int:
        """Pages that hold them. O(1)."""
        return c.count(s.locked.quire_prefix_lease_num_pages(self._handle))

    @property
    def pending(self) -> int:
        """0 if all of its pages have been written, else the ticket of a transfer that still writes
        to some: they must not be read before it."""
        return int(s.locked.quire_prefix_lease_pending(self._handle))

    def pages(self) -> Pages:
        """The pages in the order of the tokens, int32 [num_pages]; the last may be partial, or hold
        other tokens after these. O(num_pages)."""
        pages = np.empty(self.num_pages, np.int32)
        c.check(s.locked.quire_prefix_lease_copy_pages(self._handle, pages.ctypes.data, pages.size))
        return pages


class PrefixCache(c.Owner):
    """A radix tree over runs of page_size tokens: a prompt that begins like an earlier one need not
    be computed again. Tokens are compared one by one, and no namespace sees another's pages.

    The index holds a reference to each of its pages. Only leaves leave it, expired ones first, then
    by priority, then the least recently used, and nothing is evicted but by `evict()` and
    `evict_expired()` (a `Batcher` calls the former). A page that a lease, a sequence or the caller
    holds is never evicted.

    With a second pool, of pages in memory of the host, `offload()` sends pages there instead, and
    `fetch()` gets them back; their copies leave as a `TransferPlan`, and what these read or write
    is held until `retire()` is told that they have been made.

    Args:
      pool: Several caches may use one; a page is in one of them at most.
      host: Another pool of the same page size; None: there is no host tier.
      costs: Whether to fetch or to compute is decided by them.
      min_partial_tokens: The least tokens of a page that are worth a copy of it; more than
        page_size − 1: only whole pages are matched.
      hash_seed: Of the index; results do not depend on it.
      record_events: Whether changes of the index are kept for `take_events()`.

    Raises:
      InvalidArgument: A number is out of range.
    """

    __slots__ = ("_events", "_host", "_listener", "_pool")

    def __init__(
        self,
        pool: PagePool,
        *,
        host: Optional[PagePool] = None,
        costs: Optional[TierCosts] = None,
        min_partial_tokens: int = 1,
        hash_seed: int = 0,
        record_events: bool = False,
    ) -> None:
        where = "PrefixCache"
        spec = s.PrefixCacheSpec(
            hash_seed=uint64(hash_seed, where, "hash_seed"),
            min_partial_tokens=int32(min_partial_tokens, where, "min_partial_tokens"),
            **(TierCosts() if costs is None else costs)._asdict(),
        )
        if host is None:
            handle = c.created(s.locked.quire_prefix_cache_create, pool._handle, byref(spec))
        else:
            handle = c.created(
                s.locked.quire_prefix_cache_create_tiered, pool._handle, host._handle, byref(spec)
            )
        super().__init__(handle, s.locked.quire_prefix_cache_destroy)
        self._pool = pool
        self._host = host
        self._events: list[PrefixEvent] = []
        self._listener: Any = None
        if record_events:
            self._listener = s.PrefixListener(_keep_in(self._events))
            c.check(s.locked.quire_prefix_cache_set_listener(handle, self._listener, None))

    def match(self, tokens: Tokens, *, name_space: int = 0) -> PrefixLease:
        """Finds the longest beginning of `tokens` that is in the index, counts as a use of its
        pages and pins them. Who needs the logits of the last token asks without it. O(tokens +
        log).

        Args:
          tokens: int32 [tokens].
          name_space: Whose pages may be found.

        Returns:
          A lease, one of 0 tokens too.
        """
        ids = int32_array(tokens, "match", "tokens")
        space = uint64(name_space, "match", "name_space")
        return PrefixLease(
            c.created(
                s.locked.quire_prefix_cache_match, self._handle, space, ids.ctypes.data, ids.size
            )
        )

    def match_length(self, tokens: Tokens, *, name_space: int = 0) -> int:
        """How many tokens `match()` would find; pins nothing and does not count as a use."""
        ids = int32_array(tokens, "match_length", "tokens")
        space = uint64(name_space, "match_length", "name_space")
        return c.count(
            s.locked.quire_prefix_cache_match_length(self._handle, space, ids.ctypes.data, ids.size)
        )

    def adopt(self, lease: PrefixLease, table: PageTable) -> SeqId:
        """Makes a sequence that begins with the tokens of a lease and shares their pages. If the
        last page is partial or holds other tokens too, the first append copies it. The lease is not
        needed afterwards. O(pages).

        Raises:
          BadHandle: A table of another pool, a lease of another cache or of 0 tokens.
          TooLong, QueueFull: It does not fit the table.
        """
        seq = c.SeqId()
        c.check(
            s.locked.quire_prefix_cache_adopt(
                self._handle, lease._handle, table._handle, byref(seq)
            )
        )
        return SeqId(seq.slot, seq.generation)

    def publish(
        self,
        tokens: Tokens,
        pages: npt.ArrayLike,
        *,
        name_space: int = 0,
        priority: int = 35,
        time_to_live: int = 0,
    ) -> int:
        """Makes the pages of `tokens` known. Where the index has a page with the same tokens in the
        same place, that one stays.

        Args:
          tokens: int32 [tokens], from the beginning of a sequence on: they have been written, or
            are before anything that is ordered after this call reads them.
          pages: int32 [ceil(tokens / page_size)], in use. Nobody may write to their first tokens
            any more.
          name_space: Whose pages they are.
          priority: 0 to 100; lower ones are evicted first.
          time_to_live: How long after its last use a page keeps its priority, in the unit of
            `set_time()`; 0: for ever.

        Returns:
          Pages that came into the index.

        Raises:
          InvalidArgument: Number of pages, priority, time, a page twice or in an index for other
            tokens.
          BadHandle: A page is free or unknown.
        """
        where = "publish"
        ids = int32_array(tokens, where, "tokens")
        page_ids = int32_array(pages, where, "pages", "page ids")
        retention, stored = _retention(priority, time_to_live, where), c_int32()
        c.check(
            s.locked.quire_prefix_cache_publish(
                self._handle,
                uint64(name_space, where, "name_space"),
                ids.ctypes.data,
                ids.size,
                page_ids.ctypes.data,
                page_ids.size,
                byref(retention),
                byref(stored),
            )
        )
        return stored.value

    def publish_seq(
        self,
        table: PageTable,
        seq: SeqId,
        tokens: Tokens,
        *,
        name_space: int = 0,
        priority: int = 35,
        time_to_live: int = 0,
    ) -> int:
        """`publish()` of the pages of a sequence. If it goes on in a page that was published, its
        next append copies that page.

        Args:
          tokens: int32 [tokens], the first tokens of the sequence, no more than it has.
          name_space, priority, time_to_live: As `publish()` has them.

        Raises:
          BadHandle: A table of another pool, or not a live sequence.
          InvalidArgument: More tokens than the sequence has, or as `publish()`.
        """
        where = "publish_seq"
        ids = int32_array(tokens, where, "tokens")
        retention, stored = _retention(priority, time_to_live, where), c_int32()
        c.check(
            s.locked.quire_prefix_cache_publish_seq(
                self._handle,
                uint64(name_space, where, "name_space"),
                table._handle,
                seq_of(seq),
                ids.ctypes.data,
                ids.size,
                byref(retention),
                byref(stored),
            )
        )
        return stored.value

    def evict(self, num_pages: int) -> int:
        """Gives up to `num_pages` pages back to the pool; returns how many. O(log) a page."""
        count = int32(num_pages, "evict", "num_pages")
        return c.count(s.locked.quire_prefix_cache_evict(self._handle, count))

    def evict_expired(self) -> int:
        """Gives the expired pages back that no living page hangs on; returns how many."""
        return c.count(s.locked.quire_prefix_cache_evict_expired(self._handle))

    def offload(self, num_pages: int, plan: TransferPlan) -> int:
        """Sends up to `num_pages` pages that `evict()` would give back to the host; where that is
        full, its least wanted leaf makes room for what is wanted more, and what is not worth it is
        evicted. A page that moves is in use until its copy has retired. Returns how many left.

        Args:
          plan: Receives the copies, and a ticket if it has none.
        """
        count, gone = int32(num_pages, "offload", "num_pages"), c_int32()
        c.check(s.locked.quire_prefix_cache_offload(self._handle, count, plan._handle, byref(gone)))
        return gone.value

    def match_host(self, tokens: Tokens, *, name_space: int = 0) -> HostMatch:
        """What the host has of a prefix, as far as it has been written there. O(tokens + log)."""
        ids = int32_array(tokens, "match_host", "tokens")
        space = uint64(name_space, "match_host", "name_space")
        found = s.HostMatch()
        c.check(
            s.locked.quire_prefix_cache_match_host(
                self._handle, space, ids.ctypes.data, ids.size, byref(found)
            )
        )
        return HostMatch(found.tokens, found.pages, bool(found.worth_fetching))

    def fetch(self, tokens: Tokens, plan: TransferPlan, *, name_space: int = 0) -> int:
        """Moves what `match_host()` tells of to free pages of the device, or nothing if that is not
        worth it; `match()` finds it then. Returns how many pages moved.

        Args:
          plan: Receives the copies, and a ticket if it has none. They must have run before the
            pages are read: see `PrefixLease.pending`.

        Raises:
          OutOfPages: Fewer are free; nothing has changed.
        """
        ids = int32_array(tokens, "fetch", "tokens")
        space, fetched = uint64(name_space, "fetch", "name_space"), c_int32()
        c.check(
            s.locked.quire_prefix_cache_fetch(
                self._handle, space, ids.ctypes.data, ids.size, plan._handle, byref(fetched)
            )
        )
        return fetched.value

    def retire(self, ticket: int) -> int:
        """The copies of a plan have been made: what they read may be written, what they wrote may
        be read. Returns how many were in flight; 0 for a ticket that has retired."""
        return c.count(
            s.locked.quire_prefix_cache_retire(self._handle, uint64(ticket, "retire", "ticket"))
        )

    def evict_host(self, num_pages: int) -> int:
        """Gives up to `num_pages` pages of the host back to its pool; returns how many."""
        count = int32(num_pages, "evict_host", "num_pages")
        return c.count(s.locked.quire_prefix_cache_evict_host(self._handle, count))

    @property
    def parked_pages(self) -> int:
        """Pages of the device that only copies in flight hold. O(copies in flight)."""
        return c.count(s.locked.quire_prefix_cache_parked_pages(self._handle))

    def erase(self, name_space: int = 0) -> int:
        """Takes the pages of a namespace out of the index, those in use by sequences too, which
        keep them; what a lease holds stays. Returns how many left. O(num_pages of the pool)."""
        space = uint64(name_space, "erase", "name_space")
        return c.count(s.locked.quire_prefix_cache_erase(self._handle, space))

    @property
    def evictable_pages(self) -> int:
        """Pages that `evict()` could give back now. O(num_pages of the pool)."""
        return c.count(s.locked.quire_prefix_cache_evictable_pages(self._handle))

    def set_time(self, now: int) -> None:
        """Says what time it is, in any unit; 0 at first, and a time before the last one is ignored.
        Without it no page expires."""
        if not -(2**63) <= now < 2**63:
            raise invalid("set_time", "now", f"expected an int64, got {now}")
        c.check(s.locked.quire_prefix_cache_set_time(self._handle, now))

    def tokens(self, page: int) -> Optional[npt.NDArray[np.int32]]:
        """The tokens of a page of this index, int32 [≤ page_size]: a copy. None if it has no such
        page."""
        address, count = c_void_p(), c_size_t()
        page = int32(page, "tokens", "page")
        c.check(
            s.locked.quire_prefix_cache_tokens(self._handle, page, byref(address), byref(count))
        )
        if count.value == 0:
            return None
        tokens = np.empty(count.value, np.int32)
        assert address.value is not None  # it has elements
        ctypes.memmove(tokens.ctypes.data, address.value, tokens.nbytes)
        return tokens

    def take_events(self) -> list[PrefixEvent]:
        """What happened to the index since the last call, in order.

        Raises:
          InvalidArgument: The cache was made without `record_events`.
        """
        if self._listener is None:
            raise invalid("take_events", "cache", "expected record_events=True, got none")
        taken = list(self._events)
        del self._events[: len(taken)]
        return taken

    def save(self) -> bytes:
        """The index (not the pages' contents) as bytes, the same on every machine."""
        size = c_size_t()
        c.check(s.locked.quire_prefix_cache_save(self._handle, None, 0, byref(size)))
        saved = ctypes.create_string_buffer(size.value)
        c.check(s.locked.quire_prefix_cache_save(self._handle, saved, size.value, byref(size)))
        return saved.raw

    def restore(self, saved: bytes) -> Pages:
        """Fills an empty index from what `save()` returned, on new pages of the pools, each in its
        tier; of those on the host, as many of the most recently used as it has room for.

        Args:
          saved: Not trusted: anything may be in it.

        Returns:
          What to load where, int32 [pages, 4]: id in the snapshot, id now, tokens on the page, and
          1 if it is a page of the host.

        Raises:
          InvalidArgument: The index is not empty, or the bytes are damaged or those of another page
            size.
          OutOfPages: There are too few; nothing has changed.
        """
        room = self._pool.num_free + (0 if self._host is None else self._host.num_free)
        pages = np.empty((room, 4), np.int32)
        count = c_size_t()
        c.check(
            s.locked.quire_prefix_cache_restore(
                self._handle, saved, len(saved), pages.ctypes.data, room, byref(count)
            )
        )
        return pages[: count.value].copy()

    @property
    def stats(self) -> PrefixCacheStats:
        """Counters since it was made, and the present state. O(1)."""
        stats = s.PrefixCacheStats()
        c.check(s.locked.quire_prefix_cache_get_stats(self._handle, byref(stats)))
        return PrefixCacheStats(*(getattr(stats, name) for name in PrefixCacheStats._fields))

    def check(self) -> None:
        """Recomputes what must always hold, in the pool too. O(num_pages · log). Raises `Error`
        (`INTERNAL`) with the first violation."""
        c.check(s.locked.quire_prefix_cache_check(self._handle))


def _keep_in(events: list[PrefixEvent]) -> Any:
    def listener(_: Any, told: Any) -> None:
        event = told.contents
        tokens = (c_int32 * event.num_tokens).from_address(event.tokens)
        events.append(
            PrefixEvent(
                event.kind == s.PREFIX_STORED,
                event.name_space,
                event.page,
                event.parent,
                tuple(tokens),
                event.tier == s.ON_HOST,
                event.parent_tier == s.ON_HOST,
            )
        )

    return listener


def _retention(priority: int, time_to_live: int, where: str) -> s.Retention:
    if not 0 <= time_to_live < 2**63:
        raise invalid(where, "time_to_live", f"expected at least 0, got {time_to_live}")
    return s.Retention(priority=int32(priority, where, "priority"), time_to_live=time_to_live)
