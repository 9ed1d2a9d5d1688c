/* SPDX-License-Identifier: Apache-2.0 */
/* A client that serves requests through the C ABI: prefix cache, batcher, builder and recorder, with
 * a "model" whose next token is the sum of all before it, read from what was written to pages. */
#include "quire/serving.h"

#include <stdint.h>
#include <string.h>

#include "expect.h"

enum { kPages = 12, kPageSize = 4, kMaxPrompt = 16, kNewTokens = 3, kRequests = 3, kModulus = 97 };

static int32_t slots[kPages * kPageSize]; /* the token that a slot of the cache holds */

typedef struct server {
  quire_page_pool* pool;
  quire_page_table* table;
  quire_prefix_cache* cache;
  quire_batcher* batcher;
  quire_batch_builder* builder;
  quire_recorder* recorder;
  quire_step_plan* plan;
  quire_copy_plan* copies;
} server;

static void open_server(server* s) {
  quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
  quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
  pool_spec.num_pages = kPages;
  pool_spec.page_size = kPageSize;
  table_spec.max_seqs = kRequests;
  EXPECT(quire_page_pool_create(&pool_spec, &s->pool) == QUIRE_OK);
  EXPECT(quire_page_table_create(s->pool, &table_spec, &s->table) == QUIRE_OK);
  EXPECT(quire_prefix_cache_create(s->pool, NULL, &s->cache) == QUIRE_OK);
  EXPECT(quire_batcher_create(s->table, s->cache, NULL, &s->batcher) == QUIRE_OK);
  EXPECT(quire_batch_builder_create(s->table, &s->builder) == QUIRE_OK);
  EXPECT(quire_recorder_create(NULL, &s->recorder) == QUIRE_OK);
  EXPECT(quire_step_plan_create(&s->plan) == QUIRE_OK);
  EXPECT(quire_copy_plan_create(&s->copies) == QUIRE_OK);
}

static void close_server(server* s) {
  quire_copy_plan_destroy(s->copies);
  quire_step_plan_destroy(s->plan);
  quire_recorder_destroy(s->recorder);
  quire_batch_builder_destroy(s->builder);
  quire_batcher_destroy(s->batcher);
  quire_prefix_cache_destroy(s->cache);
  quire_page_table_destroy(s->table);
  quire_page_pool_destroy(s->pool);
}

typedef struct text { /* of a request: its prompt and what was sampled */
  int32_t tokens[kMaxPrompt + kNewTokens];
  int32_t length;
} text;

/* Writes the tokens of an item where the batch says, and samples from what the pages hold. */
static int32_t run_item(const quire_staged_batch* batch, int32_t row, const text* of,
                        const quire_step_item* item) {
  int32_t sum = 0;
  const int32_t* pages = batch->page_table + (ptrdiff_t)row * batch->shape.pages_per_seq;
  for (int32_t i = 0; i < item->num_new_tokens; ++i) {
    const int32_t token = batch->qo_indptr[row] + i;
    EXPECT(batch->positions[token] == item->position + i);
    slots[batch->slot_mapping[token]] = of->tokens[item->position + i];
  }
  for (int32_t t = 0; t < batch->kv_len[row]; ++t) {
    sum += slots[pages[t / kPageSize] * kPageSize + t % kPageSize];
  }
  return sum % kModulus;
}

static void apply_copies(quire_copy_plan* copies) {
  const quire_copy_op* ops = quire_copy_plan_ops(copies);
  for (size_t i = 0; i < quire_copy_plan_size(copies); ++i) {
    memcpy(slots + (ptrdiff_t)ops[i].dst * kPageSize + ops[i].dst_begin,
           slots + (ptrdiff_t)ops[i].src * kPageSize + ops[i].src_begin,
           (size_t)ops[i].tokens * sizeof *slots);
  }
  EXPECT(quire_copy_plan_clear(copies) == QUIRE_OK);
}

/* One step. @return How many requests ended. */
static size_t step(server* s, text* texts, double now) {
  quire_step_budget budget = QUIRE_STEP_BUDGET_INIT;
  const quire_step_item* items;
  const quire_batch_entry* entries;
  const uint64_t* ended;
  size_t num_items, num_entries, num_ended;
  quire_staged_batch batch = QUIRE_STAGED_BATCH_INIT;
  quire_batch_shape shape;
  int64_t staging[256];
  int32_t sampled[kRequests];
  size_t num_sampled = 0;
  budget.max_tokens = 6;
  EXPECT(quire_batcher_plan(s->batcher, &budget, s->plan) == QUIRE_OK);
  EXPECT(quire_batcher_commit(s->batcher, s->plan, s->copies) == QUIRE_OK);
  EXPECT(quire_recorder_committed(s->recorder, s->plan, s->batcher, now) == QUIRE_OK);
  apply_copies(s->copies);
  EXPECT(quire_step_plan_items(s->plan, &items, &num_items) == QUIRE_OK);
  EXPECT(quire_step_plan_batch(s->plan, &entries, &num_entries) == QUIRE_OK);
  EXPECT(num_entries == num_items && num_items > 0);
  EXPECT(quire_batch_builder_tight_shape(s->builder, entries, num_entries, &shape) == QUIRE_OK);
  EXPECT(quire_staging_size(shape) <= sizeof staging);
  unsigned char* aligned = (unsigned char*)staging;
  while ((uintptr_t)aligned % QUIRE_STAGING_ALIGNMENT != 0) ++aligned;
  EXPECT(quire_batch_builder_build(s->builder, entries, num_entries, NULL, aligned,
                                   sizeof staging - QUIRE_STAGING_ALIGNMENT, &batch) == QUIRE_OK);
  for (size_t i = 0; i < num_items; ++i) {
    text* of = &texts[items[i].request];
    const int32_t next = run_item(&batch, (int32_t)i, of, &items[i]);
    if (!items[i].samples) continue;
    of->tokens[of->length++] = sampled[num_sampled++] = next;
  }
  EXPECT(quire_batcher_finish(s->batcher, s->plan, sampled, num_sampled, NULL, 0, &ended,
                              &num_ended) == QUIRE_OK);
  EXPECT(quire_recorder_finished(s->recorder, ended, num_ended, NULL, 0, now + 1.0) == QUIRE_OK);
  EXPECT(quire_batcher_check(s->batcher) == QUIRE_OK);
  return num_ended;
}

int main(void) {
  server s;
  text texts[kRequests] = {{{0}, 0}, {{0}, 0}, {{0}, 0}};
  quire_batcher_stats stats = QUIRE_BATCHER_STATS_INIT;
  quire_record_counts kept;
  quire_request_record ended[kRequests];
  size_t done = 0;
  open_server(&s);
  for (uint64_t id = 0; id < kRequests; ++id) {
    quire_request request = QUIRE_REQUEST_INIT;
    text* of = &texts[id];
    of->length = kMaxPrompt - (int32_t)id;
    for (int32_t t = 0; t < of->length; ++t) of->tokens[t] = t + (t < 8 ? 0 : (int32_t)id);
    request.id = id;
    request.prompt = of->tokens;
    request.prompt_tokens = of->length;
    request.max_new_tokens = kNewTokens;
    EXPECT(quire_batcher_submit(s.batcher, &request) == QUIRE_OK);
    EXPECT(quire_recorder_submitted(s.recorder, &request, 0.0) == QUIRE_OK);
  }
  for (double now = 0.0; quire_batcher_idle(s.batcher) == 0; now += 1.0) {
    done += step(&s, texts, now);
    EXPECT(now < 100.0);
  }
  EXPECT(done == kRequests);
  for (int i = 0; i < kRequests; ++i) { /* each as if it had been alone, without pages */
    int32_t sum = 0;
    const int32_t prompt = kMaxPrompt - i;
    EXPECT(texts[i].length == prompt + kNewTokens);
    for (int32_t t = 0; t < texts[i].length; ++t) {
      if (t >= prompt) EXPECT(texts[i].tokens[t] == sum % kModulus);
      sum += texts[i].tokens[t];
    }
  }
  EXPECT(quire_batcher_get_stats(s.batcher, &stats) == QUIRE_OK);
  EXPECT(stats.finished == kRequests &&
         stats.hit_tokens >= 2 * 8); /* the shared head, computed once */
  EXPECT(stats.used_pages == stats.idle_pages);
  EXPECT(quire_recorder_counts(s.recorder, &kept, NULL) == QUIRE_OK);
  EXPECT(kept.ended == kRequests && kept.steps == stats.steps);
  EXPECT(quire_recorder_ended(s.recorder, 0, ended, kRequests) == QUIRE_OK);
  for (int i = 0; i < kRequests; ++i) EXPECT(ended[i].new_tokens == kNewTokens);
  EXPECT(quire_prefix_cache_evict(s.cache, kPages) == stats.idle_pages);
  EXPECT(quire_page_pool_num_free(s.pool) == kPages);
  close_server(&s);
  return 0;
}
