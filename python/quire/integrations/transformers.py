# SPDX-License-Identifier: Apache-2.0
"""transformers' continuous batching on quire's kernels, without a gather of the KV cache::

    import quire.integrations.transformers

    model = AutoModelForCausalLM.from_pretrained(…, attn_implementation="paged|quire")
    model.generate_batch(prompts, continuous_batching_config=ContinuousBatchingConfig(
        use_cuda_graph=True, num_blocks=2048, max_batch_tokens=4096))

Importing registers two implementations of attention: `paged|quire` for `generate_batch`, and
`quire`, which is transformers' own SDPA outside of it, and lets the former have block tables in
decode steps. docs/compat.md has what a configuration must say, as transformers takes
implementations that it does not know for such that need a mask.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Optional

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.generation.continuous_batching import initialization
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .._attention import Attention, Schedule, Workspaces
from .._batch import Batch
from .._operations import append
from .._spec import CONTIGUOUS_KV, AttentionSpec, BatchLimits

__all__ = ["paged_attention", "register"]


def _up(size: int, least: int) -> int:
    return max(least, 1 << max(size - 1, 0).bit_length())


class _Steps:
    """What the layers of one cache share: attentions, workspaces, and the schedules of the step
    that is running. Shapes alone choose them, so that a captured CUDA graph, which runs no Python,
    stays right for whatever lengths come later."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Attention, Workspaces]] = {}
        self._schedules: dict[Any, Schedule] = {}

    def schedule(self, key: Any, spec: AttentionSpec, limits: BatchLimits, make: Any) -> Schedule:
        """The schedule of the step for the layers that share `key`; made by `make()`, which gives
        the batch, at the first of them."""
        q_device = key.device
        stream = torch.cuda.current_stream(q_device).cuda_stream if q_device.type == "cuda" else 0
        slot = (spec, limits, key.group, stream)
        known = self._made.get(slot)
        if known is None:
            attention = Attention(spec, limits, device=q_device)
            known = self._made[slot] = attention, attention.allocate_workspaces()
        attention, workspaces = known
        if key.is_first:  # the step before has ended for this group
            others = {each: s for each, s in self._schedules.items() if each[2] != key.group}
            self._schedules = others
        if slot not in self._schedules:
            self._schedules[slot] = attention.schedule(make(), workspaces)
        return self._schedules[slot]


class _Key:
    __slots__ = ("device", "group", "is_first")

    def __init__(self, group: int, is_first: bool, device: torch.device) -> None:
        self.group, self.is_first, self.device = group, is_first, device


_steps: weakref.WeakKeyDictionary[Any, _Steps] = weakref.WeakKeyDictionary()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor] = None,
    scaling: Optional[float] = None,
    dropout: float = 0.0,
    cache: Any = None,
    cu_seq_lens_q: Any = None,
    cu_seq_lens_k: Any = None,
    read_index: Any = None,
    write_index: Any = None,
    block_table: Optional[Tensor] = None,
    softcap: Optional[float] = None,
    s_aux: Optional[Tensor] = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over transformers' paged cache; writes the new keys first.

    Args:
      module: The layer: `layer_idx`, `scaling`.
      query: [1, num_qo_heads, total_q, head_dim].
      key, value: [1, num_kv_heads, total_q, head_dim].
      cache: PagedAttentionCache; without it the call is a plain forward.
      cu_seq_lens_q, cu_seq_lens_k: int32 [num_seqs + 1], the latter by kind of layer if there are
        several.
      read_index: int64 of each group of layers: slots of the keys; empty if no request has any in
        the cache.
      write_index: int64 [total_q] of each group: slots of the new keys.
      block_table: int32 [num_groups, num_seqs, max_blocks] of a step that only decodes, in place
        of the two: blocks of each request.
      softcap: Of the scores; None or 0 is off.
      s_aux: [num_qo_heads]: sinks.

    Returns:
      (o [1, total_q, num_qo_heads, head_dim], None).
    """
    scale = module.scaling if scaling is None else scaling
    if cache is None:
        if softcap or s_aux is not None:
            raise NotImplementedError("a soft cap or sinks outside of generate_batch: use eager")
        return _plain(module, query, key, value, attention_mask, scale, dropout, options)
    layer = module.layer_idx
    group, layer_in_group = cache.layer_index_to_group_indices[layer]
    is_sliding = cache.sliding_windows[layer] != 1
    if isinstance(cu_seq_lens_k, dict):
        cu_seq_lens_k = cu_seq_lens_k["sliding_attention" if is_sliding else "full_attention"]
    q = query.transpose(1, 2).squeeze(0)
    reads, writes = read_index[group], write_index[group]
    if is_sliding and block_table is not None:  # transformers gives none to models with windows
        raise NotImplementedError("a block table for a layer with a window: expected slots of keys")
    is_paged = block_table is not None or (not is_sliding and reads.numel() > 0)
    if is_paged:
        pages = (-1, cache.block_size, *cache.key_cache[layer_in_group].shape[1:])
        k = cache.key_cache[layer_in_group].view(pages)
        v = cache.value_cache[layer_in_group].view(pages)
    else:  # a window is gathered by transformers, as new keys overwrite old ones that are needed
        k, v = cache.update(
            key_states=key,
            value_states=value,
            layer_idx=layer,
            read_index=read_index,
            write_index=write_index,
        )
    spec = AttentionSpec(
        q.shape[1],
        k.shape[-2],
        q.shape[2],
        v.shape[-1],
        q_dtype=q.dtype,
        page_size=cache.block_size if is_paged else CONTIGUOUS_KV,
        window_left=cache.sliding_windows[layer] - 1 if is_sliding else -1,
        sm_scale=float(scale),
        logits_soft_cap=softcap or None,
        sinks=s_aux is not None,
    )
    most_keys = reads.numel() if reads.numel() > 0 else q.shape[0]
    if block_table is not None:
        most_keys = block_table.shape[2] * cache.block_size
    limits = BatchLimits(
        _up(cu_seq_lens_q.shape[0] - 1, 16), _up(q.shape[0], 64), _up(most_keys, 1024)
    )

    def batch() -> Batch:
        if not is_paged:
            return Batch(cu_seq_lens_q, kv_indptr=cu_seq_lens_k)
        table = (
            _page_table(reads, cu_seq_lens_k, cache.block_size)
            if block_table is None
            else block_table[group]
        )
        return Batch(cu_seq_lens_q, kv_len=cu_seq_lens_k[1:] - cu_seq_lens_k[:-1], page_table=table)

    steps = _steps.get(cache)
    if steps is None:
        steps = _steps[cache] = _Steps()
    schedule = steps.schedule(_Key(group, layer_in_group == 0, q.device), spec, limits, batch)
    if is_paged:
        new_k, new_v = (each.transpose(1, 2).squeeze(0) for each in (key, value))
        if block_table is None:
            rows = writes.shape[0]
            append(new_k[:rows], new_v[:rows], k, v, slot_mapping=writes)
        else:
            append(new_k, new_v, k, v, batch=schedule.batch)
    sinks = None if s_aux is None else s_aux.float()
    o: Tensor = schedule.attention.run(schedule, q, k, v, sinks=sinks)
    return o.unsqueeze(0), None


def _page_table(reads: Tensor, cu_seq_lens_k: Tensor, block_size: int) -> Tensor:
    """int32 [num_seqs, max_blocks]: blocks of each request, of the slots of its keys: every
    `block_size`-th of them begins a block. Its shape depends on shapes alone, and so it may be
    captured; entries beyond a request's length are whatever, and never read."""
    width = -(-reads.numel() // block_size)
    firsts = torch.arange(width, device=reads.device) * block_size
    at = (cu_seq_lens_k[:-1].long().unsqueeze(1) + firsts).clamp_(max=reads.numel() - 1)
    return (reads[at] // block_size).int()


def _plain(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    scaling: float,
    dropout: float,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    """A forward pass outside of `generate_batch`. No mask comes for the name `paged|quire`: what it
    would say follows from the positions, if no request is padded."""
    if attention_mask is None and query.shape[2] > 0:
        if query.shape[0] > 1:
            raise NotImplementedError(
                "several requests at once outside of generate_batch: padding is not told to "
                'paged|quire; model.set_attn_implementation("quire") takes it'
            )
        num_keys, device = key.shape[2], query.device
        positions = options.get("position_ids")
        if positions is None:
            positions = torch.arange(num_keys - query.shape[2], num_keys, device=device)
        positions = positions.reshape(-1, 1)
        first = (positions[-1] + 1 - num_keys).clamp(min=0)
        keys = first + torch.arange(num_keys, device=device)
        visible = keys <= positions
        window = getattr(module, "sliding_window", None)
        if window:
            visible &= keys > positions - window
        attention_mask = visible[None, None]
    o, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    return o, None


def _offer_block_tables() -> None:
    """transformers keeps block tables to FlashAttention's names. Without them a decode step lists
    the slot of every key that it reads, on the host: as long as the GPU takes for a small model."""
    name = "ensure_decode_fast_path_is_available"
    ensure = getattr(initialization, name, None)
    if ensure is None or hasattr(ensure, "__wrapped__"):
        return

    @functools.wraps(ensure)
    def wrapper(config: Any, *arguments: Any, **options: Any) -> None:
        if config._attn_implementation != "paged|quire":
            ensure(config, *arguments, **options)

    setattr(initialization, name, wrapper)


def register() -> None:
    """Registers `paged|quire` and `quire` with transformers; importing the module does it."""
    AttentionInterface.register("paged|quire", paged_attention)
    AttentionInterface.register("quire", sdpa_attention_forward)
    AttentionMaskInterface.register("quire", sdpa_mask)
    _offer_block_tables()


register()
