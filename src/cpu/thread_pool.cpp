// SPDX-License-Identifier: Apache-2.0
#include "cpu/thread_pool.hpp"

#include <fmt/format.h>
#include <hwy/cache_control.h>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>
#include <system_error>

#include "quire/error.hpp"

namespace quire {
namespace cpu {
namespace {

/// Looks at a counter before sleeping on it: some ten microseconds, the length of a small step's
/// gaps between layers. Longer would take time from whoever shares the core.
constexpr int kSpins = 1000;

}  // namespace

std::int32_t available_cores() noexcept {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<std::int32_t>(std::thread::hardware_concurrency()));
}

bool can_pin_threads() noexcept {
#if defined(__linux__)
  return true;
#else
  return false;
#endif
}

namespace {

/// Cores that this process may run on, in order.
std::vector<std::size_t> cores_of_process() {
  std::vector<std::size_t> cores;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cores;
  for (std::size_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
#endif
  return cores;
}

/// Puts a thread on one core. A refusal (a core taken away meanwhile) leaves it where it is.
void pin([[maybe_unused]] std::thread& thread, [[maybe_unused]] std::size_t core) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  (void)pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
#endif
}

}  // namespace

ThreadPool::ThreadPool(std::int32_t num_threads, ThreadPlacement placement) {
  try {
    const std::vector<std::size_t> cores =
        placement == ThreadPlacement::kPinned ? cores_of_process() : std::vector<std::size_t>();
    threads_.reserve(static_cast<std::size_t>(num_threads - 1));
    for (std::size_t i = 1; i < static_cast<std::size_t>(num_threads); ++i) {
      threads_.emplace_back([this] { help(); });
      if (i < cores.size()) pin(threads_.back(), cores[i]);
    }
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

std::int32_t ThreadPool::concurrency() const noexcept {
  return static_cast<std::int32_t>(threads_.size()) + 1;
}

void ThreadPool::parallel(std::int32_t count, Task task, void* context) noexcept {
  Call call;
  call.task = task;
  call.context = context;
  call.count = count;
  if (count <= 1 || threads_.empty()) {
    call.work();
    return;
  }
  open(call);
  wake_helpers(count - 1);
  call.work();
  close(call);
}

void ThreadPool::Call::work() noexcept {
  for (std::int32_t index = next.fetch_add(1, std::memory_order_relaxed); index < count;
       index = next.fetch_add(1, std::memory_order_relaxed)) {
    task(context, index);
  }
}

void ThreadPool::open(Call& call) {
  const std::lock_guard lock(mutex_);
  call.older = newest_;
  newest_ = &call;
}

/// Takes the call off the list, so that nobody joins any more, and waits for those inside.
void ThreadPool::close(Call& call) {
  std::unique_lock lock(mutex_);
  Call** link = &newest_;
  while (*link != &call) link = &(*link)->older;
  *link = call.older;
  while (call.helpers > 0) {
    const std::uint32_t seen = left_.load(std::memory_order_relaxed);
    lock.unlock();
    wait_for_change(left_, seen);
    lock.lock();
  }
}

ThreadPool::Call* ThreadPool::join_open_call() {
  const std::lock_guard lock(mutex_);
  for (Call* call = newest_; call != nullptr; call = call->older) {
    if (call->next.load(std::memory_order_relaxed) >= call->count) continue;
    ++call->helpers;
    return call;
  }
  return nullptr;
}

/// The call may be gone once the lock is; the counter belongs to the pool.
void ThreadPool::leave(Call& call) {
  {
    const std::lock_guard lock(mutex_);
    --call.helpers;
    left_.fetch_add(1, std::memory_order_relaxed);
  }
  left_.notify_all();
}

void ThreadPool::wake_helpers(std::int32_t wanted) {
  opened_.fetch_add(1, std::memory_order_release);
  if (wanted >= static_cast<std::int32_t>(threads_.size())) {
    opened_.notify_all();
    return;
  }
  for (std::int32_t i = 0; i < wanted; ++i) opened_.notify_one();
}

void ThreadPool::help() noexcept {
  while (true) {
    const std::uint32_t seen = opened_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (Call* call = join_open_call()) {
      call->work();
      leave(*call);
    } else {
      wait_for_change(opened_, seen);
    }
  }
}

void ThreadPool::wait_for_change(std::atomic<std::uint32_t>& counter, std::uint32_t seen) noexcept {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (counter.load(std::memory_order_acquire) != seen) return;
    hwy::Pause();
  }
  counter.wait(seen, std::memory_order_acquire);
}

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  opened_.fetch_add(1, std::memory_order_release);
  opened_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

namespace {

/// Threads that the environment asks for; 0 is one per available core.
std::int32_t threads_from_environment() {
  const char* text = std::getenv("QUIRE_NUM_THREADS");
  if (text == nullptr) return 0;
  const std::string_view view(text);
  std::int32_t threads = -1;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), threads);
  if (error != std::errc() || end != view.data() + view.size() || threads < 0) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("[executor] QUIRE_NUM_THREADS: expected a number ≥ 0, got \"{}\"", view));
  }
  return threads;
}

ThreadPlacement placement_from_environment() {
  const char* text = std::getenv("QUIRE_PIN_THREADS");
  const std::string_view view = text == nullptr ? "0" : text;
  if (view != "0" && view != "1") {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[executor] QUIRE_PIN_THREADS: expected 0 or 1, got \"{}\"", view));
  }
  return view == "1" ? ThreadPlacement::kPinned : ThreadPlacement::kAnywhere;
}

}  // namespace
}  // namespace cpu

inline namespace v0 {

Executor::~Executor() = default;

std::unique_ptr<Executor> make_thread_pool(std::int32_t num_threads) {
  return make_thread_pool(num_threads, ThreadPlacement::kAnywhere);
}

std::unique_ptr<Executor> make_thread_pool(std::int32_t num_threads, ThreadPlacement placement) {
  if (num_threads < 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("[executor] num_threads: expected a number ≥ 0, got {}", num_threads));
  }
  if (placement == ThreadPlacement::kPinned && !cpu::can_pin_threads()) {
    throw Error(
        ErrorCode::kUnsupported,
        "[executor] placement: threads cannot be pinned on this system, leave them anywhere");
  }
  const std::int32_t threads = num_threads == 0 ? cpu::available_cores() : num_threads;
  try {
    return std::make_unique<cpu::ThreadPool>(threads, placement);
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("[executor] num_threads: expected to start {} threads, got: {}",
                            threads, error.what()));
  }
}

Executor& default_executor() {
  static Executor& pool =
      *make_thread_pool(cpu::threads_from_environment(), cpu::placement_from_environment())
           .release();
  return pool;
}

}  // namespace v0
}  // namespace quire
