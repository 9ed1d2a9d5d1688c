// SPDX-License-Identifier: Apache-2.0
// With `AttentionSpec::batch_invariant` a request's result has the same bits alone and in any batch,
// whatever the limits; and a chunk's those that its queries have in the whole prompt, where
// docs/concepts/batch_invariance.md says so.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/device_batch.hpp"
#include "support/regrouped.hpp"

namespace quire {
namespace {

using testing::Chunk;
using testing::DeviceBatch;
using testing::DeviceMirror;
using testing::DeviceWorkspaces;
using testing::kGpu;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::Regrouped;

/// Requests of all kinds, of which all begin with the same pages.
RandomBatchOptions requests_of(DType dtype, std::int32_t head_dim) {
  RandomBatchOptions options = testing::edgy_options(dtype, 4, 2, head_dim);
  options.spec.batch_invariant = true;
  options.requests = {{1, 20000}, {1, 5000}, {1, 70},    {2, 9000},  {1, 2100},   {4, 9000},
                      {30, 400},  {1, 1},    {150, 150}, {90, 700},  {300, 1500}, {0, 40},
                      {9, 3},     {1, 4095}, {1, 4096},  {16, 3000}, {17, 3000}};
  options.padding_rows = 0;
  options.shared_pages = 4;
  return options;
}

/// A batch's keys and values on the device, and what runs some of its requests.
class Runner {
 public:
  explicit Runner(RandomBatch& all) : all_(all), device_(all) {}

  /// @param limits  Of the attention, which is kept.
  void run(Regrouped& some, const BatchLimits& limits) {
    const auto key = std::tuple(limits.max_num_seqs, limits.max_total_q, limits.max_kv_len);
    std::unique_ptr<Made>& made = made_[key];
    if (made == nullptr) made = std::make_unique<Made>(all_.spec, limits, device_.stream);
    DeviceMirror mirror;
    using Use = DeviceMirror::Use;
    for (std::vector<std::int32_t>* read : {&some.qo_indptr, &some.kv_len, &some.page_table}) {
      mirror.add(testing::bytes_of(*read), Use::kRead, device_.stream);
    }
    mirror.add(some.q, Use::kRead, device_.stream);
    mirror.add(some.o, Use::kWritten, device_.stream);
    mirror.add(testing::bytes_of(some.lse), Use::kWritten, device_.stream);
    const Batch batch = on_device(mirror, some.batch);
    AttentionTensors tensors = device_.tensors;
    tensors.q = mirror.on_device(some.tensors.q);
    tensors.o = mirror.on_device(some.tensors.o);
    tensors.lse = mirror.on_device(some.tensors.lse);
    const CallOptions call{device_.stream.get(), nullptr};
    Status status = made->attention.schedule(batch, made->workspaces.schedule(), call);
    ASSERT_TRUE(status.ok()) << status.message();
    status = made->attention.run(batch, tensors, made->workspaces.schedule(),
                                 made->workspaces.scratch(), call);
    ASSERT_TRUE(status.ok()) << status.message();
    mirror.download(device_.stream);
  }

 private:
  struct Made {
    Made(const AttentionSpec& spec, const BatchLimits& limits, const testing::Stream& stream)
        : attention(kGpu, spec, limits), workspaces(attention.workspace_sizes(), stream) {}
    Attention attention;
    DeviceWorkspaces workspaces;
  };

  const RandomBatch& all_;
  const DeviceBatch device_;
  std::map<std::tuple<std::int32_t, std::int32_t, std::int32_t>, std::unique_ptr<Made>> made_;
};

struct Layer {
  DType dtype;
  std::int32_t head_dim;
};

class GpuBatchInvariance : public ::testing::TestWithParam<Layer> {};

TEST_P(GpuBatchInvariance, GivesARequestTheSameBitsInAnyBatch) {
  constexpr int kRounds = 1000;
  constexpr BatchLimits kEngine{64, 8192, 131072};
  RandomBatch all(requests_of(GetParam().dtype, GetParam().head_dim));
  testing::expect_oracle(all, all.limits());
  Runner runner(all);
  std::vector<std::vector<std::byte>> alone;
  for (std::int32_t seq = 0; seq < all.num_seqs(); ++seq) {
    const std::vector<Chunk> one = {whole_of(all, seq)};
    Regrouped batch(all, one);
    runner.run(batch, batch.limits());
    alone.push_back(batch.result_of(0));
  }
  std::mt19937 random(3);
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<Chunk> chunks =
        any_of(all, std::uniform_int_distribution<std::int32_t>(1, 40)(random), random);
    Regrouped batch(all, chunks);
    runner.run(batch, kEngine);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      ASSERT_EQ(batch.result_of(i), alone[static_cast<std::size_t>(chunks[i].seq)])
          << "round " << round << ", request " << chunks[i].seq;
    }
  }
}

// Chunks that begin at multiples of the queries of a tile (32 in a group of 4, 48 of heads of 64) and have
// more rows than small units take.
TEST_P(GpuBatchInvariance, GivesChunksTheBitsOfTheWholePrompt) {
  RandomBatch all(requests_of(GetParam().dtype, GetParam().head_dim));
  Runner runner(all);
  constexpr std::int32_t kPrompt = 10;  // {300, 1500}
  const std::vector<Chunk> whole = {whole_of(all, kPrompt)};
  Regrouped expected(all, whole);
  runner.run(expected, expected.limits());
  const std::int32_t tile = GetParam().head_dim == 64 ? 48 : 32;
  for (const auto& [begin, end] :
       {std::pair(0, 3 * tile), std::pair(3 * tile, 4 * tile), std::pair(4 * tile, 300),
        std::pair(tile, 6 * tile), std::pair(5 * tile, 300)}) {
    const std::vector<Chunk> chunks = {{kPrompt, begin, end}, whole_of(all, 0)};
    Regrouped batch(all, chunks);
    runner.run(batch, all.limits());
    EXPECT_EQ(batch.result_of(0), expected.rows_of(0, begin, end)) << begin << " to " << end;
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, GpuBatchInvariance,
                         ::testing::Values(Layer{DType::kBFloat16, 128}, Layer{DType::kFloat16, 64},
                                           Layer{DType::kFloat32, 48}),
                         [](const ::testing::TestParamInfo<Layer>& tested) {
                           return std::string(to_string(tested.param.dtype)) + "_" +
                                  std::to_string(tested.param.head_dim);
                         });

}  // namespace
}  // namespace quire
