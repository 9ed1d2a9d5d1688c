// SPDX-License-Identifier: Apache-2.0
/// @file
/// Executors that run tasks in ways of their own.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "quire/executor.hpp"

namespace quire::testing {

/// Claims `concurrency` threads and runs the tasks one after another, in an order of its own.
class OneByOne final : public Executor {
 public:
  explicit OneByOne(std::int32_t concurrency) : concurrency_(concurrency) {}
  [[nodiscard]] std::int32_t concurrency() const noexcept override { return concurrency_; }
  void parallel(std::int32_t count, Task task, void* context) noexcept override {
    ++calls;
    for (std::int32_t i = count - 1; i >= 0; --i) task(context, i);
  }
  std::int32_t calls = 0;

 private:
  std::int32_t concurrency_;
};

/// Claims `concurrency` threads and starts as many for each call.
class ThreadPerTask final : public Executor {
 public:
  explicit ThreadPerTask(std::int32_t concurrency) : concurrency_(concurrency) {}
  [[nodiscard]] std::int32_t concurrency() const noexcept override { return concurrency_; }
  void parallel(std::int32_t count, Task task, void* context) noexcept override {
    std::vector<std::thread> threads;
    for (std::int32_t i = 0; i < count; ++i) threads.emplace_back(task, context, i);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  std::int32_t concurrency_;
};

}  // namespace quire::testing
