// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "cpu/thread_pool.hpp"
#include "quire/error.hpp"
#include "quire/executor.hpp"
#include "quire/executors.hpp"

namespace quire {
namespace {

/// Counts how often each index was called.
struct Tally {
  explicit Tally(std::size_t count) : calls(count) {}
  static void task(void* context, std::int32_t index) noexcept {
    static_cast<Tally*>(context)->calls[static_cast<std::size_t>(index)].fetch_add(1);
  }
  [[nodiscard]] bool each_once() const {
    for (const std::atomic<int>& count : calls) {
      if (count.load() != 1) return false;
    }
    return true;
  }
  std::vector<std::atomic<int>> calls;
};

TEST(Executor, CallsEachIndexOnceForAnyCount) {
  const auto pool = make_thread_pool(3);
  for (const std::int32_t count : {0, 1, 2, 3, 4, 17, 1000}) {
    Tally tally(static_cast<std::size_t>(count));
    pool->parallel(count, Tally::task, &tally);
    EXPECT_TRUE(tally.each_once()) << count;
  }
}

TEST(Executor, HasTheConcurrencyItWasAskedFor) {
  EXPECT_EQ(make_thread_pool(1)->concurrency(), 1);
  EXPECT_EQ(make_thread_pool(5)->concurrency(), 5);
  EXPECT_EQ(make_thread_pool(0)->concurrency(), cpu::available_cores());
}

/// Calls tasks one after another and counts the calls of `parallel`.
class CountingExecutor final : public Executor {
 public:
  [[nodiscard]] std::int32_t concurrency() const noexcept override { return 3; }
  void parallel(std::int32_t count, Task task, void* context) noexcept override {
    tasks.push_back(count);
    for (std::int32_t index = 0; index < count; ++index) task(context, index);
  }
  std::vector<std::int32_t> tasks;
};

TEST(Executor, TouchesEachPageOfMemoryAndNothingBesides) {
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kGuard = 64;
  constexpr std::byte kOld{0xff};
  const auto pool = make_thread_pool(3);
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, kPage, kPage + 1,
                                 std::size_t{5} << 20, (std::size_t{2} << 20) + 5}) {
    std::vector<std::byte> bytes(kGuard + size + kGuard, kOld);
    first_touch(std::span(bytes).subspan(kGuard, size), *pool);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const bool inside = i >= kGuard && i < kGuard + size;
      const std::size_t at = i - kGuard;
      constexpr std::size_t kPiece = std::size_t{2} << 20;
      const bool touched =
          inside && (at % kPage == 0 || at % kPiece == kPiece - 1 || at == size - 1);
      ASSERT_EQ(bytes[i] == std::byte{0}, touched) << i << " of " << size;
    }
  }
}

TEST(Executor, TouchesMemoryOnAsManyThreadsAsItHas) {
  CountingExecutor executor;
  std::vector<std::byte> bytes(3 << 20);
  first_touch(bytes, executor);
  first_touch({}, executor);
  EXPECT_EQ(executor.tasks, std::vector<std::int32_t>{3});
}

TEST(Executor, RefusesANegativeNumberOfThreads) {
  try {
    (void)make_thread_pool(-2);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "[executor] num_threads: expected a number ≥ 0, got -2");
  }
}

TEST(Executor, RunsTasksOnSeveralThreadsAtTheSameTime) {
  const auto pool = make_thread_pool(2);
  struct Meeting {
    std::atomic<int> present{0};
    static void task(void* context, std::int32_t) noexcept {
      auto& present = static_cast<Meeting*>(context)->present;
      present.fetch_add(1);
      while (present.load() < 2) std::this_thread::yield();  // hangs if one thread does both
    }
  } meeting;
  pool->parallel(2, Meeting::task, &meeting);
  EXPECT_EQ(meeting.present.load(), 2);
}

TEST(Executor, ServesSeveralCallersAtOnce) {
  const auto pool = make_thread_pool(3);
  std::vector<std::thread> callers;
  std::atomic<int> good{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        Tally tally(13);
        pool->parallel(13, Tally::task, &tally);
        if (tally.each_once()) good.fetch_add(1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(good.load(), 4 * 200);
}

TEST(Executor, MayBeUsedFromInsideATask) {
  const auto pool = make_thread_pool(2);
  struct Outer {
    Executor& pool;
    std::atomic<int> inner_calls{0};
    static void inner(void* context, std::int32_t) noexcept {
      static_cast<Outer*>(context)->inner_calls.fetch_add(1);
    }
    static void outer(void* context, std::int32_t) noexcept {
      static_cast<Outer*>(context)->pool.parallel(5, inner, context);
    }
  } nested{*pool};
  pool->parallel(7, Outer::outer, &nested);
  EXPECT_EQ(nested.inner_calls.load(), 7 * 5);
}

TEST(Executor, WakesUpAfterItsThreadsFellAsleep) {
  const auto pool = make_thread_pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    Tally tally(64);
    pool->parallel(64, Tally::task, &tally);
    EXPECT_TRUE(tally.each_once());
  }
}

#if defined(__linux__)
TEST(Executor, KeepsPinnedThreadsOnCoresOfTheirOwn) {
  const std::int32_t cores = cpu::available_cores();
  if (cores < 2) GTEST_SKIP() << "one core";
  const auto pool = make_thread_pool(cores, ThreadPlacement::kPinned);
  struct Seen {
    std::thread::id caller = std::this_thread::get_id();
    std::mutex mutex;
    std::map<std::thread::id, std::set<std::size_t>>
        allowed;  // cores of each of the pool's own threads
  } seen;
  const auto task = [](void* context, std::int32_t) noexcept {
    auto& all = *static_cast<Seen*>(context);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // so that everybody takes some
    if (std::this_thread::get_id() == all.caller) return;
    cpu_set_t set;
    ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
    const std::lock_guard lock(all.mutex);
    for (std::size_t core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) all.allowed[std::this_thread::get_id()].insert(core);
    }
  };
  for (int round = 0; round < 100 && std::ssize(seen.allowed) < cores - 1; ++round) {
    pool->parallel(8 * cores, task, &seen);
  }
  std::set<std::size_t> taken;
  for (const auto& [thread, of_thread] : seen.allowed) {
    ASSERT_EQ(of_thread.size(), 1U);
    EXPECT_TRUE(taken.insert(*of_thread.begin()).second) << "two on core " << *of_thread.begin();
  }
  EXPECT_EQ(std::ssize(taken), cores - 1);
}
#endif

TEST(Executor, IsMadeOfAnyParallelLoop) {
  std::atomic<int> loops{0};
  ParallelForExecutor threads(2, [&](std::int32_t count, const auto& body) {
    ++loops;
    std::thread other([&] {
      for (std::int32_t i = 1; i < count; i += 2) body(i);
    });
    for (std::int32_t i = 0; i < count; i += 2) body(i);
    other.join();
  });
  EXPECT_EQ(threads.concurrency(), 2);
  Tally tally(17);
  threads.parallel(17, Tally::task, &tally);
  EXPECT_TRUE(tally.each_once());
  EXPECT_EQ(loops.load(), 1);
}

TEST(Executor, OfTheEnvironmentIsRefusedIfItIsNotANumber) {
  // The default executor of this process is made at its first use, which is here.
  setenv("QUIRE_NUM_THREADS", "many", 1);
  try {
    (void)default_executor();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[executor] QUIRE_NUM_THREADS: expected a number ≥ 0, got \"many\"");
  }
  setenv("QUIRE_NUM_THREADS", "2", 1);
  setenv("QUIRE_PIN_THREADS", "yes", 1);
  try {
    (void)default_executor();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[executor] QUIRE_PIN_THREADS: expected 0 or 1, got \"yes\"");
  }
  setenv("QUIRE_PIN_THREADS", "1", 1);
  EXPECT_EQ(default_executor().concurrency(), 2);
  EXPECT_EQ(&default_executor(), &default_executor());
  unsetenv("QUIRE_NUM_THREADS");
  unsetenv("QUIRE_PIN_THREADS");
}

}  // namespace
}  // namespace quire
