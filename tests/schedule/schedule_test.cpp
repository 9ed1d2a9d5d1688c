// SPDX-License-Identifier: Apache-2.0
// The schedule on its own: every (row, key) pair exactly once, equal work, pieces that can be
// merged.
#include "schedule/schedule.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

namespace quire::schedule {
namespace {

#if defined(QUIRE_SANITIZED)
constexpr int kRandomBatches = 50'000;
#else
constexpr int kRandomBatches = 1'000'000;
#endif

/// A batch of lengths, scheduled.
class Scheduled {
 public:
  Scheduled(const Policy& tile_policy, core::ProblemShape problem_shape,
            std::vector<Lengths> lengths)
      : policy(tile_policy), shape(problem_shape), seqs(std::move(lengths)) {
    qo_indptr_.push_back(0);
    for (const Lengths& seq : seqs) {
      qo_indptr_.push_back(qo_indptr_.back() + seq.qo_len);
      kv_len_.push_back(seq.kv_len);
    }
    batch.num_seqs = static_cast<std::int32_t>(seqs.size());
    batch.qo_indptr = qo_indptr_.data();
    batch.kv_len = kv_len_.data();
    workspace_.resize(schedule_bytes(policy, batch.num_seqs) / 8 + 1, ~std::uint64_t{0});
    view = view_of(policy, batch.num_seqs, workspace_.data());
    build(policy, shape, batch, view);
  }
  Scheduled(const Scheduled&) = delete;
  Scheduled& operator=(const Scheduled&) = delete;

  Scheduled(const TilePolicy& small, core::ProblemShape problem_shape, std::vector<Lengths> lengths)
      : Scheduled(Policy(small), problem_shape, std::move(lengths)) {}

  [[nodiscard]] std::vector<WorkItem> items_of(std::int32_t range, int line = kSmallUnits) const {
    std::vector<WorkItem> items;
    WorkCursor cursor(policy, shape, batch, view, line, range);
    for (WorkItem item; cursor.next(item);) items.push_back(item);
    return items;
  }

  Policy policy;
  core::ProblemShape shape;
  std::vector<Lengths> seqs;
  core::BatchArrays batch;
  ScheduleView view;

 private:
  std::vector<std::int32_t> qo_indptr_;
  std::vector<std::int32_t> kv_len_;
  std::vector<std::uint64_t> workspace_;
};

std::int32_t pick(std::mt19937& random, std::int32_t low, std::int32_t high) {
  return std::uniform_int_distribution<std::int32_t>(low, high)(random);
}

core::ProblemShape random_shape(std::mt19937& random) {
  core::ProblemShape shape;
  shape.num_kv_heads = pick(random, 1, 4);
  shape.group_size = pick(random, 1, 8);
  shape.num_qo_heads = shape.num_kv_heads * shape.group_size;
  shape.page_size = 16;
  shape.mask = static_cast<Mask>(pick(random, 0, 3));
  shape.window_left = pick(random, 0, 2) == 0 ? pick(random, 0, 300) : -1;
  return shape;
}

TilePolicy random_line(std::mt19937& random, const core::ProblemShape& shape) {
  TilePolicy policy;
  policy.keys_per_tile = 1 << pick(random, 2, 7);
  policy.tile_rows = pick(random, 1, 200);
  policy.num_ranges = pick(random, 1, 40);
  policy.heads_abreast = std::gcd(shape.num_kv_heads, pick(random, 1, 4));
  policy.min_split_tiles = pick(random, 1, 6);
  policy.cost_of_unit = pick(random, 1, 40);
  policy.cost_of_tile = pick(random, 0, 60);
  policy.cost_of_row = pick(random, 1, 3);
  policy.min_range_cost = pick(random, 1, 200);
  return policy;
}

Policy random_policy(std::mt19937& random, const core::ProblemShape& shape) {
  TilePolicy small = random_line(random, shape);
  small.all_heads_rows = pick(random, 0, 1) == 0 ? 0 : pick(random, 1, 64);
  Policy policy(small);
  if (pick(random, 0, 1) == 0) {
    TilePolicy& large = policy.lines[kLargeUnits];
    large = random_line(random, shape);
    large.over_rows = policy.lines[kSmallUnits].up_to_rows = pick(random, 0, 400);
    if (pick(random, 0, 1) == 0) {
      policy.workers = pick(random, 1, 60);
      policy.cost_of_change = pick(random, 0, 500);
      for (TilePolicy& line : policy.lines) {
        line.shares_at_once = pick(random, 1, 2);
        line.ranges_in_turn = pick(random, 1, 2);
        line.most_workers = pick(random, 1, 60);
      }
    }
  }
  return policy;
}

std::vector<Lengths> random_lengths(std::mt19937& random) {
  std::vector<Lengths> lengths(static_cast<std::size_t>(pick(random, 0, 6)));
  const std::int32_t longest = 1 << pick(random, 0, 11);
  for (Lengths& seq : lengths) {
    seq.kv_len = pick(random, 0, longest);
    switch (pick(random, 0, 3)) {
      case 0:
        seq.qo_len = 1;
        break;
      case 1:
        seq.qo_len = pick(random, 0, 8);
        break;
      case 2:
        seq.qo_len = pick(random, 0, seq.kv_len);
        break;
      default:
        seq.qo_len = pick(random, 0, longest);  // may exceed kv_len
    }
  }
  return lengths;
}

std::int64_t cost_of_item(const Scheduled& scheduled, int line, const WorkItem& item) {
  const TilePolicy& policy = scheduled.policy.lines[line];
  const std::int64_t heads = (item.kv_head_end - item.kv_head_begin) / policy.heads_abreast;
  const std::int64_t rows = (item.q_end - item.q_begin) * heads * scheduled.shape.group_size;
  const std::int64_t tiles = item.kv_begin >= item.kv_end
                                 ? 0
                                 : (item.kv_end + policy.keys_per_tile - 1) / policy.keys_per_tile -
                                       item.kv_begin / policy.keys_per_tile;
  return tiles * (heads * policy.cost_of_tile + rows * policy.cost_of_row) +
         (item.piece > 0 ? 0 : policy.cost_of_unit);
}

/// Gathers the items of all ranges by unit and checks that the units tile the batch.
void expect_exact_cover(const Scheduled& scheduled, int& split_units) {
  using UnitKey = std::tuple<std::int32_t, std::int32_t, std::int32_t>;  // seq, kv head, q_begin
  std::map<UnitKey, std::vector<WorkItem>> units;
  for (int line = 0; line < kLines; ++line) {
    std::set<std::int32_t> slots;
    std::set<std::pair<std::int32_t, UnitKey>> counters;
    for (std::int32_t range = 0; range < scheduled.view.header->overview.num_ranges[line];
         ++range) {
      for (const WorkItem& item : scheduled.items_of(range, line)) {
        const Lengths lengths = scheduled.seqs[static_cast<std::size_t>(item.seq)];
        ASSERT_EQ(line, line_of(scheduled.policy, scheduled.shape, lengths));
        const UnitKey key{item.seq, item.kv_head_begin, item.q_begin};
        units[key].push_back(item);
        if (item.num_pieces == 1) continue;
        const std::int32_t slot = partial_slot(item.first_range, item.piece);
        ASSERT_TRUE(slots.insert(slot).second) << "two pieces share slot " << slot;
        ASSERT_GE(slot, 0);
        ASSERT_LT(slot, 2 * scheduled.policy.lines[line].num_ranges);
        ASSERT_EQ(range, item.first_range + item.piece);
        counters.insert({item.first_range, key});
      }
    }
    split_units += static_cast<int>(counters.size());
    for (auto it = counters.begin(); it != counters.end(); ++it) {
      const auto next = std::next(it);
      ASSERT_TRUE(next == counters.end() || next->first != it->first)
          << "two split units share counter " << it->first;
    }
  }

  std::vector<std::int64_t> rows_seen(scheduled.seqs.size(), 0);  // queries × kv heads
  for (const auto& [key, pieces] : units) {
    const WorkItem& first = pieces.front();
    const auto seq = static_cast<std::size_t>(first.seq);
    rows_seen[seq] += static_cast<std::int64_t>(first.q_end - first.q_begin) *
                      (first.kv_head_end - first.kv_head_begin);
    ASSERT_LT(first.q_begin, first.q_end);
    ASSERT_LE(first.q_end, scheduled.seqs[seq].qo_len);
    const KeyRange keys =
        visible_keys(scheduled.shape, scheduled.seqs[seq], first.q_begin, first.q_end);
    ASSERT_EQ(static_cast<std::int32_t>(pieces.size()), first.num_pieces);
    std::int32_t at = keys.begin;
    for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
      ASSERT_EQ(pieces[piece].piece, static_cast<std::int32_t>(piece));
      ASSERT_EQ(pieces[piece].first_range, first.first_range);
      if (pieces.size() > 1) {
        ASSERT_EQ(pieces[piece].kv_begin, at);
        ASSERT_LT(pieces[piece].kv_begin, pieces[piece].kv_end);
      }
      at = pieces[piece].kv_end;
    }
    if (keys.begin < keys.end) {
      ASSERT_EQ(first.kv_begin, keys.begin);
      ASSERT_EQ(at, keys.end);
    } else {
      ASSERT_GE(first.kv_begin, first.kv_end);
    }
  }
  for (std::size_t seq = 0; seq < scheduled.seqs.size(); ++seq) {
    ASSERT_EQ(rows_seen[seq],
              static_cast<std::int64_t>(scheduled.seqs[seq].qo_len) * scheduled.shape.num_kv_heads);
  }
}

void expect_balance(const Scheduled& scheduled) {
  for (int line = 0; line < kLines; ++line) {
    const std::int32_t ranges = scheduled.view.header->overview.num_ranges[line];
    const std::int64_t total = scheduled.view.header->total_cost[line];
    const TilePolicy& policy = scheduled.policy.lines[line];
    const bool is_whole = (scheduled.view.header->overview.whole_lines >> line & 1U) != 0;
    const std::int32_t together =
        is_whole ? ranges_together(policy, scheduled.shape, *scheduled.view.header) : 1;
    const std::int64_t slack =
        is_whole ? total * together / std::max(ranges, 1) / 16 + 1
                 : 2 * (policy.cost_of_unit + (policy.min_split_tiles + 1) *
                                                  max_cost_of_kv_tile(policy, scheduled.shape));
    std::int64_t sum = 0;
    for (std::int32_t range = 0; range < ranges; range += together) {
      std::int64_t cost = 0;
      for (std::int32_t next = range; next < std::min(range + together, ranges); ++next) {
        for (const WorkItem& item : scheduled.items_of(next, line)) {
          cost += cost_of_item(scheduled, line, item);
        }
      }
      ASSERT_LE(cost, total * together / ranges + slack);
      sum += cost;
    }
    ASSERT_EQ(sum, total);
  }
}

/// Those of up to 64 rows are small.
Policy two_lines(const TilePolicy& like) {
  Policy policy(like);
  policy.lines[kSmallUnits].up_to_rows = 64;
  TilePolicy& large = policy.lines[kLargeUnits];
  large = like;
  large.over_rows = 64;
  large.tile_rows = 128;
  return policy;
}

TEST(Schedule, HasRangesOnlyOfLinesThatHaveUnits) {
  core::ProblemShape shape;
  shape.num_kv_heads = 2;
  shape.group_size = 4;
  shape.num_qo_heads = 8;
  const auto ranges_of = [&](std::vector<Lengths> lengths) {
    const Scheduled scheduled(two_lines({}), shape, std::move(lengths));
    const Header& header = *scheduled.view.header;
    return std::pair(header.overview.num_ranges[kSmallUnits],
                     header.overview.num_ranges[kLargeUnits]);
  };
  EXPECT_EQ(ranges_of({{1, 500}, {16, 500}, {0, 70}}), std::pair(1, 0));  // 64 rows are few
  EXPECT_EQ(ranges_of({{17, 500}, {0, 70}}), std::pair(0, 1));
  EXPECT_EQ(ranges_of({{17, 50000}, {1, 70}}), std::pair(1, 1));
  EXPECT_EQ(ranges_of({{0, 500}}), std::pair(0, 0));
}

TEST(Schedule, CutsRequestsOfManyRowsIntoLargeTiles) {
  TilePolicy small;
  small.tile_rows = 32;
  core::ProblemShape shape;
  shape.num_kv_heads = 1;
  shape.group_size = 4;
  shape.num_qo_heads = 4;
  const Scheduled scheduled(two_lines(small), shape, {{16, 100}, {40, 100}});
  const auto queries_of = [&](int line) {
    std::vector<std::int32_t> queries;
    for (const WorkItem& item : scheduled.items_of(0, line)) {
      queries.push_back(item.q_end - item.q_begin);
    }
    return queries;
  };
  EXPECT_THAT(queries_of(kSmallUnits), testing::ElementsAre(8, 8));
  EXPECT_THAT(queries_of(kLargeUnits), testing::ElementsAre(32, 8));
}

// 128 units for 264 ranges, of which a worker takes two at the same time.
TEST(Schedule, LeavesUnitsOfFewRowsWholeIfThatIsAsEqualForWorkers) {
  TilePolicy tiles;
  tiles.num_ranges = 264;
  tiles.shares_at_once = 2;
  core::ProblemShape shape;
  shape.num_kv_heads = 1;
  const auto is_whole = [&](std::int32_t group, std::int32_t num_seqs) {
    shape.group_size = group;
    shape.num_qo_heads = group;
    const Scheduled scheduled(Policy(tiles), shape,
                              std::vector<Lengths>(static_cast<std::size_t>(num_seqs), {1, 8192}));
    expect_balance(scheduled);
    return (scheduled.view.header->overview.whole_lines & 1U) != 0;
  };
  EXPECT_TRUE(is_whole(8, 128));
  EXPECT_FALSE(is_whole(17, 128)) << "computing is what takes time";
  EXPECT_FALSE(is_whole(8, 120)) << "some workers would have nothing to do";
  tiles.shares_at_once = 1;
  EXPECT_FALSE(is_whole(8, 128)) << "half of the workers would have nothing to do";
}

TEST(Schedule, DividesWorkersSoThatTheLastIsDoneAsSoonAsCanBe) {
  std::mt19937 random(8);
  int divided = 0;
  for (int round = 0; round < kRandomBatches; ++round) {
    const core::ProblemShape shape = random_shape(random);
    Policy policy = two_lines({});
    TilePolicy& small = policy.lines[kSmallUnits];
    TilePolicy& large = policy.lines[kLargeUnits];
    small.heads_abreast = large.heads_abreast = std::gcd(shape.num_kv_heads, pick(random, 1, 8));
    small.shares_at_once = pick(random, 1, 2);
    large.ranges_in_turn = pick(random, 1, 2);
    policy.workers = pick(random, 1, 140);
    small.most_workers = pick(random, 1, policy.workers);
    small.num_ranges = large.num_ranges = 2 * policy.workers;
    policy.cost_of_change = pick(random, 0, 100);
    const std::int64_t costs[kLines] = {pick(random, 1, 100000), pick(random, 1, 100000)};
    Overview overview;
    overview.num_prefixes = 1;
    divide(policy, shape, costs, overview);

    const double small_cost = static_cast<double>(costs[kSmallUnits] * small.heads_abreast);
    const double large_cost = static_cast<double>(costs[kLargeUnits] * large.heads_abreast);
    const auto readers = [&](int workers) { return std::min(workers, small.most_workers); };
    const auto time_with = [&](int large_workers) {
      if (large_workers == 0) {
        return small_cost / readers(policy.workers) + large_cost / policy.workers +
               static_cast<double>(policy.cost_of_change);
      }
      return std::max(small_cost / readers(policy.workers - large_workers),
                      large_cost / large_workers);
    };
    const int step = large.heads_abreast;
    const int least_small = (small.heads_abreast + small.shares_at_once - 1) / small.shares_at_once;
    double best = time_with(0);
    for (int workers = step; workers <= policy.workers - least_small; workers += step) {
      best = std::min(best, time_with(workers));
    }
    ASSERT_EQ(overview.large_workers % step, 0);
    ASSERT_LE(overview.large_workers, std::max(0, policy.workers - least_small));
    ASSERT_LE(time_with(overview.large_workers), best * (1 + 1e-9)) << "in round " << round;
    if (overview.large_workers == 0) continue;
    ++divided;
    ASSERT_LE(overview.num_ranges[kLargeUnits] * large.heads_abreast,
              overview.large_workers * large.ranges_in_turn);
    ASSERT_LE(overview.num_ranges[kSmallUnits] * small.heads_abreast,
              (policy.workers - overview.large_workers) * small.shares_at_once);
  }
  EXPECT_GT(divided, kRandomBatches / 10);
}

TEST(Schedule, CoversEveryRowAndKeyExactlyOnceInRandomBatches) {
  std::mt19937 random(1);
  int split_units = 0;
  for (int round = 0; round < kRandomBatches; ++round) {
    const core::ProblemShape shape = random_shape(random);
    const Scheduled scheduled(random_policy(random, shape), shape, random_lengths(random));
    expect_exact_cover(scheduled, split_units);
    if (HasFatalFailure()) FAIL() << "in round " << round;
  }
  EXPECT_GT(split_units, kRandomBatches / 10) << "the batches hardly exercise split KV";
}

TEST(Schedule, BalancesRangesToWithinAFewTilesOrASixteenth) {
  std::mt19937 random(2);
  for (int round = 0; round < kRandomBatches / 10; ++round) {
    const core::ProblemShape shape = random_shape(random);
    const Scheduled scheduled(random_policy(random, shape), shape, random_lengths(random));
    expect_balance(scheduled);
    if (HasFatalFailure()) FAIL() << "in round " << round;
  }
}

/// Says key by key whether a query sees it, without the closed forms of the schedule.
bool sees(const core::ProblemShape& shape, Lengths seq, std::int32_t query, std::int32_t key) {
  const std::int32_t position = seq.kv_len - seq.qo_len + query;
  if (shape.window_left >= 0 && key < position - shape.window_left) return false;
  return shape.mask != Mask::kCausal || key <= position;
}

TEST(Schedule, CoversEveryVisiblePairOnceWhenCountedPairByPair) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const core::ProblemShape shape = random_shape(random);
    const Scheduled scheduled(random_policy(random, shape), shape, random_lengths(random));
    for (std::int32_t seq = 0; seq < scheduled.batch.num_seqs; ++seq) {
      const Lengths lengths = scheduled.seqs[static_cast<std::size_t>(seq)];
      std::vector<int> count(
          static_cast<std::size_t>(lengths.qo_len) * static_cast<std::size_t>(lengths.kv_len), 0);
      const Line line = line_of(scheduled.policy, scheduled.shape, lengths);
      for (std::int32_t range = 0; range < scheduled.view.header->overview.num_ranges[line];
           ++range) {
        for (const WorkItem& item : scheduled.items_of(range, line)) {
          if (item.seq != seq || item.kv_head_begin != 0) continue;
          for (std::int32_t query = item.q_begin; query < item.q_end; ++query) {
            for (std::int32_t key = item.kv_begin; key < item.kv_end; ++key) {
              ++count[static_cast<std::size_t>(query) * static_cast<std::size_t>(lengths.kv_len) +
                      static_cast<std::size_t>(key)];
            }
          }
        }
      }
      for (std::int32_t query = 0; query < lengths.qo_len; ++query) {
        for (std::int32_t key = 0; key < lengths.kv_len; ++key) {
          const int times =
              count[static_cast<std::size_t>(query) * static_cast<std::size_t>(lengths.kv_len) +
                    static_cast<std::size_t>(key)];
          ASSERT_LE(times, 1);
          if (sees(scheduled.shape, lengths, query, key)) {
            ASSERT_EQ(times, 1);
          }
        }
      }
    }
  }
}

TEST(Schedule, SplitsOneLongRequestAmongAllRanges) {
  TilePolicy policy;
  policy.num_ranges = 16;
  core::ProblemShape shape;
  shape.num_kv_heads = 8;
  shape.group_size = 4;
  shape.num_qo_heads = 32;
  policy.all_heads_rows = 256;
  const Scheduled scheduled(policy, shape, {{1, 65536}});
  EXPECT_EQ(scheduled.view.header->overview.num_ranges[kSmallUnits], 16);
  for (std::int32_t range = 0; range < 16; ++range) {
    const std::vector<WorkItem> items = scheduled.items_of(range);
    ASSERT_EQ(items.size(), 1U);
    EXPECT_EQ(items[0].num_pieces, 16);
    EXPECT_NEAR(items[0].kv_end - items[0].kv_begin, 4096, 64);
  }
}

TEST(Schedule, LeavesUnitsWholeWhereRangesAreHardlyLongerThen) {
  TilePolicy policy;
  policy.num_ranges = 33;
  policy.heads_abreast = 8;
  policy.min_split_tiles = 1;
  core::ProblemShape shape;
  shape.num_kv_heads = 8;
  shape.group_size = 4;
  shape.num_qo_heads = 32;
  // So many equal units for 33 ranges: 64 are two each, but for two; 48 are one or two.
  for (const auto& [num_seqs, is_whole] :
       {std::pair(64U, true), std::pair(48U, false), std::pair(33U, true), std::pair(8U, false)}) {
    const Scheduled scheduled(policy, shape, std::vector<Lengths>(num_seqs, {1, 4096}));
    bool any_split = false;
    for (std::int32_t range = 0; range < 33; ++range) {
      for (const WorkItem& item : scheduled.items_of(range)) any_split |= item.num_pieces > 1;
    }
    EXPECT_EQ(any_split, !is_whole) << num_seqs;
  }
}

TEST(Schedule, OfABatchWithoutQueriesHasNoRanges) {
  const Scheduled none(TilePolicy{}, random_shape(*std::make_unique<std::mt19937>(4)), {});
  EXPECT_EQ(none.view.header->overview.num_ranges[kSmallUnits], 0);
  core::ProblemShape shape;
  shape.num_kv_heads = shape.group_size = shape.num_qo_heads = 1;
  const Scheduled empty(TilePolicy{}, shape, {{0, 100}, {0, 0}});
  EXPECT_EQ(empty.view.header->overview.num_ranges[kSmallUnits], 0);
}

TEST(Schedule, GivesRowsThatSeeNothingAnItemOfTheirOwn) {
  core::ProblemShape shape;
  shape.num_kv_heads = shape.group_size = shape.num_qo_heads = 1;
  const Scheduled scheduled(TilePolicy{}, shape, {{3, 0}});
  const std::vector<WorkItem> items = scheduled.items_of(0);
  ASSERT_EQ(items.size(), 1U);
  EXPECT_EQ(items[0].q_end, 3);
  EXPECT_GE(items[0].kv_begin, items[0].kv_end);
}

TEST(Schedule, DescribesNoOtherBatchOfTheSameCost) {
  core::ProblemShape shape;
  shape.num_kv_heads = shape.group_size = shape.num_qo_heads = 1;
  TilePolicy policy;
  policy.all_heads_rows = 64;
  const Scheduled one(policy, shape, {{1, 128000}});
  const Scheduled other(policy, shape, {{8, 64000}});
  ASSERT_EQ(one.view.header->total_cost[0], other.view.header->total_cost[0]);
  EXPECT_FALSE(describes(one.view, one.policy, one.shape, other.batch));
}

TEST(Schedule, DescribesItsOwnBatchAndNoOther) {
  core::ProblemShape shape;
  shape.num_kv_heads = shape.group_size = shape.num_qo_heads = 1;
  const Scheduled one(TilePolicy{}, shape, {{1, 1000}, {5, 70}});
  const Scheduled other(TilePolicy{}, shape, {{1, 1000}, {5, 300}});
  EXPECT_TRUE(describes(one.view, one.policy, one.shape, one.batch));
  EXPECT_FALSE(describes(one.view, one.policy, one.shape, other.batch));
}

TEST(Schedule, ZeroesTheArrivalCountersWhateverTheWorkspaceHeld) {
  TilePolicy policy;
  policy.num_ranges = 7;
  core::ProblemShape shape;
  shape.num_kv_heads = shape.group_size = shape.num_qo_heads = 1;
  const Scheduled scheduled(policy, shape, {{1, 10}});
  for (int range = 0; range < 7; ++range)
    EXPECT_EQ(scheduled.view.lines[kSmallUnits].arrivals[range], 0U);
}

TEST(FloorSum, EqualsTheSumTermByTerm) {
  std::mt19937 random(5);
  for (int round = 0; round < 20'000; ++round) {
    const std::int64_t n = pick(random, 0, 50);
    const std::int64_t m = pick(random, 1, 130);
    const std::int64_t a = pick(random, 1, 200);
    const std::int64_t b = pick(random, -5000, 5000);
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += std::max<std::int64_t>(0, a * i + b) / m;
    ASSERT_EQ(detail::clamped_floor_sum(n, m, a, b), sum);
  }
}

TEST(FloorSum, HoldsForLengthsOfMillions) {
  const std::int64_t n = 1 << 17;
  const std::int64_t m = 64;
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += (std::int64_t{16} * i + 1'000'003) / m;
  EXPECT_EQ(detail::floor_sum(n, m, 16, 1'000'003), sum);
}

}  // namespace
}  // namespace quire::schedule
