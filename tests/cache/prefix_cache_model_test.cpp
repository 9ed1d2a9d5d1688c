// SPDX-License-Identifier: Apache-2.0
// Long random sequences of calls on small caches, against the oracle. Pools are so small, and tokens
// so few, that sharing, eviction and running out of pages are the rule.
#include <gtest/gtest.h>

#include <random>

#include "cache/checked_cache.hpp"

namespace quire::test {
namespace {

class RandomPrompts : public testing::TestWithParam<unsigned> {};

TEST_P(RandomPrompts, AgreeWithTheOracle) {
  std::mt19937 random(GetParam());
  const auto choose = [&random](std::int32_t limit) {
    return std::uniform_int_distribution<std::int32_t>(0, limit - 1)(random);
  };
  for (int round = 0; round < 20; ++round) {
    SCOPED_TRACE(testing::Message() << "seed " << GetParam() << ", round " << round);
    CheckedCache cache(choose);
    for (int call = 0; call < 300; ++call) ASSERT_NO_THROW(cache.step()) << "call " << call;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomPrompts, testing::Range(1U, 33U));

}  // namespace
}  // namespace quire::test
