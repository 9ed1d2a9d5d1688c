// SPDX-License-Identifier: Apache-2.0
// Which ops of a plan may run at the same time.
#include "core/copies.hpp"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "support/random_copies.hpp"

namespace quire {
namespace {

using core::independent_prefix;
using testing::CopyCase;
using testing::RandomCopies;

TEST(IndependentCopies, EndWhereAnOpReadsWhatAnEarlierOneWrote) {
  const std::array<CopyOp, 3> plan = {{{0, 1, 1}, {2, 3, 1}, {1, 4, 1}}};
  EXPECT_EQ(independent_prefix(plan, true), 2U);
  EXPECT_EQ(independent_prefix(plan, false), 3U);  // page 1 of another pool
}

TEST(IndependentCopies, EndWhereAnOpWritesWhatAnEarlierOneReads) {
  const std::array<CopyOp, 2> plan = {{{0, 1, 1}, {2, 0, 1}}};
  EXPECT_EQ(independent_prefix(plan, true), 1U);
  EXPECT_EQ(independent_prefix(plan, false), 2U);
}

TEST(IndependentCopies, EndWhereTwoOpsWriteThePage) {
  const std::array<CopyOp, 2> plan = {{{0, 1, 1}, {2, 1, 1}}};
  EXPECT_EQ(independent_prefix(plan, true), 1U);
  EXPECT_EQ(independent_prefix(plan, false), 1U);
}

TEST(IndependentCopies, MayReadOnePageManyTimes) {
  const std::array<CopyOp, 3> plan = {{{0, 1, 1}, {0, 2, 1}, {0, 3, 1}}};
  EXPECT_EQ(independent_prefix(plan, true), 3U);
  EXPECT_EQ(independent_prefix({}, true), 0U);
}

TEST(IndependentCopies, GiveTheSameBytesInAnyOrder) {
  for (const std::int64_t src_pages : {0, 5}) {
    for (std::uint32_t seed = 1; seed <= 50; ++seed) {
      CopyCase c;
      c.page_size = 4;
      c.num_heads = 1;
      c.head_dim = 2;
      c.num_pages = 12;
      c.src_pages = src_pages;
      c.seed = seed;
      RandomCopies in_order(c);
      RandomCopies shuffled(c);
      in_order.execute();
      std::mt19937 random(seed);
      for (std::span<CopyOp> rest(shuffled.plan); !rest.empty();) {
        const std::span<CopyOp> ops = rest.first(independent_prefix(rest, src_pages == 0));
        ASSERT_FALSE(ops.empty());
        std::ranges::shuffle(ops, random);
        rest = rest.subspan(ops.size());
      }
      shuffled.execute();
      ASSERT_EQ(shuffled.dst, in_order.dst) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace quire
