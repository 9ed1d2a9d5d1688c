// SPDX-License-Identifier: Apache-2.0
// Copy plans executed and fences through the C ABI.
#include <gtest/gtest.h>

#include <array>

#include "c/client.hpp"

namespace quire::c_test {
namespace {

constexpr std::int32_t kPages = 6;
constexpr std::int32_t kPageSize = 4;
constexpr std::size_t kPage = kPageSize * 2;  // elements of a page

/// A cache of distinct numbers.
struct Cache {
  Cache() {
    for (std::size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<float>(i);
    tensors.dst = packed(elements.data(), QUIRE_FLOAT32, {kPages, kPageSize, 1, 2});
  }
  std::array<float, kPages * kPage> elements{};
  quire_copy_tensors tensors = {QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE};
};

quire_status execute(const quire_copy_op* ops, std::size_t count, const quire_copy_tensors* caches,
                     std::size_t num_caches = 1) {
  return quire_execute_copies(kCpu, QUIRE_LAYOUT_NHD, ops, count, caches, num_caches, nullptr);
}

TEST(CCopies, MoveTheTokensOfAPageInOrder) {
  Cache cache;
  const quire_copy_op ops[] = {{0, 2, 3, 0, 0}, {2, 5, 1, 0, 0}};
  ASSERT_EQ(execute(ops, 2, &cache.tensors), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(cache.elements[2 * kPage + 5], 5.0F);
  EXPECT_EQ(cache.elements[2 * kPage + 6], 22.0F);  // the fourth token stays
  EXPECT_EQ(cache.elements[5 * kPage + 1], 1.0F);
}

TEST(CCopies, MovePagesFromOnePoolToAnotherInEveryCache) {
  Cache k;
  Cache v;
  std::array<float, 2 * kPage> pools[2] = {};
  const quire_copy_tensors caches[] = {
      {packed(pools[0].data(), QUIRE_FLOAT32, {2, kPageSize, 1, 2}), k.tensors.dst},
      {packed(pools[1].data(), QUIRE_FLOAT32, {2, kPageSize, 1, 2}), v.tensors.dst}};
  const quire_copy_op op = {5, 1, kPageSize, 0, 0};
  ASSERT_EQ(execute(&op, 1, caches, 2), QUIRE_OK) << quire_last_error();
  for (const auto& pool : pools) {
    EXPECT_EQ(pool[0], 0.0F);
    EXPECT_EQ(pool[kPage], 40.0F);
    EXPECT_EQ(pool[2 * kPage - 1], 47.0F);
  }
}

TEST(CCopies, GetTheirSentencesForNullAndNonsense) {
  Cache cache;
  const quire_copy_op outside[] = {{0, 1, 1, 0, 0}, {0, kPages, 1, 0, 0}};
  EXPECT_EQ(execute(outside, 2, &cache.tensors), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(cache.elements[kPage], 8.0F);
  EXPECT_EQ(execute(nullptr, 0, &cache.tensors), QUIRE_OK);
  EXPECT_EQ(execute(nullptr, 0, nullptr, 0), QUIRE_OK);
  EXPECT_EQ(execute(nullptr, 1, &cache.tensors), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_execute_copies] ops: expected quire_copy_op [1], got NULL");
  EXPECT_EQ(execute(outside, 1, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[quire_execute_copies] caches: expected quire_copy_tensors [1], got NULL");
  EXPECT_EQ(quire_execute_copies(kCpu, 7, nullptr, 0, nullptr, 0, nullptr), QUIRE_INVALID_ARGUMENT);
  const quire_device nowhere = {9, 0};
  EXPECT_EQ(quire_execute_copies(nowhere, QUIRE_LAYOUT_NHD, nullptr, 0, nullptr, 0, nullptr),
            QUIRE_INVALID_ARGUMENT);
}

TEST(CFence, OfTheCpuIsReachedAtOnce) {
  quire_fence* fence = nullptr;
  ASSERT_EQ(quire_fence_create(kCpu, &fence), QUIRE_OK) << quire_last_error();
  std::int32_t reached = 0;
  EXPECT_EQ(quire_fence_record(fence, nullptr), QUIRE_OK);
  EXPECT_EQ(quire_fence_query(fence, &reached), QUIRE_OK);
  EXPECT_EQ(reached, 1);
  EXPECT_EQ(quire_fence_wait(fence, nullptr), QUIRE_OK);
  EXPECT_EQ(quire_fence_synchronize(fence), QUIRE_OK);
  EXPECT_EQ(quire_fence_query(fence, nullptr), QUIRE_INVALID_ARGUMENT);
  quire_fence_destroy(fence);
}

TEST(CFence, GetsItsSentencesForNullAndNonsense) {
  EXPECT_EQ(quire_fence_create(kCpu, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_fence_record(nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(), "[quire_fence_record] fence: expected a quire_fence, got NULL");
  quire_copy_plan* plan = nullptr;
  ASSERT_EQ(quire_copy_plan_create(&plan), QUIRE_OK);
  EXPECT_EQ(quire_fence_synchronize(reinterpret_cast<quire_fence*>(plan)), QUIRE_BAD_HANDLE);
  quire_copy_plan_destroy(plan);
  quire_fence_destroy(nullptr);
}

}  // namespace
}  // namespace quire::c_test
