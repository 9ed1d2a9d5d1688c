/* SPDX-License-Identifier: Apache-2.0 */
/* A C99 engine in small: sequences on pages, a fork with copy-on-write, new keys and values
 * appended by position, a ragged batch of decode, append, prefill and an empty request, dense and
 * CSR tables and both layouts, against three loops in double precision. */
#include <math.h>
#include <string.h>

#include "expect.h"
#include "quire/quire.h"

enum {
  kQoHeads = 4,
  kKvHeads = 2,
  kDim = 8,
  kPageSize = 4,
  kPages = 16,
  kSeqs = 4,
  kMaxLen = 16,
  kTableWidth = kMaxLen / kPageSize,
  kTotalQ = 1 + 3 + 5 + 0,
  kPadding = 2,
  kRows = kTotalQ + kPadding,
  kMaxTokens = 64,
  kCacheSize = kPages * kPageSize * kKvHeads * kDim
};

static const quire_device kCpu = {QUIRE_DEVICE_CPU, 0};
static const int32_t kKvLen[kSeqs] = {11, 9, 5, 0};
static const int32_t kQoIndptr[kSeqs + 1] = {0, 1, 4, 9, 9};

typedef struct engine {
  quire_page_pool* pool;
  quire_page_table* table;
  quire_copy_plan* copies;
  quire_seq_id seqs[kSeqs];
  int32_t layout;
  float k_cache[kCacheSize];
  float v_cache[kCacheSize];
} engine;

/* What a token holds in K (which = 0), V (1) or Q (2). */
static float value_of(int which, int seq, int token, int head, int dim) {
  return (float)sin(1.0 + which * 7.3 + seq * 3.1 + token * 0.37 + head * 1.7 + dim * 0.9);
}

static quire_tensor cache_of(const engine* e, float* data) {
  if (e->layout == QUIRE_LAYOUT_NHD) {
    return quire_tensor_packed(data, QUIRE_FLOAT32, kCpu,
                               QUIRE_SHAPE(kPages, kPageSize, kKvHeads, kDim));
  }
  return quire_tensor_packed(data, QUIRE_FLOAT32, kCpu,
                             QUIRE_SHAPE(kPages, kKvHeads, kPageSize, kDim));
}

/* Makes room for tokens of one sequence and writes their keys and values through slots. */
static void append_tokens(engine* e, int seq, int first, int count) {
  static float k[kMaxTokens][kKvHeads][kDim];
  static float v[kMaxTokens][kKvHeads][kDim];
  int64_t slots[kMaxTokens];
  const quire_tensor k_cache = cache_of(e, e->k_cache);
  const quire_tensor v_cache = cache_of(e, e->v_cache);
  const quire_copy_tensors caches[] = {{k_cache, QUIRE_TENSOR_NONE}, {v_cache, QUIRE_TENSOR_NONE}};
  quire_append_tensors tensors = QUIRE_APPEND_TENSORS_INIT;

  EXPECT_OK(quire_copy_plan_clear(e->copies));
  EXPECT_OK(quire_page_table_append(e->table, e->seqs[seq], count, e->copies));
  EXPECT_OK(quire_execute_copies(kCpu, e->layout, quire_copy_plan_ops(e->copies),
                                 quire_copy_plan_size(e->copies), caches, 2, NULL));
  for (int i = 0; i < count; ++i) {
    slots[i] = quire_page_table_slot(e->table, e->seqs[seq], first + i);
    for (int head = 0; head < kKvHeads; ++head) {
      for (int d = 0; d < kDim; ++d) {
        k[i][head][d] = value_of(0, seq, first + i, head, d);
        v[i][head][d] = value_of(1, seq, first + i, head, d);
      }
    }
  }
  tensors.k = quire_tensor_packed(k, QUIRE_FLOAT32, kCpu, QUIRE_SHAPE(count, kKvHeads, kDim));
  tensors.v = quire_tensor_packed(v, QUIRE_FLOAT32, kCpu, QUIRE_SHAPE(count, kKvHeads, kDim));
  tensors.k_cache = k_cache;
  tensors.v_cache = v_cache;
  tensors.slot_mapping = quire_tensor_packed(slots, QUIRE_INT64, kCpu, QUIRE_SHAPE(count));
  EXPECT_OK(quire_append(kCpu, e->layout, NULL, &tensors, NULL, NULL));
}

/* Request 1 begins with the first six tokens of request 0: they are shared, the page that holds the
 * fifth and sixth until request 1 writes to it. */
enum { kShared = 6 };
static int owner_of(int seq, int token) { return seq == 1 && token < kShared ? 0 : seq; }

static void fill(engine* e) {
  const float poison = NAN;
  for (int i = 0; i < kCacheSize; ++i) e->k_cache[i] = e->v_cache[i] = poison;
  EXPECT_OK(quire_page_table_create_seq(e->table, &e->seqs[0]));
  append_tokens(e, 0, 0, kKvLen[0]);
  EXPECT_OK(quire_page_table_fork_seq(e->table, e->seqs[0], kShared, &e->seqs[1]));
  append_tokens(e, 1, kShared, kKvLen[1] - kShared);
  EXPECT(quire_copy_plan_size(e->copies) == 1);
  EXPECT(quire_copy_plan_ops(e->copies)[0].tokens == kShared % kPageSize);
  for (int seq = 2; seq < kSeqs; ++seq) {
    EXPECT_OK(quire_page_table_create_seq(e->table, &e->seqs[seq]));
    append_tokens(e, seq, 0, kKvLen[seq]);
  }
  EXPECT(quire_page_table_num_seqs(e->table) == kSeqs);
  EXPECT_OK(quire_page_table_check(e->table));
}

static void expect_row(int seq, int query, int row, float o[kRows][kQoHeads][kDim],
                       float lse[kRows][kQoHeads]) {
  const int qo_len = kQoIndptr[seq + 1] - kQoIndptr[seq];
  const int position = kKvLen[seq] - qo_len + query;
  for (int head = 0; head < kQoHeads; ++head) {
    const int kv_head = head / (kQoHeads / kKvHeads);
    double sum = 0;
    double expected[kDim] = {0};
    for (int t = 0; t <= position; ++t) {
      double score = 0;
      for (int d = 0; d < kDim; ++d) {
        score += (double)value_of(2, seq, query, head, d) *
                 (double)value_of(0, owner_of(seq, t), t, kv_head, d);
      }
      const double weight = exp(score / sqrt((double)kDim));
      sum += weight;
      for (int d = 0; d < kDim; ++d) {
        expected[d] += weight * (double)value_of(1, owner_of(seq, t), t, kv_head, d);
      }
    }
    EXPECT(fabs(log(sum) - (double)lse[row][head]) < 1e-5);
    for (int d = 0; d < kDim; ++d) EXPECT(fabs(expected[d] / sum - (double)o[row][head][d]) < 1e-5);
  }
}

static void expect_outputs(float o[kRows][kQoHeads][kDim], float lse[kRows][kQoHeads]) {
  for (int seq = 0; seq < kSeqs; ++seq) {
    for (int row = kQoIndptr[seq]; row < kQoIndptr[seq + 1]; ++row) {
      expect_row(seq, row - kQoIndptr[seq], row, o, lse);
    }
  }
  for (int row = kTotalQ; row < kRows; ++row) {
    for (int head = 0; head < kQoHeads; ++head) {
      EXPECT(isinf(lse[row][head]) && lse[row][head] < 0);
      for (int d = 0; d < kDim; ++d) EXPECT(o[row][head][d] == 0.0f);
    }
  }
}

/* The batch with its keys found through a dense table or a CSR table. */
static void attend(engine* e, const quire_attention* attention, int dense) {
  static float q[kRows][kQoHeads][kDim], o[kRows][kQoHeads][kDim], lse[kRows][kQoHeads];
  int32_t rows[kSeqs][kTableWidth];
  int32_t indices[kSeqs * kTableWidth];
  int32_t indptr[kSeqs + 1] = {0};
  size_t schedule_bytes, scratch_bytes;
  quire_batch batch = QUIRE_BATCH_INIT;
  quire_attention_tensors tensors = QUIRE_ATTENTION_TENSORS_INIT;

  for (int seq = 0; seq < kSeqs; ++seq) {
    const int32_t* pages;
    size_t count;
    EXPECT_OK(quire_page_table_pages(e->table, e->seqs[seq], &pages, &count));
    for (size_t i = 0; i < kTableWidth; ++i) rows[seq][i] = i < count ? pages[i] : QUIRE_NO_PAGE;
    if (count > 0) memcpy(indices + indptr[seq], pages, count * sizeof(int32_t));
    indptr[seq + 1] = indptr[seq] + (int32_t)count;
  }
  for (int seq = 0; seq < kSeqs; ++seq) {
    for (int row = kQoIndptr[seq]; row < kQoIndptr[seq + 1]; ++row) {
      for (int head = 0; head < kQoHeads; ++head) {
        for (int d = 0; d < kDim; ++d)
          q[row][head][d] = value_of(2, seq, row - kQoIndptr[seq], head, d);
      }
    }
  }
  batch.qo_indptr = quire_tensor_packed(kQoIndptr, QUIRE_INT32, kCpu, QUIRE_SHAPE(kSeqs + 1));
  batch.kv_len = quire_tensor_packed(kKvLen, QUIRE_INT32, kCpu, QUIRE_SHAPE(kSeqs));
  if (dense) {
    batch.page_table =
        quire_tensor_packed(rows, QUIRE_INT32, kCpu, QUIRE_SHAPE(kSeqs, kTableWidth));
  } else {
    batch.kv_page_indptr = quire_tensor_packed(indptr, QUIRE_INT32, kCpu, QUIRE_SHAPE(kSeqs + 1));
    batch.kv_page_indices =
        quire_tensor_packed(indices, QUIRE_INT32, kCpu, QUIRE_SHAPE(indptr[kSeqs]));
  }
  tensors.q = quire_tensor_packed(q, QUIRE_FLOAT32, kCpu, QUIRE_SHAPE(kRows, kQoHeads, kDim));
  tensors.k = cache_of(e, e->k_cache);
  tensors.v = cache_of(e, e->v_cache);
  tensors.o = quire_tensor_packed(o, QUIRE_FLOAT32, kCpu, QUIRE_SHAPE(kRows, kQoHeads, kDim));
  tensors.lse = quire_tensor_packed(lse, QUIRE_FLOAT32, kCpu, QUIRE_SHAPE(kRows, kQoHeads));

  EXPECT_OK(quire_attention_workspace_sizes(attention, &schedule_bytes, &scratch_bytes));
  void* memory = malloc(schedule_bytes + scratch_bytes + 3 * QUIRE_WORKSPACE_ALIGNMENT);
  const uintptr_t mask = ~(uintptr_t)(QUIRE_WORKSPACE_ALIGNMENT - 1);
  const uintptr_t schedule = ((uintptr_t)memory + QUIRE_WORKSPACE_ALIGNMENT) & mask;
  const uintptr_t scratch = (schedule + schedule_bytes + QUIRE_WORKSPACE_ALIGNMENT) & mask;
  EXPECT_OK(quire_attention_schedule(attention, &batch, (void*)schedule, schedule_bytes, NULL));
  for (int layer = 0; layer < 2; ++layer) { /* one schedule serves every layer */
    memset(o, 0xff, sizeof(o));
    memset(lse, 0xff, sizeof(lse));
    EXPECT_OK(quire_attention_run(attention, &batch, &tensors, (void*)schedule, schedule_bytes,
                                  (void*)scratch, scratch_bytes, NULL));
    expect_outputs(o, lse);
  }
  free(memory);
}

static void run_layout(int32_t layout) {
  static engine e;
  quire_attention* attention = NULL;
  quire_attention_spec spec = QUIRE_ATTENTION_SPEC_INIT;
  quire_batch_limits limits = QUIRE_BATCH_LIMITS_INIT;
  quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
  quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;

  e.layout = layout;
  pool_spec.num_pages = kPages;
  pool_spec.page_size = kPageSize;
  EXPECT_OK(quire_page_pool_create(&pool_spec, &e.pool));
  EXPECT_OK(quire_page_table_create(e.pool, &table_spec, &e.table));
  EXPECT_OK(quire_copy_plan_create(&e.copies));
  fill(&e);

  spec.num_qo_heads = kQoHeads;
  spec.num_kv_heads = kKvHeads;
  spec.head_dim_qk = kDim;
  spec.q_dtype = spec.kv_dtype = QUIRE_FLOAT32;
  spec.kv_layout = layout;
  spec.page_size = kPageSize;
  limits.max_num_seqs = kSeqs;
  limits.max_total_q = kRows;
  limits.max_kv_len = kMaxLen;
  EXPECT_OK(quire_attention_create(kCpu, &spec, &limits, NULL, &attention));
  attend(&e, attention, 1);
  attend(&e, attention, 0);

  quire_attention_destroy(attention);
  quire_copy_plan_destroy(e.copies);
  quire_page_table_destroy(e.table);
  EXPECT(quire_page_pool_num_free(e.pool) == kPages);
  quire_page_pool_destroy(e.pool);
}

int main(void) {
  run_layout(QUIRE_LAYOUT_NHD);
  run_layout(QUIRE_LAYOUT_HND);
  return 0;
}
