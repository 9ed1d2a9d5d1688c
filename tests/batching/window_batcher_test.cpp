// SPDX-License-Identifier: Apache-2.0
// Batchers with window tables: what a query sees of a window must be there and be its own, whoever else
// had the page before; shares suffice; nothing is left at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "batching/stamped_table.hpp"
#include "cache/failing_new.hpp"
#include "quire/batcher.hpp"

namespace quire {
namespace {

struct World {
  PagePoolSpec pool;
  PageTableSpec table;
  std::vector<PagePoolSpec> window_pools;
  std::vector<std::int32_t> windows;
  StepBudget budget;
  BatcherSpec batcher;
};

struct Life {
  std::uint64_t prompt_of = 0;  // whose prompt it is: further samples share their first one's
  std::int32_t prompt = 0;
  std::vector<std::uint64_t> samples;
};

std::uint64_t stamp(std::uint64_t owner, std::int32_t position) {
  return owner * 1000 + static_cast<std::uint64_t>(position) + 1;
}

class Simulation {
 public:
  Simulation(const World& world, unsigned seed) : random_(seed), world_(world) {
    tables_.emplace_back(world.pool, world.table);
    std::vector<PageTable*> windows;
    for (std::size_t i = 0; i < world.windows.size(); ++i) {
      PageTableSpec spec = world.table;
      spec.window_left = world.windows[i];
      windows.push_back(&tables_.emplace_back(world.window_pools[i], spec).table);
    }
    batcher_.emplace(tables_[0].table, windows, world.batcher);
  }

  void run(int num_requests) {
    for (int step = 0; num_requests > 0 || !batcher_->idle(); ++step) {
      ASSERT_LT(step, 20000) << "not all requests end";
      for (; num_requests > 0 && up_to(2) == 0; --num_requests) submit();
      if (up_to(20) == 0 && !lives_.empty()) {
        static_cast<void>(batcher_->cancel(
            std::next(lives_.begin(), up_to(static_cast<int>(lives_.size()) - 1))->first));
      }
      one_step();
      if (testing::Test::HasFailure()) return;
    }
    for (test::StampedTable& each : tables_) {
      EXPECT_EQ(each.table.num_seqs(), 0);
      EXPECT_EQ(each.pool.num_free(), each.pool.spec().num_pages) << "pages are lost";
    }
  }

  [[nodiscard]] BatcherStats stats() const { return batcher_->stats(); }
  [[nodiscard]] std::int64_t num_holes() const { return num_holes_; }
  [[nodiscard]] std::int64_t num_copies() const { return num_copies_; }

 private:
  std::int32_t up_to(std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random_);
  }

  void submit() {
    const std::int32_t longest =
        std::min(world_.table.max_tokens_per_seq, world_.pool.num_pages * world_.pool.page_size);
    Request request{next_id_++, 1 + up_to(longest / 2), 1 + up_to(longest / 3)};
    Life life{request.id, request.prompt_tokens, {}};
    for (std::int32_t more = up_to(3) == 0 ? up_to(2) : 0; more > 0; --more) {
      life.samples.push_back(next_id_++);
    }
    request.further_samples = life.samples;
    if (!batcher_->submit(request).ok()) return;
    lives_[request.id] = life;
    for (const std::uint64_t id : life.samples) lives_[id] = {request.id, life.prompt, {}};
  }

  void one_step() {
    while (std::cmp_less(flights_.size(), world_.batcher.max_steps_in_flight)) {
      if (!flights_.empty() && up_to(4) == 0) break;
      StepPlan plan;
      Status status = batcher_->plan(world_.budget, plan);
      ASSERT_TRUE(status.ok()) << status.message();
      if (plan.items.empty()) break;
      std::vector<CopyOp> copies;
      status = batcher_->commit(plan, copies);
      ASSERT_TRUE(status.ok()) << status.message();
      compute(tables_[0], plan, plan.batch, copies);
      for (std::size_t i = 0; i < plan.windows.size(); ++i) {
        compute(tables_[i + 1], plan, plan.windows[i].batch, plan.windows[i].copies);
      }
      flights_.push_back(plan);
      sound();
      if (testing::Test::HasFailure()) return;
    }
    if (flights_.empty()) return;
    std::vector<std::uint64_t> ended;
    const Status status = batcher_->finish(flights_.front(), {}, ended);
    ASSERT_TRUE(status.ok()) << status.message();
    flights_.pop_front();
    sound();
  }

  // Copies, then all write, then all read what they see.
  void compute(test::StampedTable& on, const StepPlan& plan, const std::vector<BatchEntry>& batch,
               const std::vector<CopyOp>& copies) {
    num_copies_ += std::ssize(copies);
    on.copy(copies);
    on.block.expect_as_built(batch);
    ASSERT_EQ(batch.size(), plan.items.size());
    for (const bool writes : {true, false}) {
      for (std::size_t i = 0; i < batch.size(); ++i) {
        const StepItem& item = plan.items[i];
        const Life& life = lives_.at(item.request);
        const auto stamp_of = [&](std::int32_t position) {
          return stamp(position < life.prompt ? life.prompt_of : item.request, position);
        };
        const std::int32_t end = item.position + item.num_new_tokens;
        ASSERT_EQ(on.table.length(batch[i].seq), end);
        if (writes) {
          on.write(batch[i].seq, item.position, end, stamp_of);
          continue;
        }
        num_holes_ += on.table.num_holes(batch[i].seq);
        const std::int32_t window = on.table.spec().window_left;
        on.expect(batch[i].seq, window < 0 ? 0 : std::max(0, item.position - window), end,
                  stamp_of);
      }
    }
  }

  void sound() {
    const Status status = batcher_->check();
    ASSERT_TRUE(status.ok()) << status.message();
  }

  std::mt19937 random_;
  World world_;
  std::deque<test::StampedTable> tables_;
  std::optional<Batcher> batcher_;
  std::map<std::uint64_t, Life> lives_;  // those that have ended too
  std::deque<StepPlan> flights_;
  std::uint64_t next_id_ = 1;
  std::int64_t num_holes_ = 0;
  std::int64_t num_copies_ = 0;
};

World random_world(unsigned seed) {
  std::mt19937 random(seed);
  const auto up_to = [&random](std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random);
  };
  World world;
  world.pool = {.num_pages = 3 + up_to(20), .page_size = 1 << up_to(4)};
  world.table = {.max_seqs = 1 + up_to(5), .max_tokens_per_seq = 12 + up_to(150)};
  if (up_to(4) == 0) world.table.window_left = up_to(20);
  world.budget = {.max_tokens = 1 + up_to(60), .max_seqs = 1 + up_to(8)};
  world.batcher = {.max_requests = 200, .max_steps_in_flight = 1 + up_to(1)};
  for (std::int32_t more = up_to(2); more >= 0; --more) {
    const std::int32_t page_size = 1 << up_to(3);
    const std::int32_t window = up_to(20);
    const std::int32_t steps = world.batcher.max_steps_in_flight;
    const std::int32_t least = (window + steps - 1 + page_size - 1) / page_size + 1;
    world.windows.push_back(window);
    world.window_pools.push_back({world.table.max_seqs * (least + up_to(3)), page_size});
  }
  return world;
}

class WindowWorlds : public testing::TestWithParam<unsigned> {};

TEST_P(WindowWorlds, EveryQueryFindsItsWindowAndNothingIsLeft) {
  std::int64_t holes = 0;
  std::int64_t copies = 0;
  std::int64_t preempted = 0;
  for (unsigned round = 0; round < 30; ++round) {
    const unsigned seed = GetParam() * 1000 + round;
    Simulation simulation(random_world(seed), seed);
    simulation.run(30);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    holes += simulation.num_holes();
    copies += simulation.num_copies();
    preempted += simulation.stats().preemptions;
  }
  EXPECT_GT(holes, 0);
  EXPECT_GT(copies, 0);
  EXPECT_GT(preempted, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, WindowWorlds, testing::Range(1U, 13U));

class WindowBatchers : public testing::Test {
 protected:
  static std::string refusal(PageTable& table, std::vector<PageTable*> windows,
                             const BatcherSpec& spec = {}) {
    try {
      const Batcher batcher(table, windows, spec);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  PagePool pool_{{.num_pages = 16, .page_size = 4}};
  PagePool window_pool_{{.num_pages = 12, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 3, .max_tokens_per_seq = 64}};
};

TEST_F(WindowBatchers, AShareTooSmallForTheWindowIsRefused) {
  PageTable window(window_pool_, {.max_seqs = 3, .max_tokens_per_seq = 64, .window_left = 13});
  EXPECT_EQ(
      refusal(table_, {&window}),
      "[batcher] windows: expected at least 5 pages for each of 3 sequences and 4 for each of 0 "
      "cached windows, got 12 in all");
  PageTable fits(window_pool_, {.max_seqs = 3, .max_tokens_per_seq = 64, .window_left = 12});
  EXPECT_EQ(refusal(table_, {&fits}), "");
  EXPECT_EQ(
      refusal(table_, {&fits}, {.max_steps_in_flight = 2}),
      "[batcher] windows: expected at least 5 pages for each of 3 sequences and 4 for each of 0 "
      "cached windows, got 12 in all");
  PageTable whole(window_pool_, {.max_seqs = 3, .max_tokens_per_seq = 64});
  EXPECT_EQ(refusal(table_, {&whole}),
            "[batcher] windows: expected tables with a window, got one without");
  PageTable fewer(window_pool_, {.max_seqs = 2, .max_tokens_per_seq = 64, .window_left = 4});
  EXPECT_EQ(
      refusal(table_, {&fewer}),
      "[batcher] windows: expected at least 3 sequences of 64 tokens, as the table has, got 2 "
      "of 64");
  PrefixCache of_windows(window_pool_);
  EXPECT_THROW(Batcher(fits, of_windows), Error);
  PrefixCache cache(pool_);
  PageTable* const windows[] = {&fits};
  EXPECT_THROW(Batcher(table_, cache, windows), Error)
      << "what lies behind a whole page counts too";
}

TEST_F(WindowBatchers, PrefillChunksAreAsLongAsTheShareAllows) {
  PageTable window(window_pool_, {.max_seqs = 3, .max_tokens_per_seq = 64, .window_left = 5});
  Batcher batcher(table_, std::array{&window});
  ASSERT_TRUE(batcher.submit({1, 40, 3}).ok());
  StepPlan plan;
  std::vector<CopyOp> copies;
  std::vector<std::uint64_t> ended;
  std::vector<std::int32_t> chunks;
  while (!batcher.idle()) {
    ASSERT_TRUE(batcher.plan({}, plan).ok());
    ASSERT_TRUE(batcher.commit(plan, copies).ok());
    chunks.push_back(plan.items[0].num_new_tokens);
    EXPECT_LE(window_pool_.num_used(), 4);
    ASSERT_TRUE(batcher.finish(plan, {}, ended).ok());
    EXPECT_EQ(batcher.check().message(), "");
  }
  EXPECT_EQ(chunks, (std::vector<std::int32_t>{8, 8, 8, 8, 8, 1, 1}));
}

TEST_F(WindowBatchers, WhatOthersTakeOfAWindowTableIsNoticed) {
  PageTable window(window_pool_, {.max_seqs = 3, .max_tokens_per_seq = 64, .window_left = 5});
  Batcher batcher(table_, std::array{&window});
  ASSERT_TRUE(batcher.submit({1, 8, 3}).ok());
  StepPlan plan;
  std::vector<CopyOp> copies;
  std::array<PageId, 11> taken{};
  ASSERT_TRUE(batcher.plan({}, plan).ok());
  ASSERT_TRUE(window_pool_.allocate(taken).ok());
  const Status status = batcher.commit(plan, copies);
  EXPECT_EQ(status.code(), ErrorCode::kOutOfPages);
  EXPECT_EQ(
      status.message(),
      "[batcher] commit: expected 2 free pages of a window table and room for 1 sequences, got 1 "
      "and 3: others took some");
  EXPECT_EQ(batcher.check().message(), "");
  ASSERT_TRUE(window_pool_.release(taken).ok());
  ASSERT_TRUE(batcher.commit(plan, copies).ok());
  EXPECT_EQ(plan.windows[0].batch.size(), 1U);
}

/// Pages of four tokens in both tables, and a window of five.
class CachedWindows : public testing::Test {
 protected:
  using Tokens = std::vector<std::int32_t>;

  explicit CachedWindows(std::int32_t cached_windows = 4) {
    PageTable* const windows[] = {&window_};
    batcher_.emplace(table_, cache_, windows, BatcherSpec{.cached_windows = cached_windows});
  }
  static Tokens text(std::int32_t n, std::int32_t first = 1) {
    Tokens tokens(static_cast<std::size_t>(n));
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
  }
  static Tokens joined(Tokens a, const Tokens& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  /// @return Where the request begins to compute.
  std::int32_t serve(const Tokens& prompt, std::int32_t max_new = 1) {
    Request request{next_id_++, static_cast<std::int32_t>(prompt.size()), max_new};
    request.prompt = prompt;
    EXPECT_TRUE(batcher_->submit(request).ok());
    std::int32_t position = -1;
    for (int steps = 0; !batcher_->idle() && steps < 100; ++steps) {
      EXPECT_TRUE(batcher_->plan({}, plan_).ok());
      const Status status = batcher_->commit(plan_, copies_);
      EXPECT_TRUE(status.ok()) << status.message();
      if (position < 0) position = plan_.items[0].position;
      const Tokens sampled(plan_.items[0].samples ? 1 : 0, 999);
      std::vector<std::uint64_t> ended;
      EXPECT_TRUE(batcher_->finish(plan_, sampled, {}, ended).ok());
      EXPECT_EQ(batcher_->check().message(), "");
    }
    return position;
  }

  PagePool pool_{{.num_pages = 64, .page_size = 4}};
  PagePool window_pool_{{.num_pages = 32, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 2, .max_tokens_per_seq = 64}};
  PageTable window_{window_pool_, {.max_seqs = 2, .max_tokens_per_seq = 64, .window_left = 5}};
  PrefixCache cache_{pool_};
  std::optional<Batcher> batcher_;
  std::uint64_t next_id_ = 0;
  StepPlan plan_;
  std::vector<CopyOp> copies_;
};

TEST_F(CachedWindows, ARequestGoesOnFromTheEndOfAnother) {
  EXPECT_EQ(serve(text(18)), 0);
  EXPECT_EQ(serve(joined(text(18), text(6, 100))), 16);
  EXPECT_EQ(plan_.windows[0].batch.size(), 1U);
  EXPECT_EQ(batcher_->stats().hit_tokens, 16);
  EXPECT_GT(window_pool_.num_used(), 0);
  batcher_.reset();
  EXPECT_EQ(window_pool_.num_free(), 32);
}

TEST_F(CachedWindows, WhatTheCacheKnowsAndNoWindowWasKeptOfIsComputedOnce) {
  EXPECT_EQ(serve(text(24)), 0);
  EXPECT_EQ(serve(joined(text(12), text(8, 100))), 0)
      << "nothing was kept in the middle of a prompt";
  EXPECT_EQ(serve(joined(text(12), text(8, 200))), 12) << "but where the second one left it";
}

TEST_F(CachedWindows, TheSamePromptAgainComputesItsLastPage) {
  EXPECT_EQ(serve(text(16)), 0);
  EXPECT_EQ(serve(text(16)), 12);
  EXPECT_EQ(serve(text(15)), 12);
}

TEST_F(CachedWindows, AWindowGoesWithItsPrefix) {
  serve(text(16));
  EXPECT_EQ(cache_.erase(0), 4);
  EXPECT_EQ(serve(text(17)), 0);
  EXPECT_EQ(serve(text(17)), 16);
  cache_.evict(64);
  EXPECT_EQ(serve(text(17)), 0);
}

TEST_F(CachedWindows, ACommitWithoutMemoryChangesNothing) {
  serve(text(16));
  const Tokens prompt = text(17);
  Request request{99, 17, 1};
  request.prompt = prompt;
  ASSERT_TRUE(batcher_->submit(request).ok());
  ASSERT_TRUE(batcher_->plan({}, plan_).ok());
  const StepPlan planned = plan_;
  const std::int32_t used = window_pool_.num_used();
  int failures = 0;
  for (int allowed = 0;; ++allowed) {
    plan_ = StepPlan();
    plan_.step = planned.step;
    plan_.items = planned.items;
    std::vector<CopyOp> copies;
    Status status;
    {
      const test::FailingNew failing(allowed, test::FailingNew::Which::kOne);
      status = batcher_->commit(plan_, copies);
    }
    EXPECT_EQ(batcher_->check().message(), "");
    if (status.ok()) break;
    ++failures;
    EXPECT_EQ(status.code(), ErrorCode::kOutOfMemory);
    EXPECT_EQ(window_pool_.num_used(), used);
    EXPECT_EQ(window_.num_seqs(), 0);
  }
  EXPECT_GE(failures, 4);
  EXPECT_EQ(window_.num_seqs(), 1);
}

TEST_F(CachedWindows, OnceThePlansHaveGrownAStepAllocatesNothing) {
  for (int round = 0; round < 3; ++round) {
    const Tokens prompt = joined(text(12), text(6, 100 * round));
    Request request{static_cast<std::uint64_t>(50 + round), 18, 4};
    request.prompt = prompt;
    ASSERT_TRUE(batcher_->submit(request).ok());
    std::vector<std::uint64_t> ended;
    ended.reserve(4);
    while (!batcher_->idle()) {
      const long before = test::num_allocations();
      ASSERT_TRUE(batcher_->plan({}, plan_).ok());
      ASSERT_TRUE(batcher_->commit(plan_, copies_).ok());
      ASSERT_TRUE(batcher_->finish(plan_, {}, ended).ok());
      if (round > 0) {
        EXPECT_EQ(test::num_allocations(), before);
      }
    }
  }
}

TEST_F(CachedWindows, ARequestWaitsForAnotherOnlyIfItCanGoOnFromItsEnd) {
  const auto planned_together = [&](const Tokens& first, const Tokens& second) {
    for (const auto& [id, prompt] : {std::pair{1, &first}, std::pair{2, &second}}) {
      Request request{static_cast<std::uint64_t>(id), static_cast<std::int32_t>(prompt->size()), 1};
      request.prompt = *prompt;
      EXPECT_TRUE(batcher_->submit(request).ok());
    }
    EXPECT_TRUE(batcher_->plan({}, plan_).ok());
    const std::size_t items = plan_.items.size();
    std::vector<std::uint64_t> ended;
    while (!batcher_->idle()) {
      EXPECT_TRUE(batcher_->plan({}, plan_).ok());
      EXPECT_TRUE(batcher_->commit(plan_, copies_).ok());
      EXPECT_TRUE(batcher_->finish(plan_, {}, ended).ok());
    }
    return items;
  };
  EXPECT_EQ(planned_together(text(17), text(17)), 1U);  // the second finds what the first leaves
  const Tokens common = text(12, 100);
  EXPECT_EQ(planned_together(joined(common, text(9, 200)), joined(common, text(9, 300))), 2U);
}

TEST_F(CachedWindows, APlanIsStaleOnceThePrefixHasGone) {
  serve(text(16));
  const Tokens prompt = text(17);
  Request request{99, 17, 1};
  request.prompt = prompt;
  ASSERT_TRUE(batcher_->submit(request).ok());
  ASSERT_TRUE(batcher_->plan({}, plan_).ok());
  EXPECT_EQ(plan_.items[0].position, 16);
  cache_.evict(1);
  EXPECT_EQ(batcher_->commit(plan_, copies_).message(),
            "[batcher] commit: expected the last plan, unchanged, got a plan of step " +
                std::to_string(plan_.step) + ": a cached window has gone");
  EXPECT_EQ(batcher_->check().message(), "");
}

/// Two windows are kept.
class TwoCachedWindows : public CachedWindows {
 protected:
  TwoCachedWindows() : CachedWindows(2) {}
};

TEST_F(TwoCachedWindows, TheLeastRecentlyUsedOneMakesRoom) {
  serve(text(9));
  serve(text(9, 100));
  EXPECT_EQ(serve(text(10)), 8);
  serve(text(9, 200));
  EXPECT_EQ(serve(text(10)), 8) << "it was used since";
  EXPECT_EQ(serve(text(10, 100)), 0);
}

/// Nothing is kept.
class NoCachedWindows : public CachedWindows {
 protected:
  NoCachedWindows() : CachedWindows(0) {}
};

TEST_F(NoCachedWindows, EveryRequestComputesItsWholePrompt) {
  serve(text(16));
  EXPECT_EQ(serve(text(17)), 0);
  EXPECT_EQ(window_pool_.num_free(), 32);
}

}  // namespace
}  // namespace quire
