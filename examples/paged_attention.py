# SPDX-License-Identifier: Apache-2.0
# Two requests in one call: one decodes its 20th token, one reads a prompt of 5.
import numpy as np

import quire

q = np.zeros((6, 4, 64), np.float32)  # rows: 1 + 5 new tokens
k = np.zeros((3, 16, 2, 64), np.float32)  # the cache: 3 pages of 16 tokens
v = np.zeros((3, 16, 2, 64), np.float32)
v[[1, 2], :, 0, 0] = np.arange(16)

o = quire.attention(
    q,
    k,
    v,
    qo_indptr=np.array([0, 1, 6], np.int32),
    kv_len=np.array([20, 5], np.int32),
    page_table=np.array([[2, 0], [1, quire.NO_PAGE]], np.int32),
)
decode, prompt = o[0, 0, 0], o[1:, 0, 0]
print(f"decode {decode:.1f}, prompt {prompt[0]:.1f} {prompt[2]:.1f} {prompt[4]:.1f}")
