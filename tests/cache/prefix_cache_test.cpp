// SPDX-License-Identifier: Apache-2.0
#include "quire/prefix_cache.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

#include "cache/failing_new.hpp"
#include "cache/prefix_cache_state.hpp"
#include "cache/test_access.hpp"

namespace quire {
namespace {

using internal::PrefixCacheState;
using test::FailingNew;
using testing::ElementsAre;
using Tokens = std::vector<std::int32_t>;

constexpr std::uint64_t kTenant = 7;

void expect_failure(const Status& status, ErrorCode code, std::string_view text) {
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(status.message(), text);
}

Tokens counted(std::int32_t from, std::int32_t count) {
  Tokens tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

/// Eight pages of four tokens.
class PrefixCaches : public testing::Test {
 protected:
  /// A sequence of its own that is published and ended.
  void serve(const Tokens& tokens, const Retention& retention = {}) {
    const SeqId seq = table_.create().value();
    ASSERT_TRUE(table_.append(seq, static_cast<std::int32_t>(tokens.size()), copies_).ok());
    ASSERT_TRUE(cache_.publish(kTenant, table_, seq, tokens, retention).ok());
    ASSERT_TRUE(table_.destroy(seq).ok());
  }
  std::int32_t found(const Tokens& tokens) const { return cache_.match_length(kTenant, tokens); }
  PrefixCacheState& state() { return internal::TestAccess::state(cache_); }
  void expect_sound() {
    const Status cache = cache_.check();
    EXPECT_TRUE(cache.ok()) << cache.message();
    const Status table = table_.check();
    EXPECT_TRUE(table.ok()) << table.message();
  }

  PagePool pool_{{.num_pages = 8, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 3, .max_tokens_per_seq = 20}};
  PrefixCache cache_{pool_};
  std::vector<CopyOp> copies_;
};

TEST_F(PrefixCaches, ASpecOutOfRangeIsRefused) {
  try {
    PrefixCache(pool_, {.min_partial_tokens = 0});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[prefix_cache] min_partial_tokens: expected at least 1, got 0");
  }
}

TEST_F(PrefixCaches, APublishedPromptIsFoundAfterItsSequenceHasEnded) {
  serve(counted(0, 10));
  EXPECT_EQ(pool_.num_used(), 3);
  EXPECT_EQ(found(counted(0, 20)), 10);
  EXPECT_EQ(found(counted(0, 8)), 8);
  EXPECT_EQ(found(counted(0, 7)), 7);
  EXPECT_EQ(found(counted(1, 8)), 0);
  EXPECT_EQ(found({}), 0);
  expect_sound();
}

TEST_F(PrefixCaches, ASequenceThatGoesOnInsideASharedPageCopiesIt) {
  serve(counted(0, 8));
  Tokens prompt = counted(0, 6);
  prompt.push_back(99);
  const PrefixLease lease = cache_.match(kTenant, prompt);
  EXPECT_EQ(lease.num_tokens(), 6);
  EXPECT_EQ(lease.num_pages(), 2);
  const SeqId seq = cache_.adopt(lease, table_).value();
  EXPECT_EQ(table_.length(seq), 6);
  const PageId shared = table_.pages(seq)[1];
  ASSERT_TRUE(table_.append(seq, 1, copies_).ok());
  EXPECT_THAT(copies_, ElementsAre(CopyOp{shared, table_.pages(seq)[1], 2}));
  EXPECT_EQ(found(counted(0, 8)), 8);
  expect_sound();
}

TEST_F(PrefixCaches, TenantsDoNotSeeOneAnother) {
  serve(counted(0, 8));
  EXPECT_EQ(cache_.match(kTenant + 1, counted(0, 8)).num_tokens(), 0);
  EXPECT_EQ(cache_.erase(kTenant + 1), 0);
  EXPECT_EQ(cache_.erase(kTenant), 2);
  EXPECT_EQ(pool_.num_free(), 8);
  expect_sound();
}

TEST_F(PrefixCaches, TokensAreComparedWhateverTheHashSays) {
  serve(counted(0, 4));
  const PageId page = 0;
  ASSERT_TRUE(cache_.contains(page));
  state().tokens_at(state().node_of(page))[3] = 77;  // as if another run had the same hash
  EXPECT_EQ(found(counted(0, 4)), 3);
  expect_failure(cache_.check(), ErrorCode::kInternal,
                 "[prefix_cache] check: page 0 has another hash than its tokens");
}

TEST_F(PrefixCaches, ALeaseKeepsItsPagesWhateverIsEvicted) {
  serve(counted(0, 8));
  serve(counted(100, 8));
  PrefixLease lease = cache_.match(kTenant, counted(0, 4));
  EXPECT_EQ(cache_.evictable_pages(), 3);
  EXPECT_EQ(cache_.evict(8), 3);
  EXPECT_EQ(cache_.erase(kTenant), 0);
  EXPECT_EQ(found(counted(0, 8)), 4);
  const PrefixLease moved = std::move(lease);
  EXPECT_EQ(cache_.stats().leases, 1);
  lease = PrefixLease();
  EXPECT_EQ(cache_.evict(8), 0);
  expect_sound();
}

TEST_F(PrefixCaches, ALeaseMayOutliveTheCache) {
  serve(counted(0, 8));
  PrefixLease lease;
  {
    PrefixCache cache = std::move(cache_);
    lease = cache.match(kTenant, counted(0, 8));
  }
  EXPECT_EQ(pool_.num_used(), 2);
  lease.release();
  EXPECT_EQ(pool_.num_used(), 0);
}

TEST_F(PrefixCaches, PagesInUseBySequencesAreNotEvicted) {
  const SeqId seq = table_.create().value();
  ASSERT_TRUE(table_.append(seq, 8, copies_).ok());
  ASSERT_TRUE(cache_.publish(kTenant, table_, seq, counted(0, 8)).ok());
  EXPECT_EQ(cache_.evict(8), 0);
  ASSERT_TRUE(table_.truncate(seq, 4).ok());
  EXPECT_EQ(cache_.evict(8), 1);
  expect_sound();
}

TEST_F(PrefixCaches, TheLeastRecentlyUsedLeafGoesFirstAndATailBeforeItsHead) {
  serve(counted(0, 8));
  serve(counted(100, 8));
  EXPECT_EQ(cache_.match(kTenant, counted(0, 8)).num_tokens(), 8);
  EXPECT_EQ(cache_.evict(1), 1);
  EXPECT_EQ(found(counted(100, 8)), 4);
  EXPECT_EQ(cache_.evict(2), 2);
  EXPECT_EQ(found(counted(100, 8)), 0);
  EXPECT_EQ(found(counted(0, 8)), 4);
}

TEST_F(PrefixCaches, PriorityGoesBeforeAgeAndExpiryBeforePriority) {
  serve(counted(0, 4), {.priority = 10});
  serve(counted(100, 4), {.priority = 5});
  serve(counted(200, 4), {.priority = 100, .time_to_live = 10});
  EXPECT_EQ(cache_.evict(1), 1);
  EXPECT_EQ(found(counted(100, 4)), 0);
  cache_.set_time(10);
  EXPECT_EQ(cache_.evict_expired(), 1);
  EXPECT_EQ(found(counted(200, 4)), 0);
  EXPECT_EQ(found(counted(0, 4)), 4);
  expect_sound();
}

TEST_F(PrefixCaches, AUseProlongsTheLifeOfAPage) {
  serve(counted(0, 4), {.time_to_live = 10});
  cache_.set_time(9);
  EXPECT_EQ(cache_.match(kTenant, counted(0, 4)).num_tokens(), 4);
  cache_.set_time(18);
  EXPECT_EQ(cache_.evict_expired(), 0);
  cache_.set_time(19);
  EXPECT_EQ(cache_.evict_expired(), 1);
}

TEST_F(PrefixCaches, TheFirstOfTwoEqualPagesStays) {
  serve(counted(0, 8));
  const SeqId seq = table_.create().value();
  ASSERT_TRUE(table_.append(seq, 12, copies_).ok());
  EXPECT_EQ(cache_.publish(kTenant, table_, seq, counted(0, 12)).value(), 1);
  EXPECT_EQ(cache_.stats().pages, 3);
  expect_sound();
}

TEST_F(PrefixCaches, RefusalsSaySo) {
  const SeqId seq = table_.create().value();
  ASSERT_TRUE(table_.append(seq, 8, copies_).ok());
  ASSERT_TRUE(cache_.publish(kTenant, table_, seq, counted(0, 8)).ok());
  expect_failure(cache_.publish(1, table_, seq, counted(0, 8)).status(),
                 ErrorCode::kInvalidArgument,
                 "[prefix_cache] publish: expected new pages, got page 0, which is in an index for "
                 "other tokens");
  expect_failure(cache_.publish(1, counted(0, 8), std::vector<PageId>{5}).status(),
                 ErrorCode::kInvalidArgument,
                 "[prefix_cache] publish: expected 2 pages for 8 tokens, got 1");
  expect_failure(cache_.publish(1, counted(0, 4), std::vector<PageId>{5}).status(),
                 ErrorCode::kBadHandle,
                 "[prefix_cache] publish: expected pages in use, got page 5 (free)");
  expect_failure(pool_.release(0), ErrorCode::kBadHandle,
                 "[page_pool] release: expected a page that the caller holds, got page 0 (held by "
                 "tables and caches only)");
  PagePool other_pool({.num_pages = 2, .page_size = 4});
  PageTable other(other_pool, {.max_seqs = 1, .max_tokens_per_seq = 8});
  expect_failure(cache_.adopt(cache_.match(kTenant, counted(0, 8)), other).status(),
                 ErrorCode::kBadHandle,
                 "[prefix_cache] adopt: expected a lease of this cache and a table on its pool");
  PageTable narrow(pool_, {.max_seqs = 1, .max_tokens_per_seq = 7});
  expect_failure(cache_.adopt(cache_.match(kTenant, counted(0, 8)), narrow).status(),
                 ErrorCode::kTooLong,
                 "[prefix_cache] adopt: expected at most 7 tokens in a sequence, got 8");
  expect_sound();
}

TEST_F(PrefixCaches, NothingIsAllocatedBetweenConstructionAndFailure) {
  serve(counted(0, 8));
  const SeqId seq = table_.create().value();
  ASSERT_TRUE(table_.append(seq, 10, copies_).ok());
  const Tokens tokens = counted(50, 10);
  const Tokens prompt = counted(0, 8);
  const long before = test::num_allocations();
  {
    const PrefixLease lease = cache_.match(kTenant, prompt);
    EXPECT_TRUE(cache_.adopt(lease, table_).ok());
    EXPECT_TRUE(cache_.publish(kTenant, table_, seq, tokens).ok());
  }
  EXPECT_GE(cache_.evictable_pages(), 0);
  EXPECT_EQ(cache_.evict(1), 0);
  EXPECT_EQ(cache_.erase(kTenant), 5);
  EXPECT_EQ(test::num_allocations(), before);
}

TEST_F(PrefixCaches, ConstructionSurvivesEveryFailedAllocation) {
  bool made = false;
  for (int allowed = 0; !made; ++allowed) {
    const FailingNew failing(allowed, FailingNew::Which::kAllFromThere);
    try {
      const PrefixCache cache(pool_);
      made = true;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    } catch (const std::bad_alloc&) {  // not even memory for the text
    }
  }
  EXPECT_EQ(pool_.num_free(), 8);
  expect_sound();
}

TEST_F(PrefixCaches, ASavedIndexIsRestoredElsewhereAndFailedAllocationsChangeNothing) {
  serve(counted(0, 8), {.priority = 50, .time_to_live = 10});
  serve(counted(100, 6));
  std::vector<std::byte> bytes;
  for (int allowed = 0;; ++allowed) {
    const FailingNew failing(allowed, FailingNew::Which::kOne);
    const Status status = cache_.save(bytes);
    if (!failing.fired()) break;
    ASSERT_EQ(status.code(), ErrorCode::kOutOfMemory);
    ASSERT_TRUE(bytes.empty());
  }
  PagePool pool({.num_pages = 4, .page_size = 4});
  PrefixCache cache(pool);
  std::vector<RestoredPage> pages;
  for (int allowed = 0;; ++allowed) {
    const FailingNew failing(allowed, FailingNew::Which::kOne);
    const Status status = cache.restore(bytes, pages);
    if (!failing.fired()) break;
    ASSERT_EQ(status.code(), ErrorCode::kOutOfMemory);
    ASSERT_EQ(pool.num_free(), 4);
  }
  EXPECT_EQ(pages.size(), 4U);
  EXPECT_EQ(cache.match_length(kTenant, counted(0, 9)), 8);
  EXPECT_EQ(cache.match_length(kTenant, counted(100, 9)), 6);
  cache.set_time(10);
  EXPECT_EQ(cache.evict_expired(), 2);
  EXPECT_EQ(cache.restore(bytes, pages).code(), ErrorCode::kInvalidArgument);
  PagePool small({.num_pages = 3, .page_size = 4});
  EXPECT_EQ(PrefixCache(small).restore(bytes, pages).code(), ErrorCode::kOutOfPages);
  PagePool other({.num_pages = 8, .page_size = 8});
  expect_failure(PrefixCache(other).restore(bytes, pages), ErrorCode::kInvalidArgument,
                 "[prefix_cache] restore: expected pages of 8 tokens, got pages of 4");
}

/// Two prompts with a common head; what is broken must be named, and is mended again.
class BrokenPrefixCache : public PrefixCaches {
 protected:
  BrokenPrefixCache() {
    serve(counted(0, 8));
    Tokens other = counted(0, 4);
    other.insert(other.end(), {50, 51, 52, 53});
    serve(other);
  }
  void expect_noticed(std::string_view text) {
    expect_failure(cache_.check(), ErrorCode::kInternal, text);
  }
  PrefixCacheState::Node& node(PageId page) { return state().node(state().node_of(page)); }

  // Page 0 is the head, the last pages of the two prompts are its children.
};

TEST_F(BrokenPrefixCache, AChildUsedAfterItsParentIsNoticed) {
  node(1).last_use = node(0).last_use;
  expect_noticed("[prefix_cache] check: page 1 was used after its parent");
}

TEST_F(BrokenPrefixCache, ANodeOfAnotherTenantBelowIsNoticed) {
  node(1).name_space = 1;
  expect_noticed("[prefix_cache] check: page 1 follows another namespace's");
}

TEST_F(BrokenPrefixCache, AMiscountedChildIsNoticed) {
  ++node(0).num_children[0];
  expect_noticed(
      "[prefix_cache] check: page 0 has another number of children than the counter says");
}

TEST_F(BrokenPrefixCache, AnInteriorPageThatCouldBeEvictedIsNoticed) {
  state().tiers[0].by_worth.push(0, 0);
  expect_noticed("[prefix_cache] check: page 0 can be evicted though it is no leaf");
}

TEST_F(BrokenPrefixCache, ALeafThatCannotBeEvictedIsNoticed) {
  state().tiers[0].by_worth.remove(1);
  expect_noticed("[prefix_cache] check: page 1 cannot be evicted");
}

TEST_F(BrokenPrefixCache, AForgottenLeaseIsNoticed) {
  ++node(1).leases;
  expect_noticed("[prefix_cache] check: 3 pages and 1 leases, the counters say 3 and 0");
  --node(1).leases;
}

TEST_F(BrokenPrefixCache, APageOutsideOfItsBucketIsNoticed) {
  state().bucket(node(1).hash) = internal::kNoNode;
  const Status status = cache_.check();
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("pages of 3 are in buckets"));
}

TEST_F(BrokenPrefixCache, AReferenceWithoutANodeIsNoticed) {
  state().pool->page(1).indexed = false;
  expect_noticed("[page_pool] check: 2 pages are a prefix cache's alone, the counter says 3");
  --state().pool->num_idle;
  expect_noticed("[prefix_cache] check: page 1 is in the index without a reference");
  ++state().pool->num_idle;
  state().pool->page(1).indexed = true;
}

}  // namespace
}  // namespace quire
