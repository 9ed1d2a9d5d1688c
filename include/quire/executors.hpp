// SPDX-License-Identifier: Apache-2.0
/// @file
/// Executors over threads that an engine has already. Header only: nothing of it is in the library,
/// and OpenMP is the one that the including file is compiled with.
#pragma once

#include <cstdint>
#include <utility>

#include "quire/executor.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace quire {
inline namespace v0 {

/// An executor made of a function that runs a loop in parallel.
///
/// With oneTBB, say:
///
///     quire::ParallelForExecutor threads(8, [&](std::int32_t count, const auto& body) {
///       arena.execute([&] { tbb::parallel_for(0, count, body); });
///     });
///
/// @tparam ParallelFor  `parallel_for(count, body)` calls `body(i)` exactly once for each i in
///   [0, count), in any order and on any threads (the caller's included), and returns when all have
///   returned. It is called from several threads at once and does not throw.
template <typename ParallelFor>
class ParallelForExecutor final : public Executor {
 public:
  /// @param concurrency  How many tasks can make progress at the same time, ≥ 1.
  ParallelForExecutor(std::int32_t concurrency, ParallelFor parallel_for)
      : concurrency_(concurrency), parallel_for_(std::move(parallel_for)) {}

  [[nodiscard]] std::int32_t concurrency() const noexcept override { return concurrency_; }
  void parallel(std::int32_t count, Task task, void* context) noexcept override {
    parallel_for_(count, [task, context](std::int32_t index) { task(context, index); });
  }

 private:
  const std::int32_t concurrency_;
  ParallelFor parallel_for_;
};

#if defined(_OPENMP)
/// OpenMP's threads. A call from inside a parallel region runs on the thread that makes it.
class OpenMpExecutor final : public Executor {
 public:
  /// @param num_threads  Of a team; 0 takes what OpenMP would (`omp_get_max_threads()`).
  explicit OpenMpExecutor(std::int32_t num_threads = 0)
      : num_threads_(num_threads > 0 ? num_threads : omp_get_max_threads()) {}

  [[nodiscard]] std::int32_t concurrency() const noexcept override { return num_threads_; }
  void parallel(std::int32_t count, Task task, void* context) noexcept override {
#pragma omp parallel for schedule(dynamic) num_threads(num_threads_) if (!omp_in_parallel())
    for (std::int32_t index = 0; index < count; ++index) task(context, index);
  }

 private:
  const std::int32_t num_threads_;
};
#endif

}  // namespace v0
}  // namespace quire
