// SPDX-License-Identifier: Apache-2.0
// How plans are cut into launches, parts and pieces, without a GPU: the parts of a launch are copied
// on the host in a random order, thread after thread.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

#include "cuda/copy/launch.hpp"
#include "quire/fence.hpp"
#include "support/random_copies.hpp"

namespace quire {
namespace {

using testing::copy_cases;
using testing::CopyCase;
using testing::RandomCopies;

/// What the kernel does, on the host.
void copy_in_any_order(const cuda::CopyParams& params) {
  std::vector<std::uint32_t> parts(params.num_parts());
  std::iota(parts.begin(), parts.end(), 0U);
  std::ranges::shuffle(parts, std::mt19937(params.num_ops));
  for (const std::uint32_t part : parts) {
    for (std::uint32_t thread = 0; thread < cuda::kCopyThreads; ++thread) {
      cuda::copy_part(params, part, thread);
    }
  }
}

/// @return The number of launches.
int execute_on_host(RandomCopies& copies) {
  const bool one_cache = copies.src.empty();
  int launches = 0;
  cuda::CopyLaunch launch(copies.c.layout);
  const auto flush = [&] {
    launch.execute(copies.plan, one_cache, [&](const cuda::CopyParams& params) {
      copy_in_any_order(params);
      ++launches;
      return cudaSuccess;
    });
    launch = cuda::CopyLaunch(copies.c.layout);
  };
  for (const CopyTensors& tensors : copies.caches) {
    const core::CopyRows rows = core::rows_of(tensors, copies.c.layout);
    if (launch.full()) flush();
    if (!rows.empty()) launch.add(rows);
  }
  flush();
  return launches;
}

TEST(CopyParts, OfEveryCaseMoveWhatTheOracleMoves) {
  for (const CopyCase& c : copy_cases()) {
    SCOPED_TRACE(c.text());
    RandomCopies wanted(c);
    RandomCopies copied(c);
    wanted.execute();
    execute_on_host(copied);
    ASSERT_EQ(copied.dst, wanted.dst);
    ASSERT_EQ(copied.src, wanted.src);
  }
}

TEST(CopyParts, OfIndependentOpsAreOneLaunch) {
  CopyCase c;
  c.num_caches = cuda::kMaxCaches;
  c.num_ops = 0;
  RandomCopies copies(c);
  for (std::int32_t page = 0; page < 10; ++page) copies.plan.push_back({page, page + 10, 5});
  EXPECT_EQ(execute_on_host(copies), 1);
}

TEST(CopyParts, OfAnOpThatReadsWhatAnEarlierOneWroteAreAnotherLaunch) {
  CopyCase c;
  c.num_ops = 0;
  RandomCopies chained(c);
  chained.plan = {{0, 1, 16}, {2, 3, 16}, {1, 4, 16}, {4, 5, 16}};
  EXPECT_EQ(execute_on_host(chained), 3);
  RandomCopies apart(c);
  apart.plan = {{0, 1, 4, 0, 0}, {1, 2, 4, 8, 0}, {3, 1, 4, 0, 12}, {0, 0, 4, 8, 4}};
  EXPECT_EQ(execute_on_host(apart), 1);  // one page, but other tokens of it
  c.src_pages = 10;
  RandomCopies between(c);
  between.plan = chained.plan;  // reads of one pool, writes to another
  EXPECT_EQ(execute_on_host(between), 1);
}

TEST(CopyParts, TakeSixteenBytesWhereAllRowsAllowIt) {
  alignas(16) static std::array<std::byte, 4096> memory{};
  const auto rows = [](std::int64_t offset, std::int64_t head_dim, std::int64_t page_stride) {
    const CopyTensors tensors{
        .dst = {
            memory.data() + offset, DType::kUInt8, {4, 2, 1, head_dim}, {page_stride, 64, 7, 1}}};
    return core::rows_of(tensors, KvLayout::kNHD);
  };
  EXPECT_EQ(cuda::piece_bytes(rows(0, 32, 128)), 16);  // the stride of a single head counts not
  EXPECT_EQ(cuda::piece_bytes(rows(8, 32, 128)), 1);
  EXPECT_EQ(cuda::piece_bytes(rows(0, 40, 128)), 1);
  EXPECT_EQ(cuda::piece_bytes(rows(0, 32, 136)), 1);
}

TEST(CudaCopies, RefusePagesThatAreTooLargeToCount) {
  constexpr std::int64_t kTokens = std::int64_t{1} << 30;
  auto* const nowhere = reinterpret_cast<std::byte*>(16);  // not read
  const CopyTensors cache{.dst = {nowhere, DType::kUInt8, {2, kTokens, 1, 1}, Device::cuda()}};
  const Status status = execute_copies(Device::cuda(), KvLayout::kNHD, {}, {&cache, 1});
  EXPECT_EQ(status.code(), ErrorCode::kUnsupported);
  EXPECT_EQ(
      std::string(status.message()),
      "[execute_copies] caches[0].dst: expected pages of at most 536870912 pieces of 1 bytes, "
      "got 1073741824 · 1 · 1");
}

TEST(CudaCopies, ReportTheRuntimesErrorInASentence) {
  constexpr Device kNoSuchDevice = Device::cuda(1000);
  const Status status = execute_copies(kNoSuchDevice, KvLayout::kNHD, {}, {});
  EXPECT_EQ(status.code(), ErrorCode::kDeviceError);
  EXPECT_THAT(std::string(status.message()),
              ::testing::StartsWith("[execute_copies] the CUDA runtime reported cudaError"));
  EXPECT_THROW(Fence{kNoSuchDevice}, Error);
}

}  // namespace
}  // namespace quire
