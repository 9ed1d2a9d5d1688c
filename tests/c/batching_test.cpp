// SPDX-License-Identifier: Apache-2.0
// Batch builders, batchers and recorders through the C ABI: their edges. tests/c/serving.c serves.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "c/client.hpp"
#include "quire/serving.h"

namespace quire::c_test {
namespace {

constexpr std::int32_t kPages = 8;
constexpr std::int32_t kPageSize = 4;

class CBatching : public testing::Test {
 protected:
  void SetUp() override {
    quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
    pool_spec.num_pages = kPages;
    pool_spec.page_size = kPageSize;
    const quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
    ASSERT_EQ(quire_page_pool_create(&pool_spec, &pool_), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_page_table_create(pool_, &table_spec, &table_), QUIRE_OK);
    ASSERT_EQ(quire_copy_plan_create(&copies_), QUIRE_OK);
    ASSERT_EQ(quire_batch_builder_create(table_, &builder_), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_batcher_create(table_, nullptr, nullptr, &batcher_), QUIRE_OK);
    ASSERT_EQ(quire_step_plan_create(&plan_), QUIRE_OK);
    ASSERT_EQ(quire_recorder_create(nullptr, &recorder_), QUIRE_OK) << quire_last_error();
  }
  void TearDown() override {
    quire_recorder_destroy(recorder_);
    quire_step_plan_destroy(plan_);
    quire_batcher_destroy(batcher_);
    quire_batch_builder_destroy(builder_);
    quire_copy_plan_destroy(copies_);
    quire_page_table_destroy(table_);
    quire_page_pool_destroy(pool_);
  }

  static quire_request request(std::uint64_t id, std::int32_t prompt, std::int32_t new_tokens) {
    quire_request made = QUIRE_REQUEST_INIT;
    made.id = id;
    made.prompt_tokens = prompt;
    made.max_new_tokens = new_tokens;
    return made;
  }
  quire_status submit(std::uint64_t id, std::int32_t prompt, std::int32_t new_tokens) {
    const quire_request made = request(id, prompt, new_tokens);
    return quire_batcher_submit(batcher_, &made);
  }
  quire_batch_entry entry(std::int32_t tokens, std::int32_t new_tokens) {
    quire_batch_entry made = {{0, 0}, new_tokens};
    EXPECT_EQ(quire_page_table_create_seq(table_, &made.seq), QUIRE_OK);
    EXPECT_EQ(quire_page_table_append(table_, made.seq, tokens, copies_), QUIRE_OK);
    return made;
  }
  std::vector<std::uint64_t> finish(const std::vector<std::uint64_t>& stopped = {}) {
    const std::uint64_t* ended = nullptr;
    std::size_t count = 0;
    EXPECT_EQ(quire_batcher_finish(batcher_, plan_, nullptr, 0, stopped.data(), stopped.size(),
                                   &ended, &count),
              QUIRE_OK)
        << quire_last_error();
    return {ended, ended + count};
  }

  quire_page_pool* pool_ = nullptr;
  quire_page_table* table_ = nullptr;
  quire_copy_plan* copies_ = nullptr;
  quire_batch_builder* builder_ = nullptr;
  quire_batcher* batcher_ = nullptr;
  quire_step_plan* plan_ = nullptr;
  quire_recorder* recorder_ = nullptr;
  alignas(QUIRE_STAGING_ALIGNMENT) std::array<unsigned char, 1024> staging_{};
};

TEST_F(CBatching, AStagedBatchIsWhatAttentionTakes) {
  const std::array entries{entry(5, 1), entry(3, 3)};
  quire_batch_shape shape = {0, 0, 0, 0};
  ASSERT_EQ(quire_batch_builder_tight_shape(builder_, entries.data(), 2, &shape), QUIRE_OK);
  EXPECT_EQ(shape.num_seqs, 2);
  EXPECT_EQ(shape.total_q, 4);
  EXPECT_EQ(shape.pages_per_seq, 2);
  EXPECT_EQ(shape.total_pages, 3);
  quire_staged_batch staged = QUIRE_STAGED_BATCH_INIT;
  ASSERT_EQ(quire_batch_builder_build(builder_, entries.data(), 2, nullptr, staging_.data(),
                                      staging_.size(), &staged),
            QUIRE_OK)
      << quire_last_error();
  EXPECT_EQ(staged.num_bytes, quire_staging_size(shape));
  EXPECT_EQ(staged.kv_len[0], 5);
  EXPECT_EQ(staged.kv_last_page_len[1], 3);
  EXPECT_EQ(staged.slot_mapping[0], quire_page_table_slot(table_, entries[0].seq, 4));

  Client client;
  client.create();
  for (const std::int32_t csr : {0, 1}) {
    quire_batch batch = QUIRE_BATCH_INIT;
    ASSERT_EQ(quire_staged_batch_as_batch(&staged, nullptr, kCpu, csr, &batch), QUIRE_OK);
    EXPECT_EQ(batch.page_table.data == nullptr, csr == 1);
    EXPECT_EQ(batch.kv_page_indptr.data == nullptr, csr == 0);
    client.batch = batch;
    EXPECT_EQ(client.schedule(), QUIRE_OK) << quire_last_error();
  }
  quire_batch elsewhere = QUIRE_BATCH_INIT;
  std::vector<unsigned char> copy(staged.num_bytes);
  ASSERT_EQ(quire_staged_batch_as_batch(&staged, copy.data(), kCpu, 0, &elsewhere), QUIRE_OK);
  EXPECT_EQ(static_cast<unsigned char*>(elsewhere.kv_len.data) - copy.data(),
            reinterpret_cast<const unsigned char*>(staged.kv_len) - staging_.data());
  quire_tensor slots = QUIRE_TENSOR_NONE;
  ASSERT_EQ(quire_staged_batch_slots(&staged, nullptr, kCpu, &slots), QUIRE_OK);
  EXPECT_EQ(slots.data, staged.slot_mapping);
  EXPECT_EQ(slots.shape[0], 4);
}

TEST_F(CBatching, AnUpdatedBlockHasTheBytesOfABuild) {
  const quire_batch_shape shape = {3, 8, 4, 12};
  const std::size_t size = quire_staging_size(shape);
  ASSERT_LE(size, staging_.size());
  alignas(QUIRE_STAGING_ALIGNMENT) std::array<unsigned char, 1024> built{};
  std::array entries{entry(5, 1), entry(3, 3)};
  quire_batch_builder* builder = nullptr;
  ASSERT_EQ(quire_batch_builder_create(table_, &builder), QUIRE_OK);
  quire_staged_batch updated = QUIRE_STAGED_BATCH_INIT;
  quire_staged_batch expected = QUIRE_STAGED_BATCH_INIT;
  for (int step = 0; step < 4; ++step) {
    ASSERT_EQ(quire_batch_builder_update(builder_, entries.data(), 2, &shape, staging_.data(), size,
                                         &updated),
              QUIRE_OK)
        << quire_last_error();
    ASSERT_EQ(quire_batch_builder_build(builder, entries.data(), 2, &shape, built.data(), size,
                                        &expected),
              QUIRE_OK);
    EXPECT_EQ(updated.max_kv_len, expected.max_kv_len);
    EXPECT_TRUE(std::equal(built.begin(), built.begin() + static_cast<std::ptrdiff_t>(size),
                           staging_.begin()));
    entries[1].new_tokens = 1;
    for (quire_batch_entry& each : entries) {
      ASSERT_EQ(quire_page_table_append(table_, each.seq, 1, copies_), QUIRE_OK);
    }
  }
  EXPECT_EQ(quire_batch_builder_update(builder_, entries.data(), 2, nullptr, staging_.data(), size,
                                       &updated),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_batch_builder_update] shape: expected a quire_batch_shape, got NULL");
  quire_batch_builder_destroy(builder);
}

TEST_F(CBatching, PrefixesAreNamedForABatch) {
  const quire_batch_entry root = entry(5, 1);
  std::array entries{root, root, root};
  for (std::size_t i = 0; i < 2; ++i) {
    ASSERT_EQ(quire_page_table_fork_seq(table_, root.seq, 4, &entries.at(i).seq), QUIRE_OK);
    ASSERT_EQ(quire_page_table_append(table_, entries.at(i).seq, 1, copies_), QUIRE_OK);
  }
  std::array<std::int32_t, 4 * QUIRE_MAX_PREFIX_LEVELS> leaders{};
  std::array<std::int32_t, 4 * QUIRE_MAX_PREFIX_LEVELS> pages{};
  ASSERT_EQ(quire_batch_builder_find_prefixes(builder_, entries.data(), 3, 4, leaders.data(),
                                              pages.data()),
            QUIRE_OK)
      << quire_last_error();
  EXPECT_EQ(leaders, (std::array{0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(pages, (std::array{1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}));

  quire_staged_batch staged = QUIRE_STAGED_BATCH_INIT;
  const quire_batch_shape shape = {4, 4, 2, QUIRE_OMITTED};
  ASSERT_EQ(quire_batch_builder_build(builder_, entries.data(), 3, &shape, staging_.data(),
                                      staging_.size(), &staged),
            QUIRE_OK)
      << quire_last_error();
  Client client;
  client.limits.max_num_seqs = 4;
  client.create();
  ASSERT_EQ(quire_staged_batch_as_batch(&staged, nullptr, kCpu, 0, &client.batch), QUIRE_OK);
  const std::array<std::int64_t, 2> levels = {QUIRE_MAX_PREFIX_LEVELS, 4};
  client.batch.prefix_leaders =
      quire_tensor_packed(leaders.data(), QUIRE_INT32, kCpu, 2, levels.data());
  client.batch.prefix_pages =
      quire_tensor_packed(pages.data(), QUIRE_INT32, kCpu, 2, levels.data());
  EXPECT_EQ(client.schedule(), QUIRE_OK) << quire_last_error();
  pages[1] = 3;
  EXPECT_EQ(client.schedule(), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[schedule] prefix_pages[0][1]: expected at most 2 (more than at the level before, "
               "pages that the tables have, as many as for the leader), got 3");

  EXPECT_EQ(quire_batch_builder_find_prefixes(builder_, entries.data(), 3, 2, leaders.data(),
                                              pages.data()),
            QUIRE_TOO_LONG);
  EXPECT_STREQ(quire_last_error(), "[batch_builder] num_seqs: expected at most 2, got 3");
  EXPECT_EQ(quire_batch_builder_find_prefixes(builder_, entries.data(), 3, -1, leaders.data(),
                                              pages.data()),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(
      quire_batch_builder_find_prefixes(builder_, entries.data(), 3, 4, nullptr, pages.data()),
      QUIRE_INVALID_ARGUMENT);
}

TEST_F(CBatching, AFixedShapeIsPaddedAndOmitsWhatItSays) {
  const std::array entries{entry(5, 1)};
  const quire_batch_shape shape = {3, 4, 2, QUIRE_OMITTED};
  quire_staged_batch staged = QUIRE_STAGED_BATCH_INIT;
  ASSERT_EQ(quire_batch_builder_build(builder_, entries.data(), 1, &shape, staging_.data(),
                                      staging_.size(), &staged),
            QUIRE_OK)
      << quire_last_error();
  EXPECT_EQ(staged.qo_indptr[3], 1);
  EXPECT_EQ(staged.slot_mapping[3], -1);
  EXPECT_EQ(staged.page_table[4], QUIRE_NO_PAGE);
  EXPECT_EQ(staged.kv_page_indptr, nullptr);
  quire_batch batch = QUIRE_BATCH_INIT;
  EXPECT_EQ(quire_staged_batch_as_batch(&staged, nullptr, kCpu, 1, &batch), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_staged_batch_as_batch] csr: expected the table that was staged, got 1 for "
               "the CSR one, which was omitted");
  const quire_batch_shape small = {3, 0, 2, QUIRE_OMITTED};
  EXPECT_EQ(quire_batch_builder_build(builder_, entries.data(), 1, &small, staging_.data(),
                                      staging_.size(), &staged),
            QUIRE_TOO_LONG);
  EXPECT_EQ(quire_batch_builder_build(builder_, entries.data(), 1, &shape, staging_.data() + 1,
                                      staging_.size() - 1, &staged),
            QUIRE_WORKSPACE_TOO_SMALL);
  EXPECT_EQ(quire_staging_size({-1, 0, 0, 0}), 0U);
}

TEST_F(CBatching, AStepIsPlannedCommittedAndFinished) {
  ASSERT_EQ(submit(1, 6, 2), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(submit(2, 3, 5), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(submit(2, 3, 1), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(submit(3, kPages * kPageSize, 2), QUIRE_TOO_LONG);
  EXPECT_EQ(quire_batcher_idle(batcher_), 0);
  ASSERT_EQ(quire_batcher_plan(batcher_, nullptr, plan_), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_pool_num_used(pool_), 0);
  EXPECT_EQ(quire_step_plan_num_tokens(plan_), 9);
  ASSERT_EQ(quire_batcher_commit(batcher_, plan_, copies_), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_batcher_commit(batcher_, plan_, copies_), QUIRE_INVALID_ARGUMENT);
  const quire_step_item* items = nullptr;
  const quire_batch_entry* entries = nullptr;
  const std::uint64_t* preempted = nullptr;
  std::size_t count = 0;
  ASSERT_EQ(quire_step_plan_items(plan_, &items, &count), QUIRE_OK);
  ASSERT_EQ(count, 2U);
  EXPECT_EQ(items[0].request, 1U);
  EXPECT_EQ(items[0].is_prefill, 1);
  EXPECT_EQ(items[0].samples, 1);
  EXPECT_EQ(items[0].admitted, 1);
  ASSERT_EQ(quire_step_plan_batch(plan_, &entries, &count), QUIRE_OK);
  ASSERT_EQ(count, 2U);
  EXPECT_EQ(entries[1].seq.slot, items[1].seq.slot);
  EXPECT_EQ(entries[1].new_tokens, 3);
  ASSERT_EQ(quire_step_plan_preempted(plan_, &preempted, &count), QUIRE_OK);
  EXPECT_EQ(count, 0U);
  EXPECT_EQ(finish({2}), std::vector<std::uint64_t>{2});
  ASSERT_EQ(quire_batcher_plan(batcher_, nullptr, plan_), QUIRE_OK);
  EXPECT_EQ(quire_step_plan_step(plan_), 1U);
  ASSERT_EQ(quire_batcher_commit(batcher_, plan_, copies_), QUIRE_OK);
  ASSERT_EQ(quire_batcher_cancel(batcher_, 1), QUIRE_OK);
  EXPECT_EQ(quire_batcher_cancel(batcher_, 1), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(finish(), std::vector<std::uint64_t>{1});
  EXPECT_EQ(quire_batcher_idle(batcher_), 1);
  EXPECT_EQ(quire_batcher_check(batcher_), QUIRE_OK) << quire_last_error();
  quire_batcher_stats stats = QUIRE_BATCHER_STATS_INIT;
  ASSERT_EQ(quire_batcher_get_stats(batcher_, &stats), QUIRE_OK);
  EXPECT_EQ(stats.finished, 1);
  EXPECT_EQ(stats.cancelled, 1);
  EXPECT_EQ(stats.prefill_tokens, 9);
  EXPECT_EQ(stats.used_pages, 0);
}

TEST_F(CBatching, SamplesOfOnePromptAreForksOfItsSequence) {
  const std::array<std::uint64_t, 2> further{11, 12};
  quire_request made = request(1, 6, 1);
  made.num_further_samples = 2;
  EXPECT_EQ(quire_batcher_submit(batcher_, &made), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_batcher_submit] request.further_samples: expected uint64 [2], got NULL");
  made.further_samples = further.data();
  ASSERT_EQ(quire_batcher_submit(batcher_, &made), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_batcher_plan(batcher_, nullptr, plan_), QUIRE_OK);
  ASSERT_EQ(quire_batcher_commit(batcher_, plan_, copies_), QUIRE_OK);
  const quire_step_item* items = nullptr;
  std::size_t count = 0;
  ASSERT_EQ(quire_step_plan_items(plan_, &items, &count), QUIRE_OK);
  ASSERT_EQ(count, 1U);
  EXPECT_EQ(items[0].num_samples, 3);
  EXPECT_EQ(items[0].awaits_token, 0);
  EXPECT_EQ(finish(), (std::vector<std::uint64_t>{1, 11, 12}));
}

TEST_F(CBatching, TokensThatWereSampledMustFitThePlan) {
  ASSERT_EQ(submit(1, 6, 2), QUIRE_OK);
  ASSERT_EQ(quire_batcher_plan(batcher_, nullptr, plan_), QUIRE_OK);
  ASSERT_EQ(quire_batcher_commit(batcher_, plan_, copies_), QUIRE_OK);
  const std::array<std::int32_t, 2> sampled{5, 6};
  const std::uint64_t* ended = nullptr;
  std::size_t count = 0;
  EXPECT_EQ(quire_batcher_finish(batcher_, plan_, sampled.data(), 2, nullptr, 0, &ended, &count),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(ended, nullptr);
  EXPECT_EQ(quire_batcher_finish(batcher_, plan_, nullptr, 1, nullptr, 0, &ended, &count),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(), "[quire_batcher_finish] sampled: expected int32 [1], got NULL");
  EXPECT_EQ(quire_batcher_finish(batcher_, plan_, sampled.data(), 1, nullptr, 0, &ended, &count),
            QUIRE_OK)
      << quire_last_error();
}

TEST_F(CBatching, ARecorderTellsWhatHappened) {
  const quire_request asked = request(9, 6, 1);
  ASSERT_EQ(quire_batcher_submit(batcher_, &asked), QUIRE_OK);
  ASSERT_EQ(quire_recorder_submitted(recorder_, &asked, 1.0), QUIRE_OK);
  ASSERT_EQ(quire_batcher_plan(batcher_, nullptr, plan_), QUIRE_OK);
  ASSERT_EQ(quire_batcher_commit(batcher_, plan_, copies_), QUIRE_OK);
  ASSERT_EQ(quire_recorder_committed(recorder_, plan_, batcher_, 2.0), QUIRE_OK);
  const std::vector<std::uint64_t> ended = finish();
  ASSERT_EQ(quire_recorder_finished(recorder_, ended.data(), ended.size(), nullptr, 0, 3.5),
            QUIRE_OK);
  quire_record_counts kept;
  quire_record_counts lost;
  ASSERT_EQ(quire_recorder_counts(recorder_, &kept, &lost), QUIRE_OK);
  EXPECT_EQ(kept.events, 4);
  EXPECT_EQ(kept.steps, 1);
  EXPECT_EQ(kept.ended, 1);
  EXPECT_EQ(lost.events + lost.steps + lost.ended, 0);
  std::array<quire_request_event, 4> events{};
  ASSERT_EQ(quire_recorder_events(recorder_, 0, events.data(), 4), QUIRE_OK);
  EXPECT_EQ(events[0].kind, QUIRE_EVENT_SUBMIT);
  EXPECT_EQ(events[2].kind, QUIRE_EVENT_PREFILL);
  EXPECT_EQ(events[2].begin, 2.0);
  EXPECT_EQ(events[2].end, 3.5);
  EXPECT_EQ(events[3].request, 9U);
  EXPECT_EQ(events[3].kind, QUIRE_EVENT_FINISH);
  quire_step_record step;
  ASSERT_EQ(quire_recorder_steps(recorder_, 0, &step, 1), QUIRE_OK);
  EXPECT_EQ(step.prefill_tokens, 6);
  EXPECT_EQ(step.used_pages, 2);
  quire_request_record life;
  ASSERT_EQ(quire_recorder_ended(recorder_, 0, &life, 1), QUIRE_OK);
  EXPECT_EQ(life.first_token - life.submitted, 2.5);
  EXPECT_EQ(quire_recorder_ended(recorder_, 1, &life, 1), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_recorder_ended] first, count: expected a stretch of the 1 records kept, got "
               "1 from number 1 on");
  EXPECT_EQ(quire_recorder_cancelled(recorder_, 77, 4.0), QUIRE_OK);
}

TEST_F(CBatching, ABatcherWantsACacheOfItsOwnPool) {
  quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
  pool_spec.num_pages = 1;
  quire_page_pool* other = nullptr;
  quire_prefix_cache* cache = nullptr;
  ASSERT_EQ(quire_page_pool_create(&pool_spec, &other), QUIRE_OK);
  ASSERT_EQ(quire_prefix_cache_create(other, nullptr, &cache), QUIRE_OK);
  quire_batcher* made = nullptr;
  EXPECT_EQ(quire_batcher_create(table_, cache, nullptr, &made), QUIRE_BAD_HANDLE);
  EXPECT_EQ(made, nullptr);
  quire_batcher_spec spec = QUIRE_BATCHER_SPEC_INIT;
  spec.max_requests = 0;
  EXPECT_EQ(quire_batcher_create(table_, nullptr, &spec, &made), QUIRE_INVALID_ARGUMENT);
  quire_prefix_cache_destroy(cache);
  quire_page_pool_destroy(other);
}

TEST_F(CBatching, NullAndNonsenseGetTheirSentences) {
  EXPECT_EQ(quire_batcher_submit(batcher_, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_batcher_submit] request: expected a quire_request, got NULL");
  EXPECT_EQ(quire_batcher_plan(batcher_, nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_batcher_commit(batcher_, plan_, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_batcher_commit(reinterpret_cast<quire_batcher*>(table_), plan_, copies_),
            QUIRE_BAD_HANDLE);
  EXPECT_EQ(quire_batcher_idle(nullptr), -1);
  EXPECT_EQ(quire_step_plan_num_tokens(nullptr), -1);
  EXPECT_EQ(quire_step_plan_items(plan_, nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_recorder_counts(nullptr, nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_recorder_events(recorder_, 0, nullptr, 1), QUIRE_INVALID_ARGUMENT);
  const quire_staged_batch nothing = QUIRE_STAGED_BATCH_INIT;
  quire_tensor slots = QUIRE_TENSOR_NONE;
  EXPECT_EQ(quire_staged_batch_slots(&nothing, nullptr, kCpu, &slots), QUIRE_INVALID_ARGUMENT);
  quire_step_budget budget = QUIRE_STEP_BUDGET_INIT;
  budget.max_tokens = 0;
  EXPECT_EQ(quire_batcher_plan(batcher_, &budget, plan_), QUIRE_INVALID_ARGUMENT);
}

TEST_F(CBatching, AWindowTableGoesAlong) {
  quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
  pool_spec.num_pages = 512;
  pool_spec.page_size = kPageSize;
  quire_page_pool* window_pool = nullptr;
  ASSERT_EQ(quire_page_pool_create(&pool_spec, &window_pool), QUIRE_OK);
  quire_page_table_spec spec = QUIRE_PAGE_TABLE_SPEC_INIT;
  quire_page_table* window = nullptr;
  quire_batcher* windowed = nullptr;
  ASSERT_EQ(quire_page_table_create(window_pool, &spec, &window), QUIRE_OK);
  EXPECT_EQ(quire_batcher_create_windowed(table_, nullptr, &window, 1, nullptr, &windowed),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[batcher] windows: expected tables with a window, got one without");
  quire_page_table_destroy(window);
  spec.window_left = 3;
  ASSERT_EQ(quire_page_table_create(window_pool, &spec, &window), QUIRE_OK);
  ASSERT_EQ(quire_batcher_create_windowed(table_, nullptr, &window, 1, nullptr, &windowed),
            QUIRE_OK)
      << quire_last_error();
  const quire_request made = request(1, 6, 2);
  ASSERT_EQ(quire_batcher_submit(windowed, &made), QUIRE_OK);
  const quire_batch_entry* entries = nullptr;
  const quire_copy_op* ops = nullptr;
  std::size_t num_entries = 0;
  std::size_t num_ops = 9;
  EXPECT_EQ(quire_step_plan_window(plan_, 0, &entries, &num_entries, &ops, &num_ops),
            QUIRE_INVALID_ARGUMENT);
  ASSERT_EQ(quire_batcher_plan(windowed, nullptr, plan_), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_batcher_commit(windowed, plan_, copies_), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_step_plan_window(plan_, 0, &entries, &num_entries, &ops, &num_ops), QUIRE_OK)
      << quire_last_error();
  ASSERT_EQ(num_entries, 1U);
  EXPECT_EQ(num_ops, 0U);
  EXPECT_EQ(quire_page_table_length(window, entries[0].seq), entries[0].new_tokens);
  EXPECT_EQ(quire_page_table_slide(window, entries[0].seq, entries[0].new_tokens), QUIRE_OK);
  EXPECT_EQ(quire_page_table_num_holes(window, entries[0].seq), 0);
  quire_batcher_destroy(windowed);
  quire_page_table_destroy(window);
  EXPECT_EQ(quire_page_pool_num_free(window_pool), 512);
  quire_page_pool_destroy(window_pool);
}

}  // namespace
}  // namespace quire::c_test
