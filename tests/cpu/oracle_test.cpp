// SPDX-License-Identifier: Apache-2.0
// The CPU backend against the oracle: random ragged batches, with poison in everything that must
// not be read. Each test turns on one thing; the last ones turn on everything at random.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "support/cpu_kernels.hpp"
#include "support/random_batch.hpp"

namespace quire {
namespace {

using testing::bound_of;
using testing::CacheStorage;
using testing::Difference;
using testing::for_each_kernel;
using testing::KeySource;
using testing::kFloat32Bound;
using testing::kLseBound;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::rounds_weights;

RandomBatchOptions small(std::int32_t group, std::int32_t kv_heads, std::int32_t head_dim) {
  return testing::edgy_options(DType::kFloat32, group, kv_heads, head_dim);
}

/// Runs the batch on two threads with every kernel that serves it, and compares.
void expect_oracle(const RandomBatchOptions& options, const std::string& what = {}) {
  SCOPED_TRACE(what);
  RandomBatch batch(options);
  static const auto pool = make_thread_pool(2);
  const ReferenceResult oracle = reference_attention(batch.spec, batch.batch, batch.tensors);
  AttentionSpec spec = batch.options.spec;  // with defaults to be filled in
  spec.page_size = batch.spec.page_size;
  spec.sm_scale = batch.spec.sm_scale;
  for_each_kernel(batch.spec, [&](const core::KernelRow& kernel) {
    const Attention attention(Device::cpu(), spec, batch.limits(),
                              {.executor = pool.get(), .kernel = std::string(kernel.name)});
    ASSERT_EQ(attention.kernel(), kernel.name);
    batch.forget_results();
    const Status status = testing::run(attention, batch);
    ASSERT_TRUE(status.ok()) << status.message();
    const Difference difference = compare(batch, oracle);
    EXPECT_EQ(difference.mismatches, 0);
    EXPECT_LE(difference.o, bound_of(kernel, batch.spec));
    EXPECT_LE(difference.lse, kLseBound);
    EXPECT_TRUE(batch.gaps_are_untouched());
  });
}

TEST(Oracle, AgreesForEveryGroupSize) {
  for (std::int32_t group = 1; group <= 16; ++group) {
    expect_oracle(small(group, group <= 4 ? 2 : 1, 16), "group " + std::to_string(group));
  }
}

TEST(Oracle, AgreesForEveryPageSizeAndWayToFindPages) {
  for (const std::int32_t page_size : {1, 2, 3, 8, 16, 17, 64, 100}) {
    for (const KeySource source : {KeySource::kDense, KeySource::kCsr, KeySource::kCsrWithKvLen}) {
      RandomBatchOptions options = small(2, 2, 16);
      options.spec.page_size = page_size;
      options.source = source;
      expect_oracle(options, "page size " + std::to_string(page_size) + ", source " +
                                 std::to_string(static_cast<int>(source)));
    }
  }
}

TEST(Oracle, AgreesForEveryHeadDim) {
  for (const std::int32_t head_dim : {8, 24, 32, 40, 64, 72, 80, 96, 128, 192, 256, 512}) {
    RandomBatchOptions options = small(3, 1, head_dim);
    options.requests = {{1, 70}, {2, 65}, {20, 90}, {40, 40}};
    expect_oracle(options, "head_dim " + std::to_string(head_dim));
    options.spec.kv_dtype = DType::kBFloat16;
    expect_oracle(options, "bf16, head_dim " + std::to_string(head_dim));
  }
}

TEST(Oracle, AgreesForValuesOfAnotherHeadDimThanKeys) {
  for (const auto& [qk, vo] : {std::pair{192, 128}, {16, 40}, {72, 8}, {8, 72}, {512, 256}}) {
    RandomBatchOptions options = small(2, 2, qk);
    options.spec.head_dim_vo = vo;
    options.requests = {{1, 70}, {3, 65}, {30, 90}};
    for (const CacheStorage storage : {CacheStorage::kApart, CacheStorage::kPackedDims}) {
      options.storage = storage;
      expect_oracle(options, std::to_string(qk) + "/" + std::to_string(vo));
    }
  }
}

TEST(Oracle, AgreesForEveryPairOfDtypes) {
  for (const DType q : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const DType kv : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                           DType::kFloat8E4M3, DType::kFloat8E5M2}) {
      for (const std::int32_t head_dim : {32, 72, 128}) {
        RandomBatchOptions options = small(4, 2, head_dim);
        options.spec.q_dtype = q;
        options.spec.kv_dtype = kv;
        options.spec.o_dtype = DType::kFloat32;
        expect_oracle(options, std::string(to_string(q)) + " over " + std::string(to_string(kv)) +
                                   ", head_dim " + std::to_string(head_dim));
      }
    }
  }
}

TEST(Oracle, AgreesForQueriesOfEightBits) {
  for (const KvScale scale : {KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead}) {
    for (const int query_scales : {0, 1, 2}) {
      for (const DType o_dtype : {DType::kNone, DType::kFloat16, DType::kFloat32}) {
        RandomBatchOptions options = small(4, 2, 72);
        options.spec.q_dtype = options.spec.kv_dtype = DType::kFloat8E4M3;
        options.spec.o_dtype = o_dtype;
        options.spec.kv_scale = scale;
        options.query_scales = query_scales;
        expect_oracle(options, "scale " + std::to_string(static_cast<int>(scale)) +
                                   ", scales of q " + std::to_string(query_scales) + ", o " +
                                   std::string(to_string(o_dtype)));
      }
    }
  }
}

TEST(Oracle, AgreesForEveryCodeOfTheEightBitDtypes) {
  for (const DType kv : {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    RandomBatchOptions options = small(2, 1, 64);
    options.spec.q_dtype = DType::kBFloat16;
    options.spec.kv_dtype = kv;
    options.spec.o_dtype = DType::kFloat32;
    options.spec.sm_scale = 1e-6F;
    options.requests = {{1, 40}, {12, 40}};
    RandomBatch batch(options);
    double largest = 0;
    for (std::size_t seq = 0; seq < 2; ++seq) {
      for (std::int32_t key = 0; key < 40; ++key) {
        auto* v = static_cast<std::byte*>(const_cast<void*>(batch.tensors.v.data)) +
                  batch.row_offset(batch.tensors.v, seq, key, 0);
        auto* k = static_cast<std::byte*>(const_cast<void*>(batch.tensors.k.data)) +
                  batch.row_offset(batch.tensors.k, seq, key, 0);
        for (std::int32_t i = 0; i < 64; ++i) {
          v[i] = static_cast<std::byte>(key * 64 + i);
          if (!std::isfinite(testing::decode(v + i, kv))) v[i] = std::byte{0};
          k[i] = v[i];
          largest = std::max<double>(largest, std::abs(testing::decode(v + i, kv)));
        }
      }
    }
    const ReferenceResult oracle = reference_attention(batch.spec, batch.batch, batch.tensors);
    for_each_kernel(batch.spec, [&](const core::KernelRow& kernel) {
      const Attention attention(Device::cpu(), batch.options.spec, batch.limits(),
                                {.kernel = std::string(kernel.name)});
      batch.forget_results();
      ASSERT_TRUE(testing::run(attention, batch).ok());
      const Difference difference = compare(batch, oracle);
      EXPECT_EQ(difference.mismatches, 0);
      EXPECT_LE(difference.o * batch.max_abs_v() / largest, bound_of(kernel, batch.spec));
    });
  }
}

TEST(Oracle, GivesNaNToRowsThatSeeAValueThatIsNone) {
  for (const auto& [kv, code] : {std::pair{DType::kFloat8E4M3, 0x7f},
                                 {DType::kFloat8E4M3, 0xff},
                                 {DType::kFloat8E5M2, 0x7e},
                                 {DType::kFloat8E5M2, 0xff}}) {
    for (const std::int32_t queries : {1, 20}) {
      RandomBatchOptions options = small(2, 1, 64);
      options.spec.q_dtype = DType::kBFloat16;
      options.spec.kv_dtype = kv;
      options.requests = {{queries, 40}};
      RandomBatch batch(options);
      auto* v = static_cast<std::byte*>(const_cast<void*>(batch.tensors.v.data)) +
                batch.row_offset(batch.tensors.v, 0, 5, 0);
      v[3] = static_cast<std::byte>(code);
      const ReferenceResult oracle = reference_attention(batch.spec, batch.batch, batch.tensors);
      for_each_kernel(batch.spec, [&](const core::KernelRow& kernel) {
        const Attention attention(Device::cpu(), batch.options.spec, batch.limits(),
                                  {.kernel = std::string(kernel.name)});
        batch.forget_results();
        ASSERT_TRUE(testing::run(attention, batch).ok());
        EXPECT_TRUE(std::isnan(batch.o(0, 0, 3)));
        EXPECT_EQ(compare(batch, oracle).mismatches, 0);
      });
    }
  }
}

/// Codes of the dtype between two numbers of it.
std::int32_t ulps_between(float a, float b, DType dtype) {
  const auto ordinal = [dtype](float value) {
    std::byte bytes[sizeof(float)] = {};
    testing::encode(value, bytes, dtype);
    std::int16_t code = 0;
    std::memcpy(&code, bytes, sizeof(code));
    return code >= 0 ? std::int32_t{code} : -std::int32_t{code & 0x7fff};
  };
  return std::abs(ordinal(a) - ordinal(b));
}

TEST(Oracle, IsRoundedToTheNearestOfTheOutputDtype) {
  constexpr std::int32_t kHeads = 2;
  constexpr std::int32_t kHeadDim = 64;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    RandomBatchOptions options = small(kHeads, 1, kHeadDim);
    options.requests = {{1, 300}, {40, 100}};
    options.spec.q_dtype = options.spec.kv_dtype = dtype;
    RandomBatch batch(options);
    const ReferenceResult oracle = reference_attention(batch.spec, batch.batch, batch.tensors);
    for_each_kernel(batch.spec, [&](const core::KernelRow& kernel) {
      const Attention attention(Device::cpu(), batch.options.spec, batch.limits(),
                                {.kernel = std::string(kernel.name)});
      batch.forget_results();
      ASSERT_TRUE(testing::run(attention, batch).ok());
      // Weights rounded to bf16 move their sum by a step or, where it is near 0, by more.
      const std::int32_t allowed = rounds_weights(kernel) ? 1 : 0;
      const double share = rounds_weights(kernel) ? 0.85 : 0.99;
      std::int64_t good = 0;
      std::int64_t total = 0;
      std::size_t at = 0;
      for (std::int64_t row = 0; row < batch.total_q(); ++row) {
        for (std::int64_t head = 0; head < kHeads; ++head) {
          for (std::int64_t i = 0; i < kHeadDim; ++i, ++at, ++total) {
            std::byte rounded[sizeof(float)];
            testing::encode(static_cast<float>(oracle.o[at]), rounded, dtype);
            const float expected = testing::decode(rounded, dtype);
            good += ulps_between(expected, batch.o(row, head, i), dtype) <= allowed ? 1 : 0;
          }
        }
      }
      EXPECT_GE(static_cast<double>(good), share * static_cast<double>(total)) << to_string(dtype);
    });
  }
}

TEST(Oracle, AgreesForEveryStorageOfTheCache) {
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    for (const CacheStorage storage :
         {CacheStorage::kApart, CacheStorage::kTwoPages, CacheStorage::kPagesTwo,
          CacheStorage::kPagesLayersTwo, CacheStorage::kPackedDims}) {
      for (const std::int32_t kv_heads : {1, 3}) {
        RandomBatchOptions options = small(2, kv_heads, 24);
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

TEST(Oracle, AgreesForContiguousKeys) {
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    RandomBatchOptions options = small(4, 2, 16);
    options.source = KeySource::kContiguous;
    options.spec.kv_layout = layout;
    expect_oracle(options);
  }
}

TEST(Oracle, AgreesForEveryMaskAndWindow) {
  for (const Mask mask : {Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull}) {
    for (const std::int32_t window : {-1, 0, 1, 15, 63, 64, 100}) {
      for (const std::int32_t group : {1, 5}) {
        RandomBatchOptions options = small(group, 1, 16);
        options.spec.mask = mask;
        options.spec.window_left = window;
        expect_oracle(options, "mask " + std::to_string(static_cast<int>(mask)) + ", window " +
                                   std::to_string(window));
      }
    }
  }
}

TEST(Oracle, AgreesForSparseAndFullMasks) {
  for (const double density : {0.0, 0.02, 0.9, 1.0}) {
    for (const Mask mask : {Mask::kTree, Mask::kFull}) {
      RandomBatchOptions options = small(2, 1, 16);
      options.spec.mask = mask;
      options.mask_density = density;
      expect_oracle(options, "density " + std::to_string(density));
    }
  }
}

TEST(Oracle, KeepsNaNInMaskedValuesAwayFromQueriesThatDoNotSeeThem) {
  for (const Mask mask : {Mask::kCausal, Mask::kTree, Mask::kFull}) {
    for (const std::int32_t group : {1, 3, 7}) {
      for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
        RandomBatchOptions options = small(group, 2, 24);
        options.spec.mask = mask;
        options.spec.kv_dtype = dtype;
        options.mask_density = 0.1;
        options.poison_masked_values = true;
        expect_oracle(options, "mask " + std::to_string(static_cast<int>(mask)) + ", group " +
                                   std::to_string(group));
      }
    }
  }
}

TEST(Oracle, AgreesForSoftCapSinksAlibiAndScales) {
  for (const KvScale scale :
       {KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead, KvScale::kPerToken}) {
    for (const float cap : {0.0F, 0.5F, 30.0F}) {
      for (const bool sinks : {false, true}) {
        for (const bool alibi : {false, true}) {
          RandomBatchOptions options = small(3, 2, 16);
          options.spec.kv_scale = scale;
          options.spec.logits_soft_cap = cap;
          options.spec.sinks = sinks;
          options.spec.alibi = alibi;
          options.spec.sm_scale = 0.3F;
          expect_oracle(options, "cap " + std::to_string(cap) + (sinks ? ", sinks" : "") +
                                     (alibi ? ", alibi" : ""));
        }
      }
    }
  }
}

TEST(Oracle, AgreesForScalesOfTokensInEveryNarrowDtypeMaskAndNumberOfRows) {
  for (const DType dtype :
       {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kBFloat16}) {
    for (const Mask mask : {Mask::kCausal, Mask::kTree}) {
      for (const KeySource source : {KeySource::kDense, KeySource::kContiguous}) {
        for (const std::int32_t group : {1, 4, 7}) {
          RandomBatchOptions options = small(group, 2, 32);
          options.spec.q_dtype = DType::kBFloat16;
          options.spec.kv_dtype = dtype;
          options.spec.o_dtype = DType::kFloat32;
          options.spec.kv_scale = KvScale::kPerToken;
          options.spec.mask = mask;
          options.spec.window_left = group == 4 ? 50 : -1;
          options.source = source;
          if (source == KeySource::kContiguous) options.spec.page_size = kContiguousKv;
          options.requests = {{1, 150}, {0, 9}, {70, 201}, {3, 3}, {1, 0}};
          expect_oracle(options, "group " + std::to_string(group));
        }
      }
    }
  }
}

TEST(Oracle, AgreesForASinkAboveAllLogits) {
  RandomBatchOptions options = small(2, 1, 16);
  options.spec.sinks = true;
  RandomBatch batch(options);
  batch.sinks = {200.0F, -300.0F};
  batch.tensors.sinks = TensorView(batch.sinks.data(), DType::kFloat32, {2});
  const Attention attention(Device::cpu(), batch.spec, batch.limits());
  ASSERT_TRUE(testing::run(attention, batch).ok());
  const Difference difference =
      compare(batch, reference_attention(batch.spec, batch.batch, batch.tensors));
  EXPECT_EQ(difference.mismatches, 0);
  EXPECT_LE(difference.o, kFloat32Bound);
}

TEST(Oracle, AgreesForLogitsFarApart) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    RandomBatchOptions options = testing::edgy_options(dtype, 2, 1, 16);
    options.spec.o_dtype = DType::kFloat32;
    options.magnitude = 12.0F;  // logits of some hundreds: most weights vanish
    options.requests = {{1, 300}, {40, 300}, {5, 70}};
    RandomBatch batch(options);
    const ReferenceResult oracle = reference_attention(batch.spec, batch.batch, batch.tensors);
    for_each_kernel(batch.spec, [&](const core::KernelRow& kernel) {
      const Attention attention(Device::cpu(), batch.spec, batch.limits(),
                                {.kernel = std::string(kernel.name)});
      batch.forget_results();
      ASSERT_TRUE(testing::run(attention, batch).ok());
      const Difference difference = compare(batch, oracle);
      EXPECT_EQ(difference.mismatches, 0);
      // fp32 logits of 500 are good to 3e-5
      EXPECT_LE(difference.o, std::max(2e-4, bound_of(kernel, batch.spec)));
    });
  }
}

TEST(Oracle, AgreesForLongContexts) {
  RandomBatchOptions options = small(4, 2, 64);
  options.requests = {{1, 3000}, {1, 777}, {2, 1025}};
  expect_oracle(options);
  options.spec.q_dtype = options.spec.kv_dtype = DType::kBFloat16;
  options.spec.o_dtype = DType::kFloat32;
  expect_oracle(options, "bf16");
}

TEST(Oracle, AgreesForBatchesWithoutRequestsOrRows) {
  RandomBatchOptions options = small(2, 1, 16);
  options.requests = {};
  expect_oracle(options, "padding only");
  options.padding_rows = 0;
  expect_oracle(options, "nothing");
  options.requests = {{0, 0}, {0, 9}};
  expect_oracle(options, "no queries");
  options.requests = {{4, 0}, {2, 1}};
  options.padding_rows = 100;
  expect_oracle(options, "hardly a key, much padding");
}

TEST(Oracle, AgreesForSlopesOfKeysThatBeginInsideATile) {
  RandomBatchOptions options = small(4, 2, 64);
  options.spec.q_dtype = options.spec.kv_dtype = DType::kBFloat16;
  options.spec.o_dtype = DType::kFloat32;
  options.spec.alibi = true;
  options.spec.window_left = 107;
  options.requests = {{40, 300}, {1, 290}, {60, 61}};
  expect_oracle(options);
}

TEST(Oracle, AgreesForRandomMixturesOfEverything) {
  std::mt19937 random(2026);
  const auto below = [&](std::uint32_t n) { return static_cast<std::int32_t>(random() % n); };
  constexpr std::int32_t kPageSizes[] = {1, 2, 3, 8, 16, 17, 64, 100};
  constexpr DType kDtypes[] = {DType::kFloat32,  DType::kFloat16,    DType::kBFloat16,
                               DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2};
  for (std::uint32_t round = 0; round < 120; ++round) {
    const std::int32_t group = 1 + below(16);  // one after another: arguments have no order
    const std::int32_t kv_heads = 1 + below(3);
    RandomBatchOptions options = small(group, kv_heads, 8 * (1 + below(12)));
    options.spec.head_dim_vo = below(3) == 0 ? 8 * (1 + below(12)) : 0;
    options.spec.page_size = kPageSizes[below(8)];
    options.spec.kv_layout = static_cast<KvLayout>(below(2));
    options.spec.mask = static_cast<Mask>(below(4));
    options.spec.window_left = below(2) == 0 ? -1 : below(150);
    options.spec.logits_soft_cap = below(4) == 0 ? 20.0F : 0.0F;
    options.spec.sinks = below(3) == 0;
    options.spec.alibi = below(4) == 0;
    options.spec.kv_scale = static_cast<KvScale>(below(4));
    options.spec.q_dtype = kDtypes[below(4)];
    options.spec.kv_dtype = kDtypes[below(6)];
    options.spec.o_dtype = DType::kFloat32;
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
      const std::int32_t keys = below(4) == 0 ? below(300) : below(80);
      const std::int32_t queries = below(2) == 0 ? 1 : below(static_cast<std::uint32_t>(keys) + 3);
      options.requests.push_back({std::min(queries, 60), keys});
    }
    expect_oracle(options, "round " + std::to_string(round));
  }
}

}  // namespace
}  // namespace quire
