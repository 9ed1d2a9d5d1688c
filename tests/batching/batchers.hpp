// SPDX-License-Identifier: Apache-2.0
/// @file
/// An engine of a batcher, its table and its pool, small enough to be followed by hand.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string_view>
#include <vector>

#include "quire/batcher.hpp"

namespace quire::test {

inline void expect_failure(const Status& status, ErrorCode code, std::string_view text) {
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(status.message(), text);
}

/// What a test wants to see of an item.
struct Share {
  std::uint64_t request;
  std::int32_t position;
  std::int32_t n;
  bool is_prefill;
  bool samples;

  friend bool operator==(const Share&, const Share&) = default;
};

inline std::ostream& operator<<(std::ostream& out, const Share& share) {
  return out << "request " << share.request << " at " << share.position << " +" << share.n
             << (share.is_prefill ? " prefill" : " decode") << (share.samples ? " samples" : "");
}

inline constexpr bool kPrefill = true;
inline constexpr bool kDecode = false;
inline constexpr bool kSamples = true;

inline std::vector<Share> shares_of(const StepPlan& plan) {
  std::vector<Share> shares;
  for (const StepItem& item : plan.items) {
    shares.push_back(
        {item.request, item.position, item.num_new_tokens, item.is_prefill, item.samples});
  }
  return shares;
}

/// Eight pages of four tokens, four sequences of at most 32, five requests.
class Batchers : public testing::Test {
 protected:
  void submit(std::uint64_t id, std::int32_t prompt, std::int32_t max_new, double arrival = 0.0) {
    const Status status = batcher_.submit({id, prompt, max_new, arrival});
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::vector<Share> plan(StepBudget budget = {.max_tokens = 100, .max_seqs = 4}) {
    const Status status = batcher_.plan(budget, plan_);
    EXPECT_TRUE(status.ok()) << status.message();
    return shares_of(plan_);
  }
  void commit() {
    const Status status = batcher_.commit(plan_, copies_);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
  }
  std::vector<std::uint64_t> finish(std::vector<std::uint64_t> stopped = {}) {
    std::vector<std::uint64_t> ended;
    const Status status = batcher_.finish(plan_, stopped, ended);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_sound();
    return ended;
  }
  std::vector<Share> step(StepBudget budget = {.max_tokens = 100, .max_seqs = 4}) {
    std::vector<Share> shares = plan(budget);
    commit();
    finish();
    return shares;
  }
  void step_until_preempted() {
    do {
      step();
    } while (plan_.preempted.empty() && !batcher_.idle());
  }
  void expect_sound() {
    const Status status = batcher_.check();
    EXPECT_TRUE(status.ok()) << status.message();
  }

  PagePool pool_{{.num_pages = 8, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 4, .max_tokens_per_seq = 32}};
  Batcher batcher_{table_, {.max_requests = 5}};
  StepPlan plan_;
  std::vector<CopyOp> copies_;
};

}  // namespace quire::test
