# SPDX-License-Identifier: Apache-2.0
"""What is fixed before any batch comes: the spec of a kind of layer, and limits."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Optional

from . import _library as c
from ._calls import enumerator, int32
from ._errors import invalid
from ._tensors import dtype_name

KvLayout = Literal["NHD", "HND"]
Mask = Literal["none", "causal", "tree", "full"]
KvScale = Literal["none", "per_tensor", "per_head", "per_token"]

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
      q_dtype: Name of q's dtype; NumPy and torch dtypes are taken too. "float8_e4m3" is for
        `kv_dtype` "float8_e4m3" without scales per token; docs/kv_dtypes.md says what it costs in
        accuracy.
      kv_dtype: The caches' dtype; None takes `q_dtype`.
      o_dtype: `q_dtype` or "float32"; None takes `q_dtype`. For queries of "float8_e4m3":
        "bfloat16", which None takes, "float16" or "float32".
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
        "per_head" float32 [num_kv_heads], "per_token" float32 [num_pages, num_kv_heads,
        page_size] in both layouts ([num_kv_heads, tokens] for contiguous K/V).
      share_prefixes: Whether requests whose tables begin with the same pages read them once for all
        of them where that is faster. `schedule()` looks for them, unless `Batch(prefix_leaders=…)`
        names them.
      batch_invariant: Whether the result of a request is bitwise the same alone and in any batch,
        on one kind of device (CPU: one tier). Costs time, and shared prefixes are not looked for
        then: docs/concepts/batch_invariance.md.

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
    share_prefixes: bool = True
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        fill = object.__setattr__  # it is frozen for everybody else
        fill(self, "q_dtype", dtype_name(self.q_dtype))
        codes = self.q_dtype == "float8_e4m3"
        defaults = {"kv_dtype": self.q_dtype, "o_dtype": "bfloat16" if codes else self.q_dtype}
        for name, default in defaults.items():
            given = getattr(self, name)
            fill(self, name, default if given is None else dtype_name(given))
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
            no_shared_prefixes=not self.share_prefixes,
            batch_invariant=bool(self.batch_invariant),
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
