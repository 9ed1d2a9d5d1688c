/* SPDX-License-Identifier: Apache-2.0 */
/* A sequence of 6 tokens is forked; the first write to the fork copies the shared, half-full page.
 */
#include <stdio.h>

#include "quire/quire.h"

int main(void) {
  quire_page_pool_spec pool_spec = {sizeof pool_spec, 8, 4}; /* 8 pages of 4 tokens */
  quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
  quire_page_pool* pool;
  quire_page_table* table;
  quire_copy_plan* copies;
  quire_seq_id seq, forked;
  if (quire_page_pool_create(&pool_spec, &pool) ||
      quire_page_table_create(pool, &table_spec, &table) || quire_copy_plan_create(&copies) ||
      quire_page_table_create_seq(table, &seq) || quire_page_table_append(table, seq, 6, copies) ||
      quire_page_table_fork_seq(table, seq, 6, &forked) ||
      quire_page_table_append(table, forked, 1, copies)) {
    return fprintf(stderr, "%s\n", quire_last_error()), 1;
  }
  printf("%d pages hold 13 tokens, %d copy\n", (int)quire_page_pool_num_used(pool),
         (int)quire_copy_plan_size(copies));
  quire_copy_plan_destroy(copies);
  quire_page_table_destroy(table);
  quire_page_pool_destroy(pool);
  return 0;
}
