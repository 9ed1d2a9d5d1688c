// SPDX-License-Identifier: Apache-2.0
// Executors: an engine's callbacks, or a pool of quire's own.
#include "quire/executor.hpp"

#include <fmt/format.h>

#include "c/handles.hpp"
#include "c/structs.hpp"

namespace quire::c {
namespace {

/// An executor whose threads are the engine's.
class CallbackExecutor final : public Executor {
 public:
  explicit CallbackExecutor(const quire_executor_callbacks& callbacks) : callbacks_(callbacks) {}

  [[nodiscard]] std::int32_t concurrency() const noexcept override {
    return callbacks_.concurrency;
  }
  void parallel(std::int32_t count, Task task, void* context) noexcept override {
    callbacks_.parallel(callbacks_.user, count, task, context);
  }

 private:
  quire_executor_callbacks callbacks_;
};

Status create_executor(const quire_executor_callbacks* callbacks, quire_executor** out) {
  constexpr std::string_view kFunction = "quire_executor_create";
  quire_executor_callbacks given;
  Status status = check_result_handle(kFunction, "executor", out);
  if (status.ok()) status = read_struct(kFunction, "callbacks", callbacks, given);
  if (!status.ok()) return status;
  if (given.parallel == nullptr) {
    return null_argument({kFunction, "callbacks.parallel", "a function"});
  }
  if (given.concurrency < 1) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] callbacks.concurrency: expected at least 1, got {}", kFunction,
                        given.concurrency)};
  }
  if (given.reserved != 0) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] callbacks.reserved: expected 0, got {}", kFunction, given.reserved)};
  }
  *out = new quire_executor{.executor = std::make_shared<CallbackExecutor>(given)};
  return {};
}

Status create_thread_pool(std::int32_t num_threads, quire_executor** out) {
  Status status = check_result_handle("quire_thread_pool_create", "executor", out);
  if (status.ok()) *out = new quire_executor{.executor = make_thread_pool(num_threads)};
  return status;
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_executor_create(const quire_executor_callbacks* callbacks,
                                   quire_executor** executor) noexcept {
  return quire::c::guarded([&] { return quire::c::create_executor(callbacks, executor); });
}

quire_status quire_thread_pool_create(int32_t num_threads, quire_executor** executor) noexcept {
  return quire::c::guarded([&] { return quire::c::create_thread_pool(num_threads, executor); });
}

void quire_executor_destroy(quire_executor* executor) noexcept { quire::c::release(executor); }

}  // extern "C"
