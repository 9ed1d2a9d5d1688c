// SPDX-License-Identifier: Apache-2.0
// Page pools, page tables and the plans that they make through the C ABI.
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "c/client.hpp"

namespace quire::c_test {
namespace {

constexpr std::int32_t kPages = 6;
constexpr std::int32_t kPageSize = 4;

class CPages : public testing::Test {
 protected:
  void SetUp() override {
    quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
    pool_spec.num_pages = kPages;
    pool_spec.page_size = kPageSize;
    quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
    table_spec.max_seqs = 3;
    table_spec.max_tokens_per_seq = 16;
    ASSERT_EQ(quire_page_pool_create(&pool_spec, &pool_), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_page_table_create(pool_, &table_spec, &table_), QUIRE_OK) << quire_last_error();
    ASSERT_EQ(quire_copy_plan_create(&copies_), QUIRE_OK);
  }
  void TearDown() override {
    quire_copy_plan_destroy(copies_);
    quire_page_table_destroy(table_);
    quire_page_pool_destroy(pool_);
  }

  quire_seq_id make(std::int32_t tokens) {
    quire_seq_id seq = {0, 0};
    EXPECT_EQ(quire_page_table_create_seq(table_, &seq), QUIRE_OK) << quire_last_error();
    EXPECT_EQ(quire_page_table_append(table_, seq, tokens, copies_), QUIRE_OK)
        << quire_last_error();
    return seq;
  }
  std::vector<std::int32_t> pages(quire_seq_id seq) {
    const std::int32_t* data = nullptr;
    std::size_t count = 0;
    EXPECT_EQ(quire_page_table_pages(table_, seq, &data, &count), QUIRE_OK) << quire_last_error();
    return {data, data + count};
  }

  quire_page_pool* pool_ = nullptr;
  quire_page_table* table_ = nullptr;
  quire_copy_plan* copies_ = nullptr;
};

TEST_F(CPages, ASequenceHasThePagesAndSlotsOfItsTokens) {
  const quire_seq_id seq = make(6);
  EXPECT_EQ(quire_page_table_length(table_, seq), 6);
  const std::vector<std::int32_t> held = pages(seq);
  ASSERT_EQ(held.size(), 2U);
  EXPECT_EQ(quire_page_table_slot(table_, seq, 5), held[1] * kPageSize + 1);
  EXPECT_EQ(quire_page_table_slot(table_, seq, 6), -1);
  EXPECT_EQ(quire_page_table_num_seqs(table_), 1);
  EXPECT_EQ(quire_page_pool_num_used(pool_), 2);
  EXPECT_EQ(quire_page_pool_num_free(pool_), kPages - 2);
  EXPECT_EQ(quire_page_pool_ref_count(pool_, held[0]), 1);
  EXPECT_EQ(quire_page_table_pages_needed(table_, seq, 3), 1);
  EXPECT_EQ(quire_page_table_reclaimable_pages(table_, seq), 2);
}

TEST_F(CPages, AForkIsCopiedOnItsFirstWriteAndThePlanSaysSo) {
  const quire_seq_id seq = make(6);
  quire_seq_id forked = {0, 0};
  ASSERT_EQ(quire_page_table_fork_seq(table_, seq, 5, &forked), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(pages(forked), pages(seq));
  EXPECT_EQ(quire_page_pool_num_used(pool_), 2);
  const std::int32_t shared = pages(seq)[1];
  ASSERT_EQ(quire_page_table_append(table_, forked, 1, copies_), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_copy_plan_size(copies_), 1U);
  const quire_copy_op op = quire_copy_plan_ops(copies_)[0];
  EXPECT_EQ(op.src, shared);
  EXPECT_EQ(op.dst, pages(forked)[1]);
  EXPECT_EQ(op.tokens, 1);
  EXPECT_EQ(quire_page_table_check(table_), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_copy_plan_clear(copies_), QUIRE_OK);
  EXPECT_EQ(quire_copy_plan_size(copies_), 0U);
}

TEST_F(CPages, AnAcceptedPathMovesUpAndTheRestIsForgotten) {
  const quire_seq_id seq = make(3 + 5);
  const std::vector<std::int32_t> held = pages(seq);
  const std::array<std::int32_t, 3> path{0, 2, 3};
  ASSERT_EQ(quire_page_table_accept_tree(table_, seq, 3, path.data(), path.size(), copies_),
            QUIRE_OK)
      << quire_last_error();
  EXPECT_EQ(quire_page_table_length(table_, seq), 6);
  ASSERT_EQ(quire_copy_plan_size(copies_), 2U);  // one by one: the second lands where the first was
  const quire_copy_op* ops = quire_copy_plan_ops(copies_);
  EXPECT_EQ(ops[0].src, held[1]);
  EXPECT_EQ(ops[0].dst, held[1]);
  EXPECT_EQ(ops[0].src_begin, 1);
  EXPECT_EQ(ops[0].dst_begin, 0);
  EXPECT_EQ(ops[1].src_begin, 2);
  EXPECT_EQ(ops[1].dst_begin, 1);
  const std::array<std::int32_t, 2> bad{1, 1};
  EXPECT_EQ(quire_page_table_accept_tree(table_, seq, 3, bad.data(), bad.size(), copies_),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_page_table_accept_tree(table_, seq, 3, nullptr, 1, copies_),
            QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_page_table_accept_tree] path: expected int32 [1], got NULL");
  EXPECT_EQ(quire_copy_plan_size(copies_), 2U);
}

TEST_F(CPages, RunningOutOfPagesIsAnOrdinaryOutcomeThatChangesNothing) {
  const quire_seq_id first = make(16);
  const quire_seq_id second = make(8);
  EXPECT_EQ(quire_page_table_append(table_, second, 1, copies_), QUIRE_OUT_OF_PAGES);
  EXPECT_EQ(quire_page_table_length(table_, second), 8);
  EXPECT_EQ(quire_page_table_append(table_, first, 1, copies_), QUIRE_TOO_LONG);
  ASSERT_EQ(quire_page_table_truncate(table_, first, 4), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_table_append(table_, second, 1, copies_), QUIRE_OK) << quire_last_error();
}

TEST_F(CPages, ADestroyedSequenceIsKnownNoMore) {
  const quire_seq_id seq = make(3);
  ASSERT_EQ(quire_page_table_destroy_seq(table_, seq), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_table_destroy_seq(table_, seq), QUIRE_BAD_HANDLE);
  EXPECT_EQ(quire_page_table_truncate(table_, seq, 0), QUIRE_BAD_HANDLE);
  EXPECT_EQ(quire_page_table_append(table_, seq, 1, copies_), QUIRE_BAD_HANDLE);
  EXPECT_EQ(quire_page_table_length(table_, seq), -1);
  const std::int32_t* data = nullptr;
  std::size_t count = 0;
  EXPECT_EQ(quire_page_table_pages(table_, seq, &data, &count), QUIRE_BAD_HANDLE);
  EXPECT_EQ(quire_page_pool_num_free(pool_), kPages);
}

TEST_F(CPages, ThePoolsOwnReferencesAreCounted) {
  std::array<std::int32_t, 2> own{};
  ASSERT_EQ(quire_page_pool_allocate(pool_, own.data(), own.size()), QUIRE_OK)
      << quire_last_error();
  ASSERT_EQ(quire_page_pool_retain(pool_, own.data(), 1), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_pool_ref_count(pool_, own[0]), 2);
  ASSERT_EQ(quire_page_pool_release(pool_, own.data(), own.size()), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_pool_release(pool_, own.data(), own.size()), QUIRE_BAD_HANDLE);
  EXPECT_EQ(quire_page_pool_ref_count(pool_, own[0]), 1);
  EXPECT_EQ(quire_page_pool_check(pool_), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_pool_allocate(pool_, nullptr, 2), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_page_pool_allocate] pages: expected int32 [2], got NULL");
  EXPECT_EQ(quire_page_pool_allocate(pool_, nullptr, 0), QUIRE_OK);
}

TEST_F(CPages, ATableOutlivesItsPool) {
  const quire_seq_id seq = make(5);
  quire_page_pool_destroy(pool_);
  pool_ = nullptr;
  EXPECT_EQ(quire_page_table_append(table_, seq, 4, copies_), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_page_table_check(table_), QUIRE_OK) << quire_last_error();
}

TEST_F(CPages, NullAndNonsenseGetTheirSentences) {
  const quire_seq_id never = {0, 0};
  EXPECT_EQ(quire_page_pool_num_free(nullptr), -1);
  EXPECT_STREQ(quire_last_error(),
               "[quire_page_pool_num_free] pool: expected a quire_page_pool, got NULL");
  EXPECT_EQ(quire_page_table_length(nullptr, never), -1);
  EXPECT_EQ(quire_page_table_slot(nullptr, never, 0), -1);
  EXPECT_EQ(quire_page_table_pages_needed(nullptr, never, 1), -1);
  EXPECT_EQ(quire_page_table_reclaimable_pages(nullptr, never), -1);
  EXPECT_EQ(quire_copy_plan_size(nullptr), 0U);
  EXPECT_EQ(quire_copy_plan_ops(nullptr), nullptr);
  EXPECT_EQ(quire_page_table_append(table_, make(1), 1, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_page_table_append] copies: expected a quire_copy_plan, got NULL");
  EXPECT_EQ(quire_page_table_create_seq(table_, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_page_table_pages(table_, never, nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  quire_page_pool_spec spec = QUIRE_PAGE_POOL_SPEC_INIT;
  quire_page_pool* pool = nullptr;
  EXPECT_EQ(quire_page_pool_create(&spec, &pool), QUIRE_INVALID_ARGUMENT);  // no pages
  EXPECT_EQ(pool, nullptr);
}

}  // namespace
}  // namespace quire::c_test
