// SPDX-License-Identifier: Apache-2.0
// Who goes first, and how long the others wait.
#include <limits>

#include "batching/batchers.hpp"

namespace quire {
namespace {

using test::Batchers;
using test::expect_failure;
using test::kPrefill;
using test::kSamples;
using test::Share;
using testing::ElementsAre;

TEST_F(Batchers, AHeadStartOvertakesThoseWhoCameLittleEarlier) {
  ASSERT_TRUE(batcher_.submit({1, 4, 1, 10.0}).ok());
  Request urgent{2, 4, 1, 12.0};
  urgent.head_start = 3.0;
  ASSERT_TRUE(batcher_.submit(urgent).ok());
  Request late{3, 4, 1, 13.0};
  late.head_start = 3.0;
  ASSERT_TRUE(batcher_.submit(late).ok());
  EXPECT_THAT(plan({.max_tokens = 100, .max_seqs = 3}),
              ElementsAre(Share{2, 0, 4, kPrefill, kSamples}, Share{1, 0, 4, kPrefill, kSamples},
                          Share{3, 0, 4, kPrefill, kSamples}))
      << "3 goes as if it had come when 1 did, and 1 was submitted first";
}

TEST_F(Batchers, HoweverManyComeWithAHeadStartTheOthersWaitIsBounded) {
  constexpr double kHeadStart = 10;
  ASSERT_TRUE(batcher_.submit({1000, 4, 1, 0.0}).ok());
  // One request with a head start comes in each unit of time, and one is served.
  for (std::uint64_t time = 0;; ++time) {
    ASSERT_LE(time, 10U) << "those who come 10 later no longer go first";
    Request urgent{time, 4, 1, static_cast<double>(time)};
    urgent.head_start = kHeadStart;
    ASSERT_TRUE(batcher_.submit(urgent).ok());
    const std::vector<Share> shares = step({.max_tokens = 100, .max_seqs = 1});
    ASSERT_EQ(shares.size(), 1U);
    if (shares[0].request == 1000) {
      EXPECT_EQ(time, 10U);
      break;
    }
  }
}

TEST_F(Batchers, AHeadStartThatIsNotFiniteIsRefused) {
  Request request{1, 4, 1};
  request.head_start = std::numeric_limits<double>::infinity();
  expect_failure(batcher_.submit(request), ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected a finite head_start, got infinity (request 1)");
  request.head_start = std::numeric_limits<double>::quiet_NaN();
  expect_failure(batcher_.submit(request), ErrorCode::kInvalidArgument,
                 "[batcher] submit: expected a finite head_start, got NaN (request 1)");
}

TEST_F(Batchers, AWatermarkLeavesThoseWhoRunRoomToGrow) {
  batcher_ = Batcher(table_, {.max_requests = 5, .watermark_pages = 2});
  submit(1, 28, 4);  // 7 of 8 pages: nobody runs, so the watermark does not hold it back
  submit(2, 1, 1);
  EXPECT_THAT(step(), ElementsAre(Share{1, 0, 28, kPrefill, kSamples})) << "1 page is free";
  while (batcher_.stats().running > 0) step();
  EXPECT_EQ(batcher_.stats().preemptions, 0);
  submit(3, 20, 1);
  submit(4, 4, 1);
  EXPECT_EQ(plan().size(), 2U) << "2 of 8 pages stay free";
  try {
    batcher_ = Batcher(table_, {.max_requests = 5, .watermark_pages = -1});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[batcher] watermark_pages: expected at least 0, got -1");
  }
}

}  // namespace
}  // namespace quire
