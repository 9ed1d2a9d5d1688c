// SPDX-License-Identifier: Apache-2.0
/// @file
/// Persistent threads behind `Executor`.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "quire/executor.hpp"

namespace quire::cpu {

/// Threads that help whoever calls `parallel`. The caller works on its own call until no index is
/// left, so a call ends even if every thread of the pool is busy: calls may be nested and may come
/// from several threads at once.
class ThreadPool final : public Executor {
 public:
  /// @param num_threads Including the caller of `parallel`, ≥ 1.
  explicit ThreadPool(std::int32_t num_threads,
                      ThreadPlacement placement = ThreadPlacement::kAnywhere);
  ~ThreadPool() override;

  [[nodiscard]] std::int32_t concurrency() const noexcept override;
  void parallel(std::int32_t count, Task task, void* context) noexcept override;

 private:
  /// A call of `parallel`, on its caller's stack.
  struct Call {
    Task task = nullptr;
    void* context = nullptr;
    std::int32_t count = 0;
    std::atomic<std::int32_t> next{0};  // the first index that nobody has taken
    std::int32_t helpers = 0;           // threads of the pool inside it; under mutex_
    Call* older = nullptr;              // the list of open calls; under mutex_

    void work() noexcept;
  };

  void open(Call& call);
  void close(Call& call);
  [[nodiscard]] Call* join_open_call();
  void leave(Call& call);
  void wake_helpers(std::int32_t wanted);
  void stop();
  void help() noexcept;
  static void wait_for_change(std::atomic<std::uint32_t>& counter, std::uint32_t seen) noexcept;

  std::mutex mutex_;
  Call* newest_ = nullptr;                // open calls, the newest first; under mutex_
  std::atomic<std::uint32_t> opened_{0};  // counts calls opened: helpers sleep on it
  std::atomic<std::uint32_t> left_{0};    // counts helpers that left a call: callers sleep on it
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

/// Whether threads can be pinned here.
[[nodiscard]] bool can_pin_threads() noexcept;

/// @return Cores that this process may run on, ≥ 1.
[[nodiscard]] std::int32_t available_cores() noexcept;

}  // namespace quire::cpu
