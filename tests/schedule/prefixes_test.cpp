// SPDX-License-Identifier: Apache-2.0
// Shared prefixes: the tree is the one that the tables make, every query attends to every key that
// it sees exactly once, and what waits to be joined is complete and has a place of its own. The latter
// two of a request's fixed parts, too.
#include "schedule/prefixes.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "page_forest.hpp"
#include "schedule/check.hpp"

namespace quire::schedule {
namespace {

using testing::invariant_forest;
using testing::named_groups;
using testing::NamedGroups;
using testing::PageForest;
using testing::random_forest;
using testing::shareable_pages;
using testing::shareable_tables;
using testing::sharing_policy;
using testing::spoil;
using testing::tables_of;

/// A forest's schedule.
struct Scheduled {
  explicit Scheduled(const PageForest& page_forest, const core::PrefixGroups& groups = {})
      : forest(page_forest),
        batch(forest.arrays()),
        workspace(schedule_bytes(forest.policy, batch.num_seqs) / 8 + 1, ~std::uint64_t{0}),
        view(view_of(forest.policy, batch.num_seqs, workspace.data())) {
    build(forest.policy, forest.shape, batch, view, groups);
  }

  /// All of it but the scratch of the search, which comes last.
  [[nodiscard]] std::span<const std::byte> bytes() const {
    const auto* const first = reinterpret_cast<const std::byte*>(workspace.data());
    return {first, static_cast<const std::byte*>(view.prefix_scratch)};
  }

  [[nodiscard]] std::vector<StoredSegment> prefixes() const {
    return {view.segments, view.segments + view.header->overview.num_prefixes};
  }
  /// Of both lines.
  [[nodiscard]] std::vector<std::pair<int, std::int32_t>> ranges() const {
    std::vector<std::pair<int, std::int32_t>> ranges;
    for (int line = 0; line < kLines; ++line) {
      for (std::int32_t range = 0; range < view.header->overview.num_ranges[line]; ++range) {
        ranges.emplace_back(line, range);
      }
    }
    return ranges;
  }

  const PageForest& forest;
  core::BatchArrays batch;
  std::vector<std::uint64_t> workspace;
  ScheduleView view;
};

/// A node: its requests, and the pages [first, last) that they share beyond the node above.
using Node = std::tuple<std::vector<std::int32_t>, std::int32_t, std::int32_t>;

/// The tree, told by its definition.
void find_nodes(const PageForest& forest, const std::vector<std::int32_t>& seqs, std::int32_t depth,
                std::int32_t level, std::set<Node>& nodes) {
  if (level == kPrefixLevels) return;
  std::map<std::int32_t, std::vector<std::int32_t>> by_next_page;
  for (const std::int32_t seq : seqs) {
    if (shareable_pages(forest, seq) <= depth) continue;
    const std::int32_t page = forest.table_of(seq)[depth];
    if (page >= 0) by_next_page[page].push_back(seq);
  }
  for (const auto& [page, members] : by_next_page) {
    if (members.size() < 2) continue;
    std::int32_t end = depth + 1;
    const auto all_go_on = [&] {
      return std::ranges::all_of(members, [&](std::int32_t seq) {
        return shareable_pages(forest, seq) > end &&
               forest.table_of(seq)[end] == forest.table_of(members.front())[end];
      });
    };
    while (all_go_on()) ++end;
    nodes.insert({members, depth, end});
    find_nodes(forest, members, end, level + 1, nodes);
  }
}

TEST(Prefixes, AreTheTreeOfTheTables) {
  std::mt19937 random(11);
  int with_levels = 0;
  for (int round = 0; round < 3000; ++round) {
    PageForest forest = random_forest(random, 40);
    // Every node saves something: a tile for all is as cheap as one for each.
    TilePolicy one_tile = forest.policy.lines[kSmallUnits];
    one_tile.up_to_rows = INT32_MAX;
    one_tile.keys_per_tile = 1;
    one_tile.tile_rows = 1 << 20;
    one_tile.cost_of_tile = 1000;
    forest.policy = Policy(one_tile);
    forest.policy.prefixes = {1 << 20, forest.shape.num_kv_heads, 64, 64, 1};
    const Scheduled scheduled(forest);
    std::vector<std::int32_t> all(static_cast<std::size_t>(forest.num_seqs()));
    for (std::int32_t seq = 0; seq < forest.num_seqs(); ++seq) {
      all[static_cast<std::size_t>(seq)] = seq;
    }
    std::set<Node> expected;
    find_nodes(forest, all, 0, 0, expected);

    std::set<Node> found;
    for (const StoredSegment& prefix : scheduled.prefixes()) {
      std::set<std::int32_t> members;
      for (std::int32_t i = 0; i < prefix.segment.lengths.qo_len; ++i) {
        const std::int32_t token = scheduled.view.listed[prefix.queries.first + i].token;
        const auto after = std::ranges::upper_bound(forest.qo_indptr, token);
        members.insert(static_cast<std::int32_t>(after - forest.qo_indptr.begin()) - 1);
      }
      found.insert({{members.begin(), members.end()},
                    prefix.segment.key_begin / forest.shape.page_size,
                    prefix.segment.key_end / forest.shape.page_size});
    }
    ASSERT_EQ(found, expected) << "round " << round;
    with_levels += static_cast<int>(std::popcount(scheduled.view.header->levels) > 1);
  }
  EXPECT_GT(with_levels, 100);
}

/// Where a key lies: its page and its place in it.
using Place = std::pair<std::int32_t, std::int32_t>;

/// What waits to be joined is complete, and every query attends to every key that it sees once.
void expect_every_key_once(const PageForest& forest, const Scheduled& scheduled) {
  const Header& header = *scheduled.view.header;
  // [token, kv head]: places of the keys that were attended, and states that were left.
  std::map<std::pair<std::int32_t, std::int32_t>, std::vector<Place>> attended;
  std::map<std::pair<std::int32_t, std::int32_t>, std::set<std::int32_t>> states;
  std::map<std::int32_t, std::int32_t> parts_of;  // a token's keys
  for (const auto& [line, range] : scheduled.ranges()) {
    WorkCursor cursor(forest.policy, forest.shape, scheduled.batch, scheduled.view, line, range);
    WorkItem item;
    Lengths lengths;
    QueryPlace queries;
    while (cursor.next(item, lengths, queries)) {
      for (std::int32_t i = item.q_begin; i < item.q_end; ++i) {
        const bool is_final = queries.state == QueryPlace::kFinal;
        const std::int32_t token =
            is_final ? queries.first + i : scheduled.view.listed[queries.first + i].token;
        const KeyRange seen = visible_keys(forest.shape, lengths, i, i + 1);
        for (std::int32_t head = item.kv_head_begin; head < item.kv_head_end; ++head) {
          const bool is_part = item.first_range == WorkItem::kFixedParts;
          const std::int32_t before = is_part ? item.piece * lengths.qo_len : 0;
          if (!is_final) states[{token, head}].insert(queries.state + before + i);
          if (is_part) parts_of[token] = item.num_pieces;
          for (std::int32_t key = std::max(item.kv_begin, seen.begin);
               key < std::min(item.kv_end, seen.end); ++key) {
            attended[{token, head}].push_back(
                {forest.table_of(item.seq)[key / forest.shape.page_size],
                 key % forest.shape.page_size});
          }
        }
      }
    }
  }
  std::map<std::int32_t, std::int32_t> results_of;  // of a listed query's token
  for (std::int32_t i = 0; i < header.num_listed; ++i) {
    const ListedQuery& query = scheduled.view.listed[i];
    const auto parts = parts_of.find(query.token);
    const std::int32_t more = parts == parts_of.end() ? 0 : parts->second - 1;
    ASSERT_TRUE(results_of.insert({query.token, std::popcount(query.levels) + more}).second);
  }
  std::set<std::int32_t> used;
  for (std::int32_t seq = 0; seq < forest.num_seqs(); ++seq) {
    const Lengths lengths = lengths_of(forest.shape, scheduled.batch, seq);
    for (std::int32_t i = 0; i < lengths.qo_len; ++i) {
      const std::int32_t token = scheduled.batch.qo_indptr[seq] + i;
      const KeyRange seen = visible_keys(forest.shape, lengths, i, i + 1);
      std::vector<Place> expected;
      for (std::int32_t key = seen.begin; key < seen.end; ++key) {
        expected.push_back(
            {forest.table_of(seq)[key / forest.shape.page_size], key % forest.shape.page_size});
      }
      std::ranges::sort(expected);
      for (std::int32_t head = 0; head < forest.shape.num_kv_heads; ++head) {
        std::ranges::sort(attended[{token, head}]);
        ASSERT_EQ((attended[{token, head}]), expected);
        const auto results = results_of.find(token);
        ASSERT_EQ((states[{token, head}].size()),
                  results == results_of.end() ? 0U : static_cast<std::size_t>(results->second));
      }
      for (const std::int32_t state : states[{token, 0}]) {
        ASSERT_TRUE(used.insert(state).second) << "two results share a place";
        ASSERT_LT(state, forest.policy.prefixes.max_states);
      }
    }
  }
  for (std::int32_t i = 0; i < header.num_listed * forest.shape.num_kv_heads; ++i) {
    ASSERT_EQ(scheduled.view.listed_arrivals[i], 0U);
  }
}

/// @param make_forest  Of which many have prefixes, or parts.
void expect_every_key_once_in_forests(PageForest (*make_forest)(std::mt19937&, std::int32_t)) {
  std::mt19937 random(7);
  int with_listed = 0;
  for (int round = 0; round < 2000; ++round) {
    SCOPED_TRACE(round);
    const PageForest forest = make_forest(random, 24);
    const Scheduled scheduled(forest);
    with_listed += static_cast<int>(scheduled.view.header->num_listed > 0);
    ASSERT_NO_FATAL_FAILURE(expect_every_key_once(forest, scheduled));
  }
  EXPECT_GT(with_listed, 300);
}

TEST(Prefixes, LeaveEveryQueryEveryKeyOnce) { expect_every_key_once_in_forests(random_forest); }
TEST(FixedParts, LeaveEveryQueryEveryKeyOnce) {
  expect_every_key_once_in_forests(invariant_forest);
}

/// Decodes of `num_seqs` requests that share `shared` pages of 16 keys and have `own` of their own.
PageForest decodes(std::int32_t num_seqs, std::int32_t shared, std::int32_t own) {
  PageForest forest;
  forest.shape.num_kv_heads = 8;
  forest.shape.group_size = 4;
  forest.shape.num_qo_heads = 32;
  forest.shape.page_size = 16;
  forest.shape.mask = Mask::kCausal;
  forest.policy = sharing_policy(8, 8);
  forest.policy.lines[kSmallUnits].keys_per_tile = 64;
  forest.policy.lines[kLargeUnits].keys_per_tile = 128;
  std::int32_t next = shared;
  for (std::int32_t seq = 0; seq < num_seqs; ++seq) {
    std::vector<std::int32_t> pages;
    for (std::int32_t page = 0; page < shared + own; ++page) {
      pages.push_back(page < shared ? page : next++);
    }
    forest.add(1, (shared + own) * 16, pages);
  }
  forest.finish();
  return forest;
}

void expect_same(const Scheduled& named, const Scheduled& found) {
  ASSERT_EQ(named.view.header->overview.num_prefixes, found.view.header->overview.num_prefixes);
  ASSERT_TRUE(std::ranges::equal(named.bytes(), found.bytes()));
}

TEST(NamedPrefixes, MakeTheScheduleThatIsFoundInTheTables) {
  std::mt19937 random(23);
  int with_levels = 0;
  for (int round = 0; round < 3000 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    const PageForest forest = random_forest(random, 40);
    const NamedGroups groups = named_groups(shareable_tables(forest), random);
    const Scheduled found(forest);
    expect_same(Scheduled(forest, groups.arrays()), found);
    with_levels += static_cast<int>(std::popcount(found.view.header->levels) > 1);
  }
  EXPECT_GT(with_levels, 100);
}

// Groups say what tables begin with. What queries do not see of it, and who cannot share, is the schedule's to
// know.
TEST(NamedPrefixes, NeedNotKnowWhatQueriesSee) {
  std::mt19937 random(24);
  int with_less_seen = 0;
  for (int round = 0; round < 3000 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    const PageForest forest = random_forest(random, 40);
    std::vector<std::int32_t> pages;
    for (const std::int32_t keys : forest.kv_len) pages.push_back(keys / forest.shape.page_size);
    const NamedGroups groups = named_groups(tables_of(forest, pages), random);
    if (!groups.is_complete) continue;
    const Scheduled found(forest);
    expect_same(Scheduled(forest, groups.arrays()), found);
    const NamedGroups of_seen = named_groups(shareable_tables(forest), random);
    with_less_seen += static_cast<int>(found.view.header->overview.num_prefixes > 0 &&
                                       of_seen.pages != groups.pages);
  }
  EXPECT_GT(with_less_seen, 100);
}

TEST(NamedPrefixes, AreThoseOfThePageAboutThem) {
  PageForest forest = decodes(1, 0, 0);
  const core::ProblemShape shape = forest.shape;
  forest = {};
  forest.shape = shape;
  forest.policy = sharing_policy(8, 8);
  forest.policy.lines[kSmallUnits].cost_of_tile = 10;  // so that a page of two pays
  for (const std::vector<std::int32_t>& table :
       testing::PageTables{{7, 3, 9, 1}, {7, 3, 9, 4}, {7, 3, 2}, {5, 6}}) {
    forest.add(1, static_cast<std::int32_t>(table.size()) * shape.page_size, table);
  }
  forest.finish();
  const std::vector<std::int32_t> leaders = {0, 0, 0, -1, 0, 0, -1, -1};
  const std::vector<std::int32_t> pages = {2, 2, 2, 0, 3, 3, 0, 0};
  const core::PrefixGroups groups{2, leaders.data(), 4, pages.data(), 4};
  const BatchLimits limits;
  for (std::int32_t seq = 0; seq < forest.num_seqs(); ++seq) {
    const core::BatchArrays batch = forest.arrays();
    EXPECT_EQ(RequestChecks(forest.shape, limits, batch, seq).prefixes(groups).what, 0);
  }
  const Scheduled named(forest, groups);
  EXPECT_EQ(named.view.header->overview.num_prefixes, 2);
  expect_same(named, Scheduled(forest));
}

TEST(NamedPrefixes, MayNameRequestsThatCannotShare) {
  PageForest forest = decodes(8, 16, 4);
  for (std::size_t i = 1; i < forest.qo_indptr.size(); ++i)
    forest.qo_indptr[i] += 39;  // of request 0
  NamedGroups groups(forest.kv_len.size());
  std::ranges::fill_n(groups.leaders.begin(), forest.num_seqs(), 0);
  std::ranges::fill_n(groups.pages.begin(), forest.num_seqs(), 16);
  const Scheduled named(forest, groups.arrays());
  expect_same(named, Scheduled(forest));
  ASSERT_EQ(named.view.header->overview.num_prefixes, 1);
  EXPECT_EQ(named.prefixes().front().segment.seq, 1);
  EXPECT_EQ(named.view.header->num_listed, 7);
}

// All tables are the same, so that whatever is said of the first pages is true and only the tree is wrong.
TEST(NamedPrefixes, ThatAreNoTreeLeaveEveryQueryEveryKeyOnce) {
  std::mt19937 random(25);
  int with_prefixes = 0;
  for (int round = 0; round < 1500 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    PageForest forest = random_forest(random, 24);
    for (std::size_t i = 0; i < forest.page_table.size(); ++i) {
      forest.page_table[i] = static_cast<std::int32_t>(i) % forest.width;
    }
    NamedGroups groups(forest.kv_len.size());
    spoil(groups, random);
    const Scheduled scheduled(forest, groups.arrays());
    with_prefixes += static_cast<int>(scheduled.view.header->num_listed > 0);
    ASSERT_LE(scheduled.view.header->num_segments,
              max_segments(forest.policy, scheduled.batch.num_seqs));
    ASSERT_NO_FATAL_FAILURE(expect_every_key_once(forest, scheduled));
  }
  EXPECT_GT(with_prefixes, 400);
}

/// All units of a request: line, kv heads, queries, keys, and which part of how many they are.
using UnitsOfRequest =
    std::multiset<std::tuple<int, std::int32_t, std::int32_t, std::int32_t, std::int32_t,
                             std::int32_t, std::int32_t, std::int32_t>>;

std::vector<UnitsOfRequest> units_of_requests(const PageForest& forest) {
  const Scheduled scheduled(forest);
  std::vector<UnitsOfRequest> units(static_cast<std::size_t>(forest.num_seqs()));
  for (const auto& [line, range] : scheduled.ranges()) {
    WorkCursor cursor(forest.policy, forest.shape, scheduled.batch, scheduled.view, line, range);
    WorkItem item;
    Lengths lengths;
    QueryPlace queries;
    while (cursor.next(item, lengths, queries)) {
      EXPECT_TRUE(item.num_pieces == 1 || item.first_range == WorkItem::kFixedParts);
      units[static_cast<std::size_t>(item.seq)].insert({line, item.kv_head_begin, item.q_begin,
                                                        item.q_end, item.kv_begin, item.kv_end,
                                                        item.piece, item.num_pieces});
    }
  }
  return units;
}

TEST(FixedParts, MakeUnitsThatDependOnTheRequestAlone) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const PageForest forest = invariant_forest(random, 24);
    const std::vector<UnitsOfRequest> together = units_of_requests(forest);
    for (std::int32_t seq = 0; seq < forest.num_seqs(); ++seq) {
      const auto at = static_cast<std::size_t>(seq);
      PageForest alone;
      alone.shape = forest.shape;
      alone.policy = forest.policy;
      const std::int32_t* const pages = forest.table_of(seq);
      alone.add(forest.qo_indptr[at + 1] - forest.qo_indptr[at], forest.kv_len[at],
                {pages, pages + forest.width - 1});
      alone.finish();
      ASSERT_EQ(units_of_requests(alone).front(), together[at]) << "round " << round;
    }
  }
}

TEST(Prefixes, AreNotMadeIfAllOfThemSaveTooLittle) {
  PageForest forest = decodes(8, 16, 4);
  EXPECT_EQ(Scheduled(forest).view.header->overview.num_prefixes, 1);
  forest.policy.prefixes.least_gain = 1000;
  EXPECT_EQ(Scheduled(forest).view.header->overview.num_prefixes, 0);
}

TEST(Prefixes, ThatDoNotPayBelongToThoseBelowThem) {
  // All share one page, less than a tile; halves share 32 more.
  PageForest forest = decodes(2, 0, 0);
  forest = {};
  const PageForest like = decodes(1, 1, 0);
  forest.shape = like.shape;
  forest.policy = like.policy;
  forest.policy.prefixes.queries_per_cost = 1;
  std::int32_t next = 1000;
  for (std::int32_t seq = 0; seq < 16; ++seq) {
    std::vector<std::int32_t> pages = {0};
    for (std::int32_t page = 0; page < 32; ++page) pages.push_back(100 + seq % 2 * 100 + page);
    pages.push_back(next++);
    forest.add(1, static_cast<std::int32_t>(pages.size()) * 16, pages);
  }
  forest.finish();
  const Scheduled scheduled(forest);
  ASSERT_EQ(scheduled.view.header->overview.num_prefixes, 2);
  for (const StoredSegment& prefix : scheduled.prefixes()) {
    EXPECT_EQ(prefix.segment.key_begin, 0);
    EXPECT_EQ(prefix.segment.key_end, 33 * 16);
  }
}

TEST(Prefixes, AreNotThoseOfRequestsWithManyRowsOrWithoutEarlierKeys) {
  PageForest many = decodes(4, 16, 4);
  for (std::size_t i = 0; i < many.qo_indptr.size(); ++i) {
    many.qo_indptr[i] = static_cast<std::int32_t>(i) * 17;  // 68 rows
  }
  EXPECT_EQ(Scheduled(many).view.header->overview.num_prefixes, 0);
  PageForest fresh = decodes(4, 16, 4);
  for (std::int32_t& keys : fresh.kv_len) keys = 16;  // 15 before the query
  EXPECT_EQ(Scheduled(fresh).view.header->overview.num_prefixes, 0);
}

TEST(Prefixes, AreNotSearchedAmongMoreRequestsThanThePolicySays) {
  PageForest forest = decodes(30, 64, 4);
  forest.policy.prefixes.most_seqs = 30;
  EXPECT_EQ(Scheduled(forest).view.header->overview.num_prefixes, 1);
  forest.policy.prefixes.most_seqs = 29;
  EXPECT_EQ(Scheduled(forest).view.header->overview.num_prefixes, 0);
}

TEST(Prefixes, TakeNoMoreQueriesThanCanWait) {
  PageForest forest = decodes(30, 64, 4);
  forest.policy.prefixes.max_states = 20;
  const Scheduled scheduled(forest);
  EXPECT_EQ(scheduled.view.header->overview.num_prefixes, 1);
  EXPECT_EQ(scheduled.view.header->num_listed, 10);
}

}  // namespace
}  // namespace quire::schedule
