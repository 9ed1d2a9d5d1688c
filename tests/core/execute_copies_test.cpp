// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "quire/copies.hpp"

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

/// Executes a plan in one cache of the host.
Status execute(std::span<const CopyOp> plan, const CopyTensors& cache,
               KvLayout layout = KvLayout::kNHD) {
  return execute_copies(Device::cpu(), layout, plan, {&cache, 1});
}

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
    const Status status = execute(plan, {cache, {}}, layout);
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
  ASSERT_TRUE(execute(plan, {view, {}}).ok());
  EXPECT_EQ(cache, (std::vector<std::int32_t>{10, 11, 10, 11, 10, 31}));
}

TEST_F(ExecuteCopies, CopiesFromAndToTheMiddleOfPages) {
  std::vector<std::int32_t> cache = {10, 11, 12, 13, 20, 21, 22, 23};
  const MutableTensorView view(cache.data(), DType::kInt32, {2, 4, 1, 1});
  const std::array<CopyOp, 3> plan = {{{0, 1, 2, 2, 1}, {1, 1, 1, 1, 0}, {0, 0, 2, 2, 0}}};
  ASSERT_TRUE(execute(plan, {view, {}}).ok());
  EXPECT_EQ(cache, (std::vector<std::int32_t>{12, 13, 12, 13, 12, 12, 13, 23}));
}

TEST_F(ExecuteCopies, TakesAnyStrideOfASingleHead) {
  std::vector<std::int32_t> cache = {10, 11, 20, 21};
  const MutableTensorView view(cache.data(), DType::kInt32, {2, 2, 1, 1}, {2, 1, 987654321, 1});
  const std::array<CopyOp, 1> plan = {{{1, 0, 2}}};
  ASSERT_TRUE(execute(plan, {view, {}}).ok());
  EXPECT_EQ(cache, (std::vector<std::int32_t>{20, 21, 20, 21}));
}

TEST_F(ExecuteCopies, TakesAnEmptyPlan) {
  const MutableTensorView view(buffer_.data(), DType::kFloat16, {3, 4, 2, 3});
  EXPECT_TRUE(execute({}, {view, {}}).ok());
  EXPECT_TRUE(execute_copies(Device::cpu(), KvLayout::kNHD, {}, {}).ok());
}

TEST_F(ExecuteCopies, FailsOnADeviceThatIsNotThere) {
  const Status status = execute_copies(Device::cuda(1000), KvLayout::kNHD, {}, {});
  EXPECT_EQ(status.code(), ErrorCode::kDeviceError) << status.message();
}

TEST_F(ExecuteCopies, RefusesBadInputWithASentenceAndCopiesNothing) {
  const auto text_of = [&](CopyOp bad) {
    std::iota(buffer_.begin(), buffer_.end(), std::int16_t{1});
    const std::vector<std::int16_t> before = buffer_;
    const MutableTensorView view(buffer_.data(), DType::kFloat16, {3, 4, 2, 3});
    const std::array<CopyOp, 2> plan = {{{0, 1, 4}, bad}};
    const Status status = execute(plan, {view, {}});
    EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(buffer_, before);
    return std::string(status.message());
  };
  EXPECT_EQ(text_of({3, 0, 1}), "[execute_copies] copies[1]: expected src in [0, 3), got 3");
  EXPECT_EQ(text_of({0, -1, 1}), "[execute_copies] copies[1]: expected dst in [0, 3), got -1");
  EXPECT_EQ(text_of({1, 1, 2, 1, 2}),
            "[execute_copies] copies[1]: expected to read other tokens than are written, got 2 of "
            "page 1 from 1 on and from 2 on");
  EXPECT_EQ(text_of({0, 1, 0, 5, 0}),
            "[execute_copies] copies[1]: expected src_begin in [0, 4], got 5");
  EXPECT_EQ(text_of({0, 1, 0, 0, -1}),
            "[execute_copies] copies[1]: expected dst_begin in [0, 4], got -1");
  EXPECT_EQ(text_of({0, 1, 3, 0, 2}),
            "[execute_copies] copies[1]: expected tokens in [0, 2], got 3");
  EXPECT_EQ(text_of({0, 1, 5}), "[execute_copies] copies[1]: expected tokens in [0, 4], got 5");
  EXPECT_EQ(text_of({0, 1, -1}), "[execute_copies] copies[1]: expected tokens in [0, 4], got -1");
}

/// Two pages of two tokens in one pool and three in another, of one head and one dim.
struct TwoPools {
  std::vector<std::int32_t> host = {10, 11, 20, 21, 30, 31};
  std::vector<std::int32_t> device = {1, 2, 3, 4};
  CopyTensors tensors{.dst = {device.data(), DType::kInt32, {2, 2, 1, 1}},
                      .src = {host.data(), DType::kInt32, {3, 2, 1, 1}}};
};

TEST(ExecuteCopiesBetweenPools, ReadsFromOneAndWritesToTheOther) {
  TwoPools pools;
  const std::vector<std::int32_t> before = pools.host;
  const std::array<CopyOp, 3> plan = {{{2, 0, 2}, {1, 1, 1}, {0, 0, 1}}};
  ASSERT_TRUE(execute(plan, pools.tensors).ok());
  EXPECT_EQ(pools.device, (std::vector<std::int32_t>{10, 31, 20, 4}));
  EXPECT_EQ(pools.host, before);
}

TEST(ExecuteCopiesBetweenPools, CountsThePagesOfEach) {
  const auto text_of = [](CopyOp op) {
    TwoPools pools;
    const Status status = execute({&op, 1}, pools.tensors);
    EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(text_of({3, 0, 1}), "[execute_copies] copies[0]: expected src in [0, 3), got 3");
  EXPECT_EQ(text_of({2, 2, 1}), "[execute_copies] copies[0]: expected dst in [0, 2), got 2");
}

TEST(ExecuteCopiesBetweenPools, KnowsThatAPoolGivenTwiceIsOne) {
  TwoPools pools;
  pools.tensors.src = pools.tensors.dst;
  const CopyOp op{1, 1, 1};
  EXPECT_EQ(std::string(execute({&op, 1}, pools.tensors).message()),
            "[execute_copies] copies[0]: expected to read other tokens than are written, got 1 of "
            "page 1 from 0 on and from 0 on");
}

TEST(ExecuteCopiesInManyCaches, CopiesInEachWithItsOwnShapeAndStrides) {
  std::vector<std::int32_t> k = {10, 11, 12, 13, 20, 21, 22, 23};
  std::vector<std::uint8_t> v = {1, 2, 0, 3, 4, 0};
  const std::array<CopyTensors, 2> caches = {
      {{.dst = {k.data(), DType::kInt32, {2, 2, 1, 2}}},
       {.dst = {v.data(), DType::kUInt8, {2, 2, 1, 1}, {3, 1, 1, 1}}}}};
  const std::array<CopyOp, 1> plan = {{{1, 0, 1}}};
  ASSERT_TRUE(execute_copies(Device::cpu(), KvLayout::kNHD, plan, caches).ok());
  EXPECT_EQ(k, (std::vector<std::int32_t>{20, 21, 12, 13, 20, 21, 22, 23}));
  EXPECT_EQ(v, (std::vector<std::uint8_t>{3, 2, 0, 3, 4, 0}));
}

TEST(ExecuteCopiesInManyCaches, RefusesCachesThatDoNotFitTogether) {
  std::array<std::int16_t, 64> memory{};
  const auto text_of = [&](const CopyTensors& second) {
    const std::array<CopyTensors, 2> caches = {
        {{.dst = {memory.data(), DType::kFloat16, {3, 4, 2, 1}},
          .src = {memory.data() + 32, DType::kFloat16, {2, 4, 2, 1}}},
         second}};
    const Status status = execute_copies(Device::cpu(), KvLayout::kNHD, {}, caches);
    EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
    return std::string(status.message());
  };
  const MutableTensorView fits(memory.data(), DType::kFloat16, {3, 4, 1, 1});
  EXPECT_EQ(text_of({{memory.data(), DType::kFloat16, {2, 4, 2, 1}}, {}}),
            "[execute_copies] caches[1].dst: expected any dtype [3, 4, ≥0, ≥0], got float16 "
            "[2, 4, 2, 1]");
  EXPECT_EQ(text_of({{memory.data(), DType::kFloat16, {3, 5, 2, 1}}, {}}),
            "[execute_copies] caches[1].dst: expected any dtype [3, 4, ≥0, ≥0], got float16 "
            "[3, 5, 2, 1]");
  EXPECT_EQ(text_of({fits, {memory.data(), DType::kBFloat16, {2, 4, 1, 1}}}),
            "[execute_copies] caches[1].src: expected float16 [2, 4, 1, 1], got bfloat16 "
            "[2, 4, 1, 1]");
  EXPECT_EQ(text_of({fits, {memory.data(), DType::kFloat16, {9, 4, 1, 1}}}),
            "[execute_copies] caches[1].src: expected float16 [2, 4, 1, 1], got float16 "
            "[9, 4, 1, 1]");
  EXPECT_EQ(text_of({fits, {}}),
            "[execute_copies] caches[1].dst: expected 2 pages, as many as those of caches[0] that "
            "are read, got 3");
}

TEST_F(ExecuteCopies, RefusesABadCacheWithASentence) {
  const auto text_of = [](const MutableTensorView& cache, KvLayout layout = KvLayout::kNHD,
                          Device device = Device::cpu()) {
    const CopyTensors tensors{.dst = cache};
    const Status status = execute_copies(device, layout, {}, {&tensors, 1});
    EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
    return std::string(status.message());
  };
  const MutableTensorView good(buffer_.data(), DType::kFloat16, {3, 4, 2, 3});
  EXPECT_EQ(text_of(good, static_cast<KvLayout>(7)),
            "[execute_copies] layout: expected NHD (0) or HND (1), got 7");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 6}}),
            "[execute_copies] caches[0].dst: expected any dtype [≥0, ≥0, ≥0, ≥0], got float16 "
            "[3, 4, 6]");
  EXPECT_EQ(text_of({buffer_.data(), static_cast<DType>(77), {3, 4, 2, 3}}),
            "[execute_copies] caches[0].dst: expected any dtype [≥0, ≥0, ≥0, ≥0], got unknown "
            "[3, 4, 2, 3]");
  EXPECT_EQ(text_of({nullptr, DType::kFloat16, {3, 4, 2, 3}}),
            "[execute_copies] caches[0].dst: expected float16 [3, 4, 2, 3] in memory, got a null "
            "pointer");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 2, 3}, {48, 12, 6, 2}}),
            "[execute_copies] caches[0].dst: expected stride 1 along the last axis, got 2");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 2, 3}, {0, 6, 3, 1}}),
            "[execute_copies] caches[0].dst: expected strides that give every element its own "
            "address");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 2, 3}, Device::cuda(1)}),
            "[execute_copies] caches[0].dst: expected a tensor on cpu, got one on cuda:1");
  EXPECT_EQ(text_of({buffer_.data(), DType::kFloat16, {3, 4, 2, 3}, Device::cuda(1)},
                    KvLayout::kNHD, Device::cuda(0)),
            "[execute_copies] caches[0].dst: expected a tensor on cuda:0, got one on cuda:1");
}

}  // namespace
}  // namespace quire
