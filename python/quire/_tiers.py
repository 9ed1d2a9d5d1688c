# SPDX-License-Identifier: Apache-2.0
"""What moves between the device and the host, and what that costs."""

from __future__ import annotations

from ctypes import byref, c_size_t, c_void_p
from typing import NamedTuple

from . import _library as c
from . import _serving_library as s
from ._pages import Copies, copies_at


class TierCosts(NamedTuple):
    """What it takes to get the keys and values of tokens back from the host, and to compute them
    again. The defaults are those of a model of 8e9 weights with 32 layers of 8 heads of 128 dims in
    16 bits, on a GPU with half of what PCIe 5 promises: measure your own."""

    bytes_per_token: float = 131072.0  #: K and V of all layers.
    link_bytes_per_second: float = 25e9  #: Between device and host.
    transfer_seconds: float = 50e-6  #: Of a transfer, whatever its size.
    prefill_tokens_per_second: float = 20000.0  #: Of the model.


class HostMatch(NamedTuple):
    """What the host has of a prefix, behind what the device has of it."""

    tokens: int  #: Of the prefix.
    pages: int  #: That hold them: a fetch takes as many of the device.
    worth_fetching: bool  #: Sooner there than computed, by the `TierCosts`.


class TransferPlan(c.Owner):
    """Copies between the device and the host, of which the offloads are executed before the
    fetches. Otherwise ops do not depend on one another, nor do plans that have not retired."""

    __slots__ = ()

    def __init__(self) -> None:
        handle = c.created(s.locked.quire_transfer_plan_create)
        super().__init__(handle, s.locked.quire_transfer_plan_destroy)

    @property
    def ticket(self) -> int:
        """What `PrefixCache.retire()` is told; 0 if there is nothing to retire."""
        return int(s.locked.quire_transfer_plan_ticket(self._handle))

    @property
    def offloads(self) -> Copies:
        """From pages of the device to pages of the host."""
        return self._copies("quire_transfer_plan_offloads")

    @property
    def fetches(self) -> Copies:
        """From pages of the host to pages of the device."""
        return self._copies("quire_transfer_plan_fetches")

    def clear(self) -> None:
        """Forgets copies and ticket; its memory is kept."""
        c.check(s.locked.quire_transfer_plan_clear(self._handle))

    def _copies(self, function: str) -> Copies:
        address, count = c_void_p(), c_size_t()
        c.check(getattr(s.locked, function)(self._handle, byref(address), byref(count)))
        return copies_at(address.value, count.value)
