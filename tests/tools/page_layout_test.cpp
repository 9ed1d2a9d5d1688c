// SPDX-License-Identifier: Apache-2.0
#include "common/page_layout.hpp"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

namespace quire::tool {
namespace {

constexpr std::array<std::int32_t, 3> kQueries = {1, 0, 5};
constexpr std::array<std::int32_t, 3> kKeys = {33, 0, 40};

std::int32_t table_entry(const Batch& batch, std::int64_t seq, std::int64_t index) {
  return static_cast<const std::int32_t*>(
      batch.page_table.data)[seq * batch.page_table.stride(0) + index];
}

TEST(PageLayout, EveryPageBelongsToOneRequest) {
  const PageLayout layout(kQueries, kKeys, 16, 1);
  EXPECT_EQ(layout.num_pages(), 6);
  std::set<std::int32_t> pages;
  for (const std::size_t seq : {0U, 2U}) {
    for (const std::int32_t position : {0, 16, 32}) pages.insert(layout.page_of(seq, position));
  }
  EXPECT_EQ(pages.size(), 6U);
  EXPECT_EQ(*pages.begin(), 0);
  EXPECT_EQ(*pages.rbegin(), 5);
  EXPECT_EQ(layout.first_row(2), 1);
  EXPECT_EQ(layout.total_q(), 6);
}

TEST(PageLayout, SharedPrefixesAreTheSamePagesAtSeveralLevels) {
  const std::array<std::int32_t, 4> queries = {1, 1, 1, 1};
  const std::array<std::int32_t, 4> keys = {48, 48, 48, 48};
  const std::array<SharedPrefix, 2> shared = {SharedPrefix{0, 4, 16}, SharedPrefix{0, 2, 32}};
  const PageLayout layout(queries, keys, 16, 1, shared);
  EXPECT_EQ(layout.num_pages(), 1 + 1 + 2 + 4);
  EXPECT_EQ(layout.page_of(0, 0), layout.page_of(3, 0));
  EXPECT_EQ(layout.page_of(0, 16), layout.page_of(1, 16));
  EXPECT_NE(layout.page_of(0, 16), layout.page_of(2, 16));
  EXPECT_NE(layout.page_of(0, 32), layout.page_of(1, 32));
}

TEST(PageLayout, NamesWhoSharesAtEachLevel) {
  const std::array<std::int32_t, 4> queries = {1, 1, 1, 1};
  const std::array<std::int32_t, 4> keys = {48, 48, 48, 48};
  const std::array<SharedPrefix, 2> shared = {SharedPrefix{0, 3, 16}, SharedPrefix{1, 3, 32}};
  const PageLayout layout(queries, keys, 16, 1, shared);
  ASSERT_EQ(layout.named_batch().prefix_leaders.size(0), kMaxPrefixLevels);
  ASSERT_EQ(layout.named_batch().prefix_pages.size(1), 4);
  const auto entries = [](const TensorView& view) {
    const auto* const first = static_cast<const std::int32_t*>(view.data);
    return std::vector<std::int32_t>(first, first + 12);
  };
  EXPECT_EQ(entries(layout.named_batch().prefix_leaders),
            (std::vector<std::int32_t>{0, 0, 0, -1, -1, 1, 1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(entries(layout.named_batch().prefix_pages),
            (std::vector<std::int32_t>{1, 1, 1, 0, 0, 2, 2, 0, 0, 0, 0, 0}));
  EXPECT_FALSE(PageLayout(queries, keys, kContiguousKv, 1).named_batch().prefix_leaders.given());
}

TEST(PageLayout, ContiguousKeysLieInOrder) {
  const PageLayout layout(kQueries, kKeys, kContiguousKv, 1);
  EXPECT_EQ(layout.num_tokens(), 33 + 40);
  EXPECT_EQ(layout.token_of(0, 0), 0);
  EXPECT_EQ(layout.token_of(0, 32), 32);
  EXPECT_EQ(layout.token_of(2, 39), 33 + 39);
  const Batch batch = layout.batch();
  EXPECT_EQ(batch.page_table.data, nullptr);
  ASSERT_EQ(batch.kv_indptr.size(0), 4);
  const auto* const begins = static_cast<const std::int32_t*>(batch.kv_indptr.data);
  EXPECT_EQ(begins[2], 33);
  EXPECT_EQ(begins[3], 73);
}

TEST(PageLayout, ExtrasBelongToNobody) {
  const PageLayout layout(kQueries, kKeys, 16, 1, {},
                          {.padding_rows = 3, .stale_columns = 2, .unused_pages = true});
  EXPECT_EQ(layout.num_pages(), 6 + 3);
  EXPECT_EQ(layout.total_q(), 6 + 3);
  const Batch batch = layout.batch();
  EXPECT_EQ(batch.page_table.size(1), 3 + 2);
  EXPECT_GE(table_entry(batch, 0, 3), layout.num_pages());
  EXPECT_GE(table_entry(batch, 1, 0), layout.num_pages());
  EXPECT_EQ(layout.limits().max_kv_len, 40);
  EXPECT_EQ(layout.limits().max_total_q, 9);
}

}  // namespace
}  // namespace quire::tool
