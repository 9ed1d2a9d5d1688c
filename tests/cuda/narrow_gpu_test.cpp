// SPDX-License-Identifier: Apache-2.0
// Attention over 8-bit K and V on the GPU against the oracle on the same codes: every format, scale,
// mask, page size and head dim, with NaN codes, or −128, in everything that must not be read.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "core/narrow_formats.hpp"
#include "support/device_batch.hpp"

namespace quire {
namespace {

using testing::CacheStorage;
using testing::DeviceBatch;
using testing::exact_options;
using testing::expect_oracle;
using testing::KeySource;
using testing::kGpu;
using testing::prompts;
using testing::RandomBatch;
using testing::RandomBatchOptions;

constexpr std::array kNarrow = {DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8};
constexpr std::array kQueries = {DType::kBFloat16, DType::kFloat16};
constexpr std::array kScales = {KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead,
                                KvScale::kPerToken};

struct HeadDims {
  std::int32_t qk = 0;
  std::int32_t vo = 0;
};
constexpr std::array kHeadDims = {HeadDims{64, 64},   HeadDims{96, 96},   HeadDims{128, 128},
                                  HeadDims{192, 192}, HeadDims{256, 256}, HeadDims{192, 128}};

std::string name_of(DType dtype) { return std::string(to_string(dtype)); }
std::string name_of(KvScale scale) { return "scale " + std::to_string(static_cast<int>(scale)); }

RandomBatchOptions narrow_options(DType q_dtype, DType kv_dtype, KvScale scale, std::int32_t group,
                                  std::int32_t kv_heads, std::int32_t head_dim) {
  RandomBatchOptions options = exact_options(q_dtype, group, kv_heads, head_dim);
  options.spec.kv_dtype = kv_dtype;
  options.spec.kv_scale = scale;
  return options;
}

TEST(GpuNarrowSupport, CoversEveryFormatScaleHeadDimAndFeature) {
  for (const DType kv_dtype : kNarrow) {
    for (const DType q_dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
      for (const KvScale scale : kScales) {
        for (const std::int32_t head_dim : {16, 64, 96, 128, 192, 256, 512}) {
          for (const std::int32_t page_size : {1, 16, 17, 64, 544, kContiguousKv}) {
            AttentionSpec spec = narrow_options(q_dtype, kv_dtype, scale, 7, 1, head_dim).spec;
            spec.page_size = page_size;
            spec.window_left = 100;
            spec.logits_soft_cap = 30.0F;
            spec.sinks = spec.alibi = true;
            const Support support = supports(kGpu, spec);
            EXPECT_TRUE(support.supported) << support.reason;
          }
        }
      }
    }
  }
}

class GpuNarrow : public ::testing::TestWithParam<std::tuple<DType, HeadDims>> {
 protected:
  [[nodiscard]] static RandomBatchOptions options(DType q_dtype, KvScale scale) {
    const auto& [kv_dtype, dims] = GetParam();
    RandomBatchOptions options = narrow_options(q_dtype, kv_dtype, scale, 3, 2, dims.qk);
    options.spec.head_dim_vo = dims.vo;
    return options;
  }
};

TEST_P(GpuNarrow, AgreesForDecode) {
  RandomBatchOptions options;
  for (const DType q_dtype : kQueries) {
    for (const KvScale scale : kScales) {
      options = GpuNarrow::options(q_dtype, scale);
      options.requests = {{1, 70}, {1, 1}, {1, 515}, {0, 9}, {1, 64}, {1, 128}, {1, 333}};
      expect_oracle(options, name_of(q_dtype) + ", " + name_of(scale));
    }
  }
  for (const std::int32_t group : {1, 4, 5, 8}) {
    options.spec.num_qo_heads = group * options.spec.num_kv_heads;
    expect_oracle(options, "group " + std::to_string(group));
  }
  RandomBatch roomy(options);
  expect_oracle(roomy, testing::kRoomyLimits);
}

TEST_P(GpuNarrow, AgreesForMixedBatchesInBothOutputDtypes) {
  RandomBatchOptions options;
  for (const DType q_dtype : kQueries) {
    for (const KvScale scale : kScales) {
      options = GpuNarrow::options(q_dtype, scale);
      if (q_dtype == DType::kBFloat16) {
        expect_oracle(options, name_of(q_dtype) + ", " + name_of(scale) + ", float32 output");
      }
      options.spec.o_dtype = DType::kNone;
      options.storage = CacheStorage::kPackedDims;
      options.strided_output = true;
      expect_oracle(options, name_of(q_dtype) + ", " + name_of(scale) + ", output of q's dtype");
    }
  }
  RandomBatch roomy(options);
  expect_oracle(roomy, testing::kRoomyLimits);
}

INSTANTIATE_TEST_SUITE_P(Promised, GpuNarrow,
                         ::testing::Combine(::testing::ValuesIn(kNarrow),
                                            ::testing::ValuesIn(kHeadDims)),
                         [](const auto& test) {
                           const HeadDims dims = std::get<1>(test.param);
                           return name_of(std::get<0>(test.param)) + "_" + std::to_string(dims.qk) +
                                  "_" + std::to_string(dims.vo);
                         });

class GpuNarrowFormat : public ::testing::TestWithParam<DType> {
 protected:
  [[nodiscard]] static RandomBatchOptions options(KvScale scale, std::int32_t group,
                                                  std::int32_t kv_heads, std::int32_t head_dim) {
    return narrow_options(DType::kBFloat16, GetParam(), scale, group, kv_heads, head_dim);
  }
};

TEST_P(GpuNarrowFormat, AgreesForEveryPageSizeAndWayToFindPages) {
  for (const std::int32_t page_size : {1, 8, 16, 17, 64, 128, 544}) {
    for (const KeySource source : {KeySource::kDense, KeySource::kCsr, KeySource::kCsrWithKvLen}) {
      for (const KvScale scale : {KvScale::kPerHead, KvScale::kPerToken}) {
        RandomBatchOptions options = GpuNarrowFormat::options(scale, 4, 2, 128);
        options.spec.page_size = page_size;
        options.spec.kv_layout = page_size % 16 == 0 ? KvLayout::kHND : KvLayout::kNHD;
        options.source = source;
        options.shared_pages = page_size <= 64 ? 1 : 0;
        expect_oracle(options, "page size " + std::to_string(page_size) + ", source " +
                                   std::to_string(static_cast<int>(source)) + ", " +
                                   name_of(scale));
      }
    }
  }
}

// Requests begin in the middle of 16 keys.
TEST_P(GpuNarrowFormat, AgreesForContiguousKeys) {
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    for (const KvScale scale : kScales) {
      for (const std::int32_t head_dim : {64, 128}) {
        RandomBatchOptions options = GpuNarrowFormat::options(scale, 4, 2, head_dim);
        options.source = KeySource::kContiguous;
        options.spec.kv_layout = layout;
        options.requests.insert(options.requests.end(), {{1, 1500}, {3, 2100}});
        const std::string what = name_of(scale) + ", " + std::to_string(head_dim);
        expect_oracle(options, what);
        RandomBatch roomy(options);
        SCOPED_TRACE(what + ", limits of an engine");
        expect_oracle(roomy, testing::kRoomyLimits);
      }
    }
  }
}

// Tiles in boxes, of which windows cut the first, and pages and heads of which none come in boxes.
TEST_P(GpuNarrowFormat, AgreesForWindowsPagesAndStoragesOfLongDecodes) {
  for (const std::int32_t window : {-1, 100, 517, 1023}) {
    for (const std::int32_t page_size : {16, 48, 17}) {
      for (const CacheStorage storage : {CacheStorage::kApart, CacheStorage::kGaps}) {
        RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerTensor, 4, 2, 128);
        options.spec.window_left = window;
        options.spec.page_size = page_size;
        options.storage = storage;
        options.requests = {{1, 3000}, {3, 700}, {1, 1500}, {6, 1100}};
        RandomBatch roomy(options);
        SCOPED_TRACE("window " + std::to_string(window) + ", page size " +
                     std::to_string(page_size) + ", storage " +
                     std::to_string(static_cast<int>(storage)));
        expect_oracle(roomy, testing::kRoomyLimits);
      }
    }
  }
}

TEST_P(GpuNarrowFormat, AgreesForEveryMaskAndWindow) {
  for (const Mask mask : {Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull}) {
    for (const std::int32_t window : {-1, 0, 15, 64, 100}) {
      for (const KvScale scale : {KvScale::kPerTensor, KvScale::kPerToken}) {
        RandomBatchOptions options = GpuNarrowFormat::options(scale, 5, 1, 64);
        options.spec.mask = mask;
        options.spec.window_left = window;
        expect_oracle(options, "mask " + std::to_string(static_cast<int>(mask)) + ", window " +
                                   std::to_string(window) + ", " + name_of(scale));
      }
    }
  }
}

TEST_P(GpuNarrowFormat, AgreesForSinksSoftCapsAndSlopes) {
  for (const KvScale scale : {KvScale::kPerTensor, KvScale::kPerToken}) {
    for (int features = 1; features < 8; ++features) {
      RandomBatchOptions options = GpuNarrowFormat::options(scale, 4, 2, 128);
      options.spec.sinks = (features & 1) != 0;
      options.spec.logits_soft_cap = (features & 2) != 0 ? 20.0F : 0.0F;
      options.spec.alibi = (features & 4) != 0;
      expect_oracle(options, "features " + std::to_string(features) + ", " + name_of(scale));
    }
  }
}

TEST_P(GpuNarrowFormat, AgreesForEveryGroupSize) {
  for (const std::int32_t group : {1, 2, 3, 7, 8, 11, 16, 17, 24, 32, 40}) {
    expect_oracle(GpuNarrowFormat::options(KvScale::kPerHead, group, 2, 64),
                  "group " + std::to_string(group));
  }
}

TEST_P(GpuNarrowFormat, AgreesForLongContextsInManyPieces) {
  for (const KvScale scale : {KvScale::kPerHead, KvScale::kPerToken}) {
    RandomBatchOptions options = GpuNarrowFormat::options(scale, 4, 2, 128);
    options.requests = {{1, 3000}, {1, 777}, {2, 1025}, {1, 20000}, {40, 5000}, {300, 900}};
    expect_oracle(options, name_of(scale));
    RandomBatch roomy(options);
    expect_oracle(roomy, testing::kRoomyLimits);
  }
}

TEST_P(GpuNarrowFormat, AgreesForPromptsInBothOutputDtypes) {
  for (const DType q_dtype : kQueries) {
    for (const KvScale scale : kScales) {
      for (const std::int32_t head_dim : {64, 128}) {
        RandomBatchOptions options = narrow_options(q_dtype, GetParam(), scale, 4, 2, head_dim);
        options.requests = prompts();
        const std::string what =
            name_of(q_dtype) + ", " + name_of(scale) + ", " + std::to_string(head_dim);
        expect_oracle(options, what + ", float32 output");
        options.spec.o_dtype = DType::kNone;
        RandomBatch host(options);
        host.tensors.lse = {};
        SCOPED_TRACE(what + ", output of q's dtype");
        expect_oracle(host, host.limits());
      }
    }
  }
}

TEST_P(GpuNarrowFormat, AgreesForPromptsOfEveryPageSizeGroupAndStorage) {
  RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerHead, 4, 2, 128);
  options.requests = prompts();
  for (const std::int32_t page_size : {1, 17, 64}) {
    options.spec.page_size = page_size;
    expect_oracle(options, "page size " + std::to_string(page_size));
  }
  options.spec.page_size = 16;
  for (const CacheStorage storage : {CacheStorage::kPackedDims, CacheStorage::kGaps}) {
    options.storage = storage;
    options.strided_output = true;
    expect_oracle(options, "storage " + std::to_string(static_cast<int>(storage)));
  }
  for (const std::int32_t group : {1, 5, 7, 16}) {
    options = GpuNarrowFormat::options(KvScale::kPerTensor, group, 2, 128);
    options.requests = prompts();
    expect_oracle(options, "group " + std::to_string(group));
  }
  options.source = KeySource::kContiguous;
  expect_oracle(options, "contiguous keys");
}

// Long enough for tiles of which nothing is hidden.
TEST_P(GpuNarrowFormat, AgreesForMasksAndWindowsOfPrompts) {
  for (const Mask mask : {Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull}) {
    for (const std::int32_t window : {-1, 1024, 1023, 517}) {
      RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerTensor, 4, 1, 128);
      options.spec.mask = mask;
      options.spec.window_left = window;
      options.requests = {{40, 1500}, {17, 700}};
      expect_oracle(options, "mask " + std::to_string(static_cast<int>(mask)) + ", window " +
                                 std::to_string(window));
    }
  }
}

TEST_P(GpuNarrowFormat, AgreesForPromptsWithSinksSoftCapsAndSlopes) {
  for (int features = 1; features < 8; ++features) {
    RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerHead, 4, 2, 128);
    options.requests = prompts();
    options.spec.sinks = (features & 1) != 0;
    options.spec.logits_soft_cap = (features & 2) != 0 ? 20.0F : 0.0F;
    options.spec.alibi = (features & 4) != 0;
    expect_oracle(options, "features " + std::to_string(features));
  }
}

TEST_P(GpuNarrowFormat, AgreesWhereSomeKeysDwarfOthers) {
  using Factor = float (*)(std::int64_t, std::int64_t);
  constexpr std::array<Factor, 3> kFactors = {
      [](std::int64_t key, std::int64_t) { return key < 300 ? 0.25F : 2.0F; },
      [](std::int64_t key, std::int64_t) { return key < 300 ? 2.0F : 0.25F; },
      [](std::int64_t key, std::int64_t) { return key % 411 < 5 ? 4.0F : 0.5F; }};
  for (const Factor factor : kFactors) {
    RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerTensor, 4, 2, 128);
    options.requests = {{40, 900}, {70, 400}, {9, 1200}, {3, 900}};
    RandomBatch host(options);
    testing::scale_keys(host, factor);
    expect_oracle(host, host.limits(), true);
  }
}

TEST_P(GpuNarrowFormat, AgreesForScalesOfValuesThatSpanManyPowersOfTwo) {
  for (const int powers : {4, 20, 40, 50}) {
    RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerToken, 4, 2, 128);
    options.value_scale_powers = powers;
    options.requests = {{1, 3000}, {5, 400}, {20, 700}};
    expect_oracle(options, "2^" + std::to_string(powers));
  }
}

// Four at a time are copied only where that is aligned.
TEST_P(GpuNarrowFormat, AgreesForScalesOfTokensWithGaps) {
  for (const std::int32_t page_size : {16, 48, 64}) {
    for (const std::int32_t gap : {1, 4}) {
      RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerToken, 4, 2, 128);
      options.spec.page_size = page_size;
      options.token_scale_gap = gap;
      options.requests = {{1, 3000}, {3, 700}, {8, 200}};
      expect_oracle(options,
                    "page size " + std::to_string(page_size) + ", gap " + std::to_string(gap));
    }
  }
}

TEST_P(GpuNarrowFormat, AgreesForQueriesOfAnyMagnitude) {
  for (const int power : {-100, -30, 30, 100}) {
    RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerHead, 4, 2, 128);
    options.spec.sm_scale = std::ldexp(1.0F / std::sqrt(128.0F), -power);
    options.requests.push_back({40, 500});
    RandomBatch host(options);
    for (std::int64_t i = 0; i < host.q_elements.size(); ++i) {
      host.q_elements.set(i, std::ldexp(host.q_elements.get(i), power));
    }
    SCOPED_TRACE("2^" + std::to_string(power));
    expect_oracle(host, host.limits());
  }
}

TEST_P(GpuNarrowFormat, AgreesForEveryCodeThatIsANumber) {
  RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerTensor, 4, 1, 128);
  options.requests = {{1, 256}, {9, 300}, {100, 400}};
  // The largest codes make logits of some units.
  options.spec.sm_scale = 1.0F / (16.0F * core::largest_of(GetParam()));
  RandomBatch host(options);
  std::uint32_t code = 0;
  for (testing::ElementBuffer* cache : {&host.k_elements, &host.v_elements}) {
    for (std::int64_t i = 0; i < cache->size(); ++i) {
      if (std::isnan(cache->get(i)) || *cache->at(i) == std::byte{0x80}) continue;  // poison
      do {
        *cache->at(i) = static_cast<std::byte>(code++);
      } while (!std::isfinite(cache->get(i)));
    }
  }
  host.v_scale = {1.0F / core::largest_of(GetParam())};
  host.tensors.v_scale = TensorView(host.v_scale.data(), DType::kFloat32, {1});
  expect_oracle(host, host.limits());
}

TEST_P(GpuNarrowFormat, AgreesOnCudaCores) {
  for (const DType q_dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const KvScale scale : kScales) {
      RandomBatchOptions options = narrow_options(q_dtype, GetParam(), scale, 3, 2, 80);
      options.spec.head_dim_vo = 48;
      expect_oracle(options, name_of(q_dtype) + ", " + name_of(scale));
    }
  }
}

TEST_P(GpuNarrowFormat, GivesTheSameBitsEveryTime) {
  for (const KvScale scale : {KvScale::kPerToken, KvScale::kPerHead}) {
    RandomBatchOptions options = GpuNarrowFormat::options(scale, 4, 2, 128);
    options.requests = {{1, 20000}, {1, 900}, {3, 5000}, {150, 2500}};
    RandomBatch host(options);
    const Attention attention(kGpu, host.spec, testing::kRoomyLimits);
    DeviceBatch batch(host);
    ASSERT_TRUE(batch.run(attention).ok());
    const std::vector<std::byte> first = batch.result_bytes();
    for (int i = 0; i < 5; ++i) {
      batch.forget_results();
      ASSERT_TRUE(batch.run(attention).ok());
      ASSERT_EQ(batch.result_bytes(), first);
    }
  }
}

// Products with the former get a factor of 2^-126, which a small scale of K makes 0.
TEST_P(GpuNarrowFormat, AgreesForQueriesOfZeros) {
  for (const DType q_dtype : {DType::kBFloat16, DType::kFloat16}) {
    RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerTensor, 4, 2, 128);
    options.spec.q_dtype = q_dtype;
    options.requests = {{1, 70}, {40, 500}, {9, 30}};
    RandomBatch host(options);
    for (std::int64_t i = 0; i < host.q_elements.size(); ++i) {
      if (!std::isnan(host.q_elements.get(i))) host.q_elements.set(i, 0.0F);
    }
    for (float& scale : host.k_scale) scale = 1e-9F;
    SCOPED_TRACE(name_of(q_dtype));
    expect_oracle(host, host.limits());
  }
}

// Whatever the oracle says of rows that are not finite, the kernel does not hide it, and others do not see it.
TEST_P(GpuNarrowFormat, RowsThatAreNotFiniteStayByThemselves) {
  constexpr std::int64_t kRow = 17;
  for (const float value :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerTensor, 4, 2, 128);
    options.requests = {{60, 500}};
    RandomBatch host(options);
    const auto clean = testing::oracle_of(host);
    host.q_elements.set(kRow * host.tensors.q.stride(0) + 5, value);
    const Attention attention(kGpu, host.spec, host.limits());
    DeviceBatch batch(host);
    ASSERT_TRUE(batch.run(attention).ok());
    std::size_t at = 0;
    for (std::int64_t row = 0; row < host.total_q(); ++row) {
      for (std::int64_t head = 0; head < host.spec.num_qo_heads; ++head) {
        for (std::int64_t dim = 0; dim < 128; ++dim, ++at) {
          if (row == kRow && head == 0) {
            ASSERT_TRUE(std::isnan(host.o(row, head, dim)));
          } else {
            ASSERT_NEAR(host.o(row, head, dim), clean.o[at], 0x1p-6 * host.max_abs_v());
          }
        }
      }
    }
  }
}

// Many large units in a row that see nothing, before others.
TEST_P(GpuNarrowFormat, AgreesWhereManyQueriesSeeNoKeys) {
  RandomBatchOptions options = GpuNarrowFormat::options(KvScale::kPerHead, 4, 2, 128);
  options.requests = {{64, 3000}, {2048, 64}, {40, 300}, {1024, 0}};
  expect_oracle(options);
}

INSTANTIATE_TEST_SUITE_P(Formats, GpuNarrowFormat, ::testing::ValuesIn(kNarrow),
                         [](const auto& test) { return name_of(test.param); });

}  // namespace
}  // namespace quire
