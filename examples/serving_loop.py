# SPDX-License-Identifier: Apache-2.0
# A prompt of 20 tokens is read; it forks, and both branches decode 3 tokens, in one call a step.
import numpy as np

import quire

NUM_LAYERS, NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, NUM_PAGES = 2, 8, 2, 64, 16, 32
rng = np.random.default_rng(0)


def project(num_tokens):
    """Stands for a model's projections: q, k and v of new tokens."""
    shapes = [(num_tokens, heads, HEAD_DIM) for heads in (NUM_QO_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


spec = quire.AttentionSpec(NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM, q_dtype="float32")
limits = quire.BatchLimits(max_num_seqs=8, max_total_q=64, max_kv_len=256)
attention = quire.Attention(spec, limits)
workspaces = attention.allocate_workspaces()

page_shape = (NUM_PAGES, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM)
caches = [np.zeros((2, *page_shape), np.float32) for _ in range(NUM_LAYERS)]  # K and V
pool = quire.PagePool(NUM_PAGES, PAGE_SIZE)
table = quire.PageTable(pool, max_seqs=8, max_tokens_per_seq=256)
copies = quire.CopyPlan()


def step(seqs, num_new_tokens):
    """One step of all layers for sequences with so many new tokens each; returns o of the last."""
    copies.clear()
    for seq, n in zip(seqs, num_new_tokens):
        table.append(seq, n, copies)  # raises quire.OutOfPages where a scheduler would wait
    batch = quire.Batch(
        qo_indptr=np.cumsum([0, *num_new_tokens], dtype=np.int32),
        kv_len=table.kv_len(seqs),
        page_table=table.dense(seqs),
    )
    schedule = attention.schedule(batch, workspaces)
    for k_cache, v_cache in caches:
        copies.execute(k_cache)  # the copy-on-write of forks
        copies.execute(v_cache)
        q, k, v = project(sum(num_new_tokens))
        quire.append(k, v, k_cache, v_cache, batch=batch)
        o = attention.run(schedule, q, k_cache, v_cache)
    return o


prompt = table.create()
o = step([prompt], [20])
print(f"prompt: o {o.shape}, {pool.num_used} pages")

branch = table.fork(prompt)
for _ in range(3):
    o = step([prompt, branch], [1, 1])
    print(f"decode: o {o.shape}, {pool.num_used} pages, {len(copies)} copied")
