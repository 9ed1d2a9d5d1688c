// SPDX-License-Identifier: Apache-2.0
// What the contract says about threads (docs/concepts/contract.md, T1), for ThreadSanitizer: pools
// share nothing, and a pool with all that is on it may be handed from thread to thread.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "batching/updated_block.hpp"
#include "quire/batcher.hpp"
#include "quire/prefix_cache.hpp"

namespace quire::test {
namespace {

constexpr std::int32_t kPages = 64;

/// A pool with everything on it.
struct Engine {
  PagePool pool{{.num_pages = kPages, .page_size = 4}};
  PageTable table{pool, {.max_seqs = 8, .max_tokens_per_seq = 128}};
  PrefixCache cache{pool};
  Batcher batcher{table, {.max_requests = 16}};
  UpdatedBlock block{table};
  StepPlan plan;
  std::vector<CopyOp> copies;
  std::vector<std::uint64_t> ended;
  std::uint64_t submitted = 0;

  /// A request in, a step, a prompt published and found, a page evicted.
  void turn() {
    if (batcher.stats().running + batcher.stats().waiting < 4) {
      EXPECT_TRUE(batcher.submit({++submitted, 9, 3, 0.0}).ok());
    }
    cache.evict(8 - pool.num_free());
    EXPECT_TRUE(batcher.plan({32, 8}, plan).ok());
    EXPECT_TRUE(batcher.commit(plan, copies).ok());
    block.expect_as_built(plan.batch);
    EXPECT_TRUE(batcher.finish(plan, {}, ended).ok());
    const std::vector<std::int32_t> tokens(6, static_cast<std::int32_t>(submitted));
    std::array<PageId, 2> pages{};
    if (!pool.allocate(pages).ok()) return;
    EXPECT_TRUE(cache.publish(0, tokens, pages).ok());
    EXPECT_TRUE(pool.release(pages).ok());
    EXPECT_EQ(cache.match(0, tokens).num_tokens(), 6);
  }
  void expect_sound() const {
    EXPECT_TRUE(table.check().ok());
    EXPECT_TRUE(cache.check().ok());
    EXPECT_TRUE(batcher.check().ok());
  }
};

TEST(Threads, PoolsShareNothing) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      Engine engine;
      for (int turn = 0; turn < 200; ++turn) engine.turn();
      engine.expect_sound();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Threads, APoolIsHandedOverByAMutex) {
  Engine engine;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int turn = 0; turn < 50; ++turn) {
        const std::scoped_lock owner(mutex);
        engine.turn();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine.expect_sound();
}

TEST(Threads, ALeaseMayEndOnTheThreadThatOwnsThePoolThen) {
  Engine engine;
  engine.turn();
  std::mutex mutex;
  PrefixLease lease =
      engine.cache.match(0, std::vector<std::int32_t>(6, static_cast<std::int32_t>(1)));
  ASSERT_EQ(engine.cache.stats().leases, 1);
  std::thread([&, held = std::move(lease)]() mutable {
    const std::scoped_lock owner(mutex);
    held.release();
  }).join();
  const std::scoped_lock owner(mutex);
  EXPECT_EQ(engine.cache.stats().leases, 0);
  engine.expect_sound();
}

}  // namespace
}  // namespace quire::test
