/* SPDX-License-Identifier: Apache-2.0 */
/* Two requests in one call: one decodes its 20th token, one reads a prompt of 5. */
#include <stdio.h>

#include "quire/quire.h"

int main(void) {
  static float q[6][4][64], o[6][4][64];         /* rows of q and o: 1 + 5 new tokens */
  static float k[3][16][2][64], v[3][16][2][64]; /* the cache: 3 pages of 16 tokens */
  const int32_t qo_indptr[] = {0, 1, 6}, kv_len[] = {20, 5}, pages[2][2] = {{2, 0}, {1, -1}};
  quire_attention_spec spec = QUIRE_ATTENTION_SPEC_INIT;
  quire_batch batch = QUIRE_BATCH_INIT;
  quire_attention_tensors tensors = QUIRE_ATTENTION_TENSORS_INIT;
  for (int t = 0; t < 16; ++t) v[2][t][0][0] = v[1][t][0][0] = (float)t;

  spec.num_qo_heads = 4, spec.num_kv_heads = 2, spec.head_dim_qk = 64;
  spec.q_dtype = spec.kv_dtype = QUIRE_FLOAT32;
  batch.qo_indptr = QUIRE_CPU_TENSOR(qo_indptr, QUIRE_INT32, 3);
  batch.kv_len = QUIRE_CPU_TENSOR(kv_len, QUIRE_INT32, 2);
  batch.page_table = QUIRE_CPU_TENSOR(pages, QUIRE_INT32, 2, 2);
  tensors.q = QUIRE_CPU_TENSOR(q, QUIRE_FLOAT32, 6, 4, 64);
  tensors.k = QUIRE_CPU_TENSOR(k, QUIRE_FLOAT32, 3, 16, 2, 64);
  tensors.v = QUIRE_CPU_TENSOR(v, QUIRE_FLOAT32, 3, 16, 2, 64);
  tensors.o = QUIRE_CPU_TENSOR(o, QUIRE_FLOAT32, 6, 4, 64);
  if (quire_attention_once(tensors.q.device, &spec, &batch, &tensors, NULL, NULL) != QUIRE_OK) {
    return fprintf(stderr, "%s\n", quire_last_error()), 1;
  }
  printf("decode %.1f, prompt %.1f %.1f %.1f\n", o[0][0][0], o[1][0][0], o[3][0][0], o[5][0][0]);
  return 0;
}
