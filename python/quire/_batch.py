# SPDX-License-Identifier: Apache-2.0
"""The requests of one step."""

from __future__ import annotations

from typing import Any

from . import _library as c
from ._arrays import packed, view_of
from ._tensors import TensorView

_BATCH = c.tensors_header("quire_batch")

#: Levels of shared prefixes: prefixes of prefixes of prefixes.
MAX_PREFIX_LEVELS = c.MAX_PREFIX_LEVELS


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
      prefix_leaders: Which requests share prefixes, where the caller knows: `schedule()` compares
        no tables then. int32 [1 to MAX_PREFIX_LEVELS, num_seqs], rows may be strided. Entry
        [level, i] is −1, or says that request i is in a group of this level: the request that leads
        it, the same for all of the group, the leader itself included. Groups are a tree: those of a
        level are parts of groups of the level before, and begin with more of the same pages. They
        may name requests that cannot share, and pages that not all of them see; levels are best
        spent on those that can. Not read where nothing is shared, refused if `share_prefixes` of
        the spec is off. `BatchBuilder.find_prefixes()` makes them.
      prefix_pages: int32 [levels, num_seqs]: how many pages the tables of the request's group begin
        with that are the same, from the first page on; the same number for all of the group, any
        for −1. Given exactly if `prefix_leaders` is.

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
        prefix_leaders: Any = None,
        prefix_pages: Any = None,
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
            prefix_leaders,
            prefix_pages,
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
