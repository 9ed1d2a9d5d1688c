# SPDX-License-Identifier: Apache-2.0
# Code for FlashInfer, run by quire: only the import is another. Needs torch; runs on the CPU too.
import torch

import quire.compat.flashinfer as flashinfer

# %% A cache of 8 pages of 16 tokens; request 0 has pages 5 and 2, request 1 has page 7.
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
cache = torch.zeros(8, 2, 16, 2, 64, dtype=torch.float16, device=device)
indptr = torch.tensor([0, 2, 3], dtype=torch.int32, device=device)
indices = torch.tensor([5, 2, 7], dtype=torch.int32, device=device)
last_page_len = torch.tensor([4, 9], dtype=torch.int32, device=device)

# %% Both prompts, of 20 and 9 tokens, are appended and read in one call.
qo_indptr = torch.tensor([0, 20, 29], dtype=torch.int32, device=device)
q = torch.randn(29, 4, 64, dtype=torch.float16, device=device)
k, v = torch.randn(2, 29, 2, 64, dtype=torch.float16, device=device)
seq_lens = flashinfer.get_seq_lens(indptr, last_page_len, page_size=16)
where = flashinfer.get_batch_indices_positions(qo_indptr, seq_lens, nnz=29)
flashinfer.append_paged_kv_cache(k, v, *where, cache, indices, indptr, last_page_len)

workspace = torch.empty(32 << 20, dtype=torch.uint8, device=device)
prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace)
prefill.plan(qo_indptr, indptr, indices, last_page_len, 4, 2, 64, 16, causal=True)
o = prefill.run(q, cache)

# %% The last token of each again, as decode sees it.
decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace)
decode.plan(indptr, indices, last_page_len, 4, 2, 64, 16)
last = decode.run(q[[19, 28]], cache)
print("decode agrees with prefill:", torch.allclose(last, o[[19, 28]], atol=2e-3))
