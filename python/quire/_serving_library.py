# SPDX-License-Identifier: Apache-2.0
"""The C ABI of serving as ctypes sees it: prefix caches, batches, continuous batching, records.

Everything here repeats `quire/serving.h`; tests/python/test_header.py compiles that and compares.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_double,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint64,
    c_void_p,
)
from typing import Any

from . import _library as c

# ------------------------------------------ Structs ----------------------------------------------


class PrefixCacheSpec(c.Sized):
    """`quire_prefix_cache_spec`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("hash_seed", c_uint64),
        ("min_partial_tokens", c_int32),
        ("reserved", c_int32),
        ("bytes_per_token", c_double),
        ("link_bytes_per_second", c_double),
        ("transfer_seconds", c_double),
        ("prefill_tokens_per_second", c_double),
    )


class Retention(c.Sized):
    """`quire_retention`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("time_to_live", c_int64),
        ("priority", c_int32),
        ("reserved", c_int32),
    )


class PrefixCacheStats(c.Sized):
    """`quire_prefix_cache_stats`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("lookups", c_int64),
        ("asked_tokens", c_int64),
        ("hit_tokens", c_int64),
        ("stored", c_int64),
        ("evicted", c_int64),
        ("erased", c_int64),
        ("pages", c_int32),
        ("leases", c_int32),
        ("offloaded", c_int64),
        ("fetched", c_int64),
        ("fetched_tokens", c_int64),
        ("declined", c_int64),
        ("host_evicted", c_int64),
        ("host_pages", c_int32),
        ("in_flight", c_int32),
    )


class PrefixEvent(ctypes.Structure):
    """`quire_prefix_event`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("name_space", c_uint64),
        ("tokens", c_void_p),
        ("num_tokens", c_size_t),
        ("kind", c_int32),
        ("page", c_int32),
        ("parent", c_int32),
        ("tier", c_int32),
        ("parent_tier", c_int32),
        ("reserved", c_int32),
    )


class RestoredPage(ctypes.Structure):
    """`quire_restored_page`."""

    _fields_ = (("saved", c_int32), ("page", c_int32), ("tokens", c_int32), ("tier", c_int32))


class HostMatch(ctypes.Structure):
    """`quire_host_match`."""

    _fields_ = (("tokens", c_int32), ("pages", c_int32), ("worth_fetching", c_int32))


class BatchEntry(ctypes.Structure):
    """`quire_batch_entry`."""

    _fields_ = (("seq", c.SeqId), ("new_tokens", c_int32))


class BatchShape(ctypes.Structure):
    """`quire_batch_shape`."""

    _fields_ = (
        ("num_seqs", c_int32),
        ("total_q", c_int32),
        ("pages_per_seq", c_int32),
        ("total_pages", c_int32),
    )


class StagedBatch(c.Sized):
    """`quire_staged_batch`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("shape", BatchShape),
        ("num_seqs", c_int32),
        ("num_tokens", c_int32),
        ("max_q_len", c_int32),
        ("max_kv_len", c_int32),
        ("bytes", c_void_p),
        ("num_bytes", c_size_t),
        ("qo_indptr", c_void_p),
        ("kv_len", c_void_p),
        ("kv_page_indptr", c_void_p),
        ("kv_last_page_len", c_void_p),
        ("positions", c_void_p),
        ("slot_mapping", c_void_p),
        ("kv_page_indices", c_void_p),
        ("page_table", c_void_p),
    )


class BatcherSpec(c.Sized):
    """`quire_batcher_spec`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("max_requests", c_int32),
        ("watermark_pages", c_int32),
        ("max_steps_in_flight", c_int32),
        ("cached_windows", c_int32),
    )


class Request(c.Sized):
    """`quire_request`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("id", c_uint64),
        ("arrival", c_double),
        ("head_start", c_double),
        ("prompt", c_void_p),
        ("name_space", c_uint64),
        ("prompt_tokens", c_int32),
        ("max_new_tokens", c_int32),
        ("time_to_live", c_int64),
        ("priority", c_int32),
        ("num_further_samples", c_int32),
        ("further_samples", c_void_p),
    )


class StepBudget(c.Sized):
    """`quire_step_budget`."""

    _fields_ = (("struct_size", c_size_t), ("max_tokens", c_int32), ("max_seqs", c_int32))


class StepItem(ctypes.Structure):
    """`quire_step_item`."""

    _fields_ = (
        ("request", c_uint64),
        ("index", c_int32),
        ("seq", c.SeqId),
        ("position", c_int32),
        ("num_new_tokens", c_int32),
        ("num_samples", c_int32),
        ("is_prefill", c_uint8),
        ("samples", c_uint8),
        ("admitted", c_uint8),
        ("awaits_token", c_uint8),
    )


class BatcherStats(c.Sized):
    """`quire_batcher_stats`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("steps", c_int64),
        ("finished", c_int64),
        ("preemptions", c_int64),
        ("prefill_tokens", c_int64),
        ("decode_tokens", c_int64),
        ("recomputed_tokens", c_int64),
        ("cancelled", c_int64),
        ("asked_tokens", c_int64),
        ("hit_tokens", c_int64),
        ("waiting", c_int32),
        ("running", c_int32),
        ("used_pages", c_int32),
        ("idle_pages", c_int32),
        ("peak_used_pages", c_int32),
        ("reserved", c_int32),
        ("swaps", c_int64),
        ("fetched_tokens", c_int64),
    )


class RecorderSpec(c.Sized):
    """`quire_recorder_spec`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("max_events", c_int32),
        ("max_steps", c_int32),
        ("max_ended", c_int32),
        ("max_requests", c_int32),
    )


class RequestEvent(ctypes.Structure):
    """`quire_request_event`."""

    _fields_ = (
        ("request", c_uint64),
        ("first_step", c_uint64),
        ("last_step", c_uint64),
        ("begin", c_double),
        ("end", c_double),
        ("position", c_int32),
        ("num_tokens", c_int32),
        ("kind", c_uint8),
    )


class StepRecord(ctypes.Structure):
    """`quire_step_record`."""

    _fields_ = (
        ("step", c_uint64),
        ("begin", c_double),
        ("end", c_double),
        ("cached_tokens", c_int64),
        ("prefill_tokens", c_int32),
        ("decode_tokens", c_int32),
        ("reused_tokens", c_int32),
        ("num_prefills", c_int32),
        ("num_decodes", c_int32),
        ("num_admitted", c_int32),
        ("num_preempted", c_int32),
        ("num_ended", c_int32),
        ("waiting", c_int32),
        ("running", c_int32),
        ("used_pages", c_int32),
    )


class RequestRecord(ctypes.Structure):
    """`quire_request_record`."""

    _fields_ = (
        ("request", c_uint64),
        ("submitted", c_double),
        ("admitted", c_double),
        ("first_token", c_double),
        ("finished", c_double),
        ("longest_gap", c_double),
        ("prompt_tokens", c_int32),
        ("new_tokens", c_int32),
        ("num_preemptions", c_int32),
        ("recomputed_tokens", c_int32),
        ("reused_tokens", c_int32),
    )


class RecordCounts(ctypes.Structure):
    """`quire_record_counts`."""

    _fields_ = (("events", c_int64), ("steps", c_int64), ("ended", c_int64))


#: `quire_prefix_listener`.
PrefixListener = CFUNCTYPE(None, c_void_p, POINTER(PrefixEvent))

# ------------------------------------------ Constants ---------------------------------------------

PREFIX_STORED, PREFIX_REMOVED = 0, 1
ON_DEVICE, ON_HOST = 0, 1
OMITTED = -1
STAGING_ALIGNMENT = 16

# ------------------------------------------ Functions ---------------------------------------------

_STATUS = c_int32
_HANDLE = c_void_p
_STRUCT = c_void_p
_LIST = POINTER(c_void_p), POINTER(c_size_t)  # where a list of the library is, and its length

#: Result and parameters of each function. All are called with Python's lock held: what is made on
#: one pool has one owner at a time, and with the lock all threads of Python are one.
LOCKED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "quire_prefix_cache_create": (_STATUS, (_HANDLE, _STRUCT, POINTER(c_void_p))),
    "quire_prefix_cache_create_tiered": (
        _STATUS,
        (_HANDLE, _HANDLE, _STRUCT, POINTER(c_void_p)),
    ),
    "quire_prefix_cache_destroy": (None, (_HANDLE,)),
    "quire_prefix_cache_get_stats": (_STATUS, (_HANDLE, _STRUCT)),
    "quire_prefix_cache_match": (
        _STATUS,
        (_HANDLE, c_uint64, c_void_p, c_size_t, POINTER(c_void_p)),
    ),
    "quire_prefix_cache_match_length": (c_int32, (_HANDLE, c_uint64, c_void_p, c_size_t)),
    "quire_prefix_lease_destroy": (None, (_HANDLE,)),
    "quire_prefix_lease_num_tokens": (c_int32, (_HANDLE,)),
    "quire_prefix_lease_num_pages": (c_int32, (_HANDLE,)),
    "quire_prefix_lease_copy_pages": (_STATUS, (_HANDLE, c_void_p, c_size_t)),
    "quire_prefix_lease_pending": (c_uint64, (_HANDLE,)),
    "quire_prefix_cache_adopt": (_STATUS, (_HANDLE, _HANDLE, _HANDLE, POINTER(c.SeqId))),
    "quire_prefix_cache_publish": (
        _STATUS,
        (
            _HANDLE,
            c_uint64,
            c_void_p,
            c_size_t,
            c_void_p,
            c_size_t,
            _STRUCT,
            POINTER(c_int32),
        ),
    ),
    "quire_prefix_cache_publish_seq": (
        _STATUS,
        (
            _HANDLE,
            c_uint64,
            _HANDLE,
            c.SeqId,
            c_void_p,
            c_size_t,
            _STRUCT,
            POINTER(c_int32),
        ),
    ),
    "quire_prefix_cache_evict": (c_int32, (_HANDLE, c_int32)),
    "quire_prefix_cache_evict_expired": (c_int32, (_HANDLE,)),
    "quire_prefix_cache_erase": (c_int32, (_HANDLE, c_uint64)),
    "quire_prefix_cache_evictable_pages": (c_int32, (_HANDLE,)),
    "quire_prefix_cache_set_time": (_STATUS, (_HANDLE, c_int64)),
    "quire_prefix_cache_tokens": (_STATUS, (_HANDLE, c_int32, *_LIST)),
    "quire_prefix_cache_set_listener": (_STATUS, (_HANDLE, PrefixListener, c_void_p)),
    "quire_prefix_cache_save": (_STATUS, (_HANDLE, c_void_p, c_size_t, POINTER(c_size_t))),
    "quire_prefix_cache_restore": (
        _STATUS,
        (_HANDLE, c_void_p, c_size_t, c_void_p, c_size_t, POINTER(c_size_t)),
    ),
    "quire_prefix_cache_check": (_STATUS, (_HANDLE,)),
    "quire_transfer_plan_create": (_STATUS, (POINTER(c_void_p),)),
    "quire_transfer_plan_destroy": (None, (_HANDLE,)),
    "quire_transfer_plan_clear": (_STATUS, (_HANDLE,)),
    "quire_transfer_plan_ticket": (c_uint64, (_HANDLE,)),
    "quire_transfer_plan_offloads": (_STATUS, (_HANDLE, *_LIST)),
    "quire_transfer_plan_fetches": (_STATUS, (_HANDLE, *_LIST)),
    "quire_prefix_cache_offload": (_STATUS, (_HANDLE, c_int32, _HANDLE, POINTER(c_int32))),
    "quire_prefix_cache_match_host": (
        _STATUS,
        (_HANDLE, c_uint64, c_void_p, c_size_t, _STRUCT),
    ),
    "quire_prefix_cache_fetch": (
        _STATUS,
        (_HANDLE, c_uint64, c_void_p, c_size_t, _HANDLE, POINTER(c_int32)),
    ),
    "quire_prefix_cache_retire": (c_int32, (_HANDLE, c_uint64)),
    "quire_prefix_cache_evict_host": (c_int32, (_HANDLE, c_int32)),
    "quire_prefix_cache_parked_pages": (c_int32, (_HANDLE,)),
    "quire_batch_builder_create": (_STATUS, (_HANDLE, POINTER(c_void_p))),
    "quire_batch_builder_destroy": (None, (_HANDLE,)),
    "quire_staging_size": (c_size_t, (BatchShape,)),
    "quire_batch_builder_tight_shape": (_STATUS, (_HANDLE, c_void_p, c_size_t, _STRUCT)),
    "quire_batch_builder_build": (
        _STATUS,
        (_HANDLE, c_void_p, c_size_t, _STRUCT, c_void_p, c_size_t, _STRUCT),
    ),
    "quire_batch_builder_update": (
        _STATUS,
        (_HANDLE, c_void_p, c_size_t, _STRUCT, c_void_p, c_size_t, _STRUCT),
    ),
    "quire_batch_builder_find_prefixes": (
        _STATUS,
        (_HANDLE, c_void_p, c_size_t, c_int32, c_void_p, c_void_p),
    ),
    "quire_batcher_create": (_STATUS, (_HANDLE, _HANDLE, _STRUCT, POINTER(c_void_p))),
    "quire_batcher_create_windowed": (
        _STATUS,
        (_HANDLE, _HANDLE, c_void_p, c_size_t, _STRUCT, POINTER(c_void_p)),
    ),
    "quire_batcher_destroy": (None, (_HANDLE,)),
    "quire_batcher_submit": (_STATUS, (_HANDLE, _STRUCT)),
    "quire_batcher_cancel": (_STATUS, (_HANDLE, c_uint64)),
    "quire_batcher_plan": (_STATUS, (_HANDLE, _STRUCT, _HANDLE)),
    "quire_batcher_commit": (_STATUS, (_HANDLE, _HANDLE, _HANDLE)),
    "quire_batcher_finish": (
        _STATUS,
        (_HANDLE, _HANDLE, c_void_p, c_size_t, c_void_p, c_size_t, *_LIST),
    ),
    "quire_batcher_idle": (c_int32, (_HANDLE,)),
    "quire_batcher_get_stats": (_STATUS, (_HANDLE, _STRUCT)),
    "quire_batcher_check": (_STATUS, (_HANDLE,)),
    "quire_step_plan_create": (_STATUS, (POINTER(c_void_p),)),
    "quire_step_plan_destroy": (None, (_HANDLE,)),
    "quire_step_plan_step": (c_uint64, (_HANDLE,)),
    "quire_step_plan_num_tokens": (c_int32, (_HANDLE,)),
    "quire_step_plan_items": (_STATUS, (_HANDLE, *_LIST)),
    "quire_step_plan_preempted": (_STATUS, (_HANDLE, *_LIST)),
    "quire_step_plan_batch": (_STATUS, (_HANDLE, *_LIST)),
    "quire_step_plan_window": (_STATUS, (_HANDLE, c_size_t, *_LIST, *_LIST)),
    "quire_step_plan_transfers": (_STATUS, (_HANDLE, *_LIST, *_LIST)),
    "quire_recorder_create": (_STATUS, (_STRUCT, POINTER(c_void_p))),
    "quire_recorder_destroy": (None, (_HANDLE,)),
    "quire_recorder_submitted": (_STATUS, (_HANDLE, _STRUCT, c_double)),
    "quire_recorder_committed": (_STATUS, (_HANDLE, _HANDLE, _HANDLE, c_double)),
    "quire_recorder_cancelled": (_STATUS, (_HANDLE, c_uint64, c_double)),
    "quire_recorder_finished": (
        _STATUS,
        (_HANDLE, c_void_p, c_size_t, c_void_p, c_size_t, c_double),
    ),
    "quire_recorder_counts": (_STATUS, (_HANDLE, _STRUCT, _STRUCT)),
    "quire_recorder_events": (_STATUS, (_HANDLE, c_size_t, c_void_p, c_size_t)),
    "quire_recorder_steps": (_STATUS, (_HANDLE, c_size_t, c_void_p, c_size_t)),
    "quire_recorder_ended": (_STATUS, (_HANDLE, c_size_t, c_void_p, c_size_t)),
}

c.declare(c.locked, LOCKED)
locked = c.locked
