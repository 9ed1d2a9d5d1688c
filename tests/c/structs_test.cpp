// SPDX-License-Identifier: Apache-2.0
// Structs of other sizes than today's, field by field.
#include <gtest/gtest.h>

#include <cstring>

#include "c/client.hpp"
#include "quire/attention.hpp"
#include "quire/page_table.hpp"
#include "quire/recorder.hpp"
#include "quire/serving.h"

namespace quire::c_test {
namespace {

/// What an `…_init` function is expected to write: the initialiser's bytes.
template <typename Struct>
void expect_init(quire_status (*init)(Struct*, std::size_t) noexcept, const Struct& expected) {
  Struct got;
  std::memset(&got, 0xa5, sizeof(got));
  ASSERT_EQ(init(&got, sizeof(got)), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(std::memcmp(&got, &expected, sizeof(got)), 0);
  EXPECT_EQ(init(nullptr, sizeof(got)), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(init(&got, 3), QUIRE_INVALID_ARGUMENT);

  struct {
    Struct known;
    std::uint64_t future;
  } longer;
  std::memset(&longer, 0xa5, sizeof(longer));
  ASSERT_EQ(init(&longer.known, sizeof(longer)), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(longer.known.struct_size, sizeof(longer));
  EXPECT_EQ(longer.future, 0U);

  constexpr std::size_t kShorter = 2 * sizeof(std::size_t);
  std::memset(&got, 0xa5, sizeof(got));
  ASSERT_EQ(init(&got, kShorter), QUIRE_OK) << quire_last_error();
  const auto* bytes = reinterpret_cast<const unsigned char*>(&got);
  for (std::size_t i = kShorter; i < sizeof(got); ++i) ASSERT_EQ(bytes[i], 0xa5);
}

TEST(CStructs, InitFunctionsWriteTheInitialisersUpToTheSizeTheyAreGiven) {
  expect_init<quire_executor_callbacks>(quire_executor_callbacks_init,
                                        QUIRE_EXECUTOR_CALLBACKS_INIT);
  expect_init<quire_attention_spec>(quire_attention_spec_init, QUIRE_ATTENTION_SPEC_INIT);
  expect_init<quire_batch_limits>(quire_batch_limits_init, QUIRE_BATCH_LIMITS_INIT);
  expect_init<quire_attention_options>(quire_attention_options_init, QUIRE_ATTENTION_OPTIONS_INIT);
  expect_init<quire_batch>(quire_batch_init, QUIRE_BATCH_INIT);
  expect_init<quire_attention_tensors>(quire_attention_tensors_init, QUIRE_ATTENTION_TENSORS_INIT);
  expect_init<quire_call_options>(quire_call_options_init, QUIRE_CALL_OPTIONS_INIT);
  expect_init<quire_append_tensors>(quire_append_tensors_init, QUIRE_APPEND_TENSORS_INIT);
  expect_init<quire_merge_tensors>(quire_merge_tensors_init, QUIRE_MERGE_TENSORS_INIT);
  expect_init<quire_page_pool_spec>(quire_page_pool_spec_init, QUIRE_PAGE_POOL_SPEC_INIT);
  expect_init<quire_page_table_spec>(quire_page_table_spec_init, QUIRE_PAGE_TABLE_SPEC_INIT);
  expect_init<quire_kernel_info>(quire_kernel_info_init, QUIRE_KERNEL_INFO_INIT);
  expect_init<quire_device_info>(quire_device_info_init, QUIRE_DEVICE_INFO_INIT);
  expect_init<quire_prefix_cache_spec>(quire_prefix_cache_spec_init, QUIRE_PREFIX_CACHE_SPEC_INIT);
  expect_init<quire_retention>(quire_retention_init, QUIRE_RETENTION_INIT);
  expect_init<quire_prefix_cache_stats>(quire_prefix_cache_stats_init,
                                        QUIRE_PREFIX_CACHE_STATS_INIT);
  expect_init<quire_staged_batch>(quire_staged_batch_init, QUIRE_STAGED_BATCH_INIT);
  expect_init<quire_batcher_spec>(quire_batcher_spec_init, QUIRE_BATCHER_SPEC_INIT);
  expect_init<quire_request>(quire_request_init, QUIRE_REQUEST_INIT);
  expect_init<quire_step_budget>(quire_step_budget_init, QUIRE_STEP_BUDGET_INIT);
  expect_init<quire_batcher_stats>(quire_batcher_stats_init, QUIRE_BATCHER_STATS_INIT);
  expect_init<quire_recorder_spec>(quire_recorder_spec_init, QUIRE_RECORDER_SPEC_INIT);
}

TEST(CStructs, DefaultsAreThoseOfCpp) {
  const AttentionSpec spec;
  const quire_attention_spec c_spec = QUIRE_ATTENTION_SPEC_INIT;
  EXPECT_EQ(c_spec.q_dtype, static_cast<std::int32_t>(spec.q_dtype));
  EXPECT_EQ(c_spec.kv_dtype, static_cast<std::int32_t>(spec.kv_dtype));
  EXPECT_EQ(c_spec.o_dtype, static_cast<std::int32_t>(spec.o_dtype));
  EXPECT_EQ(c_spec.kv_layout, static_cast<std::int32_t>(spec.kv_layout));
  EXPECT_EQ(c_spec.page_size, spec.page_size);
  EXPECT_EQ(c_spec.mask, static_cast<std::int32_t>(spec.mask));
  EXPECT_EQ(c_spec.window_left, spec.window_left);
  EXPECT_EQ(c_spec.sm_scale, spec.sm_scale);
  EXPECT_EQ(c_spec.kv_scale, static_cast<std::int32_t>(spec.kv_scale));
  EXPECT_EQ(c_spec.no_shared_prefixes, spec.share_prefixes ? 0 : 1);
  EXPECT_EQ(c_spec.batch_invariant, spec.batch_invariant ? 1 : 0);
  const BatchLimits limits;
  const quire_batch_limits c_limits = QUIRE_BATCH_LIMITS_INIT;
  EXPECT_EQ(c_limits.max_num_seqs, limits.max_num_seqs);
  EXPECT_EQ(c_limits.max_total_q, limits.max_total_q);
  EXPECT_EQ(c_limits.max_kv_len, limits.max_kv_len);
  const PagePoolSpec pool;
  const quire_page_pool_spec c_pool = QUIRE_PAGE_POOL_SPEC_INIT;
  EXPECT_EQ(c_pool.num_pages, pool.num_pages);
  EXPECT_EQ(c_pool.page_size, pool.page_size);
  const PageTableSpec table;
  const quire_page_table_spec c_table = QUIRE_PAGE_TABLE_SPEC_INIT;
  EXPECT_EQ(c_table.max_seqs, table.max_seqs);
  EXPECT_EQ(c_table.max_tokens_per_seq, table.max_tokens_per_seq);
  EXPECT_EQ(c_table.window_left, table.window_left);
}

TEST(CStructs, DefaultsOfServingAreThoseOfCpp) {
  const PrefixCacheSpec cache;
  const quire_prefix_cache_spec c_cache = QUIRE_PREFIX_CACHE_SPEC_INIT;
  EXPECT_EQ(c_cache.hash_seed, cache.hash_seed);
  EXPECT_EQ(c_cache.min_partial_tokens, cache.min_partial_tokens);
  EXPECT_EQ(c_cache.bytes_per_token, cache.costs.bytes_per_token);
  EXPECT_EQ(c_cache.link_bytes_per_second, cache.costs.link_bytes_per_second);
  EXPECT_EQ(c_cache.transfer_seconds, cache.costs.transfer_seconds);
  EXPECT_EQ(c_cache.prefill_tokens_per_second, cache.costs.prefill_tokens_per_second);
  const Retention retention;
  const quire_retention c_retention = QUIRE_RETENTION_INIT;
  EXPECT_EQ(c_retention.priority, retention.priority);
  EXPECT_EQ(c_retention.time_to_live, retention.time_to_live);
  const BatcherSpec batcher;
  const quire_batcher_spec c_batcher = QUIRE_BATCHER_SPEC_INIT;
  EXPECT_EQ(c_batcher.max_requests, batcher.max_requests);
  EXPECT_EQ(c_batcher.watermark_pages, batcher.watermark_pages);
  EXPECT_EQ(c_batcher.max_steps_in_flight, batcher.max_steps_in_flight);
  EXPECT_EQ(c_batcher.cached_windows, batcher.cached_windows);
  const Request request;
  const quire_request c_request = QUIRE_REQUEST_INIT;
  EXPECT_EQ(c_request.id, request.id);
  EXPECT_EQ(c_request.prompt_tokens, request.prompt_tokens);
  EXPECT_EQ(c_request.max_new_tokens, request.max_new_tokens);
  EXPECT_EQ(c_request.arrival, request.arrival);
  EXPECT_EQ(c_request.head_start, request.head_start);
  EXPECT_EQ(c_request.name_space, request.name_space);
  EXPECT_EQ(c_request.priority, request.retention.priority);
  EXPECT_EQ(c_request.time_to_live, request.retention.time_to_live);
  const StepBudget budget;
  const quire_step_budget c_budget = QUIRE_STEP_BUDGET_INIT;
  EXPECT_EQ(c_budget.max_tokens, budget.max_tokens);
  EXPECT_EQ(c_budget.max_seqs, budget.max_seqs);
  const RecorderSpec recorder;
  const quire_recorder_spec c_recorder = QUIRE_RECORDER_SPEC_INIT;
  EXPECT_EQ(c_recorder.max_events, recorder.max_events);
  EXPECT_EQ(c_recorder.max_steps, recorder.max_steps);
  EXPECT_EQ(c_recorder.max_ended, recorder.max_ended);
  EXPECT_EQ(c_recorder.max_requests, recorder.max_requests);
}

TEST(CStructs, ASizeThatCannotBeRightIsRefused) {
  Client client;
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{70}, std::size_t{1} << 40, ~std::size_t{0}}) {
    client.spec.struct_size = size;
    EXPECT_EQ(quire_supports(kCpu, &client.spec, nullptr), QUIRE_INVALID_ARGUMENT) << size;
    EXPECT_EQ(
        std::string(quire_last_error()),
        "[quire_supports] spec.struct_size: expected sizeof(quire_attention_spec), 80 in this "
        "version, got " +
            std::to_string(size) + "; begin with QUIRE_ATTENTION_SPEC_INIT");
  }
}

TEST(CStructs, AShorterBatchTakesItsMissingTensorsAsNotGiven) {
  Client client;
  client.create();
  client.batch.tree_mask.dtype = 12345;  // beyond the end that the client states
  client.batch.struct_size = offsetof(quire_batch, tree_mask);
  EXPECT_EQ(client.schedule(), QUIRE_OK) << quire_last_error();
  client.batch.struct_size = sizeof(quire_batch);
  EXPECT_EQ(client.schedule(), QUIRE_INVALID_ARGUMENT);
}

TEST(CStructs, AStructOfNothingButItsSizeIsAllDefaults) {
  Client client;
  client.spec.struct_size = sizeof(std::size_t);
  EXPECT_EQ(quire_supports(kCpu, &client.spec, nullptr), QUIRE_UNSUPPORTED);
  EXPECT_STREQ(quire_last_error(), "[attention] num_qo_heads: expected at least 1, got 0");
}

}  // namespace
}  // namespace quire::c_test
