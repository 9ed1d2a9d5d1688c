// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include "quire/page_table.hpp"

namespace quire {
namespace {

constexpr std::int64_t kPages = 3;
constexpr std::int64_t kPageSize = 4;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 3;

/// Where an element is, by the four indices that mean the same in both layouts.
struct Strides {
  std::int64_t page, token, head;
};

/// A buffer of distinct numbers with a cache somewhere in it.
class ExecuteCopies : public testing::Test {
 protected:
  std::int16_t& at(const Strides& strides, std::int64_t page, std::int64_t token, std::int64_t head,
                   std::int64_t dim) {
    return buffer_[static_cast<std::size_t>(page * strides.page + token * strides.token +
                                            head * strides.head + dim)];
  }

  /// Copies page 2 to page 0, two tokens of four, and compares every element of the buffer.
  void copies_two_tokens_and_nothing_else(const Strides& strides, KvLayout layout) {
    std::iota(buffer_.begin(), buffer_.end(), std::int16_t{1});
    std::vector<std::int16_t> wanted = buffer_;
    for (std::int64_t token = 0; token < 2; ++token) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        for (std::int64_t dim = 0; dim < kDim; ++dim) {
          wanted[static_cast<std::size_t>(token * strides.token + head * strides.head + dim)] =
              at(strides, 2, token, head, dim);
        }
      }
    }
    const bool nhd = layout == KvLayout::kNHD;
    const MutableTensorView cache =
        nhd ? MutableTensorView(buffer_.data(), DType::kBFloat16, {kPages, kPageSize, kHeads, kDim},
                                {strides.page, strides.token, strides.head, 1})
            : MutableTensorView(buffer_.data(), DType::kBFloat16, {kPages, kHeads, kPageSize, kDim},
                                {strides.page, strides.head, strides.token, 1});
    const std::array<CopyOp, 1> plan = {{{2, 0, 2}}};
    const Status status = execute_copies(plan, cache, layout);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(buffer_, wanted);
  }

  std::vector<std::int16_t> buffer_ = std::vector<std::int16_t>(500);
};

TEST_F(ExecuteCopies, CopiesTheFirstTokensOfAPackedNhdPage) {
  copies_two_tokens_and_nothing_else({kPageSize * kHeads * kDim, kHeads * kDim, kDim},
                                     KvLayout::kNHD);
}

TEST_F(ExecuteCopies, CopiesTheFirstTokensOfAPackedHndPage) {
  copies_two_tokens_and_nothing_else({kPageSize * kHeads * kDim, kDim, kPageSize * kDim},
                                     KvLayout::kHND);
}

TEST_F(ExecuteCopies, LeavesTheGapsOfStridedPagesAlone) {
  copies_two_tokens_and_nothing_else({100, 20, 7}, KvLayout::kNHD);
  copies_two_tokens_and_nothing_else({100, 5, 40}, KvLayout::kHND);
}

TEST_F(ExecuteCopies, ExecutesAPlanInOrder) {
  std::vector<std::int32_t> cache = {10, 11, 20, 21, 30, 31};
  const MutableTensorView view(cache.data(), DType::kInt32, {3, 2, 1, 1});
  const std::array<CopyOp, 2> plan = {{{0, 1, 2}, {1, 2, 1}}};
  ASSERT_TRUE(execute_copies(plan, view, KvLayout::kNHD).ok());
  EXPECT_EQ(cache, (std::vector<std::int32_t>{10, 11, 10, 11, 10, 31}));
}

TEST_F(ExecuteCopies, TakesAnyStrideOfASingleHead) {
  std::vector<std::int32_t> cache = {10, 11, 20, 21};
  const MutableTensorView view(cache.data(), DType::kInt32, {2, 2, 1, 1}, {2, 1, 987654321, 1});
  const std::array<CopyOp, 1> plan = {{{1, 0, 2}}};
  ASSERT_TRUE(execute_copies(plan, view, KvLayout::kNHD).ok());
  EXPECT_EQ(cache, (std::vector<std::int32_t>{20, 21, 20, 21}));
}

TEST_F(ExecuteCopies, TakesAnEmptyPlan) {
  const MutableTensorView view(buffer_.data(), DType::kFloat16, {3, 4, 2, 3});
  EXPECT_TRUE(execute_copies({}, view, KvLayout::kNHD).ok());
}

TEST_F(ExecuteCopies, RefusesBadInputWithASentenceAndCopiesNothing) {
  const auto text_of = [&](CopyOp bad) {
    std::iota(buffer_.begin(), buffer_.end(), std::int16_t{1});
    const std::vector<std::int16_t> before = buffer_;
    const MutableTensorView view(buffer_.data(), DType::kFloat16, {3, 4, 2, 3});
    const std::array<CopyOp, 2> plan = {{{0, 1, 4}, bad}};
    const Status status = execute_copies(plan, view, KvLayout::kNHD);
    EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(buffer_, before);
    return std::string(status.message());
  };
  EXPECT_EQ(text_of({3, 0, 1}), "[execute_copies] copies[1]: expected pages in [0, 3), got 3");
  EXPECT_EQ(text_of({0, -1, 1}), "[execute_copies] copies[1]: expected pages in [0, 3), got -1");
  EXPECT_EQ(text_of({1, 1, 1}),
            "[execute_copies] copies[1]: expected two different pages, got page 1 twice");
  EXPECT_EQ(text_of({0, 1, 5}), "[execute_copies] copies[1]: expected tokens in [0, 4], got 5");
  EXPECT_EQ(text_of({0, 1, -1}), "[execute_copies] copies[1]: expected tokens in [0, 4], got -1");
}

TEST_F(ExecuteCopies, RefusesABadCacheWithASentence) {
  const auto text_of = [](const MutableTensorView& cache, KvLayout layout = KvLayout::kNHD) {
    const Status status = execute_copies({}, cache, layout);
    EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
    return std::string(status.message());
  };
  const MutableTensorView good(buffer_.data(), DType::kFloat16, {3, 4, 2, 3});
  EXPECT_EQ(text_of(good, static_cast<KvLayout>(7)),
            "[execute_copies] layout: expected NHD (0) or HND (1), got 7");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 6}}),
            "[execute_copies] cache: expected any dtype [≥0, ≥0, ≥0, ≥0], got float16 [3, 4, 6]");
  EXPECT_EQ(text_of({nullptr, DType::kFloat16, {3, 4, 2, 3}}),
            "[execute_copies] cache: expected float16 [3, 4, 2, 3] in memory, got a null pointer");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 2, 3}, {48, 12, 6, 2}}),
            "[execute_copies] cache: expected stride 1 along the last axis, got 2");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 2, 3}, {0, 6, 3, 1}}),
            "[execute_copies] cache: expected strides that give every element its own address");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 2, 3}, Device::cuda(1)}),
            "[execute_copies] cache: expected a tensor on cpu, got one on cuda:1");
}

}  // namespace
}  // namespace quire
