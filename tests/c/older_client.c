/* SPDX-License-Identifier: Apache-2.0 */
/* A client built against an older, smaller header: its structs end early, other memory follows
 * them, and the library takes its defaults for what they lack. Deliberately not quire/quire.h. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct device {
  int32_t type, index;
} device;

typedef struct tensor {
  void* data;
  int32_t dtype, rank;
  device where;
  int64_t shape[4], strides[4];
} tensor;

typedef struct old_spec { /* before window_left and all that follows it */
  size_t struct_size;
  int32_t num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo, q_dtype, kv_dtype, o_dtype;
  int32_t kv_layout, page_size, mask;
} old_spec;

typedef struct old_limits { /* before max_kv_len */
  size_t struct_size;
  int32_t max_num_seqs, max_total_q;
} old_limits;

typedef struct old_batch { /* before the CSR tables, contiguous K/V and the masks */
  size_t struct_size;
  tensor qo_indptr, kv_len, page_table;
} old_batch;

typedef struct old_tensors { /* before lse, scales, sinks and ALiBi */
  size_t struct_size;
  tensor q, k, v, o;
} old_tensors;

typedef struct quire_attention quire_attention;
enum { QUIRE_OK = 0, QUIRE_FLOAT32 = 1, QUIRE_INT32 = 7, QUIRE_MASK_CAUSAL = 1 };
extern const char* quire_last_error(void);
extern tensor quire_tensor_packed(const void* data, int32_t dtype, device where, int32_t rank,
                                  const int64_t* shape);
extern int32_t quire_attention_spec_init(old_spec* spec, size_t struct_size);
extern int32_t quire_batch_init(old_batch* batch, size_t struct_size);
extern int32_t quire_attention_create(device where, const old_spec* spec, const old_limits* limits,
                                      const void* options, quire_attention** attention);
extern void quire_attention_destroy(quire_attention* attention);
extern int32_t quire_attention_get_spec(const quire_attention* attention, void* spec);
extern int32_t quire_attention_get_limits(const quire_attention* attention, void* limits);
extern int32_t quire_attention_workspace_sizes(const quire_attention* attention, size_t* schedule,
                                               size_t* scratch);
extern int32_t quire_attention_schedule(const quire_attention* attention, const old_batch* batch,
                                        void* schedule, size_t schedule_bytes, const void* call);
extern int32_t quire_attention_run(const quire_attention* attention, const old_batch* batch,
                                   const old_tensors* tensors, void* schedule,
                                   size_t schedule_bytes, void* scratch, size_t scratch_bytes,
                                   const void* call);
extern int32_t quire_attention_once(device where, const old_spec* spec, const old_batch* batch,
                                    const old_tensors* tensors, const void* call,
                                    const void* options);

#include "expect.h"

enum { kDim = 8, kPageSize = 2, kPages = 2, kLen = 3, kGarbage = 0xa5, kGarbageBytes = 1024 };

/* Each struct is followed by bytes that are not the library's business. */
static struct {
  old_spec spec;
  unsigned char after_spec[kGarbageBytes];
  old_limits limits;
  unsigned char after_limits[kGarbageBytes];
  old_batch batch;
  unsigned char after_batch[kGarbageBytes];
  old_tensors tensors;
  unsigned char after_tensors[kGarbageBytes];
} client;

static const device kCpu = {0, 0};
static const int32_t qo_indptr[2] = {0, 1};
static const int32_t kv_len[1] = {kLen};
static const int32_t page_table[1][2] = {{1, 0}};
static float q[1][1][kDim], k[kPages][kPageSize][1][kDim], v[kPages][kPageSize][1][kDim];
static float o[1][1][kDim];

static tensor packed(const void* data, int32_t dtype, int32_t rank, int64_t a, int64_t b, int64_t c,
                     int64_t d) {
  const int64_t shape[4] = {a, b, c, d};
  return quire_tensor_packed(data, dtype, kCpu, rank, shape);
}

static void prepare(void) {
  memset(&client, kGarbage, sizeof(client));
  EXPECT_OK(quire_attention_spec_init(&client.spec, sizeof(client.spec)));
  EXPECT(client.after_spec[0] == kGarbage);
  client.spec.num_qo_heads = client.spec.num_kv_heads = 1;
  client.spec.head_dim_qk = kDim;
  client.spec.q_dtype = client.spec.kv_dtype = QUIRE_FLOAT32;
  client.spec.page_size = kPageSize;
  client.limits.struct_size = sizeof(client.limits);
  client.limits.max_num_seqs = client.limits.max_total_q = 4;
  EXPECT_OK(quire_batch_init(&client.batch, sizeof(client.batch)));
  EXPECT(client.after_batch[0] == kGarbage);
  client.batch.qo_indptr = packed(qo_indptr, QUIRE_INT32, 1, 2, 0, 0, 0);
  client.batch.kv_len = packed(kv_len, QUIRE_INT32, 1, 1, 0, 0, 0);
  client.batch.page_table = packed(page_table, QUIRE_INT32, 2, 1, 2, 0, 0);
  client.tensors.struct_size = sizeof(client.tensors);
  client.tensors.q = packed(q, QUIRE_FLOAT32, 3, 1, 1, kDim, 0);
  client.tensors.k = packed(k, QUIRE_FLOAT32, 4, kPages, kPageSize, 1, kDim);
  client.tensors.v = packed(v, QUIRE_FLOAT32, 4, kPages, kPageSize, 1, kDim);
  client.tensors.o = packed(o, QUIRE_FLOAT32, 3, 1, 1, kDim, 0);
}

/* Equal scores, so that the result is the mean of the three values. */
static void expect_mean(void) {
  for (int d = 0; d < kDim; ++d) {
    const float mean = (v[1][0][0][d] + v[1][1][0][d] + v[0][0][0][d]) / 3.0f;
    EXPECT(fabsf(o[0][0][d] - mean) < 1e-5f);
  }
}

static void expect_defaults(const quire_attention* attention) {
  struct {
    old_spec known;
    int32_t window_left;
    float sm_scale;
    float logits_soft_cap;
    int32_t sinks, alibi, kv_scale, no_shared_prefixes, reserved;
  } spec;
  struct {
    old_limits known;
    int32_t max_kv_len, reserved;
  } limits;
  memset(&spec, 0, sizeof(spec));
  spec.known.struct_size = sizeof(spec);
  EXPECT_OK(quire_attention_get_spec(attention, &spec));
  EXPECT(spec.known.mask == QUIRE_MASK_CAUSAL);
  EXPECT(spec.window_left == -1);
  EXPECT(fabsf(spec.sm_scale - 1.0f / sqrtf((float)kDim)) < 1e-6f);
  EXPECT(spec.logits_soft_cap == 0.0f && spec.sinks == 0 && spec.alibi == 0 && spec.kv_scale == 0);
  EXPECT(spec.no_shared_prefixes == 0 && spec.reserved == 0);
  limits.known.struct_size = sizeof(limits);
  EXPECT_OK(quire_attention_get_limits(attention, &limits));
  EXPECT(limits.max_kv_len == 131072);
  EXPECT_OK(quire_attention_get_spec(attention, &client.spec)); /* writes no further than it may */
  EXPECT(client.after_spec[0] == kGarbage);
}

int main(void) {
  quire_attention* attention = NULL;
  size_t schedule_bytes = 0, scratch_bytes = 0;

  for (int d = 0; d < kDim; ++d) {
    v[0][0][0][d] = (float)d;
    v[0][1][0][d] = NAN; /* beyond kv_len */
    v[1][0][0][d] = 10.0f * (float)d;
    v[1][1][0][d] = 100.0f;
  }
  prepare();
  EXPECT_OK(quire_attention_create(kCpu, &client.spec, &client.limits, NULL, &attention));
  expect_defaults(attention);
  EXPECT_OK(quire_attention_workspace_sizes(attention, &schedule_bytes, &scratch_bytes));
  const uintptr_t step = 256;
  void* memory = malloc(schedule_bytes + scratch_bytes + 3 * (size_t)step);
  const uintptr_t schedule = ((uintptr_t)memory + step) / step * step;
  const uintptr_t scratch = (schedule + schedule_bytes + step) / step * step;
  EXPECT_OK(
      quire_attention_schedule(attention, &client.batch, (void*)schedule, schedule_bytes, NULL));
  EXPECT_OK(quire_attention_run(attention, &client.batch, &client.tensors, (void*)schedule,
                                schedule_bytes, (void*)scratch, scratch_bytes, NULL));
  expect_mean();
  free(memory);
  quire_attention_destroy(attention);

  memset(o, 0, sizeof(o));
  EXPECT_OK(quire_attention_once(kCpu, &client.spec, &client.batch, &client.tensors, NULL, NULL));
  expect_mean();
  return 0;
}
