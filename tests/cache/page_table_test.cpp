// SPDX-License-Identifier: Apache-2.0
#include "quire/page_table.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "cache/failing_new.hpp"
#include "cache/page_table_state.hpp"
#include "cache/test_access.hpp"

namespace quire {
namespace {

using test::FailingNew;
using testing::ElementsAre;
using testing::IsEmpty;

internal::PageTableState& state_of(PageTable& table) { return internal::TestAccess::state(table); }

void expect_failure(const Status& status, ErrorCode code, std::string_view text) {
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(status.message(), text);
}

/// Eight pages of four tokens, three sequences of at most twenty.
class PageTables : public testing::Test {
 protected:
  SeqId make(std::int32_t tokens) {
    const SeqId seq = table_.create().value();
    EXPECT_TRUE(table_.append(seq, tokens, copies_).ok());
    return seq;
  }
  std::vector<PageId> pages(SeqId seq) const {
    const std::span<const PageId> held = table_.pages(seq);
    return {held.begin(), held.end()};
  }
  void expect_sound() {
    const Status status = table_.check();
    EXPECT_TRUE(status.ok()) << status.message();
  }

  PagePool pool_{{.num_pages = 8, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 3, .max_tokens_per_seq = 20}};
  std::vector<CopyOp> copies_;
};

TEST_F(PageTables, ASequenceHasAsManyPagesAsItsTokensNeed) {
  const SeqId seq = make(9);
  EXPECT_EQ(table_.length(seq), 9);
  EXPECT_THAT(pages(seq), ElementsAre(0, 1, 2));
  EXPECT_EQ(pool_.num_used(), 3);
  EXPECT_THAT(copies_, IsEmpty());
  expect_sound();
}

TEST_F(PageTables, ASlotIsThePageTimesItsSizePlusTheOffset) {
  make(4);
  const SeqId seq = make(7);
  EXPECT_THAT(pages(seq), ElementsAre(1, 2));
  EXPECT_EQ(table_.slot(seq, 0), 4);
  EXPECT_EQ(table_.slot(seq, 6), 10);
  EXPECT_EQ(table_.slot(seq, 7), -1);
  EXPECT_EQ(table_.slot(seq, -1), -1);
}

TEST(PageTable, SlotsOfHugeCachesAre64Bit) {
  constexpr std::int32_t kPageSize = 1 << 30;
  PagePool pool({.num_pages = 4, .page_size = kPageSize});
  PageTable table(pool, {.max_seqs = 1, .max_tokens_per_seq = std::numeric_limits<int32_t>::max()});
  PageId first_three[3];
  ASSERT_TRUE(pool.allocate(first_three).ok());
  const SeqId seq = table.create().value();
  std::vector<CopyOp> copies;
  ASSERT_TRUE(table.append(seq, 6, copies).ok());
  EXPECT_EQ(table.slot(seq, 5), 3LL * kPageSize + 5);
}

TEST_F(PageTables, AppendUsesTheRoomInTheLastPageFirst) {
  const SeqId seq = make(3);
  ASSERT_TRUE(table_.append(seq, 1, copies_).ok());
  EXPECT_THAT(pages(seq), ElementsAre(0));
  ASSERT_TRUE(table_.append(seq, 1, copies_).ok());
  EXPECT_THAT(pages(seq), ElementsAre(0, 1));
}

TEST_F(PageTables, ForkSharesFullPagesAndCopiesTheTailOnFirstWrite) {
  const SeqId parent = make(6);
  const SeqId child = table_.fork(parent, 6).value();
  EXPECT_EQ(pages(child), pages(parent));
  EXPECT_EQ(pool_.num_used(), 2);
  EXPECT_THAT(copies_, IsEmpty());

  ASSERT_TRUE(table_.append(child, 1, copies_).ok());
  EXPECT_THAT(copies_, ElementsAre(CopyOp{.src = 1, .dst = 2, .tokens = 2}));
  EXPECT_THAT(pages(child), ElementsAre(0, 2));
  EXPECT_THAT(pages(parent), ElementsAre(0, 1));

  ASSERT_TRUE(table_.append(parent, 1, copies_).ok());
  EXPECT_EQ(copies_.size(), 1U) << "the last holder writes in place";
  expect_sound();
}

TEST_F(PageTables, WhoeverWritesFirstGetsTheCopy) {
  const SeqId parent = make(6);
  const SeqId child = table_.fork(parent, 6).value();
  ASSERT_TRUE(table_.append(parent, 3, copies_).ok());
  EXPECT_THAT(copies_, ElementsAre(CopyOp{.src = 1, .dst = 2, .tokens = 2}));
  EXPECT_THAT(pages(parent), ElementsAre(0, 2, 3));
  EXPECT_THAT(pages(child), ElementsAre(0, 1));
}

TEST_F(PageTables, AForkAtAPageEdgeIsNeverCopied) {
  const SeqId parent = make(8);
  const SeqId child = table_.fork(parent, 4).value();
  ASSERT_TRUE(table_.append(child, 1, copies_).ok());
  ASSERT_TRUE(table_.append(parent, 1, copies_).ok());
  EXPECT_THAT(copies_, IsEmpty());
  EXPECT_THAT(pages(child), ElementsAre(0, 2));
}

TEST_F(PageTables, AForkInsideAFullPageCopiesOnlyWhatItHas) {
  const SeqId parent = make(8);
  const SeqId child = table_.fork(parent, 7).value();
  ASSERT_TRUE(table_.append(child, 1, copies_).ok());
  EXPECT_THAT(copies_, ElementsAre(CopyOp{.src = 1, .dst = 2, .tokens = 3}));
}

TEST_F(PageTables, TruncateInsideASharedPageCostsNothingUntilTheNextWrite) {
  const SeqId parent = make(8);
  const SeqId child = table_.fork(parent, 8).value();
  ASSERT_TRUE(table_.truncate(parent, 5).ok());
  EXPECT_EQ(pages(parent), pages(child));
  EXPECT_EQ(pool_.num_used(), 2);
  ASSERT_TRUE(table_.append(parent, 1, copies_).ok());
  EXPECT_THAT(copies_, ElementsAre(CopyOp{.src = 1, .dst = 2, .tokens = 1}));
  EXPECT_EQ(table_.length(child), 8);
  expect_sound();
}

TEST_F(PageTables, TruncateGivesBackThePagesBehind) {
  const SeqId seq = make(16);
  ASSERT_TRUE(table_.truncate(seq, 5).ok());
  EXPECT_THAT(pages(seq), ElementsAre(0, 1));
  EXPECT_EQ(pool_.num_free(), 6);
  ASSERT_TRUE(table_.truncate(seq, 0).ok());
  EXPECT_EQ(pool_.num_free(), 8);
  EXPECT_TRUE(table_.contains(seq));
  expect_sound();
}

TEST_F(PageTables, APageThatTheCallerHoldsIsCopiedBeforeItIsWritten) {
  const SeqId seq = make(2);
  ASSERT_TRUE(pool_.retain(0).ok());
  ASSERT_TRUE(table_.append(seq, 1, copies_).ok());
  EXPECT_THAT(copies_, ElementsAre(CopyOp{.src = 0, .dst = 1, .tokens = 2}));
  expect_sound();
}

TEST_F(PageTables, TheCallerCannotReleaseATablesPage) {
  make(2);
  expect_failure(
      pool_.release(0), ErrorCode::kBadHandle,
      "[page_pool] release: expected a page that the caller holds, got page 0 (held by tables and "
      "caches only)");
  expect_sound();
}

TEST_F(PageTables, RunningOutOfPagesIsAValueAndChangesNothing) {
  const SeqId first = make(20);
  const SeqId second = make(10);
  expect_failure(table_.append(second, 3, copies_), ErrorCode::kOutOfPages,
                 "[page_table] append: expected 1 free pages, got 0");
  EXPECT_EQ(table_.length(second), 10);
  ASSERT_TRUE(table_.append(second, 2, copies_).ok()) << "there is room in the last page";
  ASSERT_TRUE(table_.destroy(first).ok());
  EXPECT_TRUE(table_.append(second, 8, copies_).ok());
  expect_sound();
}

TEST_F(PageTables, TheCopyOfASharedTailCountsAsAPage) {
  const SeqId parent = make(6);
  const SeqId child = table_.fork(parent, 6).value();
  make(20);
  ASSERT_EQ(pool_.num_free(), 1);
  EXPECT_EQ(table_.pages_needed(child, 3), 2);
  EXPECT_EQ(table_.room(child, 1), 2);
  expect_failure(table_.append(child, 3, copies_), ErrorCode::kOutOfPages,
                 "[page_table] append: expected 2 free pages, got 1");
  EXPECT_EQ(pages(child), pages(parent));
  EXPECT_TRUE(table_.append(child, 2, copies_).ok());
}

TEST_F(PageTables, ADestroyedSequenceIsGoneForGood) {
  const SeqId seq = make(6);
  ASSERT_TRUE(table_.destroy(seq).ok());
  EXPECT_FALSE(table_.contains(seq));
  EXPECT_EQ(table_.length(seq), -1);
  EXPECT_THAT(pages(seq), IsEmpty());
  EXPECT_EQ(table_.slot(seq, 0), -1);
  EXPECT_EQ(table_.room(seq, 8), 0);
  EXPECT_EQ(table_.pages_needed(seq, 1), -1);
  EXPECT_EQ(table_.reclaimable_pages(seq), 0);
  const SeqId next = make(1);
  EXPECT_EQ(next.slot, seq.slot);
  EXPECT_NE(next.generation, seq.generation);
  expect_failure(table_.destroy(seq), ErrorCode::kBadHandle,
                 "[page_table] destroy: expected a live sequence, got slot 0 of generation 1");
  EXPECT_TRUE(table_.contains(next));
  expect_sound();
}

TEST_F(PageTables, EveryCallRefusesAHandleItDoesNotKnow) {
  const SeqId stranger{.slot = 77, .generation = 1};
  expect_failure(table_.append(stranger, 1, copies_), ErrorCode::kBadHandle,
                 "[page_table] append: expected a live sequence, got slot 77 of generation 1");
  expect_failure(table_.truncate(stranger, 0), ErrorCode::kBadHandle,
                 "[page_table] truncate: expected a live sequence, got slot 77 of generation 1");
  expect_failure(table_.fork(stranger, 0).status(), ErrorCode::kBadHandle,
                 "[page_table] fork: expected a live sequence, got slot 77 of generation 1");
  expect_failure(table_.destroy(SeqId{}), ErrorCode::kBadHandle,
                 "[page_table] destroy: expected a live sequence, got slot 0 of generation 0");
}

TEST_F(PageTables, BadLengthsGetASentence) {
  const SeqId seq = make(6);
  expect_failure(table_.append(seq, -1, copies_), ErrorCode::kInvalidArgument,
                 "[page_table] append: expected n of at least 0, got -1");
  expect_failure(table_.append(seq, std::numeric_limits<std::int32_t>::max(), copies_),
                 ErrorCode::kTooLong,
                 "[page_table] append: expected at most 20 tokens in a sequence, got 6 + "
                 "2147483647");
  expect_failure(table_.truncate(seq, 7), ErrorCode::kInvalidArgument,
                 "[page_table] truncate: expected a length in [0, 6], got 7");
  expect_failure(table_.fork(seq, -1).status(), ErrorCode::kInvalidArgument,
                 "[page_table] fork: expected a length in [0, 6], got -1");
}

TEST_F(PageTables, AFullTableTakesNoMoreSequences) {
  const SeqId seq = make(1);
  make(1);
  make(1);
  expect_failure(table_.create().status(), ErrorCode::kQueueFull,
                 "[page_table] create: expected a free sequence slot, got 3 of 3 in use");
  expect_failure(table_.fork(seq, 1).status(), ErrorCode::kQueueFull,
                 "[page_table] fork: expected a free sequence slot, got 3 of 3 in use");
  EXPECT_EQ(table_.num_seqs(), 3);
  expect_sound();
}

TEST(PageTable, ABadSpecThrowsASentence) {
  PagePool pool({.num_pages = 1, .page_size = 1});
  const auto text_of = [&pool](PageTableSpec spec) -> std::string {
    try {
      const PageTable table(pool, spec);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(text_of({.max_seqs = 0, .max_tokens_per_seq = 1}),
            "[page_table] max_seqs: expected at least 1, got 0");
  EXPECT_EQ(text_of({.max_seqs = 1, .max_tokens_per_seq = 0}),
            "[page_table] max_tokens_per_seq: expected at least 1, got 0");
}

TEST(PageTable, GivesAllPagesBackWhenItEnds) {
  PagePool pool({.num_pages = 4, .page_size = 2});
  {
    PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 8});
    std::vector<CopyOp> copies;
    const SeqId seq = table.create().value();
    ASSERT_TRUE(table.append(seq, 5, copies).ok());
    ASSERT_TRUE(table.fork(seq, 3).ok());
    EXPECT_EQ(pool.num_free(), 1);
  }
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_TRUE(pool.check().ok());
}

TEST(PageTable, MovesTogetherWithItsPool) {
  struct Engine {
    PagePool pool{{.num_pages = 4, .page_size = 2}};
    PageTable table{pool, {.max_seqs = 2, .max_tokens_per_seq = 8}};
  };
  std::optional<Engine> engine(std::in_place);
  const SeqId seq = engine->table.create().value();
  Engine moved = std::move(*engine);
  engine.reset();
  std::vector<CopyOp> copies;
  EXPECT_TRUE(moved.table.append(seq, 5, copies).ok());
  EXPECT_EQ(moved.pool.num_used(), 3);
  EXPECT_TRUE(moved.table.check().ok());
}

TEST(PageTable, OutlivesThePoolObject) {
  std::optional<PagePool> pool(std::in_place, PagePoolSpec{.num_pages = 4, .page_size = 2});
  PageTable table(*pool, {.max_seqs = 2, .max_tokens_per_seq = 8});
  pool.reset();
  std::vector<CopyOp> copies;
  EXPECT_TRUE(table.append(table.create().value(), 5, copies).ok());
  EXPECT_TRUE(table.check().ok());
}

TEST(PageTable, TwoTablesOnOnePoolAreBothSound) {
  PagePool pool({.num_pages = 6, .page_size = 2});
  PageTable first(pool, {.max_seqs = 2, .max_tokens_per_seq = 8});
  PageTable second(pool, {.max_seqs = 2, .max_tokens_per_seq = 8});
  std::vector<CopyOp> copies;
  ASSERT_TRUE(first.append(first.create().value(), 5, copies).ok());
  ASSERT_TRUE(second.append(second.create().value(), 5, copies).ok());
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_TRUE(first.check().ok());
  EXPECT_TRUE(second.check().ok());
}

TEST_F(PageTables, ASlotWhoseGenerationsRunOutIsRetired) {
  state_of(table_).at(0).generation = std::numeric_limits<std::uint32_t>::max();
  const SeqId last = make(3);
  ASSERT_EQ(last.slot, 0U);
  ASSERT_TRUE(table_.destroy(last).ok());
  expect_sound();
  EXPECT_EQ(make(1).slot, 1U);
  EXPECT_EQ(make(1).slot, 2U);
  EXPECT_EQ(table_.create().status().code(), ErrorCode::kQueueFull);
  EXPECT_FALSE(table_.contains(last));
  EXPECT_FALSE(table_.contains({.slot = 0, .generation = 0}));
  expect_sound();
}

TEST_F(PageTables, AppendChangesNothingIfTheCopyPlanCannotGrow) {
  const SeqId parent = make(6);
  const SeqId child = table_.fork(parent, 6).value();
  for (const auto which : {FailingNew::Which::kOne, FailingNew::Which::kAllFromThere}) {
    const auto before = state_of(table_).pool->pages;
    Status status;
    {
      const FailingNew failing(0, which);
      status = table_.append(child, 3, copies_);
      EXPECT_TRUE(failing.fired());
    }
    EXPECT_EQ(status.code(), ErrorCode::kOutOfMemory);
    EXPECT_NE(status.message(), "");
    EXPECT_EQ(state_of(table_).pool->pages, before);
    EXPECT_EQ(pages(child), pages(parent));
    EXPECT_EQ(table_.length(child), 6);
    EXPECT_THAT(copies_, IsEmpty());
    expect_sound();
  }
  EXPECT_TRUE(table_.append(child, 3, copies_).ok());
}

TEST_F(PageTables, CallsThatSucceedDoNotAllocate) {
  copies_.reserve(1);
  const long before = test::num_allocations();
  const SeqId seq = *table_.create();
  EXPECT_TRUE(table_.append(seq, 6, copies_).ok());
  const SeqId child = *table_.fork(seq, 6);
  EXPECT_TRUE(table_.append(child, 6, copies_).ok());
  EXPECT_TRUE(table_.truncate(child, 1).ok());
  EXPECT_TRUE(table_.destroy(seq).ok());
  EXPECT_TRUE(table_.destroy(child).ok());
  EXPECT_EQ(test::num_allocations(), before);
}

TEST_F(PageTables, AcceptTreeChangesNothingIfTheCopyPlanCannotGrow) {
  const SeqId seq = make(8);
  const auto before = state_of(table_).pool->pages;
  const std::array<std::int32_t, 2> path{1, 3};
  Status status;
  {
    const FailingNew failing(0, FailingNew::Which::kOne);
    status = table_.accept_tree(seq, 3, path, copies_);
    EXPECT_TRUE(failing.fired());
  }
  EXPECT_EQ(status.code(), ErrorCode::kOutOfMemory);
  EXPECT_TRUE(copies_.empty());
  EXPECT_EQ(table_.length(seq), 8);
  EXPECT_EQ(state_of(table_).pool->pages, before);
}

TEST_F(PageTables, AcceptTreeRefusesBadPathsAndSharedPagesWithASentence) {
  const SeqId seq = make(7);
  const auto text_of = [&](std::int32_t length, std::vector<std::int32_t> path) {
    const Status status = table_.accept_tree(seq, length, path, copies_);
    EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(text_of(8, {}), "[page_table] accept_tree: expected a length in [0, 7], got 8");
  EXPECT_EQ(text_of(5, {2}),
            "[page_table] accept_tree: expected a path of tokens in [0, 2), each greater than the "
            "one before, got 2");
  EXPECT_EQ(text_of(3, {1, 1}),
            "[page_table] accept_tree: expected a path of tokens in [2, 4), each greater than the "
            "one before, got 1");
  ASSERT_TRUE(table_.fork(seq, 7).ok());
  EXPECT_EQ(text_of(3, {1}),
            "[page_table] accept_tree: expected pages of the sequence alone to move tokens to, got "
            "page " +
                std::to_string(
                    table_.pages(seq)[static_cast<std::size_t>(3 / table_.pool_spec().page_size)]) +
                " with 2 references");
  EXPECT_TRUE(table_.accept_tree(seq, 3, std::array{0, 1}, copies_).ok());  // nothing moves
  EXPECT_TRUE(copies_.empty());
  expect_sound();
}

TEST(PageTable, EveryFailedAllocationOfAConstructorIsAnErrorAndLosesNothing) {
  for (int allowed = 0;; ++allowed) {
    try {
      const FailingNew failing(allowed, FailingNew::Which::kOne);
      PagePool pool({.num_pages = 4, .page_size = 2});
      PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 8});
      EXPECT_GT(allowed, 2) << "the constructors allocate";
      EXPECT_FALSE(failing.fired());
      break;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    }
  }
}

TEST_F(PageTables, CheckWithoutMemorySaysSo) {
  Status status;
  {
    const FailingNew failing(0, FailingNew::Which::kOne);
    status = table_.check();
  }
  expect_failure(status, ErrorCode::kOutOfMemory,
                 "[page_table] check: expected memory for a count of each page, got none");
}

// check() is only worth its name if it notices.
class BrokenPageTable : public PageTables {
 protected:
  BrokenPageTable() : parent_(make(6)), child_(table_.fork(parent_, 6).value()) { expect_sound(); }
  internal::PageTableState& state() { return state_of(table_); }
  void expect_noticed(std::string_view text) {
    expect_failure(table_.check(), ErrorCode::kInternal, text);
  }

  SeqId parent_;  // slot 0, pages 0 and 1
  SeqId child_;   // slot 1, the same pages
};

TEST_F(BrokenPageTable, ALeakedReferenceIsNoticed) {
  state().pool->add_ref(1);
  expect_noticed(
      "[page_table] check: page 1 has 3 references, 0 of them the callers' and 0 a prefix cache's, "
      "and 2 table entries");
  state().pool->page(1).refs = 2;
}

TEST_F(BrokenPageTable, ALeakedPageIsNoticed) {
  EXPECT_EQ(state().pool->take(), 2);
  expect_noticed(
      "[page_table] check: page 2 has 1 references, 0 of them the callers' and 0 a prefix cache's, "
      "and 0 table entries");
}

TEST_F(BrokenPageTable, AMissingReferenceIsNoticed) {
  state().pool->drop_ref(0);
  expect_noticed(
      "[page_table] check: page 0 has 1 references, 0 of them the callers' and 0 a prefix cache's, "
      "and 2 table entries");
  state().pool->add_ref(0);
}

TEST_F(BrokenPageTable, APageTwiceInASequenceIsNoticed) {
  state().row(0)[1] = 0;
  expect_noticed("[page_table] check: the sequence in slot 0 has page 0 twice");
  state().row(0)[1] = 1;
}

TEST_F(BrokenPageTable, APageOutsideThePoolIsNoticed) {
  state().row(1)[0] = 8;
  expect_noticed("[page_table] check: the sequence in slot 1 has page 8 of a pool of 8");
  state().row(1)[0] = 0;
}

TEST_F(BrokenPageTable, AnImpossibleLengthIsNoticed) {
  state().at(1).length = 21;
  expect_noticed("[page_table] check: the sequence in slot 1 has length 21");
  state().at(1).length = 6;
}

TEST_F(BrokenPageTable, ALiveSlotOnTheFreeListIsNoticed) {
  state().first_free_slot = 1;
  expect_noticed("[page_table] check: the free slots lead to slot 1");
}

TEST_F(BrokenPageTable, ALostSlotIsNoticed) {
  state().first_free_slot = internal::PageTableState::kNoSlot;
  expect_noticed(
      "[page_table] check: 2 slots are live (the counter says 2), 0 free, 0 retired, of 3");
}

TEST_F(BrokenPageTable, ABrokenPoolIsNoticed) {
  state().pool->num_free = 5;
  expect_noticed("[page_pool] check: 6 pages have no references, 5 are on the free list");
  state().pool->num_free = 6;
}

/// Pages of two tokens, and a window of three keys before a query's own.
class Windows : public testing::Test {
 protected:
  SeqId grown(std::int32_t length) {
    const SeqId seq = table_.create().value();
    EXPECT_TRUE(table_.append(seq, length, copies_).ok());
    return seq;
  }

  PagePool pool_{{.num_pages = 8, .page_size = 2}};
  PageTable table_{pool_, {.max_seqs = 3, .max_tokens_per_seq = 100, .window_left = 3}};
  std::vector<CopyOp> copies_;
};

TEST_F(Windows, SlideGivesBackWhatNoQuerySees) {
  const SeqId seq = grown(8);
  ASSERT_TRUE(table_.slide(seq, 6).ok());  // sees 3 to 6: of the pages of 0 and 1 nothing
  EXPECT_EQ(table_.num_holes(seq), 1);
  EXPECT_EQ(table_.pages(seq)[0], kNoPage);
  EXPECT_EQ(table_.slot(seq, 1), -1);
  EXPECT_GE(table_.slot(seq, 2), 0);
  EXPECT_EQ(pool_.num_free(), 5);
  EXPECT_EQ(table_.reclaimable_pages(seq), 3);
  ASSERT_TRUE(table_.slide(seq, 3).ok());  // does not go back
  EXPECT_EQ(table_.num_holes(seq), 1);
  EXPECT_EQ(table_.check().message(), "");
}

TEST_F(Windows, ASequenceMayBecomeLongerThanThePool) {
  const SeqId seq = grown(1);
  for (std::int32_t length = 1; length < 100; ++length) {
    ASSERT_TRUE(table_.slide(seq, length).ok());
    ASSERT_TRUE(table_.append(seq, 1, copies_).ok());
    EXPECT_LE(pool_.num_used(), 4);
    EXPECT_EQ(table_.check().message(), "");
  }
  EXPECT_EQ(table_.pages(seq).size(), 50U);
  ASSERT_TRUE(table_.destroy(seq).ok());
  EXPECT_EQ(pool_.num_free(), 8);
}

TEST_F(Windows, WhatTheNextQuerySeesMustStillBeThere) {
  const SeqId seq = grown(10);
  ASSERT_TRUE(table_.slide(seq, 9).ok());
  EXPECT_EQ(table_.num_holes(seq), 3);
  const char* const text =
      "[page_table] truncate: expected a length of at least 9, whose window is still there, got 8";
  expect_failure(table_.truncate(seq, 8), ErrorCode::kInvalidArgument, text);
  EXPECT_EQ(table_.fork(seq, 8).status().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(table_.accept_tree(seq, 8, {}, copies_).code(), ErrorCode::kInvalidArgument);
  const SeqId forked = table_.fork(seq, 9).value();
  EXPECT_EQ(table_.num_holes(forked), 3);
  ASSERT_TRUE(table_.truncate(seq, 9).ok());
  ASSERT_TRUE(table_.append(seq, 1, copies_).ok());
  EXPECT_EQ(copies_.size(), 1U);  // of the page that they share in part
  expect_failure(table_.slide(seq, 11), ErrorCode::kInvalidArgument,
                 "[page_table] slide: expected a position in [0, 10], got 11");
  EXPECT_EQ(table_.slide({9, 9}, 0).code(), ErrorCode::kBadHandle);
  EXPECT_EQ(table_.check().message(), "");
}

TEST_F(Windows, WithoutAWindowSlideDoesNothing) {
  PageTable table(pool_, {.max_seqs = 1, .max_tokens_per_seq = 16});
  const SeqId seq = table.create().value();
  ASSERT_TRUE(table.append(seq, 16, copies_).ok());
  ASSERT_TRUE(table.slide(seq, 16).ok());
  EXPECT_EQ(table.num_holes(seq), 0);
  EXPECT_EQ(pool_.num_free(), 0);
  EXPECT_THROW(PageTable(pool_, {.window_left = -2}), Error);
}

TEST_F(Windows, AHoleInsideTheWindowIsNoticed) {
  const SeqId seq = grown(8);
  auto& state = internal::TestAccess::state(table_);
  state.at(static_cast<std::int32_t>(seq.slot)).holes = 3;
  EXPECT_THAT(std::string(table_.check().message()),
              testing::HasSubstr("of 8 tokens has 3 holes, of which 2 are before its window"));
  state.at(static_cast<std::int32_t>(seq.slot)).holes = 0;
}

}  // namespace
}  // namespace quire
