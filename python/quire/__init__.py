# SPDX-License-Identifier: Apache-2.0
"""Attention over paged KV caches, for batches of any shape.

One operation serves decode, append, chunked prefill, prefill and mixed batches::

    o = quire.attention(q, k_cache, v_cache, qo_indptr=…, kv_len=…, page_table=…)

or, in a loop, an `Attention` that is made once, scheduled once per step and run once per layer.
Arrays are NumPy's, torch's or anybody's that speaks DLPack or an array interface; none is copied.
`PagePool`, `PageTable`, `PrefixCache`, `BatchBuilder`, `Batcher` and `Recorder` serve requests
around it: who has which page, what is shared, who computes what in a step; `quire.replay` runs
traces of requests through them. docs/python.md begins at the beginning.
"""

from . import replay
from ._arrays import view
from ._attention import Attention, Schedule, Workspaces, WorkspaceSizes
from ._batch import MAX_PREFIX_LEVELS, Batch
from ._batch_builder import OMITTED, BatchBuilder, BatchShape, StagedBatch
from ._batcher import BatchEntry, Batcher, BatcherStats, Request, StepItem, StepPlan
from ._calls import CheckRecord, Fence, ThreadPool
from ._errors import (
    BadHandle,
    Error,
    ErrorCode,
    InvalidArgument,
    OutOfPages,
    QueueFull,
    TooLong,
    Unsupported,
)
from ._info import (
    DeviceInfo,
    KernelInfo,
    Support,
    devices,
    info,
    kernels,
    supports,
    version,
    workspace_sizes,
)
from ._operations import append, attention, merge_states
from ._pages import NO_PAGE, Copies, CopyOp, CopyPlan, PagePool, PageTable, SeqId
from ._prefix_cache import PrefixCache, PrefixCacheStats, PrefixEvent, PrefixLease
from ._recorder import EventKind, RecordCounts, Recorder
from ._spec import CONTIGUOUS_KV, AttentionSpec, BatchLimits
from ._tensors import Device, TensorView
from ._tiers import HostMatch, TierCosts, TransferPlan

__version__ = version()

__all__ = [
    "CONTIGUOUS_KV",
    "MAX_PREFIX_LEVELS",
    "NO_PAGE",
    "OMITTED",
    "Attention",
    "AttentionSpec",
    "BadHandle",
    "Batch",
    "BatchBuilder",
    "BatchEntry",
    "BatchLimits",
    "BatchShape",
    "Batcher",
    "BatcherStats",
    "CheckRecord",
    "Copies",
    "CopyOp",
    "CopyPlan",
    "Device",
    "DeviceInfo",
    "Error",
    "ErrorCode",
    "EventKind",
    "Fence",
    "HostMatch",
    "InvalidArgument",
    "KernelInfo",
    "OutOfPages",
    "PagePool",
    "PageTable",
    "PrefixCache",
    "PrefixCacheStats",
    "PrefixEvent",
    "PrefixLease",
    "QueueFull",
    "RecordCounts",
    "Recorder",
    "Request",
    "Schedule",
    "SeqId",
    "StagedBatch",
    "StepItem",
    "StepPlan",
    "Support",
    "TensorView",
    "ThreadPool",
    "TierCosts",
    "TooLong",
    "TransferPlan",
    "Unsupported",
    "WorkspaceSizes",
    "Workspaces",
    "append",
    "attention",
    "devices",
    "info",
    "kernels",
    "merge_states",
    "replay",
    "supports",
    "version",
    "view",
    "workspace_sizes",
]
