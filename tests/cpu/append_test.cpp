// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "support/append_batch.hpp"

namespace quire {
namespace {

using testing::AppendBatch;
using testing::AppendCase;

Status append(const AppendBatch& batch) {
  return quire::append(Device::cpu(), batch.c.layout, batch.batch, batch.tensors);
}

TEST(Append, WritesToDerivedSlotsInEveryPairOfDtypesAndLayout) {
  for (const DType from : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const DType to : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                           DType::kFloat8E4M3, DType::kFloat8E5M2}) {
      for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
        AppendCase c;
        c.new_dtype = from;
        c.cache_dtype = to;
        c.layout = layout;
        AppendBatch batch(c);
        const Status status = append(batch);
        ASSERT_TRUE(status.ok()) << status.message();
        batch.expect_written();
      }
    }
  }
}

TEST(Append, RoundsEveryNumberToTheNearestCodeOfEightBitsAndSaturates) {
  constexpr std::int64_t kRows = 512;
  constexpr std::int64_t kHeadDim = 128;
  std::vector<float> numbers;
  for (std::uint32_t i = 0; i < kRows * kHeadDim; ++i) {  // all fp32 with 16 upper bits
    numbers.push_back(std::bit_cast<float>(i << 16));
  }
  const std::vector<std::int64_t> slots = [] {
    std::vector<std::int64_t> list(kRows);
    std::iota(list.begin(), list.end(), 0);
    return list;
  }();
  for (const DType dtype : {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    testing::ElementBuffer k(dtype, kRows * kHeadDim);
    testing::ElementBuffer v(dtype, kRows * kHeadDim);
    testing::ElementBuffer expected(dtype, 1);
    AppendTensors tensors;
    tensors.k = tensors.v = TensorView(numbers.data(), DType::kFloat32, {kRows, 1, kHeadDim});
    tensors.k_cache = {k.at(0), dtype, {1, kRows, 1, kHeadDim}};
    tensors.v_cache = {v.at(0), dtype, {1, kRows, 1, kHeadDim}};
    tensors.slot_mapping = TensorView(slots.data(), DType::kInt64, {kRows});
    ASSERT_TRUE(quire::append(Device::cpu(), KvLayout::kNHD, {}, tensors).ok());
    for (std::int64_t i = 0; i < k.size(); ++i) {
      expected.set(0, numbers[static_cast<std::size_t>(i)]);
      if (std::isnan(expected.get(0))) {
        ASSERT_TRUE(std::isnan(k.get(i)) && std::isnan(v.get(i)));
      } else {
        ASSERT_EQ(k.get(i), expected.get(0)) << numbers[static_cast<std::size_t>(i)];
        ASSERT_EQ(v.get(i), expected.get(0));
      }
    }
  }
}

TEST(Append, WritesToPagesOfAnySize) {
  for (const std::int64_t page_size : {14, 16, 17, 100}) {
    AppendCase c;
    c.page_size = page_size;
    AppendBatch batch(c);
    const Status status = append(batch);
    ASSERT_TRUE(status.ok()) << status.message();
    batch.expect_written();
  }
}

TEST(Append, WritesToGivenSlotsAndSkipsNegativeOnes) {
  AppendBatch batch({});
  for (std::int64_t row = 0; row < batch.total_q; ++row) {
    batch.slots.push_back(row % 3 == 1 ? -row : (row * 5) % 143);
  }
  batch.tensors.slot_mapping = TensorView(batch.slots.data(), DType::kInt64, {batch.total_q});
  batch.batch = {};  // not read
  ASSERT_TRUE(append(batch).ok());
  batch.expect_written();
}

TEST(Append, DividesByTheScales) {
  AppendBatch batch({});
  batch.k_scale = {0.5F};
  batch.v_scale = {4.0F, 4.0F};
  batch.tensors.k_scale = TensorView(batch.k_scale.data(), DType::kFloat32, {1});
  batch.tensors.v_scale = TensorView(batch.v_scale.data(), DType::kFloat32, {2});
  ASSERT_TRUE(append(batch).ok());
  batch.expect_written(batch.k_scale[0], batch.v_scale[0]);
}

TEST(Append, QuantisesWithTheScalesThatAreGiven) {
  for (const DType to : {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (const DType from : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      AppendCase c;
      c.new_dtype = from;
      c.cache_dtype = to;
      AppendBatch batch(c);
      batch.k_scale = {0.02F};
      batch.v_scale = {0.004F, 0.004F};  // some saturate int8
      batch.tensors.k_scale = TensorView(batch.k_scale.data(), DType::kFloat32, {1});
      batch.tensors.v_scale = TensorView(batch.v_scale.data(), DType::kFloat32, {2});
      ASSERT_TRUE(append(batch).ok());
      batch.expect_written(batch.k_scale[0], batch.v_scale[0]);
    }
  }
}

TEST(Append, ComputesAScaleForEachTokenAndHead) {
  for (const DType to : {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
      AppendCase c;
      c.new_dtype = DType::kBFloat16;
      c.cache_dtype = to;
      c.layout = layout;
      AppendBatch batch(c);
      batch.compute_token_scales();
      const Status status = append(batch);
      ASSERT_TRUE(status.ok()) << status.message();
      batch.expect_quantised();
    }
  }
}

TEST(Append, DerivesSlotsFromCsrTables) {
  AppendBatch batch({});
  batch.kv_page_indptr = {0, 3, 6, 9, 12};
  batch.batch.page_table = {};
  batch.batch.kv_page_indptr = TensorView(batch.kv_page_indptr.data(), DType::kInt32, {5});
  batch.batch.kv_page_indices = TensorView(batch.table.data(), DType::kInt32, {12});
  ASSERT_TRUE(append(batch).ok());
  batch.expect_written();
}

TEST(Append, WritesLargeBatchesInParallel) {
  AppendCase c;
  c.qo_indptr = {0, 1000, 1000, 1900, 1901};
  c.kv_len = {1001, 0, 950, 0};
  c.page_size = 400;
  AppendBatch batch(c);
  const auto pool = make_thread_pool(3);
  ASSERT_TRUE(quire::append(Device::cpu(), c.layout, batch.batch, batch.tensors, {},
                            {.executor = pool.get()})
                  .ok());
  batch.expect_written();
}

TEST(Append, IgnoresTheMasksOfTheBatch) {
  AppendBatch batch({});
  batch.batch.full_mask_indptr = TensorView(nullptr, DType::kInt32, {0});  // must not be followed
  EXPECT_TRUE(append(batch).ok());
}

TEST(Append, RefusesABadSlotOrPageAndWritesNothing) {
  const auto text_after = [](const std::function<void(AppendBatch&)>& spoil) {
    AppendBatch batch({});
    spoil(batch);
    const Status status = append(batch);
    batch.expect_nothing_written();
    return std::string(status.message());
  };
  EXPECT_EQ(text_after([](AppendBatch& b) {
              b.slots.assign(static_cast<std::size_t>(b.total_q), 0);
              b.slots[20] = 144;
              b.tensors.slot_mapping = TensorView(b.slots.data(), DType::kInt64, {b.total_q});
            }),
            "[append] slot_mapping[20]: expected a slot below 144 (9 pages of 16 tokens) or a "
            "negative one, got 144");
  EXPECT_EQ(text_after([](AppendBatch& b) { b.table[2 * 3 + 2] = 9; }),
            "[append] page_table[2][2]: expected a page id in [0, 9), got 9");
  EXPECT_EQ(text_after([](AppendBatch& b) { b.c.kv_len[2] = 49; }),
            "[append] kv_len[2]: expected 0…48 (page_table has 3 pages of 16 tokens for each "
            "request), got 49");
  EXPECT_EQ(text_after([](AppendBatch& b) { b.c.qo_indptr[4] = 30; }),
            "[append] qo_indptr[4]: expected at most 29 as k has rows, got 30");
}

}  // namespace
}  // namespace quire
