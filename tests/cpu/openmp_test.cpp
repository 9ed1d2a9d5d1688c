// SPDX-License-Identifier: Apache-2.0
// OpenMP's threads behind the CPU backend.
#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <vector>

#include "quire/executors.hpp"
#include "support/random_batch.hpp"

namespace quire {
namespace {

TEST(OpenMp, CallsEachIndexOnceFromOutsideAndInsideAParallelRegion) {
  OpenMpExecutor threads(3);
  EXPECT_EQ(threads.concurrency(), 3);
  EXPECT_EQ(OpenMpExecutor().concurrency(), omp_get_max_threads());
  std::vector<std::atomic<int>> calls(40);
  const auto task = [](void* context, std::int32_t index) noexcept {
    (*static_cast<std::vector<std::atomic<int>>*>(context))[static_cast<std::size_t>(index)]++;
  };
  threads.parallel(40, task, &calls);
#pragma omp parallel num_threads(2)
  threads.parallel(40, task, &calls);
  for (const std::atomic<int>& count : calls) EXPECT_EQ(count.load(), 3);
}

TEST(OpenMp, GivesTheBitsOfThePoolOfTheSameConcurrency) {
  testing::RandomBatchOptions options;
  options.spec.num_qo_heads = 4;
  options.spec.num_kv_heads = 2;
  options.spec.head_dim_qk = 32;
  options.spec.page_size = 16;
  options.spec.q_dtype = options.spec.kv_dtype = DType::kFloat32;
  options.requests = {{1, 700}, {40, 90}, {1, 3}};
  testing::RandomBatch batch(options);
  const auto result_of = [&](Executor& executor) {
    AttentionOptions given;
    given.executor = &executor;
    const Attention attention(Device::cpu(), batch.spec, batch.limits(), given);
    EXPECT_TRUE(testing::run(attention, batch).ok());
    std::vector<float> values;
    for (std::int64_t token = 0; token < batch.tensors.o.size(0); ++token) {
      for (std::int64_t head = 0; head < batch.spec.num_qo_heads; ++head) {
        for (std::int64_t i = 0; i < batch.spec.head_dim_qk; ++i) {
          values.push_back(batch.o(token, head, i));
        }
      }
    }
    return values;
  };
  OpenMpExecutor threads(3);
  EXPECT_EQ(result_of(threads), result_of(*make_thread_pool(3)));
}

}  // namespace
}  // namespace quire
