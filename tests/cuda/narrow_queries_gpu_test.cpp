// SPDX-License-Identifier: Apache-2.0
// Attention of float8_e4m3 queries over K and V of the same on the GPU against the oracle on the same
// codes, with NaN codes in everything that must not be read. Small units widen all three; large ones of
// heads of 128 multiply q and K as they are.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

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

constexpr std::array kScales = {KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead};

std::string name_of(KvScale scale) { return "scale " + std::to_string(static_cast<int>(scale)); }

RandomBatchOptions options_of(KvScale scale, std::int32_t group, std::int32_t kv_heads,
                              std::int32_t head_dim) {
  RandomBatchOptions options = exact_options(DType::kFloat8E4M3, group, kv_heads, head_dim);
  options.spec.kv_scale = scale;
  return options;
}
RandomBatchOptions prompt_options(KvScale scale, std::int32_t group, std::int32_t kv_heads) {
  RandomBatchOptions options = options_of(scale, group, kv_heads, 128);
  options.requests = prompts();
  return options;
}

TEST(GpuNarrowQueries, AreServedForEveryHeadDimAndFeature) {
  for (const KvScale scale : kScales) {
    for (const std::int32_t head_dim : {16, 64, 96, 128, 192, 256, 512}) {
      for (const DType o_dtype :
           {DType::kNone, DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
        AttentionSpec spec = options_of(scale, 7, 1, head_dim).spec;
        spec.window_left = 100;
        spec.logits_soft_cap = 30.0F;
        spec.sinks = spec.alibi = true;
        spec.o_dtype = o_dtype;
        const Support support = supports(kGpu, spec);
        EXPECT_TRUE(support.supported) << support.reason;
      }
    }
  }
}

TEST(GpuNarrowQueries, AgreeForEveryHeadDim) {
  for (const std::int32_t head_dim : {48, 64, 96, 128, 192, 256}) {
    for (const int query_scales : {0, 1, 2}) {
      RandomBatchOptions options = options_of(KvScale::kPerHead, 4, 2, head_dim);
      options.query_scales = query_scales;
      expect_oracle(options, "head_dim " + std::to_string(head_dim) + ", scales of q " +
                                 std::to_string(query_scales));
    }
  }
}

TEST(GpuNarrowQueries, AgreeForSmallUnitsAsWidenedOnesDo) {
  for (const std::int32_t head_dim : {64, 128, 192}) {
    RandomBatchOptions options = options_of(KvScale::kPerTensor, 4, 2, head_dim);
    options.query_scales = 2;
    options.requests = {{1, 3000}, {5, 400}, {8, 700}, {1, 1}, {2, 0}, {0, 40}};
    expect_oracle(options, "head_dim " + std::to_string(head_dim));
  }
}

TEST(GpuNarrowQueries, AgreeForPromptsInEveryOutputDtype) {
  for (const KvScale scale : kScales) {
    for (const int query_scales : {0, 1, 2}) {
      RandomBatchOptions options = prompt_options(scale, 4, 2);
      options.query_scales = query_scales;
      const std::string what = name_of(scale) + ", scales of q " + std::to_string(query_scales);
      expect_oracle(options, what + ", float32");
      options.spec.o_dtype = DType::kFloat16;
      expect_oracle(options, what + ", float16");
    }
  }
}

TEST(GpuNarrowQueries, AgreeForPromptsOfEveryPageSizeGroupAndStorage) {
  for (const std::int32_t page_size : {1, 8, 16, 17, 64, 544}) {
    RandomBatchOptions options = prompt_options(KvScale::kPerHead, 4, 2);
    options.spec.page_size = page_size;
    options.spec.kv_layout = page_size % 16 == 0 ? KvLayout::kHND : KvLayout::kNHD;
    expect_oracle(options, "page size " + std::to_string(page_size));
  }
  for (const CacheStorage storage :
       {CacheStorage::kTwoPages, CacheStorage::kPackedDims, CacheStorage::kGaps}) {
    RandomBatchOptions options = prompt_options(KvScale::kPerTensor, 4, 2);
    options.storage = storage;
    options.strided_output = true;
    expect_oracle(options, "storage " + std::to_string(static_cast<int>(storage)));
  }
  for (const std::int32_t group : {1, 5, 7, 8, 16, 24}) {
    RandomBatchOptions options = prompt_options(KvScale::kNone, group, 2);
    options.query_scales = 2;
    expect_oracle(options, "group " + std::to_string(group));
  }
}

TEST(GpuNarrowQueries, AgreeForPromptsOverContiguousKeys) {
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    RandomBatchOptions options = prompt_options(KvScale::kPerHead, 4, 2);
    options.source = KeySource::kContiguous;
    options.spec.kv_layout = layout;
    expect_oracle(options, "layout " + std::to_string(static_cast<int>(layout)));
  }
}

// Long enough for tiles of which nothing is hidden.
TEST(GpuNarrowQueries, AgreeForMasksAndWindowsOfPrompts) {
  for (const Mask mask : {Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull}) {
    for (const std::int32_t window : {-1, 1024, 1023, 517}) {
      RandomBatchOptions options = options_of(KvScale::kPerTensor, 4, 1, 128);
      options.spec.mask = mask;
      options.spec.window_left = window;
      options.requests = {{40, 1500}, {17, 700}};
      expect_oracle(options, "mask " + std::to_string(static_cast<int>(mask)) + ", window " +
                                 std::to_string(window));
    }
  }
}

TEST(GpuNarrowQueries, AgreeForPromptsWithSinksSoftCapsAndSlopes) {
  for (int features = 1; features < 8; ++features) {
    RandomBatchOptions options = prompt_options(KvScale::kPerHead, 4, 2);
    options.query_scales = 2;
    options.spec.sinks = (features & 1) != 0;
    options.spec.logits_soft_cap = (features & 2) != 0 ? 20.0F : 0.0F;
    options.spec.alibi = (features & 4) != 0;
    expect_oracle(options, "features " + std::to_string(features));
  }
}

// Whole units of plain requests, of many tiles, and units that are cut into pieces.
TEST(GpuNarrowQueries, AgreeForLongPromptsInManyPieces) {
  RandomBatchOptions options = options_of(KvScale::kPerHead, 4, 2, 128);
  options.query_scales = 1;
  options.requests = {{1, 20000}, {40, 5000}, {300, 900}, {128, 2050}};
  RandomBatch host(options);
  expect_oracle(host, host.limits());
  RandomBatch roomy(options);
  expect_oracle(roomy, testing::kRoomyLimits);
}

// Many large units in a row that see nothing, behind and before others.
TEST(GpuNarrowQueries, AgreeWhereManyQueriesSeeNoKeys) {
  RandomBatchOptions options = options_of(KvScale::kPerHead, 4, 2, 128);
  for (const auto& requests :
       std::array<std::vector<testing::Request>, 3>{{{{64, 64}, {4096, 0}},
                                                     {{2048, 64}, {40, 300}, {4096, 0}},
                                                     {{64, 3000}, {4096, 128}}}}) {
    options.requests = requests;
    expect_oracle(options, std::to_string(requests.front().qo_len));
  }
}

TEST(GpuNarrowQueries, AgreeForSharedPrefixes) {
  for (const std::int32_t page_size : {16, 17}) {
    RandomBatchOptions options = options_of(KvScale::kPerHead, 4, 2, 128);
    options.query_scales = 2;
    options.spec.page_size = page_size;
    options.shared_pages = 60;
    options.requests.assign(24, {1, 1100});
    options.requests.insert(options.requests.end(), {{3, 1000}, {16, 990}, {40, 1300}});
    expect_oracle(options, "page size " + std::to_string(page_size));
  }
}

// Later tiles are attended first: bases have to be raised far, for some rows and again and again.
TEST(GpuNarrowQueries, AgreeWhereSomeKeysDwarfOthers) {
  using Factor = float (*)(std::int64_t, std::int64_t);
  constexpr std::array<Factor, 4> kFactors = {
      [](std::int64_t key, std::int64_t) { return key < 300 ? 0.25F : 2.0F; },
      [](std::int64_t key, std::int64_t) { return key < 300 ? 2.0F : 0.25F; },
      [](std::int64_t key, std::int64_t) { return key % 411 < 5 ? 4.0F : 0.5F; },
      [](std::int64_t key, std::int64_t kv_len) {
        return std::exp2(3.0F * static_cast<float>(kv_len - key) / static_cast<float>(kv_len));
      }};
  for (const Factor factor : kFactors) {
    RandomBatchOptions options = options_of(KvScale::kPerTensor, 4, 2, 128);
    options.requests = {{40, 900}, {70, 400}, {9, 1200}, {33, 2900}};
    RandomBatch host(options);
    testing::scale_keys(host, factor);
    expect_oracle(host, host.limits(), true);
  }
}

// All weights of a row are the largest.
TEST(GpuNarrowQueries, AgreeWhereAllKeysAreTheSame) {
  for (const float slope : {0.0F, 0.001F, 0.02F}) {
    RandomBatchOptions options = options_of(KvScale::kNone, 4, 2, 128);
    options.requests = {{40, 1300}, {130, 900}};
    RandomBatch host(options);
    for (std::int64_t i = 0; i < host.q_elements.size(); ++i) {
      if (!std::isnan(host.q_elements.get(i))) host.q_elements.set(i, 1.0F);
    }
    for (std::int64_t i = 0; i < host.k_elements.size(); ++i) {
      if (!std::isnan(host.k_elements.get(i))) host.k_elements.set(i, 0.0F);
    }
    // The first component of keys rises towards the first one, in steps of codes.
    for (std::size_t seq = 0; seq < options.requests.size(); ++seq) {
      const std::int64_t kv_len = options.requests[seq].kv_len;
      for (std::int64_t key = 0; key < kv_len; ++key) {
        for (std::int64_t head = 0; head < 2; ++head) {
          host.k_elements.set(host.row_offset(host.tensors.k, seq, key, head),
                              slope * static_cast<float>(kv_len - key) * std::sqrt(128.0F));
        }
      }
    }
    SCOPED_TRACE("slope " + std::to_string(slope));
    expect_oracle(host, host.limits());
  }
}

// As many units as multiprocessors, so that none is split. Sums of 8-bit products are cut off so that those
// of weights and values of thousands of keys would come out too low.
TEST(GpuNarrowQueries, AddUpLongContextsOfWhichAllWeightsAreAlike) {
  for (const std::int32_t kv_len : {2048, 32768}) {
    RandomBatchOptions options = options_of(KvScale::kNone, 4, 1, 128);
    options.spec.mask = Mask::kNone;
    options.requests = {{4224, kv_len}};
    RandomBatch host(options);
    for (std::int64_t i = 0; i < host.q_elements.size(); ++i) {
      if (!std::isnan(host.q_elements.get(i))) host.q_elements.set(i, 0.0F);
    }
    double mean = 0.0;
    for (std::int64_t key = 0; key < kv_len; ++key) {
      const float value = 1.0F + static_cast<float>(key * 37 % 101 % 8) / 8.0F;
      mean += value / static_cast<double>(kv_len);
      for (std::int64_t dim = 0; dim < 128; ++dim) {
        host.v_elements.set(host.row_offset(host.tensors.v, 0, key, 0) + dim, value);
      }
    }
    const Attention attention(kGpu, host.spec, host.limits());
    DeviceBatch batch(host);
    ASSERT_TRUE(batch.run(attention).ok());
    for (std::int64_t row = 0; row < 4224; row += 41) {
      for (std::int64_t dim = 0; dim < 128; dim += 13) {
        ASSERT_NEAR(host.o(row, row % 4, dim), mean, mean * 0x1p-11) << "of " << kv_len << " keys";
      }
    }
  }
}

TEST(GpuNarrowQueries, AgreeForEveryCodeThatIsANumber) {
  RandomBatchOptions options = options_of(KvScale::kNone, 4, 1, 128);
  options.requests = {{1, 256}, {9, 300}, {100, 400}};
  // The largest codes make logits of some units.
  options.spec.sm_scale = 1.0F / (16.0F * 448.0F * 448.0F);
  RandomBatch host(options);
  std::uint32_t code = 0;
  for (testing::ElementBuffer* codes : {&host.q_elements, &host.k_elements, &host.v_elements}) {
    for (std::int64_t i = 0; i < codes->size(); ++i) {
      if (std::isnan(codes->get(i))) continue;  // poison
      do {
        *codes->at(i) = static_cast<std::byte>(code++);
      } while (!std::isfinite(codes->get(i)));
      code += 7;
    }
  }
  const Attention attention(kGpu, host.spec, host.limits());
  DeviceBatch batch(host);
  ASSERT_TRUE(batch.run(attention).ok());
  const testing::Difference difference = compare(host, testing::oracle_of(host));
  EXPECT_EQ(difference.mismatches, 0);
  EXPECT_LE(difference.o * host.max_abs_v(), 448.0 * 0x1p-10);
}

TEST(GpuNarrowQueries, GiveTheSameBitsEveryTime) {
  RandomBatchOptions options = options_of(KvScale::kPerTensor, 4, 2, 128);
  options.requests = {{1, 20000}, {100, 900}, {40, 5000}};
  RandomBatch host(options);
  const Attention attention(kGpu, host.spec, host.limits());
  DeviceBatch batch(host);
  ASSERT_TRUE(batch.run(attention).ok());
  const std::vector<std::byte> first = batch.result_bytes();
  for (int i = 0; i < 5; ++i) {
    batch.forget_results();
    ASSERT_TRUE(batch.run(attention).ok());
    ASSERT_EQ(batch.result_bytes(), first);
  }
}

}  // namespace
}  // namespace quire
