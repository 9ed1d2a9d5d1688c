// SPDX-License-Identifier: Apache-2.0
// Every call that changes something, on everything at once, in a random order; in each, every
// allocation fails once.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <iostream>
#include <map>
#include <string>

#include "batching/failing_engine.hpp"

namespace quire::test {
namespace {

TEST(EveryAllocation, MayFailInEveryCallAndChangesNothing) {
  std::map<std::string, Tally> sum;
  for (unsigned seed = 1; seed <= 24 && !HasFailure(); ++seed) {
    FailingEngine engine(seed, seed % 2 == 0);
    for (int turn = 0; turn < 1500 && !HasFailure(); ++turn) engine.turn();
    if (HasFailure()) std::cout << "seed " << seed << '\n';
    for (const auto& [name, tally] : engine.tallies()) {
      sum[name].calls += tally.calls;
      sum[name].failures += tally.failures;
      sum[name].refusals += tally.refusals;
    }
  }
  for (const auto& [name, tally] : sum) {
    std::cout << fmt::format("{:24} {:6} calls, {:6} failed allocations, {:6} refusals\n", name,
                             tally.calls, tally.failures, tally.refusals);
    EXPECT_GT(tally.calls, tally.refusals) << name;
  }
  EXPECT_EQ(sum.size(), 31U) << "every call was made";
  for (const char* const name :
       {"PageTable::append", "PageTable::accept_tree", "PrefixCache::save", "PrefixCache::restore",
        "PrefixCache::offload", "PrefixCache::fetch", "Batcher::submit", "Batcher::plan",
        "Batcher::commit", "Batcher::finish"}) {
    EXPECT_GT(sum[name].failures, 50) << name << " asks for memory";
    sum.erase(name);
  }
  for (const auto& [name, tally] : sum) EXPECT_EQ(tally.failures, 0) << name << " never does";
}

}  // namespace
}  // namespace quire::test
