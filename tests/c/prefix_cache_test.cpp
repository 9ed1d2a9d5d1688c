// SPDX-License-Identifier: Apache-2.0
// Prefix caches through the C ABI.
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "c/client.hpp"
#include "quire/serving.h"

namespace quire::c_test {
namespace {

constexpr std::int32_t kPages = 8;
constexpr std::int32_t kPageSize = 4;
constexpr std::uint64_t kTenant = 7;

using Tokens = std::vector<std::int32_t>;

class CPrefixCache : public testing::Test {
 protected:
  void SetUp() override {
    quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
    pool_spec.num_pages = kPages;
    pool_spec.page_size = kPageSize;
    const quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
    ASSERT_EQ(quire_page_pool_create(&pool_spec, &pool_), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_page_table_create(pool_, &table_spec, &table_), QUIRE_OK);
    ASSERT_EQ(quire_prefix_cache_create(pool_, nullptr, &cache_), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_copy_plan_create(&copies_), QUIRE_OK);
  }
  void TearDown() override {
    quire_prefix_lease_destroy(lease_);
    quire_copy_plan_destroy(copies_);
    quire_prefix_cache_destroy(cache_);
    quire_page_table_destroy(table_);
    quire_page_pool_destroy(pool_);
  }

  /// Publishes the tokens as a sequence does that then ends. @return Pages stored.
  std::int32_t publish(const Tokens& tokens) {
    quire_seq_id seq;
    EXPECT_EQ(quire_page_table_create_seq(table_, &seq), QUIRE_OK);
    EXPECT_EQ(
        quire_page_table_append(table_, seq, static_cast<std::int32_t>(tokens.size()), copies_),
        QUIRE_OK);
    std::int32_t stored = -1;
    EXPECT_EQ(quire_prefix_cache_publish_seq(cache_, kTenant, table_, seq, tokens.data(),
                                             tokens.size(), nullptr, &stored),
              QUIRE_OK)
        << quire_last_error();
    EXPECT_EQ(quire_page_table_destroy_seq(table_, seq), QUIRE_OK);
    return stored;
  }
  void match(const Tokens& tokens) {
    quire_prefix_lease_destroy(lease_);
    ASSERT_EQ(quire_prefix_cache_match(cache_, kTenant, tokens.data(), tokens.size(), &lease_),
              QUIRE_OK)
        << quire_last_error();
  }

  quire_page_pool* pool_ = nullptr;
  quire_page_table* table_ = nullptr;
  quire_prefix_cache* cache_ = nullptr;
  quire_copy_plan* copies_ = nullptr;
  quire_prefix_lease* lease_ = nullptr;
};

TEST_F(CPrefixCache, WhatWasPublishedIsFoundPinnedAndAdopted) {
  EXPECT_EQ(publish({1, 2, 3, 4, 5, 6}), 2);
  match({1, 2, 3, 4, 5, 9});
  EXPECT_EQ(quire_prefix_lease_num_tokens(lease_), 5);
  ASSERT_EQ(quire_prefix_lease_num_pages(lease_), 2);
  EXPECT_EQ(quire_prefix_cache_evict(cache_, kPages), 0);  // pinned
  std::array<std::int32_t, 2> pages{};
  ASSERT_EQ(quire_prefix_lease_copy_pages(lease_, pages.data(), 2), QUIRE_OK);
  EXPECT_EQ(quire_prefix_lease_copy_pages(lease_, pages.data(), 3), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_prefix_lease_copy_pages] count: expected at most the 2 pages of the lease, "
               "got 3");
  const std::int32_t* tokens = nullptr;
  std::size_t count = 0;
  ASSERT_EQ(quire_prefix_cache_tokens(cache_, pages[1], &tokens, &count), QUIRE_OK);
  EXPECT_EQ(Tokens(tokens, tokens + count), (Tokens{5, 6}));

  quire_seq_id seq;
  ASSERT_EQ(quire_prefix_cache_adopt(cache_, lease_, table_, &seq), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_table_length(table_, seq), 5);
  ASSERT_EQ(quire_page_table_append(table_, seq, 1, copies_), QUIRE_OK);
  ASSERT_EQ(quire_copy_plan_size(copies_), 1U);  // of the page whose other tokens stay as they are
  EXPECT_EQ(quire_copy_plan_ops(copies_)[0].src, pages[1]);
  EXPECT_EQ(quire_prefix_cache_check(cache_), QUIRE_OK) << quire_last_error();
}

TEST_F(CPrefixCache, NamespacesDoNotSeeEachOther) {
  publish({1, 2, 3, 4});
  const Tokens tokens{1, 2, 3, 4};
  EXPECT_EQ(quire_prefix_cache_match_length(cache_, kTenant, tokens.data(), 4), 4);
  EXPECT_EQ(quire_prefix_cache_match_length(cache_, kTenant + 1, tokens.data(), 4), 0);
  EXPECT_EQ(quire_prefix_cache_erase(cache_, kTenant + 1), 0);
  EXPECT_EQ(quire_prefix_cache_erase(cache_, kTenant), 1);
  EXPECT_EQ(quire_page_pool_num_free(pool_), kPages);
}

TEST_F(CPrefixCache, ALeaseOfNothingIsALease) {
  match({1, 2});
  EXPECT_EQ(quire_prefix_lease_num_tokens(lease_), 0);
  EXPECT_EQ(quire_prefix_lease_num_pages(lease_), 0);
  quire_seq_id seq;
  EXPECT_EQ(quire_prefix_cache_adopt(cache_, lease_, table_, &seq), QUIRE_BAD_HANDLE);
}

TEST_F(CPrefixCache, ALeaseOutlivesItsCache) {
  publish({1, 2, 3, 4});
  match({1, 2, 3, 4});
  quire_prefix_cache_destroy(cache_);
  cache_ = nullptr;
  EXPECT_EQ(quire_page_pool_num_free(pool_), kPages - 1);
  quire_prefix_lease_destroy(lease_);
  lease_ = nullptr;
  EXPECT_EQ(quire_page_pool_num_free(pool_), kPages);
}

TEST_F(CPrefixCache, PagesExpireAndPrioritiesCount) {
  std::array<std::int32_t, 3> pages{};
  ASSERT_EQ(quire_page_pool_allocate(pool_, pages.data(), 3), QUIRE_OK);
  quire_retention retention = QUIRE_RETENTION_INIT;
  retention.time_to_live = 10;
  const Tokens first{1, 1, 1, 1};
  const Tokens second{2, 2, 2, 2};
  const Tokens third{3, 3, 3, 3};
  ASSERT_EQ(
      quire_prefix_cache_publish(cache_, 0, first.data(), 4, &pages[0], 1, &retention, nullptr),
      QUIRE_OK)
      << quire_last_error();
  retention = QUIRE_RETENTION_INIT;
  retention.priority = 90;
  ASSERT_EQ(
      quire_prefix_cache_publish(cache_, 0, second.data(), 4, &pages[1], 1, &retention, nullptr),
      QUIRE_OK);
  ASSERT_EQ(quire_prefix_cache_publish(cache_, 0, third.data(), 4, &pages[2], 1, nullptr, nullptr),
            QUIRE_OK);
  retention.priority = 101;
  EXPECT_EQ(
      quire_prefix_cache_publish(cache_, 0, third.data(), 4, &pages[2], 1, &retention, nullptr),
      QUIRE_INVALID_ARGUMENT);
  ASSERT_EQ(quire_page_pool_release(pool_, pages.data(), 3), QUIRE_OK);
  EXPECT_EQ(quire_prefix_cache_evictable_pages(cache_), 3);
  EXPECT_EQ(quire_prefix_cache_evict_expired(cache_), 0);
  ASSERT_EQ(quire_prefix_cache_set_time(cache_, 11), QUIRE_OK);
  EXPECT_EQ(quire_prefix_cache_evict_expired(cache_), 1);
  EXPECT_EQ(quire_prefix_cache_match_length(cache_, 0, first.data(), 4), 0);
  EXPECT_EQ(quire_prefix_cache_evict(cache_, 1), 1);
  EXPECT_EQ(quire_prefix_cache_match_length(cache_, 0, third.data(), 4), 0);
  EXPECT_EQ(quire_prefix_cache_match_length(cache_, 0, second.data(), 4), 4);
  quire_prefix_cache_stats stats = QUIRE_PREFIX_CACHE_STATS_INIT;
  ASSERT_EQ(quire_prefix_cache_get_stats(cache_, &stats), QUIRE_OK);
  EXPECT_EQ(stats.stored, 3);
  EXPECT_EQ(stats.evicted, 2);
  EXPECT_EQ(stats.pages, 1);
}

struct Heard {
  std::vector<std::int32_t> stored;
  std::vector<std::int32_t> removed;
  std::size_t num_tokens = 0;
};

void hear(void* user, const quire_prefix_event* event) {
  auto& heard = *static_cast<Heard*>(user);
  (event->kind == QUIRE_PREFIX_STORED ? heard.stored : heard.removed).push_back(event->page);
  heard.num_tokens += event->num_tokens;
  if (event->kind == QUIRE_PREFIX_STORED) {
    EXPECT_EQ(event->parent,
              heard.stored.size() == 1 ? QUIRE_NO_PAGE : heard.stored[heard.stored.size() - 2]);
  }
  EXPECT_EQ(event->name_space, kTenant);
}

TEST_F(CPrefixCache, AListenerHearsOfEveryPageUntilTheCacheIsDestroyed) {
  Heard heard;
  ASSERT_EQ(quire_prefix_cache_set_listener(cache_, hear, &heard), QUIRE_OK);
  publish({1, 2, 3, 4, 5, 6});
  EXPECT_EQ(heard.stored.size(), 2U);
  EXPECT_EQ(heard.num_tokens, 6U);
  EXPECT_EQ(quire_prefix_cache_evict(cache_, 1), 1);
  EXPECT_EQ(heard.removed, std::vector<std::int32_t>{heard.stored[1]});
  ASSERT_EQ(quire_prefix_cache_set_listener(cache_, nullptr, nullptr), QUIRE_OK);
  EXPECT_EQ(quire_prefix_cache_evict(cache_, 1), 1);
  EXPECT_EQ(heard.removed.size(), 1U);
}

TEST_F(CPrefixCache, ASnapshotComesBackOnNewPages) {
  publish({1, 2, 3, 4, 5, 6});
  std::size_t size = 0;
  ASSERT_EQ(quire_prefix_cache_save(cache_, nullptr, 0, &size), QUIRE_OK);
  ASSERT_GT(size, 0U);
  std::vector<unsigned char> bytes(size);
  std::size_t written = 0;
  EXPECT_EQ(quire_prefix_cache_save(cache_, bytes.data(), size - 1, &written),
            QUIRE_WORKSPACE_TOO_SMALL);
  ASSERT_EQ(quire_prefix_cache_save(cache_, bytes.data(), size, &written), QUIRE_OK);
  EXPECT_EQ(quire_prefix_cache_erase(cache_, kTenant), 2);

  std::vector<quire_restored_page> pages(kPages);
  std::size_t count = 0;
  EXPECT_EQ(
      quire_prefix_cache_restore(cache_, bytes.data(), size, pages.data(), kPages - 1, &count),
      QUIRE_WORKSPACE_TOO_SMALL);
  EXPECT_EQ(
      quire_prefix_cache_restore(cache_, bytes.data(), size - 1, pages.data(), kPages, &count),
      QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_page_pool_num_free(pool_), kPages);
  ASSERT_EQ(quire_prefix_cache_restore(cache_, bytes.data(), size, pages.data(), kPages, &count),
            QUIRE_OK)
      << quire_last_error();
  ASSERT_EQ(count, 2U);
  EXPECT_EQ(pages[0].tokens + pages[1].tokens, 6);
  match({1, 2, 3, 4, 5, 6});
  EXPECT_EQ(quire_prefix_lease_num_tokens(lease_), 6);
}

TEST_F(CPrefixCache, NullAndNonsenseGetTheirSentences) {
  EXPECT_EQ(quire_prefix_cache_evict(nullptr, 1), -1);
  EXPECT_STREQ(quire_last_error(),
               "[quire_prefix_cache_evict] cache: expected a quire_prefix_cache, got NULL");
  EXPECT_EQ(quire_prefix_lease_num_tokens(nullptr), -1);
  EXPECT_EQ(quire_prefix_cache_match_length(cache_, 0, nullptr, 3), -1);
  EXPECT_STREQ(quire_last_error(),
               "[quire_prefix_cache_match_length] tokens: expected int32 [3], got NULL");
  EXPECT_EQ(quire_prefix_cache_match(cache_, 0, nullptr, 0, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_prefix_cache_match(reinterpret_cast<quire_prefix_cache*>(table_), 0, nullptr, 0,
                                     &lease_),
            QUIRE_BAD_HANDLE);
  EXPECT_EQ(lease_, nullptr);
  EXPECT_EQ(quire_prefix_cache_get_stats(cache_, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_prefix_cache_save(cache_, nullptr, 0, nullptr), QUIRE_INVALID_ARGUMENT);
  quire_prefix_cache_spec spec = QUIRE_PREFIX_CACHE_SPEC_INIT;
  spec.min_partial_tokens = 0;
  quire_prefix_cache* made = nullptr;
  EXPECT_EQ(quire_prefix_cache_create(pool_, &spec, &made), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(made, nullptr);
}

}  // namespace
}  // namespace quire::c_test
