// SPDX-License-Identifier: Apache-2.0
// The host tier through the C ABI.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "c/client.hpp"
#include "quire/serving.h"

namespace quire::c_test {
namespace {

using Tokens = std::vector<std::int32_t>;

/// Four pages of four tokens on the device and on the host.
class CTiers : public testing::Test {
 protected:
  void SetUp() override {
    quire_page_pool_spec spec = QUIRE_PAGE_POOL_SPEC_INIT;
    spec.num_pages = 4;
    spec.page_size = 4;
    ASSERT_EQ(quire_page_pool_create(&spec, &pool_), QUIRE_OK);
    ASSERT_EQ(quire_page_pool_create(&spec, &host_), QUIRE_OK);
    const quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
    ASSERT_EQ(quire_page_table_create(pool_, &table_spec, &table_), QUIRE_OK);
    quire_prefix_cache_spec costs = QUIRE_PREFIX_CACHE_SPEC_INIT;
    costs.transfer_seconds = 0.0;
    ASSERT_EQ(quire_prefix_cache_create_tiered(pool_, host_, &costs, &cache_), QUIRE_OK)
        << quire_last_error();
    ASSERT_EQ(quire_transfer_plan_create(&plan_), QUIRE_OK);
  }
  void TearDown() override {
    quire_transfer_plan_destroy(plan_);
    quire_prefix_cache_destroy(cache_);
    quire_page_table_destroy(table_);
    quire_page_pool_destroy(host_);
    quire_page_pool_destroy(pool_);
  }
  void publish(const Tokens& tokens) {
    std::vector<std::int32_t> pages((tokens.size() + 3) / 4);
    ASSERT_EQ(quire_page_pool_allocate(pool_, pages.data(), pages.size()), QUIRE_OK);
    ASSERT_EQ(quire_prefix_cache_publish(cache_, 0, tokens.data(), tokens.size(), pages.data(),
                                         pages.size(), nullptr, nullptr),
              QUIRE_OK)
        << quire_last_error();
    ASSERT_EQ(quire_page_pool_release(pool_, pages.data(), pages.size()), QUIRE_OK);
  }

  quire_page_pool* pool_ = nullptr;
  quire_page_pool* host_ = nullptr;
  quire_page_table* table_ = nullptr;
  quire_prefix_cache* cache_ = nullptr;
  quire_transfer_plan* plan_ = nullptr;
};

TEST_F(CTiers, PagesGoAndComeBack) {
  const Tokens tokens{1, 2, 3, 4, 5, 6, 7, 8};
  publish(tokens);
  std::int32_t gone = -1;
  ASSERT_EQ(quire_prefix_cache_offload(cache_, 2, plan_, &gone), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(gone, 2);
  EXPECT_EQ(quire_page_pool_num_free(pool_), 2);
  EXPECT_EQ(quire_prefix_cache_parked_pages(cache_), 2);
  const quire_copy_op* ops = nullptr;
  std::size_t count = 0;
  ASSERT_EQ(quire_transfer_plan_offloads(plan_, &ops, &count), QUIRE_OK);
  ASSERT_EQ(count, 2U);
  EXPECT_EQ(ops[0].tokens, 4);
  const std::uint64_t ticket = quire_transfer_plan_ticket(plan_);
  EXPECT_EQ(quire_prefix_cache_retire(cache_, ticket), 2);
  EXPECT_EQ(quire_prefix_cache_retire(cache_, ticket), 0);
  EXPECT_EQ(quire_page_pool_num_free(pool_), 4);
  ASSERT_EQ(quire_transfer_plan_clear(plan_), QUIRE_OK);
  EXPECT_EQ(quire_transfer_plan_ticket(plan_), 0U);

  quire_host_match found = {0, 0, 0};
  ASSERT_EQ(quire_prefix_cache_match_host(cache_, 0, tokens.data(), 6, &found), QUIRE_OK);
  EXPECT_EQ(found.tokens, 6);
  EXPECT_EQ(found.pages, 2);
  EXPECT_EQ(found.worth_fetching, 1);
  std::int32_t fetched = -1;
  ASSERT_EQ(quire_prefix_cache_fetch(cache_, 0, tokens.data(), 8, plan_, &fetched), QUIRE_OK)
      << quire_last_error();
  EXPECT_EQ(fetched, 2);
  ASSERT_EQ(quire_transfer_plan_fetches(plan_, &ops, &count), QUIRE_OK);
  EXPECT_EQ(count, 2U);
  quire_prefix_lease* lease = nullptr;
  ASSERT_EQ(quire_prefix_cache_match(cache_, 0, tokens.data(), 8, &lease), QUIRE_OK);
  EXPECT_EQ(quire_prefix_lease_pending(lease), quire_transfer_plan_ticket(plan_));
  EXPECT_EQ(quire_prefix_cache_retire(cache_, quire_transfer_plan_ticket(plan_)), 2);
  EXPECT_EQ(quire_prefix_lease_pending(lease), 0U);
  quire_prefix_lease_destroy(lease);

  quire_prefix_cache_stats stats = QUIRE_PREFIX_CACHE_STATS_INIT;
  ASSERT_EQ(quire_prefix_cache_get_stats(cache_, &stats), QUIRE_OK);
  EXPECT_EQ(stats.offloaded, 2);
  EXPECT_EQ(stats.fetched, 2);
  EXPECT_EQ(stats.fetched_tokens, 8);
  EXPECT_EQ(stats.host_pages, 0);
  EXPECT_EQ(quire_prefix_cache_evict_host(cache_, 4), 0);
  EXPECT_EQ(quire_prefix_cache_check(cache_), QUIRE_OK) << quire_last_error();
}

TEST_F(CTiers, ABatcherSaysWhatItMoves) {
  quire_batcher* batcher = nullptr;
  quire_step_plan* step = nullptr;
  quire_copy_plan* copies = nullptr;
  ASSERT_EQ(quire_batcher_create(table_, cache_, nullptr, &batcher), QUIRE_OK);
  ASSERT_EQ(quire_step_plan_create(&step), QUIRE_OK);
  ASSERT_EQ(quire_copy_plan_create(&copies), QUIRE_OK);
  const quire_copy_op* offloads = nullptr;
  const quire_copy_op* fetches = nullptr;
  std::size_t num_offloads = 0;
  std::size_t num_fetches = 0;
  const std::vector<Tokens> prompts{
      {1, 2, 3, 4, 5, 6, 7, 8}, Tokens(16, 9), {1, 2, 3, 4, 5, 6, 7, 8, 9}};
  for (const Tokens& prompt : prompts) {
    quire_request request = QUIRE_REQUEST_INIT;
    request.id = 1;
    request.prompt = prompt.data();
    request.prompt_tokens = static_cast<std::int32_t>(prompt.size());
    request.max_new_tokens = 1;
    ASSERT_EQ(quire_batcher_submit(batcher, &request), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_batcher_plan(batcher, nullptr, step), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_batcher_commit(batcher, step, copies), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_step_plan_transfers(step, &offloads, &num_offloads, &fetches, &num_fetches),
              QUIRE_OK)
        << quire_last_error();
    const std::uint64_t* ended = nullptr;
    std::size_t num_ended = 0;
    ASSERT_EQ(quire_batcher_finish(batcher, step, nullptr, 0, nullptr, 0, &ended, &num_ended),
              QUIRE_OK);
  }
  EXPECT_EQ(num_fetches, 2U);
  EXPECT_EQ(num_offloads, 2U);
  quire_batcher_stats stats = QUIRE_BATCHER_STATS_INIT;
  ASSERT_EQ(quire_batcher_get_stats(batcher, &stats), QUIRE_OK);
  EXPECT_EQ(stats.fetched_tokens, 8);
  EXPECT_EQ(stats.swaps, 0);
  quire_copy_plan_destroy(copies);
  quire_step_plan_destroy(step);
  quire_batcher_destroy(batcher);
}

TEST_F(CTiers, MistakesGetASentence) {
  quire_prefix_cache* other = nullptr;
  EXPECT_EQ(quire_prefix_cache_create_tiered(pool_, pool_, nullptr, &other),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[prefix_cache] host: expected another pool than the device's, got that one");
  EXPECT_EQ(quire_prefix_cache_create_tiered(pool_, nullptr, nullptr, &other),
            QUIRE_INVALID_ARGUMENT);
  quire_prefix_cache_spec spec = QUIRE_PREFIX_CACHE_SPEC_INIT;
  spec.link_bytes_per_second = 0.0;
  EXPECT_EQ(quire_prefix_cache_create(pool_, &spec, &other), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[prefix_cache] costs.link_bytes_per_second: expected a number above 0, got 0");
  EXPECT_EQ(quire_prefix_cache_offload(cache_, 1, nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_prefix_cache_offload] plan: expected a quire_transfer_plan, got NULL");
  EXPECT_EQ(quire_prefix_cache_match_host(cache_, 0, nullptr, 0, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_prefix_cache_retire(nullptr, 1), -1);
  EXPECT_EQ(quire_prefix_cache_parked_pages(nullptr), -1);
  const Tokens tokens(8, 1);
  publish(tokens);
  std::int32_t pages[4] = {0, 0, 0, 0};
  ASSERT_EQ(quire_prefix_cache_offload(cache_, 2, plan_, nullptr), QUIRE_OK);
  quire_prefix_cache_retire(cache_, quire_transfer_plan_ticket(plan_));
  ASSERT_EQ(quire_page_pool_allocate(pool_, pages, 4), QUIRE_OK);
  EXPECT_EQ(quire_prefix_cache_fetch(cache_, 0, tokens.data(), 8, plan_, nullptr),
            QUIRE_OUT_OF_PAGES);
}

}  // namespace
}  // namespace quire::c_test
