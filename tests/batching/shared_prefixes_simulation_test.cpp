// SPDX-License-Identifier: Apache-2.0
// Random requests that begin alike, on pages whose contents are watched: whatever a request reads
// must be what it would have computed itself, also where steps are planned ahead of the device, and where
// pages go to the host and come back: with the steps, or beside them and as late as they may.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "batching/stamped_table.hpp"
#include "quire/batcher.hpp"

namespace quire {
namespace {

using Tokens = std::vector<std::int32_t>;

/// What a slot holds of a token depends on all tokens before it, as keys and values do.
std::vector<std::uint64_t> contents_of(std::uint64_t name_space,
                                       std::span<const std::int32_t> text) {
  constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15ULL;
  std::vector<std::uint64_t> contents;
  std::uint64_t hash = name_space + 1;
  for (const std::int32_t token : text) {
    hash = (hash ^ static_cast<std::uint64_t>(token + 1)) * kOdd;
    hash ^= hash >> 29U;
    contents.push_back(hash);
  }
  return contents;
}

struct Life {
  std::uint64_t name_space = 0;
  Tokens text;  // what the device knows: the prompt and what was sampled
  std::int32_t prompt = 0;
  std::int32_t max_new = 0;
  std::int32_t told = 0;  // of the text, to the host
  bool cancelled = false;
  bool stopped = false;
  std::vector<std::uint64_t> unborn{};  // its further samples that have not begun
  std::uint64_t sample_of = 0;          // whose it is, until it begins; 0 of others
};

/// A step that the device runs, and what it yields.
struct Flight {
  StepPlan plan;
  Tokens sampled;
  std::vector<std::uint64_t> stopped;
};

struct World {
  PagePoolSpec pool;
  PageTableSpec table;
  StepBudget budget;
  BatcherSpec batcher;
  PrefixCacheSpec cache;
  std::int32_t host_pages = 0;
  std::vector<PagePoolSpec> window_pools{};
  std::vector<std::int32_t> windows{};  // as many
};

class Simulation {
 public:
  Simulation(const World& world, unsigned seed)
      : random_(seed),
        world_(world),
        first_(world.pool, world.table),
        host_pool_({std::max(world.host_pages, 1), world.pool.page_size}),
        cache_(world.host_pages > 0 ? PrefixCache(pool_, host_pool_, world.cache)
                                    : PrefixCache(pool_, world.cache)),
        host_(static_cast<std::size_t>(world.host_pages) *
              static_cast<std::size_t>(world.pool.page_size)) {
    std::vector<PageTable*> tables;
    for (std::size_t i = 0; i < world.windows.size(); ++i) {
      PageTableSpec spec = world.table;
      spec.window_left = world.windows[i];
      tables.push_back(&windows_.emplace_back(world.window_pools[i], spec).table);
    }
    if (tables.empty()) {
      batcher_.emplace(table_, cache_, world.batcher);
    } else {
      batcher_.emplace(table_, cache_, tables, world.batcher);
    }
  }

  void run(int num_requests) {
    for (int step = 0; num_requests > 0 || !batcher_->idle(); ++step) {
      ASSERT_LT(step, 20000) << "not all requests end";
      for (; num_requests > 0 && up_to(2) == 0; --num_requests) submit();
      if (up_to(15) == 0) cancel();
      if (up_to(40) == 0) cache_.evict(up_to(3));
      if (up_to(60) == 0) cache_.erase(static_cast<std::uint64_t>(up_to(1)));
      if (up_to(60) == 0) cache_.evict_host(up_to(3));
      if (up_to(10) == 0) transfer();
      if (up_to(3) == 0) retire();
      one_step();
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_TRUE(flights_.empty());
    EXPECT_TRUE(lives_.empty());
    EXPECT_EQ(table_.num_seqs(), 0);
    while (!transfers_.empty()) retire();
    cache_.evict(world_.pool.num_pages);
    cache_.evict_host(world_.host_pages);
    EXPECT_EQ(host_pool_.num_free(), host_pool_.spec().num_pages) << "pages of the host are lost";
    EXPECT_EQ(pool_.num_free(), world_.pool.num_pages) << "pages are lost";
    const BatcherStats stats = batcher_->stats();
    EXPECT_EQ(stats.finished + stats.cancelled, num_accepted_);
    EXPECT_EQ(stats.prefill_tokens + stats.decode_tokens, computed_);
    batcher_.reset();
    for (const test::StampedTable& window : windows_) {
      EXPECT_EQ(window.pool.num_free(), window.pool.spec().num_pages) << "window pages are lost";
      EXPECT_EQ(window.table.num_seqs(), 0);
    }
    stats_ = stats;
  }

  [[nodiscard]] BatcherStats stats() const { return stats_; }
  [[nodiscard]] PrefixCacheStats cache_stats() const { return cache_.stats(); }
  [[nodiscard]] bool has_windows() const { return !windows_.empty(); }
  /// @return Plans that had nothing to do before a transfer had retired.
  [[nodiscard]] std::int64_t num_waits() const { return num_waits_; }
  [[nodiscard]] std::int64_t num_copies() const { return num_copies_; }
  /// @return Items that went on with a token that only the device knew.
  [[nodiscard]] std::int64_t num_ahead() const { return num_ahead_; }
  /// @return First tokens of further samples.
  [[nodiscard]] std::int64_t num_further() const { return num_further_; }
  /// @return Tokens that were sampled for requests that had been stopped.
  [[nodiscard]] std::int64_t num_void() const { return num_void_; }

 private:
  std::int32_t up_to(std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random_);
  }

  void submit() {
    const std::int32_t longest =
        std::min(world_.table.max_tokens_per_seq, world_.pool.num_pages * world_.pool.page_size);
    Life life;
    life.name_space = up_to(3) == 0 ? 1 : 0;
    life.prompt = 1 + up_to(longest - 1);
    life.max_new = 1 + up_to(9);
    life.told = life.prompt;
    // Few texts, that part late: an old one cut or continued, or one of few stems.
    if (!old_.empty() && up_to(1) == 0) {
      life.text = old_[static_cast<std::size_t>(up_to(static_cast<int>(old_.size()) - 1))];
    }
    const std::int32_t kept = up_to(static_cast<std::int32_t>(life.text.size()));
    life.text.resize(static_cast<std::size_t>(std::min(kept, life.prompt)));
    while (std::cmp_less(life.text.size(), life.prompt)) {
      life.text.push_back(up_to(20) == 0 ? up_to(2) : 0);
    }
    Request request{next_id_++, life.prompt, life.max_new};
    request.prompt = life.text;
    request.name_space = life.name_space;
    request.retention.priority = 30 + up_to(2);
    request.head_start = up_to(3);
    request.arrival = up_to(5);
    for (std::int32_t more = up_to(2) == 0 ? up_to(3) : 0; more > 0; --more) {
      life.unborn.push_back(next_id_++);
    }
    request.further_samples = life.unborn;
    const bool fits = life.prompt + life.max_new - 1 <= longest;
    ASSERT_EQ(batcher_->submit(request).ok(), fits);
    if (!fits) return;
    num_accepted_ += 1 + std::ssize(life.unborn);
    old_.push_back(life.text);
    lives_[request.id] = life;
    for (const std::uint64_t id : life.unborn) {
      lives_[id] = life;
      lives_[id].unborn.clear();
      lives_[id].sample_of = request.id;
    }
  }

  /// Whether a step in flight computes something for a request, or yields its first token.
  bool takes_part(std::uint64_t id) const {
    const Life& life = lives_.at(id);
    const std::uint64_t computes = life.sample_of == 0 ? id : life.sample_of;
    return std::ranges::any_of(flights_, [&](const Flight& flight) {
      return std::ranges::any_of(flight.plan.items, [&](const StepItem& item) {
        return item.request == computes && (life.sample_of == 0 || item.samples);
      });
    });
  }

  void cancel() {
    if (lives_.empty()) return;
    auto victim = lives_.begin();
    std::advance(victim, up_to(static_cast<int>(lives_.size()) - 1));
    const Status status = batcher_->cancel(victim->first);
    const bool ends = victim->second.cancelled || victim->second.stopped;
    ASSERT_EQ(status.ok(), !ends) << status.message();
    victim->second.cancelled = victim->second.cancelled || !ends;
    if (!ends) {
      for (const std::uint64_t id : victim->second.unborn) lives_.at(id).cancelled = true;
    }
    if (takes_part(victim->first)) return;
    if (victim->second.sample_of != 0) {
      std::erase(lives_.at(victim->second.sample_of).unborn, victim->first);
    }
    for (const std::uint64_t id : victim->second.unborn) lives_.erase(id);
    lives_.erase(victim);
  }

  // Plans as far ahead as is allowed, or less, then finishes the oldest step.
  void one_step() {
    while (std::cmp_less(flights_.size(), world_.batcher.max_steps_in_flight)) {
      if (!flights_.empty() && up_to(4) == 0) break;
      const Status planned = batcher_->plan(world_.budget, plan_);
      ASSERT_TRUE(planned.ok()) << planned.message();
      if (plan_.items.empty() && plan_.preempted.empty()) {
        ASSERT_TRUE(batcher_->idle() || !flights_.empty() || !transfers_.empty());
        if (flights_.empty() && !transfers_.empty()) ++num_waits_;
        break;
      }
      ASSERT_TRUE(plan_.preempted.empty() || flights_.empty());
      copies_.clear();
      const Status committed = batcher_->commit(plan_, copies_);
      ASSERT_TRUE(committed.ok()) << committed.message();
      compute();
      sample();
      sound();
      if (up_to(20) == 0) cancel();
      if (testing::Test::HasFailure()) return;
    }
    if (flights_.empty()) return retire();
    ASSERT_EQ(batcher_->plan(world_.budget, plan_).ok(),
              std::cmp_less(flights_.size(), world_.batcher.max_steps_in_flight));
    finish();
    sound();
  }

  // Somebody sends pages to the host or gets them back, beside the steps.
  void transfer() {
    TransferPlan plan;
    if (up_to(1) == 0) {
      ASSERT_TRUE(cache_.offload(up_to(4), plan).ok());
    } else if (!old_.empty()) {
      const Tokens& text = old_[static_cast<std::size_t>(up_to(static_cast<int>(old_.size()) - 1))];
      static_cast<void>(cache_.fetch(static_cast<std::uint64_t>(up_to(1)), text, plan));
    }
    if (!plan.empty()) transfers_.push_back(std::move(plan));
  }

  // One of these has run, whichever.
  void retire() {
    if (transfers_.empty()) return;
    const auto plan = transfers_.begin() + up_to(static_cast<int>(transfers_.size()) - 1);
    execute(*plan);
    ASSERT_EQ(cache_.retire(plan->ticket), std::ssize(plan->offloads) + std::ssize(plan->fetches));
    transfers_.erase(plan);
  }

  void execute(const TransferPlan& plan) {
    const auto copy = [this](const CopyOp& op, const std::vector<std::uint64_t>& from,
                             std::vector<std::uint64_t>& to) {
      const auto size = static_cast<std::size_t>(world_.pool.page_size);
      std::copy_n(
          from.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(op.src) * size),
          op.tokens,
          to.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(op.dst) * size));
    };
    for (const CopyOp& op : plan.offloads) copy(op, first_.stamps, host_);
    for (const CopyOp& op : plan.fetches) copy(op, host_, first_.stamps);
  }

  void compute() {
    ASSERT_EQ(plan_.transfers.ticket, 0U);
    execute(plan_.transfers);
    num_copies_ += std::ssize(copies_);
    first_.copy(copies_);
    first_.block.expect_as_built(plan_.batch);
    for (const StepItem& item : plan_.items) {
      const Life& life = lives_.at(item.request);
      ASSERT_FALSE(life.cancelled || life.stopped);
      ASSERT_LE(item.position + item.num_new_tokens, std::ssize(life.text));
      ASSERT_EQ(item.awaits_token, item.position + item.num_new_tokens > life.told);
      num_ahead_ += item.awaits_token ? 1 : 0;
      computed_ += item.num_new_tokens;
    }
    write_and_read(first_, plan_.batch);
    ASSERT_EQ(plan_.windows.size(), windows_.size());
    for (std::size_t i = 0; i < windows_.size(); ++i) {
      windows_[i].copy(plan_.windows[i].copies);
      windows_[i].block.expect_as_built(plan_.windows[i].batch);
      write_and_read(windows_[i], plan_.windows[i].batch);
    }
  }

  // All write before any reads; what each query sees is its own.
  void write_and_read(test::StampedTable& on, const std::vector<BatchEntry>& batch) {
    for (const bool writes : {true, false}) {
      for (std::size_t i = 0; i < batch.size(); ++i) {
        const StepItem& item = plan_.items[i];
        const Life& life = lives_.at(item.request);
        const std::vector<std::uint64_t> contents = contents_of(life.name_space, life.text);
        const auto stamp_of = [&](std::int32_t p) { return contents[static_cast<std::size_t>(p)]; };
        const std::int32_t end = item.position + item.num_new_tokens;
        const std::int32_t window = on.table.spec().window_left;
        if (writes) {
          on.write(batch[i].seq, item.position, end, stamp_of);
        } else {
          on.expect(batch[i].seq, window < 0 ? 0 : std::max(0, item.position - window), end,
                    stamp_of);
        }
      }
    }
  }

  // What the device yields at the end of the step: it goes on with it at once.
  void sample() {
    Flight flight{plan_, {}, {}};
    for (const StepItem& item : plan_.items) {
      if (!item.samples) continue;
      Life& life = lives_.at(item.request);
      std::vector<std::uint64_t> ids = {item.request};
      if (std::ssize(life.text) == life.prompt) {
        ids.insert(ids.end(), life.unborn.begin(), life.unborn.end());
      }
      ASSERT_EQ(item.num_samples, std::ssize(ids));
      num_further_ += item.num_samples - 1;
      for (const std::uint64_t id : ids) {
        flight.sampled.push_back(up_to(5) == 0 ? 1 : 0);
        lives_.at(id).text.push_back(flight.sampled.back());
        if (up_to(30) == 0) flight.stopped.push_back(id);
      }
      ASSERT_LE(std::ssize(life.text), life.prompt + life.max_new);
    }
    flights_.push_back(std::move(flight));
  }

  void finish() {
    const Flight flight = std::move(flights_.front());
    flights_.pop_front();
    for (const StepItem& item : flight.plan.items) {
      if (!item.samples) continue;
      Life& life = lives_.at(item.request);
      if (life.stopped) ++num_void_;
      if (!life.stopped) ++life.told;
      if (life.told != life.prompt + 1) continue;
      for (const std::uint64_t id : std::exchange(life.unborn, {})) {
        ++lives_.at(id).told;
        lives_.at(id).sample_of = 0;
      }
    }
    for (const std::uint64_t id : flight.stopped) lives_.at(id).stopped = true;
    const bool told = up_to(30) != 0;
    std::vector<std::uint64_t> ended;
    const Status status =
        batcher_->finish(flight.plan, told ? flight.sampled : Tokens{}, flight.stopped, ended);
    ASSERT_TRUE(status.ok()) << status.message();
    for (const std::uint64_t id : ended) lives_.erase(id);
  }

  void sound() {
    const Status status = batcher_->check();
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cache_.stats().leases, 0);
    const bool fetching = std::ranges::any_of(
        transfers_, [](const TransferPlan& plan) { return !plan.fetches.empty(); });
    if (fetching) return;  // what is before a page that is written stays too
    ASSERT_EQ(cache_.evictable_pages(), batcher_->stats().idle_pages)
        << "pages that count as free and cannot be evicted";
  }

  std::mt19937 random_;
  World world_;
  test::StampedTable first_;  // and what the device holds of it
  PagePool& pool_ = first_.pool;
  PageTable& table_ = first_.table;
  PagePool host_pool_;
  PrefixCache cache_;
  std::deque<test::StampedTable> windows_;
  std::optional<Batcher> batcher_;
  std::vector<std::uint64_t> host_;
  StepPlan plan_;
  std::vector<CopyOp> copies_;
  std::map<std::uint64_t, Life> lives_;
  std::vector<Tokens> old_;
  std::uint64_t next_id_ = 1;
  std::int64_t num_accepted_ = 0;
  std::int64_t num_copies_ = 0;
  std::int64_t computed_ = 0;
  std::int64_t num_ahead_ = 0;
  std::int64_t num_void_ = 0;
  std::int64_t num_further_ = 0;
  std::int64_t num_waits_ = 0;
  BatcherStats stats_;
  std::deque<Flight> flights_;           // the oldest first
  std::vector<TransferPlan> transfers_;  // of others, that have not retired
};

World random_world(unsigned seed) {
  std::mt19937 random(seed);
  const auto up_to = [&random](std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random);
  };
  World world;
  world.pool = {.num_pages = 3 + up_to(up_to(1) == 0 ? 8 : 60), .page_size = 1 << up_to(4)};
  world.table = {.max_seqs = 1 + up_to(8), .max_tokens_per_seq = 12 + up_to(150)};
  world.budget = {.max_tokens = 1 + up_to(up_to(1) == 0 ? 7 : 100), .max_seqs = 1 + up_to(10)};
  world.batcher = {.max_requests = 200, .watermark_pages = up_to(3)};
  world.batcher.max_steps_in_flight = 1 + up_to(1);
  world.cache.min_partial_tokens = 1 + up_to(3);
  if (up_to(2) > 0) {
    world.host_pages = 1 + up_to(up_to(1) == 0 ? 8 : 60);
    world.cache.costs = {.bytes_per_token = 1.0,
                         .link_bytes_per_second = 1.0 + up_to(9),
                         .transfer_seconds = 0.1 * up_to(9),
                         .prefill_tokens_per_second = 1.0};
  }
  if (up_to(2) > 0) return world;
  world.batcher.cached_windows = up_to(8);
  for (std::int32_t more = up_to(1); more >= 0; --more) {
    const std::int32_t page_size = 1 << up_to(3);
    const std::int32_t window = up_to(20);
    const std::int32_t tokens =
        window + world.pool.page_size - 1 + world.batcher.max_steps_in_flight;
    const std::int32_t share = (tokens + page_size - 2) / page_size + 1 + up_to(3);
    const std::int32_t suffix = (std::max(window, 1) + page_size - 2) / page_size + 1;
    world.windows.push_back(window);
    world.window_pools.push_back(
        {world.table.max_seqs * share + world.batcher.cached_windows * suffix, page_size});
  }
  return world;
}

class SharedWorlds : public testing::TestWithParam<unsigned> {};

TEST_P(SharedWorlds, EveryRequestReadsWhatItWouldHaveComputedEndsAndLeavesNothing) {
  std::int64_t hits = 0;
  std::int64_t copies = 0;
  std::int64_t preempted = 0;
  std::int64_t ahead = 0;
  std::int64_t in_vain = 0;
  std::int64_t further = 0;
  std::int64_t swaps = 0;
  std::int64_t fetched = 0;
  std::int64_t host_evicted = 0;
  std::int64_t waits = 0;
  std::int64_t window_hits = 0;
  for (unsigned round = 0; round < 40; ++round) {
    const unsigned seed = GetParam() * 1000 + round;
    Simulation simulation(random_world(seed), seed);
    simulation.run(40);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    hits += simulation.stats().hit_tokens;
    copies += simulation.num_copies();
    preempted += simulation.stats().preemptions;
    ahead += simulation.num_ahead();
    in_vain += simulation.num_void();
    further += simulation.num_further();
    swaps += simulation.stats().swaps;
    fetched += simulation.stats().fetched_tokens;
    host_evicted += simulation.cache_stats().host_evicted;
    waits += simulation.num_waits();
    if (simulation.has_windows()) window_hits += simulation.stats().hit_tokens;
  }
  EXPECT_GT(hits, 0);
  EXPECT_GT(copies, 0) << "nobody goes on in a shared page";
  EXPECT_GT(preempted, 0) << "worlds so roomy that preemption is not tried";
  EXPECT_GT(ahead, 0) << "nobody goes on before its token is known";
  EXPECT_GT(further, 0);
  EXPECT_GT(swaps, 0) << "nobody is swapped out";
  EXPECT_GT(fetched, 0) << "nothing comes back from the host";
  EXPECT_GT(host_evicted, 0) << "the host is never full";
  EXPECT_GT(window_hits, 0) << "nobody goes on from a cached window";
  EXPECT_GT(waits, 0) << "nobody waits for a transfer";
  EXPECT_GT(in_vain, 0) << "nobody is stopped while it goes on";
}

INSTANTIATE_TEST_SUITE_P(Seeds, SharedWorlds, testing::Range(1U, 13U));

}  // namespace
}  // namespace quire
