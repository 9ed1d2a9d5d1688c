// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where the CPU backend's threads come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "quire/export.h"

namespace quire {
inline namespace v0 {

/// Runs the CPU backend's tasks. Implement it to use an engine's own threads (OpenMP, oneTBB, …);
/// without one, quire uses `default_executor()`.
class QUIRE_API Executor {
 public:
  /// A unit of work: gets the context given to `parallel` and its own index.
  using Task = void (*)(void* context, std::int32_t index) noexcept;

  Executor() = default;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor();

  /// @return How many tasks can make progress at the same time, ≥ 1. Constant.
  [[nodiscard]] virtual std::int32_t concurrency() const noexcept = 0;

  /// Calls `task(context, i)` exactly once for each i in [0, count), in any order and on any
  /// threads (the caller's included), and returns when all have returned. Must accept calls from
  /// several threads at once, must not require that tasks run concurrently.
  virtual void parallel(std::int32_t count, Task task, void* context) noexcept = 0;
};

/// Where the threads of a pool run.
enum class ThreadPlacement : std::int32_t {
  kAnywhere = 0,  ///< Where the system puts them.
  kPinned = 1,    ///< Each on a core of its own, as long as there are enough (on Linux).
};

/// Makes a pool of persistent threads that sleep when there is no work.
/// @param num_threads Including the thread that calls `parallel`; 0 takes one per available core.
/// @throws Error `kInvalidArgument` if negative, `kOutOfMemory` if threads cannot be started.
[[nodiscard]] QUIRE_API std::unique_ptr<Executor> make_thread_pool(std::int32_t num_threads = 0);

/// The same, with a say in where threads run.
/// @param placement `kPinned`: the pool's own threads take the cores that the process may run on in
///   their order, from the second one on; the thread that calls `parallel` stays where its owner put
///   it (pin it to the first). For machines whose cores serve nothing else.
/// @throws Error as above; `kUnsupported` if threads are to be pinned where that is not possible.
[[nodiscard]] QUIRE_API std::unique_ptr<Executor> make_thread_pool(std::int32_t num_threads,
                                                                   ThreadPlacement placement);

/// The pool shared by everything that names no executor. Its first use, which may be the first
/// `Attention`, `append()` or `merge_states()` on the CPU, starts its threads: `QUIRE_NUM_THREADS`
/// of them (environment; the calling one included), 0 or unset: one per available core; pinned if
/// `QUIRE_PIN_THREADS` is 1. Never destroyed.
/// @throws Error `kInvalidArgument` if `QUIRE_NUM_THREADS` is not a number ≥ 0 or `QUIRE_PIN_THREADS`
///   neither 0 nor 1, `kOutOfMemory` if threads cannot be started; the next use tries again.
[[nodiscard]] QUIRE_API Executor& default_executor();

/// Touches memory that holds nothing yet, in pieces of 2 MiB that the executor's threads take one
/// after another: writes a zero into each of its pages. A system that places a page near the thread
/// that touches it first (Linux) so spreads a cache over the nodes of (pinned) threads, instead of
/// putting all of it on the node of one. Does not allocate. O(size).
/// @param memory    Freshly allocated; its content is not kept.
/// @param executor  Whose threads will work on it.
QUIRE_API void first_touch(std::span<std::byte> memory, Executor& executor) noexcept;

}  // namespace v0
}  // namespace quire
