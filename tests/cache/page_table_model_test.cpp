// SPDX-License-Identifier: Apache-2.0
// Long random sequences of calls on small tables, against the oracle. Pools are so small that
// running out of pages, of sequences and of length is as frequent as success.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <random>

#include "cache/checked_table.hpp"

namespace quire::test {
namespace {

using Kind = Op::Kind;

constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();

class RandomCalls : public testing::TestWithParam<unsigned> {
 protected:
  std::int32_t up_to(std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random_);
  }

  /// Mostly a live sequence; sometimes a destroyed one, or one that never was.
  SeqId some_seq(const CheckedTable& table) {
    const std::int32_t dice = up_to(19);
    if (dice == 0)
      return {static_cast<std::uint32_t>(up_to(5)), static_cast<std::uint32_t>(up_to(3))};
    const auto& dead = table.dead();
    if (dice == 1 && !dead.empty()) return dead[random_() % dead.size()];
    const auto& live = table.live();
    return live.empty() ? SeqId{} : live[random_() % live.size()].seq;
  }

  Op some_op(const CheckedTable& table) {
    constexpr std::array kKinds = {
        Kind::kCreate,  Kind::kFork,       Kind::kFork,       Kind::kAppend,  Kind::kAppend,
        Kind::kAppend,  Kind::kAppend,     Kind::kTruncate,   Kind::kDestroy, Kind::kRetain,
        Kind::kRelease, Kind::kAcceptTree, Kind::kAcceptTree, Kind::kSlide,   Kind::kSlide};
    constexpr std::array<std::int32_t, 4> kHuge = {-1, kMax, kMax - 1,
                                                   std::numeric_limits<std::int32_t>::min()};
    const Kind kind = kKinds[random_() % kKinds.size()];
    const SeqId seq = some_seq(table);
    const std::int32_t length = std::max(table.table().length(seq), 0);
    const std::int32_t num_pages = table.table().pool_spec().num_pages;
    const std::int32_t limit = kind == Kind::kAppend                             ? 5
                               : kind == Kind::kRetain || kind == Kind::kRelease ? num_pages
                                                                                 : length + 1;
    const std::int32_t n = up_to(29) == 0 ? kHuge[random_() % kHuge.size()] : up_to(limit);
    if (kind != Kind::kAcceptTree) return {kind, seq, n};
    // Mostly of tokens that there are; of all of them if there are many.
    const auto drafts = std::clamp<std::int64_t>(std::int64_t{length} - n, 0, 31);
    const std::uint32_t there = (1U << drafts) - 1;
    return {kind, seq, n, static_cast<std::uint32_t>(random_()) & (up_to(9) == 0 ? ~0U : there)};
  }

  std::vector<Op> some_appends(const CheckedTable& table) {
    std::vector<Op> appends;
    for (const CheckedTable::Live& live : table.live()) {
      if (up_to(3) > 0) appends.push_back({Kind::kAppend, live.seq, up_to(4)});
    }
    return appends;
  }

  std::mt19937 random_{GetParam()};
};

TEST_P(RandomCalls, AgreeWithTheOracle) {
  constexpr std::array<std::int32_t, 4> kPageSizes = {1, 2, 4, 16};
  for (int round = 0; round < 20; ++round) {
    CheckedTable table({.num_pages = 3 + up_to(14), .page_size = kPageSizes[random_() % 4]},
                       {.max_seqs = 1 + up_to(5),
                        .max_tokens_per_seq = 1 + up_to(50),
                        .window_left = up_to(1) == 0 ? -1 : up_to(9)});
    for (int call = 0; call < 250 && !HasFailure(); ++call) {
      if (up_to(9) == 0) {
        table.append_together(some_appends(table), random_);
      } else {
        table.apply(some_op(table));
      }
    }
    ASSERT_FALSE(HasFailure()) << "seed " << GetParam() << ", round " << round;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomCalls, testing::Range(1U, 33U));

}  // namespace
}  // namespace quire::test
