// SPDX-License-Identifier: Apache-2.0
// Whole lives of random requests in random small pools, watched at every step.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "batching/updated_block.hpp"
#include "quire/batcher.hpp"

namespace quire {
namespace {

/// What the watcher knows of a request by itself.
struct Life {
  Request request;
  std::size_t ticket = 0;
  std::int32_t cached = 0;
  std::int32_t sampled = 0;
  std::int32_t stops_after = 0;  ///< tokens, ≤ max_new_tokens
  bool running = false;

  [[nodiscard]] std::pair<double, std::size_t> order() const { return {request.arrival, ticket}; }
};

struct World {
  PagePoolSpec pool;
  PageTableSpec table;
  StepBudget budget;
  int num_requests = 0;
  bool shuffled_arrivals = false;
};

class Simulation {
 public:
  Simulation(const World& world, unsigned seed)
      : random_(seed),
        world_(world),
        pool_(world.pool),
        table_(pool_, world.table),
        batcher_(table_, {.max_requests = world.num_requests}),
        builder_(table_),
        block_(table_),
        staging_(1U << 20U) {}

  /// Runs until every request has ended. Reports what must not be as test failures.
  void run() {
    int to_submit = world_.num_requests;
    while ((to_submit > 0 || !batcher_.idle()) && !testing::Test::HasFailure()) {
      for (; to_submit > 0 && up_to(2) == 0; --to_submit) submit();
      ASSERT_LT(step_, bound_) << "not all requests end";
      step();
    }
    EXPECT_TRUE(lives_.empty());
    EXPECT_EQ(pool_.num_free(), world_.pool.num_pages) << "pages are lost";
    EXPECT_EQ(table_.num_seqs(), 0);
    const BatcherStats stats = batcher_.stats();
    EXPECT_EQ(stats.finished, num_accepted_);
    EXPECT_EQ(stats.preemptions, num_preempted_);
    EXPECT_EQ(stats.prefill_tokens + stats.decode_tokens, useful_tokens_ + thrown_away_);
    EXPECT_EQ(stats.recomputed_tokens, thrown_away_);
    EXPECT_EQ(stats.peak_used_pages, peak_);
  }

  [[nodiscard]] const std::vector<std::int64_t>& diary() const { return diary_; }
  [[nodiscard]] std::int64_t num_preempted() const { return num_preempted_; }

 private:
  std::int32_t up_to(std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random_);
  }
  std::int32_t pages_for(std::int32_t tokens) const {
    return (tokens + world_.pool.page_size - 1) / world_.pool.page_size;
  }

  void submit() {
    const std::int32_t longest = std::min(world_.table.max_tokens_per_seq + 4,
                                          (world_.pool.num_pages + 1) * world_.pool.page_size);
    Life life;
    life.request = {next_id_++, 1 + up_to(longest - 1), 1 + up_to(up_to(3) == 0 ? longest : 9),
                    static_cast<double>(world_.shuffled_arrivals ? up_to(1000) : step_)};
    life.ticket = lives_submitted_++;
    life.stops_after = 1 + up_to(life.request.max_new_tokens - 1);
    const std::int32_t cached = life.request.prompt_tokens + life.request.max_new_tokens - 1;
    const bool fits =
        cached <= world_.table.max_tokens_per_seq && pages_for(cached) <= world_.pool.num_pages;
    ASSERT_EQ(batcher_.submit(life.request).ok(), fits);
    if (!fits) return;
    ++num_accepted_;
    bound_ += 2 * (cached + 2);
    lives_[life.request.id] = life;
  }

  void step() {
    ++step_;
    const Status planned = batcher_.plan(world_.budget, plan_);
    ASSERT_TRUE(planned.ok()) << planned.message();
    if (lives_.empty()) {
      ASSERT_TRUE(plan_.items.empty());
      return;
    }
    const std::uint64_t oldest_running = find_oldest(true);
    watch_preempted();
    watch_items(oldest_running);
    const Status committed = batcher_.commit(plan_, copies_);
    ASSERT_TRUE(committed.ok()) << committed.message();
    ASSERT_TRUE(copies_.empty()) << "nobody shares pages";
    peak_ = std::max(peak_, pool_.num_used());
    watch_batch();
    finish();
    const Status sound = batcher_.check();
    ASSERT_TRUE(sound.ok()) << sound.message();
  }

  static constexpr std::uint64_t kNobody = ~std::uint64_t{0};

  std::uint64_t find_oldest(bool running) const {
    std::uint64_t oldest = kNobody;
    for (const auto& [id, life] : lives_) {
      if (life.running == running &&
          (oldest == kNobody || life.order() < lives_.at(oldest).order())) {
        oldest = id;
      }
    }
    return oldest;
  }

  // Each of them is newer than everyone who goes on.
  void watch_preempted() {
    for (const std::uint64_t id : plan_.preempted) {
      Life& victim = lives_.at(id);
      ASSERT_TRUE(victim.running);
      for (const StepItem& item : plan_.items) {
        ASSERT_LT(lives_.at(item.request).order(), victim.order());
      }
      victim.running = false;
      thrown_away_ += victim.cached;
      victim.cached = 0;
      ++num_preempted_;
      diary_.push_back(-static_cast<std::int64_t>(id));
    }
  }

  void watch_items(std::uint64_t oldest_running) {
    std::int32_t tokens = 0;
    std::int32_t num_running = 0;
    bool oldest_moves = oldest_running == kNobody;
    std::vector<std::uint64_t> seen;
    for (const StepItem& item : plan_.items) {
      Life& life = lives_.at(item.request);
      const std::int32_t missing = life.request.prompt_tokens + life.sampled - life.cached;
      ASSERT_EQ(std::ranges::count(seen, item.request), 0);
      seen.push_back(item.request);
      ASSERT_EQ(item.position, life.cached);
      ASSERT_GE(item.num_new_tokens, 1);
      ASSERT_LE(item.num_new_tokens, missing);
      ASSERT_EQ(item.samples, item.num_new_tokens == missing);
      ASSERT_EQ(item.is_prefill, missing > 1 || life.sampled == 0);
      ASSERT_EQ(item.admitted, !life.running);
      if (item.admitted) {
        ASSERT_EQ(item.request, find_oldest(false)) << "someone overtakes the head of the queue";
        ASSERT_TRUE(plan_.preempted.empty());
      }
      life.running = true;
      life.cached += item.num_new_tokens;
      tokens += item.num_new_tokens;
      oldest_moves = oldest_moves || item.request == oldest_running;
      diary_.push_back(static_cast<std::int64_t>(item.request));
      diary_.push_back(item.num_new_tokens);
    }
    for (const auto& [id, life] : lives_) num_running += life.running ? 1 : 0;
    ASSERT_TRUE(oldest_moves) << "the oldest running request stands still";
    ASSERT_FALSE(plan_.items.empty()) << "a step without work";
    ASSERT_EQ(tokens, plan_.num_tokens);
    ASSERT_LE(tokens, world_.budget.max_tokens);
    ASSERT_LE(num_running, world_.budget.max_seqs);
    ASSERT_LE(num_running, world_.table.max_seqs);
  }

  // The committed plan builds, and every new token has a slot of its own.
  void watch_batch() {
    block_.expect_as_built(plan_.batch);
    const Result<StagedBatch> batch = builder_.build(plan_.batch, staging_);
    ASSERT_TRUE(batch.ok()) << batch.status().message();
    ASSERT_EQ(batch->num_tokens, plan_.num_tokens);
    std::vector<std::int64_t> slots(batch->slot_mapping.begin(), batch->slot_mapping.end());
    std::ranges::sort(slots);
    ASSERT_TRUE(std::ranges::adjacent_find(slots) == slots.end());
  }

  void finish() {
    std::vector<std::uint64_t> stopped;
    std::vector<std::uint64_t> wanted;
    for (const StepItem& item : plan_.items) {
      if (!item.samples) continue;
      Life& life = lives_.at(item.request);
      ++life.sampled;
      if (life.sampled < life.stops_after) continue;
      if (life.stops_after < life.request.max_new_tokens) stopped.push_back(item.request);
      wanted.push_back(item.request);
      useful_tokens_ += life.cached;
      lives_.erase(item.request);
    }
    std::vector<std::uint64_t> ended;
    const Status finished = batcher_.finish(plan_, stopped, ended);
    ASSERT_TRUE(finished.ok()) << finished.message();
    std::ranges::sort(ended);
    std::ranges::sort(wanted);
    ASSERT_EQ(ended, wanted);
  }

  std::mt19937 random_;
  World world_;
  PagePool pool_;
  PageTable table_;
  Batcher batcher_;
  BatchBuilder builder_;
  test::UpdatedBlock block_;
  std::vector<std::byte> staging_;
  StepPlan plan_;
  std::vector<CopyOp> copies_;
  std::map<std::uint64_t, Life> lives_;
  std::vector<std::int64_t> diary_;
  std::uint64_t next_id_ = 1;
  std::size_t lives_submitted_ = 0;
  std::int64_t num_accepted_ = 0;
  std::int64_t num_preempted_ = 0;
  std::int64_t useful_tokens_ = 0;
  std::int64_t thrown_away_ = 0;
  std::int32_t peak_ = 0;
  std::int32_t step_ = 0;
  // The proof's bound, summed over all requests: alone, each needs a step per token at most; the
  // factor and the constant leave room for the steps without work before the last submission.
  std::int32_t bound_ = 1000;
};

World random_world(unsigned seed) {
  std::mt19937 random(seed);
  const auto up_to = [&random](std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random);
  };
  World world;
  world.pool = {.num_pages = 1 + up_to(up_to(1) == 0 ? 8 : 60), .page_size = 1 << up_to(4)};
  world.table = {.max_seqs = 1 + up_to(11), .max_tokens_per_seq = 1 + up_to(200)};
  world.budget = {.max_tokens = 1 + up_to(up_to(1) == 0 ? 7 : 100), .max_seqs = 1 + up_to(15)};
  if (up_to(2) == 0) {  // many at once in few pages, so that they get into each other's way
    world.pool.num_pages = 6 + up_to(6);
    world.table.max_seqs = 4 + up_to(4);
    world.budget = {.max_tokens = 32, .max_seqs = 8};
  }
  world.num_requests = 40;
  world.shuffled_arrivals = up_to(2) == 0;
  return world;
}

class RandomWorlds : public testing::TestWithParam<unsigned> {};

TEST_P(RandomWorlds, EveryRequestEndsNobodyOvertakesBudgetsHoldAndAllPagesComeBack) {
  std::int64_t preempted = 0;
  for (unsigned round = 0; round < 50; ++round) {
    const unsigned seed = GetParam() * 1000 + round;
    Simulation simulation(random_world(seed), seed);
    simulation.run();
    preempted += simulation.num_preempted();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_GT(preempted, 0) << "worlds so roomy that preemption is not tried";
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomWorlds, testing::Range(1U, 25U));

TEST(Batcher, TheSameInputGivesTheSameSteps) {
  const World world{{.num_pages = 9, .page_size = 2},
                    {.max_seqs = 4, .max_tokens_per_seq = 18},
                    {.max_tokens = 7, .max_seqs = 4},
                    60,
                    false};
  Simulation first(world, 5);
  Simulation second(world, 5);
  first.run();
  second.run();
  EXPECT_GT(first.num_preempted(), 0);
  EXPECT_EQ(first.diary(), second.diary());
}

}  // namespace
}  // namespace quire
