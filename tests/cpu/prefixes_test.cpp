// SPDX-License-Identifier: Apache-2.0
// Shared prefixes on the CPU: results are the oracle's and those of requests that read alone, and
// nobody can tell who joined them.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "schedule/schedule.hpp"
#include "support/cpu_kernels.hpp"
#include "support/executors.hpp"
#include "support/random_batch.hpp"

namespace quire {
namespace {

using testing::bound_of;
using testing::Difference;
using testing::for_each_kernel;
using testing::OneByOne;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::result_bytes;
using testing::RubbishWorkspace;
using testing::ThreadPerTask;

/// Limits that leave more room than a batch needs.
constexpr BatchLimits kRoomyLimits{64, 1024, 4096};

/// Requests that share 24 pages, those of a branch 9 more (for which that hardly pays), with some
/// queries and own keys each.
RandomBatchOptions sharing(DType dtype, std::int32_t group, std::int32_t kv_heads,
                           std::int32_t head_dim) {
  RandomBatchOptions options = testing::edgy_options(dtype, group, kv_heads, head_dim);
  options.spec.o_dtype = DType::kFloat32;
  options.shared_pages = 24;
  options.branch_pages = 9;
  options.num_branches = 3;
  options.requests.clear();
  constexpr std::int32_t kShared = (24 + 9) * 16;
  for (std::int32_t seq = 0; seq < 23; ++seq) {
    const std::int32_t queries = seq % 7 == 3 ? 1 + seq % 5 : 1;
    const std::int32_t keys = seq % 11 == 5 ? kShared - 40 : kShared + queries + seq * 13 % 101;
    options.requests.push_back({queries, keys});
  }
  options.requests.push_back({0, 0});
  options.requests.push_back({1, 5});
  options.requests.push_back({90, kShared + 90});  // too many rows to gain anything
  return options;
}

/// A schedule and a run of it.
class Step {
 public:
  Step(const RandomBatch& batch, const AttentionSpec& spec, const AttentionOptions& options)
      : attention_(Device::cpu(), spec, kRoomyLimits, options),
        schedule_(attention_.workspace_sizes().schedule),
        scratch_(attention_.workspace_sizes().scratch) {
    const Status status = attention_.schedule(batch.batch, schedule_.get());
    EXPECT_TRUE(status.ok()) << status.message();
  }

  Status run(RandomBatch& batch) {
    batch.forget_results();
    return attention_.run(batch.batch, batch.tensors, schedule_.get(), scratch_.get());
  }
  schedule::Header header() {
    schedule::Header header;
    std::memcpy(&header, schedule_.get().data(), sizeof(header));
    return header;
  }
  KeyReads key_reads(const RandomBatch& batch) {
    KeyReads reads;
    const Status status = attention_.count_key_reads(batch.batch, schedule_.get(), reads);
    EXPECT_TRUE(status.ok()) << status.message();
    return reads;
  }
  [[nodiscard]] Workspace schedule() { return schedule_.get(); }
  [[nodiscard]] Workspace scratch() { return scratch_.get(); }

 private:
  Attention attention_;
  RubbishWorkspace schedule_;
  RubbishWorkspace scratch_;
};

std::vector<float> outputs_of(const RandomBatch& batch) {
  std::vector<float> outputs;
  for (std::int64_t i = 0; i < batch.o_elements.size(); ++i) {
    outputs.push_back(batch.o_elements.get(i));
  }
  return outputs;
}

/// Runs the batch with every kernel that serves it and expects the oracle's results.
/// @param levels  At which prefixes are shared, at least.
void expect_shared(const RandomBatchOptions& options, const std::string& what, int levels = 1) {
  SCOPED_TRACE(what);
  RandomBatch batch(options);
  static const auto pool = make_thread_pool(2);
  const ReferenceResult oracle = reference_attention(batch.spec, batch.batch, batch.tensors);
  for_each_kernel(batch.spec, [&](const core::KernelRow& kernel) {
    Step step(batch, batch.spec, {.executor = pool.get(), .kernel = std::string(kernel.name)});
    ASSERT_GE(std::popcount(step.header().levels), levels);
    const Status status = step.run(batch);
    ASSERT_TRUE(status.ok()) << status.message();
    const Difference difference = compare(batch, oracle);
    EXPECT_EQ(difference.mismatches, 0);
    EXPECT_LE(difference.o, bound_of(kernel, batch.spec));
    EXPECT_LE(difference.lse, testing::kLseBound);
    EXPECT_TRUE(batch.gaps_are_untouched());
  });
}

TEST(CpuPrefixes, AgreeWithTheOracleForDtypesGroupsAndHeadDims) {
  for (const std::int32_t group : {1, 4, 7}) {
    expect_shared(sharing(DType::kBFloat16, group, 2, 64), "group " + std::to_string(group));
  }
  expect_shared(sharing(DType::kFloat32, 2, 4, 128), "float32, 128");
  expect_shared(sharing(DType::kFloat16, 3, 1, 72), "float16, 72");
  expect_shared(sharing(DType::kBFloat16, 2, 1, 256), "256");
  RandomBatchOptions options = sharing(DType::kFloat32, 2, 2, 72);
  options.spec.head_dim_vo = 40;
  expect_shared(options, "72/40");
}

TEST(CpuPrefixes, AgreeForCachesOf8Bits) {
  for (const DType dtype : {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    RandomBatchOptions options = sharing(DType::kBFloat16, 4, 2, 64);
    options.spec.kv_dtype = dtype;
    options.spec.kv_scale = KvScale::kPerToken;
    expect_shared(options, std::string(to_string(dtype)));
  }
}

TEST(CpuPrefixes, AgreeAtTwoLevels) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 2, 64);
  options.branch_pages = 20;
  for (testing::Request& request : options.requests) {
    if (request.kv_len > 5) request.kv_len += 11 * 16;
  }
  expect_shared(options, "long branches", 2);
}

TEST(CpuPrefixes, AgreeForOptionsTablesAndPageSizes) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 2, 32);
  for (const std::int32_t page_size : {1, 5, 16, 48, 64}) {
    options.spec.page_size = page_size;
    options.shared_pages = 384 / page_size;
    options.branch_pages = 144 / page_size;
    expect_shared(options, "page size " + std::to_string(page_size));
  }
  options = sharing(DType::kBFloat16, 4, 2, 32);
  options.spec.kv_layout = KvLayout::kHND;
  options.source = testing::KeySource::kCsr;
  options.strided_output = true;
  options.spec.o_dtype = DType::kNone;
  expect_shared(options, "HND, CSR, output of q's dtype");
  options = sharing(DType::kBFloat16, 4, 2, 32);
  options.spec.sinks = true;
  options.spec.logits_soft_cap = 30.0F;
  options.spec.kv_scale = KvScale::kPerHead;
  expect_shared(options, "sinks, soft cap and scales");
  for (const Mask mask : {Mask::kNone, Mask::kTree}) {
    options = sharing(DType::kBFloat16, 4, 2, 32);
    options.spec.mask = mask;
    expect_shared(options, mask == Mask::kNone ? "no mask" : "trees");
  }
}

/// Tables that grow out of each other, with what a spec may say beside them.
RandomBatchOptions random_forest(std::mt19937& random) {
  const auto pick = [&](std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random);
  };
  RandomBatchOptions options = testing::edgy_options(DType::kFloat32, pick(1, 6), pick(1, 3), 16);
  options.seed = static_cast<std::uint32_t>(random());
  options.page_forest = true;
  options.spec.page_size = std::array{1, 3, 16, 64}.at(static_cast<std::size_t>(pick(0, 3)));
  options.spec.mask =
      std::array{Mask::kCausal, Mask::kTree, Mask::kNone}.at(static_cast<std::size_t>(pick(0, 2)));
  options.spec.sinks = pick(0, 1) == 1;
  options.source = pick(0, 1) == 1 ? testing::KeySource::kDense : testing::KeySource::kCsr;
  options.requests.clear();
  const std::int32_t longest = pick(0, 3) == 0 ? 90 : 900;
  for (std::int32_t left = pick(1, 40); left > 0; --left) {
    const std::int32_t queries = pick(0, 3) > 0 ? 1 : pick(0, 12);
    options.requests.push_back(
        {queries, pick(0, 9) == 0 ? pick(0, 5) : pick(longest / 2, longest)});
  }
  return options;
}

TEST(CpuPrefixes, OfRandomForestsAgreeWithTheOracleAndWithUnsharedWithinRounding) {
  std::mt19937 random(3);
  const auto pool = make_thread_pool(2);
  int shared = 0;
  int deep = 0;
  for (int round = 0; round < 150 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    RandomBatch batch(random_forest(random));
    Step step(batch, batch.spec, {.executor = pool.get()});
    shared += static_cast<int>(step.header().overview.num_prefixes > 0);
    deep += static_cast<int>(std::popcount(step.header().levels) > 1);
    ASSERT_TRUE(step.run(batch).ok());
    const std::vector<float> together = outputs_of(batch);
    const Difference difference =
        compare(batch, reference_attention(batch.spec, batch.batch, batch.tensors));
    EXPECT_EQ(difference.mismatches, 0);
    EXPECT_LE(difference.o, testing::kFloat32Bound);
    EXPECT_LE(difference.lse, testing::kLseBound);

    AttentionSpec apart = batch.spec;
    apart.share_prefixes = false;
    Step alone(batch, apart, {.executor = pool.get()});
    EXPECT_EQ(alone.header().overview.num_prefixes, 0);
    ASSERT_TRUE(alone.run(batch).ok());
    const std::vector<float> unshared = outputs_of(batch);
    for (std::size_t i = 0; i < together.size(); ++i) {
      ASSERT_LE(std::abs(together[i] - unshared[i]), 4e-6 * batch.max_abs_v()) << i;
    }
  }
  EXPECT_GT(shared, 50);
  EXPECT_GT(deep, 20);
}

TEST(CpuPrefixes, ThatAreNamedGiveTheBitsOfThoseThatAreFound) {
  std::mt19937 random(4);
  int shared = 0;
  for (int round = 0; round < 120 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    RandomBatchOptions options = random_forest(random);
    options.named_prefixes = true;
    RandomBatch batch(options);
    if (!batch.names_all_prefixes) continue;
    Step named(batch, batch.spec, {});
    ASSERT_TRUE(named.run(batch).ok());
    const std::vector<std::byte> expected = result_bytes(batch);
    const KeyReads reads = named.key_reads(batch);
    batch.batch.prefix_leaders = batch.batch.prefix_pages = {};
    Step found(batch, batch.spec, {});
    ASSERT_TRUE(found.run(batch).ok());
    EXPECT_EQ(result_bytes(batch), expected);
    EXPECT_EQ(found.key_reads(batch).grouped, reads.grouped);
    shared += static_cast<int>(named.header().overview.num_prefixes > 0);
  }
  EXPECT_GT(shared, 8);
}

TEST(CpuPrefixes, AreThoseThatAreNamedAndNoOthers) {
  RandomBatchOptions options = sharing(DType::kFloat32, 1, 1, 16);
  options.named_prefixes = true;
  RandomBatch batch(options);
  EXPECT_GT(Step(batch, batch.spec, {}).header().overview.num_prefixes, 0);
  std::ranges::fill(batch.prefix_leaders, -1);
  std::ranges::fill(batch.prefix_pages, RandomBatch::kStaleId);
  EXPECT_EQ(Step(batch, batch.spec, {}).header().overview.num_prefixes, 0);
}

TEST(CpuPrefixes, ThatAreNamedAreNotReadWhereNoneAreShared) {
  const auto expect_none = [](const RandomBatchOptions& options, bool batch_invariant) {
    RandomBatch batch(options);
    batch.spec.batch_invariant = batch_invariant;
    std::ranges::fill(batch.prefix_leaders, RandomBatch::kStaleId);
    EXPECT_EQ(Step(batch, batch.spec, {}).header().levels & 7U, 0U);
  };
  RandomBatchOptions options = sharing(DType::kFloat32, 1, 1, 16);
  options.named_prefixes = true;
  expect_none(options, true);
  options.spec.window_left = 600;
  expect_none(options, false);
  options.spec.window_left = -1;
  options.spec.mask = Mask::kFull;
  expect_none(options, false);
}

TEST(CpuPrefixes, GiveTheSameBitsForAnyThreadsAndInEveryRun) {
  RandomBatch batch(sharing(DType::kFloat32, 4, 2, 32));
  OneByOne ordered(6);
  Step in_order(batch, batch.spec, {.executor = &ordered});
  ASSERT_GT(in_order.header().overview.num_prefixes, 0);
  ASSERT_TRUE(in_order.run(batch).ok());
  const std::vector<std::byte> expected = result_bytes(batch);
  const auto pool = make_thread_pool(6);
  ThreadPerTask threads(6);
  for (Executor* executor : {static_cast<Executor*>(&threads), pool.get()}) {
    Step step(batch, batch.spec, {.executor = executor});
    const std::vector<std::byte> scheduled(step.schedule().begin(), step.schedule().end());
    for (int round = 0; round < 20; ++round) {
      std::memset(step.scratch().data(), round % 2 == 0 ? 0xff : 0x3f, step.scratch().size());
      ASSERT_TRUE(step.run(batch).ok());
      ASSERT_EQ(result_bytes(batch), expected) << round;
      const Workspace now = step.schedule();
      ASSERT_TRUE(std::equal(now.begin(), now.end(), scheduled.begin(), scheduled.end()));
    }
  }
}

TEST(CpuPrefixes, AgreeWithTheOracleForAnyNumberOfRanges) {
  RandomBatchOptions options = sharing(DType::kFloat32, 4, 2, 32);
  options.spec.sinks = true;  // must enter once
  RandomBatch batch(options);
  const ReferenceResult oracle = reference_attention(batch.spec, batch.batch, batch.tensors);
  for (const std::int32_t concurrency : {1, 2, 3, 8, 64, 300}) {
    SCOPED_TRACE(concurrency);
    OneByOne executor(concurrency);
    Step step(batch, batch.spec, {.executor = &executor});
    ASSERT_GT(step.header().overview.num_prefixes, 0);
    ASSERT_TRUE(step.run(batch).ok());
    const Difference difference = compare(batch, oracle);
    EXPECT_EQ(difference.mismatches, 0);
    EXPECT_LE(difference.o, testing::kFloat32Bound);
    EXPECT_LE(difference.lse, testing::kLseBound);
  }
}

TEST(CpuPrefixes, AreNotSoughtWhereQueriesMayNotSeeAllOfThem) {
  const auto num_prefixes = [](const RandomBatchOptions& options) {
    const RandomBatch batch(options);
    return Step(batch, batch.spec, {}).header().overview.num_prefixes;
  };
  RandomBatchOptions options = sharing(DType::kFloat32, 1, 1, 16);
  EXPECT_GT(num_prefixes(options), 0);
  options.spec.window_left = 600;
  EXPECT_EQ(num_prefixes(options), 0);
  options = sharing(DType::kFloat32, 1, 1, 16);
  options.spec.alibi = true;
  EXPECT_EQ(num_prefixes(options), 0);
  options = sharing(DType::kFloat32, 1, 1, 16);
  options.spec.mask = Mask::kFull;
  EXPECT_EQ(num_prefixes(options), 0);
}

TEST(CpuPrefixes, AreCountedOnceForAllWhoShareThem) {
  RandomBatchOptions options = testing::edgy_options(DType::kFloat32, 4, 2, 16);
  options.requests = {{1, 1100}, {1, 1124}, {0, 1300}, {2, 1150}, {3, 70}, {4, 2}};
  options.shared_pages = 64;
  RandomBatch batch(options);
  KeyReads reads = Step(batch, batch.spec, {}).key_reads(batch);
  EXPECT_EQ(reads.apart, 1100 + 1124 + 1150 + 70 + 2);
  EXPECT_EQ(reads.grouped, reads.apart - 2 * 1024);
  AttentionSpec apart = batch.spec;
  apart.share_prefixes = false;
  reads = Step(batch, apart, {}).key_reads(batch);
  EXPECT_EQ(reads.grouped, reads.apart);
  options.spec.window_left = 99;
  RandomBatch windowed(options);
  reads = Step(windowed, windowed.spec, {}).key_reads(windowed);
  EXPECT_EQ(reads.apart, 100 + 100 + 101 + 70 + 2);
  EXPECT_EQ(reads.grouped, reads.apart);
}

TEST(CpuPrefixes, OfTablesThatWereChangedAreRefused) {
  RandomBatch batch(sharing(DType::kFloat32, 1, 1, 16));
  Step step(batch, batch.spec, {});
  ASSERT_TRUE(step.run(batch).ok());
  const std::int32_t before = batch.page_table[1];
  batch.page_table[1] = batch.page_table[2];
  const Status status = step.run(batch);
  EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "[attention] schedule workspace: expected what schedule() leaves for a batch of 26 "
            "requests, got something else");
  batch.page_table[1] = before;
  EXPECT_TRUE(step.run(batch).ok());
}

}  // namespace
}  // namespace quire
