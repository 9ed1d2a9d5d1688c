// SPDX-License-Identifier: Apache-2.0
// Attention on the GPU against the oracle: masks, windows and what changes the logits; then random
// mixtures of everything.
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

constexpr std::array kDTypes = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};
constexpr std::array kMasks = {Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull};

std::string name_of(Mask mask) { return "mask " + std::to_string(static_cast<int>(mask)); }

TEST(GpuMask, AgreesForEveryMaskAndWindow) {
  for (const Mask mask : kMasks) {
    for (const std::int32_t window : {-1, 0, 1, 15, 63, 64, 100}) {
      for (const std::int32_t group : {1, 5}) {
        const DType dtype = group == 1 ? DType::kFloat16 : DType::kBFloat16;
        RandomBatchOptions options = exact_options(dtype, group, 1, 64);
        options.spec.mask = mask;
        options.spec.window_left = window;
        expect_oracle(options, name_of(mask) + ", window " + std::to_string(window));
      }
    }
  }
}

TEST(GpuMask, AgreesForEveryMaskInFloat32) {
  for (const Mask mask : kMasks) {
    for (const std::int32_t window : {-1, 40}) {
      RandomBatchOptions options = exact_options(DType::kFloat32, 3, 2, 64);
      options.spec.mask = mask;
      options.spec.window_left = window;
      expect_oracle(options, name_of(mask) + ", window " + std::to_string(window));
    }
  }
}

TEST(GpuMask, NeedsNoPageBeforeTheWindow) {
  for (const std::int32_t page_size : {1, 16, 17, 64}) {
    for (const KeySource source : {KeySource::kDense, KeySource::kCsr, KeySource::kCsrWithKvLen}) {
      RandomBatchOptions options = exact_options(DType::kBFloat16, 4, 1, 128);
      options.spec.page_size = page_size;
      options.spec.window_left = 70;
      options.source = source;
      options.requests = {{1, 3000}, {1, 71}, {1, 72}, {4, 1000}, {90, 700}, {1, 5}};
      expect_oracle(options, "page size " + std::to_string(page_size));
    }
  }
}

// Long enough for tiles that need no maxima, and a mask only where a window begins: at and between
// multiples of 16 keys.
TEST(GpuMask, AgreesForLongWindowsOfPromptsThatBeginAnywhere) {
  for (const std::int32_t head_dim : {64, 128, 192, 256}) {
    for (const std::int32_t window : {1024, 1023, 517}) {
      RandomBatchOptions options = exact_options(DType::kBFloat16, 4, 1, head_dim);
      if (!supports(kGpu, options.spec).supported) continue;  // a trimmed build
      options.spec.page_size = window == 517 ? 5 : 16;
      options.spec.mask = window == 1024 ? Mask::kNone : Mask::kCausal;
      options.spec.window_left = window;
      options.requests = {{700, 2500}, {65, 1300}, {129, 1301}};
      expect_oracle(options, std::to_string(head_dim) + ", window " + std::to_string(window));
    }
  }
}

TEST(GpuMask, AgreesForSparseAndFullMasks) {
  for (const double density : {0.0, 0.02, 0.9, 1.0}) {
    for (const Mask mask : {Mask::kTree, Mask::kFull}) {
      RandomBatchOptions options = exact_options(DType::kBFloat16, 2, 1, 64);
      options.spec.mask = mask;
      options.mask_density = density;
      expect_oracle(options, name_of(mask) + ", density " + std::to_string(density));
    }
  }
}

TEST(GpuMask, AgreesForTreesOfManyNewTokens) {
  for (const std::int32_t group : {1, 4, 8}) {
    RandomBatchOptions options = exact_options(DType::kBFloat16, group, 1, 128);
    options.spec.mask = Mask::kTree;
    options.requests = {{8, 500}, {32, 432}, {33, 100}, {64, 64}, {130, 300}, {1, 7}, {65, 1}};
    expect_oracle(options, "group " + std::to_string(group));
  }
}

// In fp32: tensor cores multiply every value of a tile, by 0 where it is masked.
TEST(GpuMask, KeepsNaNInMaskedValuesAwayFromQueriesThatDoNotSeeThem) {
  for (const Mask mask : {Mask::kCausal, Mask::kTree, Mask::kFull}) {
    for (const std::int32_t group : {1, 3, 7}) {
      RandomBatchOptions options = exact_options(DType::kFloat32, group, 2, 64);
      options.spec.mask = mask;
      options.mask_density = 0.1;
      options.poison_masked_values = true;
      expect_oracle(options, name_of(mask) + ", group " + std::to_string(group));
    }
  }
}

TEST(GpuLogits, AgreeForSoftCapSinksAlibiAndScales) {
  std::uint32_t seed = 0;
  for (const KvScale scale : {KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead}) {
    for (const float cap : {0.0F, 0.5F, 30.0F}) {
      for (const bool sinks : {false, true}) {
        for (const bool alibi : {false, true}) {
          RandomBatchOptions options = exact_options(kDTypes[seed % kDTypes.size()], 3, 2, 64);
          options.spec.kv_scale = scale;
          options.spec.logits_soft_cap = cap;
          options.spec.sinks = sinks;
          options.spec.alibi = alibi;
          options.spec.sm_scale = 0.15F;
          options.seed = ++seed;
          expect_oracle(options, "cap " + std::to_string(cap) + (sinks ? ", sinks" : "") +
                                     (alibi ? ", alibi" : ""));
        }
      }
    }
  }
}

TEST(GpuLogits, AgreeForASinkAboveAllLogits) {
  RandomBatchOptions options = exact_options(DType::kBFloat16, 2, 1, 64);
  options.requests.push_back({1, 4000});  // split: the sink enters once
  options.spec.sinks = true;
  RandomBatch host(options);
  host.sinks = {200.0F, -300.0F};
  host.tensors.sinks = TensorView(host.sinks.data(), DType::kFloat32, {2});
  expect_oracle(host, host.limits());
}

TEST(GpuLogits, AgreeFarApart) {
  for (const DType dtype : kDTypes) {
    RandomBatchOptions options = exact_options(dtype, 2, 1, 64);
    options.magnitude = 8.0F;  // logits of some hundreds: most weights vanish
    RandomBatch host(options);
    const Attention attention(kGpu, host.spec, host.limits());
    const DeviceBatch batch(host);
    ASSERT_TRUE(batch.run(attention).ok());
    const testing::Difference difference = compare(host, oracle_of(host));
    EXPECT_EQ(difference.mismatches, 0);
    // fp32 logits of 500 are good to 3e-5, wherever they come from.
    EXPECT_LE(difference.o, testing::bounds_of(host.spec).o + 3e-4) << to_string(dtype);
  }
}

TEST(GpuOutput, OfQsDtypeIsTheFloat32OutputRoundedOnce) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    RandomBatchOptions options = exact_options(dtype, 4, 2, 128);
    options.requests.push_back({1, 4000});  // split: merged before it is rounded
    RandomBatch exact(options);
    options.spec.o_dtype = dtype;
    RandomBatch rounded(options);
    for (RandomBatch* host : {&exact, &rounded}) {
      const Attention attention(kGpu, host->spec, host->limits());
      ASSERT_TRUE(DeviceBatch(*host).run(attention).ok());
    }
    std::int64_t equal = 0;
    for (std::int64_t i = 0; i < exact.o_elements.size(); ++i) {
      std::byte want[sizeof(float)];
      testing::encode(exact.o_elements.get(i), want, dtype);
      equal += testing::decode(want, dtype) == rounded.o_elements.get(i) ? 1 : 0;
    }
    EXPECT_GE(static_cast<double>(equal), 0.99 * static_cast<double>(exact.o_elements.size()))
        << to_string(dtype);
  }
}

/// Draws everything that a batch can have.
class Mixture {
 public:
  RandomBatchOptions draw(std::uint32_t round) {
    constexpr std::array kPageSizes = {1, 8, 16, 17, 64, 128, 256, 544};
    constexpr std::array kHeadDims = {64, 96, 128, 192, 256, 512};
    const DType dtype = kDTypes[at(kDTypes.size())];
    RandomBatchOptions options =
        exact_options(dtype, 1 + below(16), 1 + below(3), kHeadDims[at(below(3) == 0 ? 6 : 3)]);
    if (below(12) == 0) {
      options.spec.head_dim_qk = 192;
      options.spec.head_dim_vo = 128;
    }
    options.spec.page_size = kPageSizes[at(kPageSizes.size())];
    options.spec.kv_layout = static_cast<KvLayout>(below(2));
    options.spec.mask = kMasks[at(kMasks.size())];
    options.spec.window_left = below(2) == 0 ? -1 : below(150);
    options.spec.logits_soft_cap = below(4) == 0 ? 20.0F : 0.0F;
    options.spec.sinks = below(3) == 0;
    options.spec.alibi = below(4) == 0;
    options.spec.kv_scale = static_cast<KvScale>(below(3));
    if (below(2) == 0) options.spec.o_dtype = DType::kNone;
    options.source = static_cast<KeySource>(below(4));
    options.storage = static_cast<CacheStorage>(below(5));
    options.fused_qkv = below(2) == 0;
    options.strided_output = below(2) == 0;
    options.shared_pages = below(3);
    options.stale_pages = below(4);
    options.padding_rows = below(20);
    options.seed = round + 1;
    options.requests.clear();
    for (std::int32_t count = below(6); count >= 0; --count) {
      const std::int32_t keys = below(4) == 0 ? below(700) : below(80);
      const std::int32_t queries = below(2) == 0 ? 1 : below(keys + 3);
      options.requests.push_back({std::min(queries, 60), keys});
    }
    return options;
  }
  bool coin() { return below(2) == 0; }

 private:
  std::int32_t below(std::int32_t n) {
    return static_cast<std::int32_t>(random_() % static_cast<std::uint32_t>(n));
  }
  std::size_t at(std::size_t size) { return random_() % size; }

  std::mt19937 random_{2026};
};

TEST(GpuOracle, AgreesForRandomMixturesOfEverything) {
  constexpr std::uint32_t kRounds = 200;
  Mixture mixture;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const RandomBatchOptions options = mixture.draw(round);
    if (!supports(kGpu, options.spec).supported) continue;  // a trimmed build
    RandomBatch host(options);
    expect_oracle(host, mixture.coin() ? host.limits() : testing::kRoomyLimits);
    if (HasFailure()) return;  // one batch is enough to look at
  }
}

}  // namespace
}  // namespace quire
