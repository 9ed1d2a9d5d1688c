// SPDX-License-Identifier: Apache-2.0
// With `AttentionSpec::batch_invariant` a request's result has the same bits whatever else is in the
// batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "core/kernel_table.hpp"
#include "support/regrouped.hpp"

namespace quire {
namespace {

using testing::Chunk;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::Regrouped;
using testing::RubbishWorkspace;

/// Requests of all kinds, of which some begin with the same pages.
RandomBatchOptions requests_of(DType dtype) {
  RandomBatchOptions options = testing::edgy_options(dtype, 4, 2, 64);
  options.spec.batch_invariant = true;
  options.requests = {{1, 5000}, {1, 70},    {2, 3000}, {1, 2100}, {4, 900}, {30, 400},
                      {1, 1},    {150, 150}, {90, 700}, {0, 40},   {9, 3},   {1, 2047}};
  options.padding_rows = 0;
  options.shared_pages = 3;
  return options;
}

class CpuBatchInvariance : public ::testing::TestWithParam<std::string> {
 protected:
  /// Runs some requests on two threads.
  static void run(const RandomBatch& all, Regrouped& some) {
    static const auto pool = make_thread_pool(2);
    const Attention attention(Device::cpu(), all.spec, some.limits(),
                              {.executor = pool.get(), .kernel = GetParam()});
    RubbishWorkspace schedule(attention.workspace_sizes().schedule);
    RubbishWorkspace scratch(attention.workspace_sizes().scratch);
    ASSERT_TRUE(attention.schedule(some.batch, schedule.get()).ok());
    const Status status = attention.run(some.batch, some.tensors, schedule.get(), scratch.get());
    ASSERT_TRUE(status.ok()) << status.message();
  }
};

TEST_P(CpuBatchInvariance, GivesARequestTheSameBitsInAnyBatch) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    RandomBatch all(requests_of(dtype));
    std::string reason;
    if (core::find_kernel(DeviceType::kCpu, all.spec, GetParam(), reason) == nullptr) continue;
    std::vector<std::vector<std::byte>> alone;
    for (std::int32_t seq = 0; seq < all.num_seqs(); ++seq) {
      const std::vector<Chunk> one = {whole_of(all, seq)};
      Regrouped batch(all, one);
      run(all, batch);
      alone.push_back(batch.result_of(0));
    }
    std::mt19937 random(3);
    for (int round = 0; round < 20; ++round) {
      const std::vector<Chunk> chunks =
          any_of(all, std::uniform_int_distribution<std::int32_t>(1, 14)(random), random);
      Regrouped batch(all, chunks);
      run(all, batch);
      for (std::size_t i = 0; i < chunks.size(); ++i) {
        ASSERT_EQ(batch.result_of(i), alone[static_cast<std::size_t>(chunks[i].seq)])
            << "round " << round << ", request " << chunks[i].seq;
      }
    }
  }
}

std::vector<std::string> kernels_that_run() {
  std::vector<std::string> names;
  for (const core::KernelRow& kernel : core::kernel_table()) {
    if (kernel.device == DeviceType::kCpu && kernel.missing.empty()) {
      names.emplace_back(kernel.name);
    }
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Kernels, CpuBatchInvariance, ::testing::ValuesIn(kernels_that_run()),
                         [](const ::testing::TestParamInfo<std::string>& tested) {
                           std::string name = tested.param;
                           std::ranges::replace(name, '.', '_');
                           return name;
                         });

}  // namespace
}  // namespace quire
