# SPDX-License-Identifier: Apache-2.0
# Code for FlashAttention, run by quire: a paged cache takes a token of each request, in place.
import torch

from quire.compat.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

# %% Two requests of 20 and 9 tokens on pages of 16.
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
k_cache, v_cache = torch.randn(2, 8, 16, 2, 64, dtype=torch.float16, device=device)
block_table = torch.tensor([[5, 2], [7, -1]], dtype=torch.int32, device=device)
cache_seqlens = torch.tensor([20, 9], dtype=torch.int32, device=device)

# %% Each decodes a token, whose k and v join the cache in the same call.
q = torch.randn(2, 1, 4, 64, dtype=torch.float16, device=device)
k, v = torch.randn(2, 2, 1, 2, 64, dtype=torch.float16, device=device)
o = flash_attn_with_kvcache(
    q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, block_table=block_table, causal=True
)
print("appended in place:", torch.equal(k_cache[2, 4], k[0, 0]))

# %% The same as a ragged batch.
cu_seqlens_q = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
again = flash_attn_varlen_func(
    q.view(2, 4, 64),
    k_cache,
    v_cache,
    cu_seqlens_q,
    seqused_k=cache_seqlens + 1,
    block_table=block_table,
    causal=True,
)
print("both calls agree:", torch.equal(again, o.view(2, 4, 64)))
