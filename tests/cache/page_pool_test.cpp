// SPDX-License-Identifier: Apache-2.0
#include "quire/page_pool.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <utility>
#include <vector>

#include "cache/page_pool_state.hpp"
#include "cache/test_access.hpp"

namespace quire {
namespace {

internal::PagePoolState& state_of(PagePool& pool) { return internal::TestAccess::state(pool); }

void expect_failure(const Status& status, ErrorCode code, std::string_view text) {
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(status.message(), text);
}

TEST(PagePool, HandsOutEachPageOnceAndInOrder) {
  PagePool pool({.num_pages = 4, .page_size = 16});
  std::array<PageId, 4> pages{};
  ASSERT_TRUE(pool.allocate(pages).ok());
  EXPECT_EQ(pages, (std::array<PageId, 4>{0, 1, 2, 3}));
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.num_used(), 4);
  for (const PageId page : pages) EXPECT_EQ(pool.ref_count(page), 1);
  EXPECT_TRUE(pool.check().ok());
}

TEST(PagePool, ReusesThePageFreedLastFirst) {
  PagePool pool({.num_pages = 3, .page_size = 1});
  std::array<PageId, 3> pages{};
  ASSERT_TRUE(pool.allocate(pages).ok());
  ASSERT_TRUE(pool.release(0).ok());
  ASSERT_TRUE(pool.release(2).ok());
  std::array<PageId, 2> again{};
  ASSERT_TRUE(pool.allocate(again).ok());
  EXPECT_EQ(again, (std::array<PageId, 2>{2, 0}));
}

TEST(PagePool, RunningOutIsAValueAndTakesNothing) {
  PagePool pool({.num_pages = 3, .page_size = 16});
  std::array<PageId, 4> pages{7, 7, 7, 7};
  expect_failure(pool.allocate(pages), ErrorCode::kOutOfPages,
                 "[page_pool] allocate: expected 4 free pages, got 3");
  EXPECT_EQ(pages, (std::array<PageId, 4>{7, 7, 7, 7}));
  EXPECT_EQ(pool.num_free(), 3);
}

TEST(PagePool, APageIsFreeOnceEveryReferenceIsReleased) {
  PagePool pool({.num_pages = 1, .page_size = 16});
  PageId page = kNoPage;
  ASSERT_TRUE(pool.allocate({&page, 1}).ok());
  ASSERT_TRUE(pool.retain(page).ok());
  EXPECT_EQ(pool.ref_count(page), 2);
  ASSERT_TRUE(pool.release(page).ok());
  EXPECT_EQ(pool.num_free(), 0);
  ASSERT_TRUE(pool.release(page).ok());
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.ref_count(page), 0);
}

TEST(PagePool, ASecondReleaseIsRefused) {
  PagePool pool({.num_pages = 2, .page_size = 16});
  PageId page = kNoPage;
  ASSERT_TRUE(pool.allocate({&page, 1}).ok());
  ASSERT_TRUE(pool.release(page).ok());
  expect_failure(pool.release(page), ErrorCode::kBadHandle,
                 "[page_pool] release: expected a page that the caller holds, got page 0 (free)");
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_TRUE(pool.check().ok());
}

TEST(PagePool, AReleaseThatNamesAPageTooOftenLeavesEveryCountAndTheOrderOfTheFreePages) {
  PagePool pool({.num_pages = 4, .page_size = 16});
  std::array<PageId, 4> pages{};
  ASSERT_TRUE(pool.allocate(pages).ok());
  ASSERT_TRUE(pool.release(3).ok());
  const internal::PagePoolState before = state_of(pool);
  const std::array<PageId, 4> twice{1, 2, 0, 1};
  EXPECT_EQ(pool.release(twice).code(), ErrorCode::kBadHandle);
  for (const PageId page : pages) EXPECT_EQ(pool.ref_count(page), before.page(page).refs);
  EXPECT_EQ(state_of(pool).next_free(), before.next_free());
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_TRUE(pool.check().ok());
}

TEST(PagePool, ARetainThatNamesAFreePageChangesNothing) {
  PagePool pool({.num_pages = 2, .page_size = 16});
  PageId page = kNoPage;
  ASSERT_TRUE(pool.allocate({&page, 1}).ok());
  const std::array<PageId, 2> pages{0, 1};
  expect_failure(pool.retain(pages), ErrorCode::kBadHandle,
                 "[page_pool] retain: expected a page in use, got page 1 (free)");
  EXPECT_EQ(pool.ref_count(0), 1);
}

TEST(PagePool, IdsItDoesNotHaveAreRefused) {
  PagePool pool({.num_pages = 8, .page_size = 16});
  expect_failure(pool.release(9), ErrorCode::kBadHandle,
                 "[page_pool] release: expected a page in [0, 8), got 9");
  expect_failure(pool.retain(kNoPage), ErrorCode::kBadHandle,
                 "[page_pool] retain: expected a page in [0, 8), got -1");
  EXPECT_EQ(pool.ref_count(8), 0);
  EXPECT_EQ(pool.ref_count(-1), 0);
}

TEST(PagePool, ABadSpecThrowsASentence) {
  const auto text_of = [](PagePoolSpec spec) -> std::string {
    try {
      const PagePool pool(spec);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(text_of({.num_pages = 0, .page_size = 16}),
            "[page_pool] num_pages: expected at least 1, got 0");
  EXPECT_EQ(text_of({.num_pages = 4, .page_size = -2}),
            "[page_pool] page_size: expected at least 1, got -2");
}

TEST(PagePool, MovesWithItsPages) {
  PagePool pool({.num_pages = 2, .page_size = 4});
  PageId page = kNoPage;
  ASSERT_TRUE(pool.allocate({&page, 1}).ok());
  PagePool moved = std::move(pool);
  EXPECT_EQ(moved.num_used(), 1);
  EXPECT_EQ(moved.spec(), (PagePoolSpec{.num_pages = 2, .page_size = 4}));
  EXPECT_TRUE(moved.release(page).ok());
}

TEST(PagePool, RandomCallsAgreeWithPlainCounts) {
  std::mt19937 random(20240917);
  for (int round = 0; round < 200; ++round) {
    const auto num_pages = static_cast<std::int32_t>(1 + random() % 9);
    PagePool pool({.num_pages = num_pages, .page_size = 1});
    std::vector<std::int32_t> counts(static_cast<std::size_t>(num_pages), 0);
    for (int call = 0; call < 100; ++call) {
      std::vector<PageId> pages(random() % 4);
      const auto kind = random() % 3;
      for (PageId& page : pages) {
        page = static_cast<PageId>(random() % static_cast<unsigned>(num_pages + 1));
      }
      std::vector<std::int32_t> wanted = counts;
      bool allowed = true;
      for (const PageId page : pages) {
        if (page == num_pages) {
          allowed = allowed && kind == 0;
        } else if (kind == 1) {
          allowed = allowed && counts[static_cast<std::size_t>(page)] > 0;
          ++wanted[static_cast<std::size_t>(page)];
        } else if (kind == 2) {
          allowed = --wanted[static_cast<std::size_t>(page)] >= 0 && allowed;
        }
      }
      if (kind == 0) {
        wanted = counts;
        allowed = std::ranges::count(counts, 0) >= std::ssize(pages);
        ASSERT_EQ(pool.allocate(pages).ok(), allowed);
        if (allowed) {
          for (const PageId page : pages) ASSERT_EQ(wanted[static_cast<std::size_t>(page)]++, 0);
        }
      } else {
        ASSERT_EQ((kind == 1 ? pool.retain(pages) : pool.release(pages)).ok(), allowed);
      }
      if (allowed) counts = wanted;
      for (PageId page = 0; page < num_pages; ++page) {
        ASSERT_EQ(pool.ref_count(page), counts[static_cast<std::size_t>(page)]);
      }
      ASSERT_EQ(pool.num_free(), std::ranges::count(counts, 0));
      ASSERT_TRUE(pool.check().ok()) << pool.check().message();
    }
  }
}

// check() is only worth its name if it notices.
class BrokenPagePool : public testing::Test {
 protected:
  BrokenPagePool() {
    std::array<PageId, 2> pages{};
    EXPECT_TRUE(pool_.allocate(pages).ok());
    EXPECT_TRUE(pool_.check().ok());
  }
  internal::PagePoolState& state() { return state_of(pool_); }
  void expect_noticed(std::string_view text) {
    expect_failure(pool_.check(), ErrorCode::kInternal, text);
  }

  PagePool pool_{{.num_pages = 5, .page_size = 16}};  // 0 and 1 in use; free: 4, 3, 2
};

TEST_F(BrokenPagePool, ALostPageIsNoticed) {
  state().page(0).refs = 0;
  state().page(0).caller_refs = 0;
  expect_noticed("[page_pool] check: 4 pages have no references, 3 are on the free list");
}

TEST_F(BrokenPagePool, AFreePageInUseIsNoticed) {
  state().page(3).refs = 1;
  expect_noticed("[page_pool] check: page 3 is on the free list with 1 references");
}

TEST_F(BrokenPagePool, APageThatIsFreeTwiceIsNoticed) {
  state().free_pages[2] = 4;
  expect_noticed("[page_pool] check: page 4 is on the free list twice");
}

TEST_F(BrokenPagePool, AShortListIsNoticed) {
  state().num_free = 1;
  expect_noticed("[page_pool] check: 3 pages have no references, 1 are on the free list");
}

TEST_F(BrokenPagePool, ACounterBeyondTheListIsNoticed) {
  state().num_free = 6;
  expect_noticed("[page_pool] check: the counter of free pages says 6");
  state().num_free = -1;
  expect_noticed("[page_pool] check: the counter of free pages says -1");
}

TEST_F(BrokenPagePool, AFreePageThatThePoolDoesNotHaveIsNoticed) {
  state().free_pages[1] = 77;
  expect_noticed("[page_pool] check: the free list has page 77");
}

TEST_F(BrokenPagePool, MoreCallersReferencesThanReferencesAreNoticed) {
  state().page(1).caller_refs = 2;
  expect_noticed(
      "[page_pool] check: page 1 has 1 references, 2 of them the callers' and 0 a prefix cache's");
}

}  // namespace
}  // namespace quire
