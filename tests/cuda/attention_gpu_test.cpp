// SPDX-License-Identifier: Apache-2.0
// Attention on the GPU against the oracle: dtypes, shapes, tables and storage. Random ragged
// batches, with poison in everything that must not be read.
#include <gtest/gtest.h>

#include <string>

#include "support/device_batch.hpp"

namespace quire {
namespace {

using testing::CacheStorage;
using testing::DeviceBatch;
using testing::exact_options;
using testing::expect_oracle;
using testing::KeySource;
using testing::kGpu;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::Request;

constexpr std::array kDTypes = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};

struct HeadDims {
  std::int32_t qk = 0;
  std::int32_t vo = 0;
};
constexpr std::array kHeadDims = {HeadDims{64, 64},   HeadDims{96, 96},   HeadDims{128, 128},
                                  HeadDims{192, 192}, HeadDims{256, 256}, HeadDims{512, 512},
                                  HeadDims{192, 128}};

TEST(GpuSupport, CoversEveryDtypeHeadDimAndFeatureThatIsPromised) {
  for (const DType dtype : kDTypes) {
    for (const HeadDims& dims : kHeadDims) {
      for (const Mask mask : {Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull}) {
        for (const std::int32_t page_size : {1, 8, 16, 17, 64, 128, 256, 544, kContiguousKv}) {
          AttentionSpec spec = exact_options(dtype, 7, 1, dims.qk).spec;
          spec.head_dim_vo = dims.vo;
          spec.page_size = page_size;
          spec.mask = mask;
          spec.window_left = 100;
          spec.logits_soft_cap = 30.0F;
          spec.sinks = spec.alibi = true;
          spec.kv_scale = KvScale::kPerHead;
          const Support support = supports(kGpu, spec);
          EXPECT_TRUE(support.supported) << support.reason;
        }
      }
    }
  }
}

TEST(GpuSupport, SizesOfWorkspacesAreThoseOfTheAttention) {
  const AttentionSpec spec = exact_options(DType::kBFloat16, 4, 2, 128).spec;
  const Attention attention(kGpu, spec, testing::kRoomyLimits);
  const WorkspaceSizes sizes = workspace_sizes(kGpu, spec, testing::kRoomyLimits);
  EXPECT_EQ(sizes.schedule, attention.workspace_sizes().schedule);
  EXPECT_EQ(sizes.scratch, attention.workspace_sizes().scratch);
}

class GpuOracleOfDims : public ::testing::TestWithParam<std::tuple<DType, HeadDims>> {
 protected:
  [[nodiscard]] static RandomBatchOptions options() {
    const auto& [dtype, dims] = GetParam();
    RandomBatchOptions options = exact_options(dtype, 3, 2, dims.qk);
    options.spec.head_dim_vo = dims.vo;
    return options;
  }
};

TEST_P(GpuOracleOfDims, AgreesForDecode) {
  RandomBatchOptions options = GpuOracleOfDims::options();
  options.requests = {{1, 70}, {1, 1}, {1, 515}, {0, 9}, {1, 64}, {1, 128}, {1, 333}};
  if (const Support support = supports(kGpu, options.spec); !support.supported) {
    GTEST_SKIP() << support.reason;
  }
  for (const std::int32_t group : {1, 4, 5, 8}) {
    options.spec.num_qo_heads = group * options.spec.num_kv_heads;
    expect_oracle(options, "group " + std::to_string(group));
  }
  RandomBatch roomy(options);
  expect_oracle(roomy, testing::kRoomyLimits);
}

TEST_P(GpuOracleOfDims, AgreesForMixedBatchesInBothOutputDtypes) {
  RandomBatchOptions options = GpuOracleOfDims::options();
  if (const Support support = supports(kGpu, options.spec); !support.supported) {
    GTEST_SKIP() << support.reason;
  }
  expect_oracle(options, "float32 output");
  options.spec.o_dtype = DType::kNone;
  options.storage = CacheStorage::kPackedDims;
  options.strided_output = true;
  expect_oracle(options, "output of q's dtype");
  RandomBatch roomy(options);
  expect_oracle(roomy, testing::kRoomyLimits);
}

/// Two warps share the rows of such a unit, half of the keys of a tile each: lengths that leave one of
/// them without keys, in the first tile, the last one or all of them.
TEST_P(GpuOracleOfDims, AgreesForUnitsOf17To32Rows) {
  RandomBatchOptions options = GpuOracleOfDims::options();
  options.spec.num_qo_heads = 4 * options.spec.num_kv_heads;
  options.requests = {{8, 31}, {5, 9}, {6, 97}, {7, 64}, {8, 128}, {8, 1500}, {8, 8}, {5, 650}};
  if (const Support support = supports(kGpu, options.spec); !support.supported) {
    GTEST_SKIP() << support.reason;
  }
  expect_oracle(options, "causal");
  options.spec.window_left = 20;
  expect_oracle(options, "window");
  options.spec.window_left = -1;
  options.spec.mask = Mask::kTree;
  options.spec.logits_soft_cap = 20.0F;
  options.spec.sinks = true;
  expect_oracle(options, "tree");
}

INSTANTIATE_TEST_SUITE_P(Promised, GpuOracleOfDims,
                         ::testing::Combine(::testing::ValuesIn(kDTypes),
                                            ::testing::ValuesIn(kHeadDims)),
                         [](const auto& test) {
                           const HeadDims dims = std::get<1>(test.param);
                           return std::string(to_string(std::get<0>(test.param))) + "_" +
                                  std::to_string(dims.qk) + "_" + std::to_string(dims.vo);
                         });

class GpuOracleOfDtypes : public ::testing::TestWithParam<std::tuple<DType, DType>> {};

TEST_P(GpuOracleOfDtypes, AgreesForQueriesOfOneAndKeysOfAnother) {
  RandomBatchOptions options = exact_options(std::get<0>(GetParam()), 4, 2, 128);
  options.spec.kv_dtype = std::get<1>(GetParam());
  if (const Support support = supports(kGpu, options.spec); !support.supported) {
    GTEST_SKIP() << support.reason;
  }
  expect_oracle(options);
}

INSTANTIATE_TEST_SUITE_P(Pairs, GpuOracleOfDtypes,
                         ::testing::Combine(::testing::ValuesIn(kDTypes),
                                            ::testing::ValuesIn(kDTypes)),
                         [](const auto& test) {
                           return std::string(to_string(std::get<0>(test.param))) + "_over_" +
                                  std::string(to_string(std::get<1>(test.param)));
                         });

TEST(GpuOracle, AgreesForEveryGroupSize) {
  for (std::int32_t group = 1; group <= 16; ++group) {
    const DType dtype = kDTypes[static_cast<std::size_t>(group) % kDTypes.size()];
    expect_oracle(exact_options(dtype, group, group <= 4 ? 2 : 1, 64),
                  "group " + std::to_string(group));
    expect_oracle(exact_options(DType::kBFloat16, group, 1, 128), "bf16, " + std::to_string(group));
  }
}

TEST(GpuOracle, AgreesForEveryNumberOfQueriesFrom1To300) {
  for (const std::int32_t group : {1, 4, 7}) {
    RandomBatchOptions options = exact_options(DType::kBFloat16, group, 1, 64);
    options.requests.clear();
    for (std::int32_t queries = 1; queries <= 300; queries += queries < 70 ? 1 : group) {
      options.requests.push_back({queries, queries + queries * 7 % 41});
    }
    expect_oracle(options, "group " + std::to_string(group));
  }
}

TEST(GpuOracle, AgreesForEveryPageSizeAndWayToFindPages) {
  for (const std::int32_t page_size : {1, 8, 16, 17, 64, 128, 256, 544}) {
    for (const KeySource source : {KeySource::kDense, KeySource::kCsr, KeySource::kCsrWithKvLen}) {
      for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
        RandomBatchOptions options = exact_options(dtype, 4, 1, 64);
        options.spec.page_size = page_size;
        options.source = source;
        options.shared_pages = page_size <= 64 ? 1 : 0;
        expect_oracle(options, "page size " + std::to_string(page_size) + ", source " +
                                   std::to_string(static_cast<int>(source)));
      }
    }
  }
}

TEST(GpuOracle, AgreesForContiguousKeys) {
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    for (const DType dtype : kDTypes) {
      RandomBatchOptions options = exact_options(dtype, 4, 2, 64);
      options.source = KeySource::kContiguous;
      options.spec.kv_layout = layout;
      expect_oracle(options, "whole rows");
      RandomBatch shorter(options);
      for (std::int32_t& length : shorter.kv_len) length -= length / 5;
      shorter.batch.kv_len = TensorView(shorter.kv_len.data(), DType::kInt32, {shorter.num_seqs()});
      expect_oracle(shorter, shorter.limits());
    }
  }
}

TEST(GpuOracle, AgreesForEveryStorageOfTheCache) {
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    for (const CacheStorage storage :
         {CacheStorage::kApart, CacheStorage::kTwoPages, CacheStorage::kPagesTwo,
          CacheStorage::kPagesLayersTwo, CacheStorage::kPackedDims, CacheStorage::kGaps}) {
      for (const std::int32_t kv_heads : {1, 3}) {
        RandomBatchOptions options = exact_options(DType::kBFloat16, 2, kv_heads, 128);
        options.spec.kv_layout = layout;
        options.storage = storage;
        options.fused_qkv = true;
        options.strided_output = true;
        options.shared_pages = 2;
        expect_oracle(options, "layout " + std::to_string(static_cast<int>(layout)) + ", storage " +
                                   std::to_string(static_cast<int>(storage)));
      }
    }
  }
}

TEST(GpuOracle, ServesTensorsAtOddAddressesOrRefusesThemInASentence) {
  for (const DType dtype : kDTypes) {
    RandomBatchOptions options = exact_options(dtype, 4, 1, 64);
    options.spec.o_dtype = DType::kNone;
    RandomBatch host(options);
    const Attention attention(kGpu, host.spec, host.limits());
    const DeviceBatch batch(host, size_of(dtype));
    const Status status = batch.run(attention);
    if (status.ok()) {
      expect_matches(host, oracle_of(host));
    } else {
      EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(status.message().find("expected"), std::string_view::npos) << status.message();
    }
  }
}

TEST(GpuOracle, AgreesWithoutLse) {
  RandomBatch host(exact_options(DType::kBFloat16, 4, 2, 128));
  host.tensors.lse = {};
  expect_oracle(host, host.limits());
}

TEST(GpuOracle, AgreesForLongContexts) {
  for (const DType dtype : kDTypes) {
    RandomBatchOptions options = exact_options(dtype, 4, 2, 64);
    options.requests = {{1, 3000}, {1, 777}, {2, 1025}, {1, 20000}, {40, 5000}, {700, 1900}};
    expect_oracle(options, std::string(to_string(dtype)));
    RandomBatch roomy(options);
    expect_oracle(roomy, testing::kRoomyLimits);
  }
}

TEST(GpuOracle, AgreesWhereSomeKeysDwarfOthers) {
  using Factor = float (*)(std::int64_t, std::int64_t);
  constexpr std::array<Factor, 4> kFactors = {
      [](std::int64_t key, std::int64_t) { return key < 300 ? 1.0F : 6.0F; },
      [](std::int64_t key, std::int64_t) { return key < 300 ? 6.0F : 1.0F; },
      [](std::int64_t key, std::int64_t kv_len) {  // more and more from tile to tile
        return static_cast<float>(1 + (kv_len - key) / 200);
      },
      [](std::int64_t key, std::int64_t) { return key % 411 < 5 ? 9.0F : 1.0F; }};
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const std::int32_t head_dim : {64, 128}) {
      for (const Factor factor : kFactors) {
        RandomBatchOptions options = exact_options(dtype, 4, 2, head_dim);
        options.requests = {{150, 1500}, {300, 700}, {40, 2000}, {3, 900}};
        RandomBatch host(options);
        testing::scale_keys(host, factor);
        expect_oracle(host, host.limits(), true);
      }
    }
  }
}

TEST(GpuOracle, AgreesForThousandsOfShortRequests) {
  for (const std::int32_t num_seqs : {1023, 1025, 3000}) {
    RandomBatchOptions options = exact_options(DType::kBFloat16, 2, 1, 64);
    options.requests.clear();
    for (std::int32_t seq = 0; seq < num_seqs; ++seq) {
      options.requests.push_back({seq % 11 == 0 ? seq % 3 : 1, 1 + seq * 7 % 40});
    }
    expect_oracle(options, std::to_string(num_seqs) + " requests");
  }
}

TEST(GpuOracle, AgreesForBatchesWithoutRequestsOrRows) {
  RandomBatchOptions options = exact_options(DType::kBFloat16, 2, 1, 64);
  options.requests = {};
  expect_oracle(options, "padding only");
  options.padding_rows = 0;
  expect_oracle(options, "nothing");
  options.requests = {{0, 0}, {0, 9}};
  expect_oracle(options, "no queries");
  options.requests = {{4, 0}, {2, 1}};
  options.padding_rows = 1000;
  expect_oracle(options, "hardly a key, much padding");
}

}  // namespace
}  // namespace quire
