// SPDX-License-Identifier: Apache-2.0
// Executors through the C ABI.
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "c/client.hpp"

namespace quire::c_test {
namespace {

/// Runs tasks in the calling thread, last one first, and counts.
struct Backwards {
  std::atomic<int> calls{0};
  static void parallel(void* user, std::int32_t count, quire_task task, void* context) {
    static_cast<Backwards*>(user)->calls += 1;
    for (std::int32_t index = count; index-- > 0;) task(context, index);
  }
};

quire_executor_callbacks callbacks_of(Backwards& backwards) {
  quire_executor_callbacks callbacks = QUIRE_EXECUTOR_CALLBACKS_INIT;
  callbacks.parallel = &Backwards::parallel;
  callbacks.user = &backwards;
  callbacks.concurrency = 3;
  return callbacks;
}

TEST(CExecutor, AttentionRunsOnAnEnginesOwnThreadsAndKeepsTheirExecutor) {
  Backwards backwards;
  const quire_executor_callbacks callbacks = callbacks_of(backwards);
  quire_executor* executor = nullptr;
  ASSERT_EQ(quire_executor_create(&callbacks, &executor), QUIRE_OK) << quire_last_error();
  constexpr std::int64_t kRows = 256;  // most of them padding, enough for several tasks
  const std::vector<float> q(kRows * Client::kQoHeads * Client::kDim);
  std::vector<float> o(q.size());
  Client client;
  client.limits.max_total_q = static_cast<std::int32_t>(kRows);
  quire_attention_options options = QUIRE_ATTENTION_OPTIONS_INIT;
  options.executor = executor;
  quire_attention* attention = nullptr;
  ASSERT_EQ(quire_attention_create(kCpu, &client.spec, &client.limits, &options, &attention),
            QUIRE_OK);
  quire_executor_destroy(executor);  // the attention goes on using it
  client.adopt(attention);
  client.tensors.q = packed(q.data(), QUIRE_FLOAT32, {kRows, Client::kQoHeads, Client::kDim});
  client.tensors.o = packed(o.data(), QUIRE_FLOAT32, {kRows, Client::kQoHeads, Client::kDim});
  client.tensors.lse = QUIRE_TENSOR_NONE;
  ASSERT_EQ(client.schedule(), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(client.run(), QUIRE_OK) << quire_last_error();
  EXPECT_GT(backwards.calls.load(), 0);
}

TEST(CExecutor, RefusesCallbacksThatCannotWork) {
  Backwards backwards;
  quire_executor* executor = nullptr;
  quire_executor_callbacks callbacks = callbacks_of(backwards);
  callbacks.concurrency = 0;
  EXPECT_EQ(quire_executor_create(&callbacks, &executor), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_executor_create] callbacks.concurrency: expected at least 1, got 0");
  callbacks = callbacks_of(backwards);
  callbacks.parallel = nullptr;
  EXPECT_EQ(quire_executor_create(&callbacks, &executor), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_executor_create] callbacks.parallel: expected a function, got NULL");
  EXPECT_EQ(quire_thread_pool_create(-1, &executor), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(executor, nullptr);
}

TEST(CExecutor, AForeignPointerAmongTheOptionsIsRefused) {
  Client client;
  client.create();
  quire_attention_options options = QUIRE_ATTENTION_OPTIONS_INIT;
  options.executor = reinterpret_cast<quire_executor*>(client.attention);
  EXPECT_EQ(quire_merge_states(kCpu, &client.merge, nullptr, &options), QUIRE_BAD_HANDLE);
  EXPECT_STREQ(
      quire_last_error(),
      "[quire_merge_states] options.executor: expected a quire_executor, got another kind of "
      "handle");
}

}  // namespace
}  // namespace quire::c_test
