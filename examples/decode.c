/* SPDX-License-Identifier: Apache-2.0 */
/* A request with 20 tokens in its cache, on pages 2 and 0, decodes the last of them. */
#include <stdio.h>

#include "quire/quire.h"

#define F32(data, ...) QUIRE_CPU_TENSOR(data, QUIRE_FLOAT32, __VA_ARGS__)
#define I32(data, ...) QUIRE_CPU_TENSOR(data, QUIRE_INT32, __VA_ARGS__)

int main(void) {
  static float q[1][4][64], o[1][4][64], k[3][16][2][64], v[3][16][2][64] = {[2] = {{{20}}}};
  const int32_t qo_indptr[] = {0, 1}, kv_len[] = {20}, pages[1][2] = {{2, 0}};
  quire_batch batch = {sizeof batch, I32(qo_indptr, 2), I32(kv_len, 1),
                       .page_table = I32(pages, 1, 2)};
  quire_attention_tensors tensors = {sizeof tensors, F32(q, 1, 4, 64), F32(k, 3, 16, 2, 64),
                                     F32(v, 3, 16, 2, 64), .o = F32(o, 1, 4, 64)};
  quire_attention_spec spec = QUIRE_ATTENTION_SPEC_INIT; /* pages of 16 tokens, causal */
  spec.num_qo_heads = 4, spec.num_kv_heads = 2, spec.head_dim_qk = 64;
  spec.q_dtype = spec.kv_dtype = QUIRE_FLOAT32;
  if (quire_attention_once(tensors.q.device, &spec, &batch, &tensors, NULL, NULL))
    return puts(quire_last_error()), 1;
  printf("o[0][0][0] = %.1f\n", o[0][0][0]); /* equal scores: the mean of v, 20 / 20 */
}
