// SPDX-License-Identifier: Apache-2.0
// Shared prefixes on the GPU: the search is the host's, results are the oracle's, and those who
// share get the same bits in every run.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/schedule/kernel.hpp"
#include "schedule/page_forest.hpp"
#include "support/device_batch.hpp"

namespace quire {
namespace {

using testing::DeviceBatch;
using testing::DeviceWorkspaces;
using testing::expect_matches;
using testing::Graph;
using testing::GuardedBytes;
using testing::kGpu;
using testing::NamedGroups;
using testing::PageForest;
using testing::RandomBatch;
using testing::RandomBatchOptions;

/// A host array on the device.
template <typename T>
class DeviceCopy {
 public:
  DeviceCopy(const std::vector<T>& values, const testing::Stream& stream)
      : bytes_(values.size() * sizeof(T), stream) {
    if (!values.empty()) bytes_.upload(std::as_bytes(std::span(values)), stream);
  }
  [[nodiscard]] const T* data() const { return reinterpret_cast<const T*>(bytes_.get().data()); }

 private:
  GuardedBytes bytes_;
};

/// What a schedule says, apart from the digest, which only the host makes.
struct Said {
  schedule::Header header;
  std::vector<std::byte> bytes;
};

template <typename T>
void take(Said& said, const T* from, std::int64_t count) {
  const auto* first = reinterpret_cast<const std::byte*>(from);
  said.bytes.insert(said.bytes.end(), first, first + count * static_cast<std::int64_t>(sizeof(T)));
}

Said said_by(const PageForest& forest, schedule::ScheduleView view) {
  Said said{*view.header, {}};
  said.header.digest = 0;
  const schedule::Header& header = said.header;
  for (int line = 0; line < schedule::kLines; ++line) {
    take(said, view.lines[line].ranges, forest.policy.lines[line].num_ranges);
  }
  if (header.overview.num_prefixes == 0) return said;
  take(said, view.segments, header.num_segments);
  take(said, view.listed, header.num_listed);
  take(said, view.listed_arrivals, std::int64_t{header.num_listed} * forest.shape.num_kv_heads);
  return said;
}

/// @param named  Groups that are given; null: prefixes are looked for.
void expect_host_schedule(const PageForest& forest, std::size_t near_bytes, int& with_prefixes,
                          const NamedGroups* named = nullptr) {
  const std::size_t size = schedule::schedule_bytes(forest.policy, forest.num_seqs());
  std::vector<std::uint64_t> of_host(size / 8 + 1);
  const schedule::ScheduleView host =
      schedule::view_of(forest.policy, forest.num_seqs(), of_host.data());
  core::PrefixGroups groups;
  if (named != nullptr) groups = named->arrays();
  schedule::build(forest.policy, forest.shape, forest.arrays(), host, groups);
  with_prefixes += static_cast<int>(host.header->overview.num_prefixes > 0);

  const testing::Stream stream;
  const DeviceCopy<std::int32_t> qo_indptr(forest.qo_indptr, stream);
  const DeviceCopy<std::int32_t> kv_len(forest.kv_len, stream);
  const DeviceCopy<std::int32_t> page_table(forest.page_table, stream);
  core::BatchArrays batch = forest.arrays();
  batch.qo_indptr = qo_indptr.data();
  batch.kv_len = kv_len.data();
  batch.page_table = page_table.data();
  const std::vector<std::int32_t> nothing;
  const DeviceCopy<std::int32_t> leaders(named != nullptr ? named->leaders : nothing, stream);
  const DeviceCopy<std::int32_t> pages(named != nullptr ? named->pages : nothing, stream);
  groups.leaders = leaders.data();
  groups.pages = pages.data();
  const GuardedBytes workspace(size, stream);
  testing::require(cuda::launch_schedule(
      forest.policy, forest.shape, batch, groups,
      schedule::view_of(forest.policy, forest.num_seqs(), workspace.get().data()), near_bytes,
      nullptr, stream.get()));
  std::vector<std::uint64_t> of_device(size / 8 + 1);
  testing::require(cudaMemcpyAsync(of_device.data(), workspace.get().data(), size,
                                   cudaMemcpyDeviceToHost, stream.get()));
  stream.synchronize();
  EXPECT_TRUE(workspace.guards_are_untouched(stream));
  const Said expected = said_by(forest, host);
  const Said got =
      said_by(forest, schedule::view_of(forest.policy, forest.num_seqs(), of_device.data()));
  ASSERT_EQ(got.header.overview.num_prefixes, expected.header.overview.num_prefixes);
  ASSERT_EQ(got.header.num_segments, expected.header.num_segments);
  ASSERT_EQ(got.header.num_listed, expected.header.num_listed);
  ASSERT_EQ(got.header.levels, expected.header.levels);
  for (int line = 0; line < schedule::kLines; ++line) {
    ASSERT_EQ(got.header.overview.num_ranges[line], expected.header.overview.num_ranges[line]);
    ASSERT_EQ(got.header.total_cost[line], expected.header.total_cost[line]);
  }
  ASSERT_EQ(got.bytes, expected.bytes);
}

/// Shared memory that a search is given in turns: as much as there is, little, none.
class NearBytes {
 public:
  NearBytes() {
    int shared_memory = 0;
    testing::require(
        cudaDeviceGetAttribute(&shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    testing::require(cuda::prepare_schedule(static_cast<std::size_t>(shared_memory), most_));
  }
  [[nodiscard]] std::size_t of(int round) const {
    return std::array{most_, std::size_t{3000}, std::size_t{0}}.at(
        static_cast<std::size_t>(round % 3));
  }

 private:
  std::size_t most_ = 0;
};

TEST(PrefixesOnTheDevice, AreTheHostsBitForBitOverRandomForests) {
  const NearBytes near_bytes;
  std::mt19937 random(5);
  int with_prefixes = 0;
  for (int round = 0; round < 1500 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    expect_host_schedule(testing::random_forest(random, round % 50 == 0 ? 2000 : 60),
                         near_bytes.of(round), with_prefixes);
  }
  EXPECT_GT(with_prefixes, 300);
}

// In every other round what is named is no tree.
TEST(NamedPrefixesOnTheDevice, AreTheHostsBitForBitOverRandomForests) {
  const NearBytes near_bytes;
  std::mt19937 random(8);
  int with_prefixes = 0;
  for (int round = 0; round < 1500 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    const PageForest forest = testing::random_forest(random, round % 50 == 0 ? 2000 : 60);
    NamedGroups groups = testing::named_groups(testing::shareable_tables(forest), random);
    if (round % 2 == 1) testing::spoil(groups, random);
    expect_host_schedule(forest, near_bytes.of(round), with_prefixes, &groups);
  }
  EXPECT_GT(with_prefixes, 300);
}

TEST(FixedPartsOnTheDevice, AreTheHostsBitForBitOverRandomForests) {
  std::mt19937 random(6);
  int with_parts = 0;
  for (int round = 0; round < 500 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    expect_host_schedule(testing::invariant_forest(random, round % 50 == 0 ? 2000 : 60), 0,
                         with_parts);
  }
  EXPECT_GT(with_parts, 100);
}

/// Requests that share 64 pages, those of a branch 17 more, with some queries and own keys each.
RandomBatchOptions sharing(DType dtype, std::int32_t group, std::int32_t head_dim) {
  RandomBatchOptions options = testing::exact_options(dtype, group, 2, head_dim);
  options.shared_pages = 64;
  options.num_branches = 5;
  options.branch_pages = 17;
  options.requests.clear();
  constexpr std::int32_t kShared = (64 + 17) * 16;
  for (std::int32_t seq = 0; seq < 61; ++seq) {
    const std::int32_t queries = seq % 7 == 3 ? 1 + seq % 5 : 1;
    const std::int32_t keys = seq % 11 == 5 ? kShared - 40 : kShared + queries + seq * 13 % 301;
    options.requests.push_back({queries, keys});
  }
  options.requests.push_back({0, 0});
  options.requests.push_back({1, 5});
  return options;
}

schedule::Header header_of(const DeviceWorkspaces& workspaces, const testing::Stream& stream) {
  schedule::Header header;
  testing::require(cudaMemcpyAsync(&header, workspaces.schedule().data(), sizeof(header),
                                   cudaMemcpyDeviceToHost, stream.get()));
  stream.synchronize();
  return header;
}

/// With little shared memory there is no kernel of large units, and requests of many rows share nothing.
bool has_large_units() { return std::getenv("QUIRE_CUDA_SHARED_MEMORY") == nullptr; }

/// Runs the batch and expects that prefixes are shared at so many levels at least.
void expect_shared(const RandomBatchOptions& options, const std::string& what, int levels = 1) {
  SCOPED_TRACE(what);
  RandomBatch host(options);
  const DeviceBatch batch(host);
  const Attention attention(kGpu, host.spec, testing::kRoomyLimits);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  ASSERT_TRUE(batch.launch(attention, workspaces).ok());
  batch.mirror.download(batch.stream);
  if (has_large_units()) {
    EXPECT_GE(std::popcount(header_of(workspaces, batch.stream).levels), levels);
  }
  EXPECT_TRUE(workspaces.guards_are_untouched(batch.stream));
  expect_matches(host, oracle_of(host));
}

TEST(GpuPrefixes, AgreeWithTheOracleForDtypesGroupsAndHeadDims) {
  for (const std::int32_t group : {1, 4, 7}) {
    expect_shared(sharing(DType::kBFloat16, group, 128), "group " + std::to_string(group));
  }
  expect_shared(sharing(DType::kFloat16, 4, 64), "float16, 64");
  expect_shared(sharing(DType::kFloat32, 3, 64), "float32, 64");
  expect_shared(sharing(DType::kBFloat16, 2, 256), "256");
}

// A unit of a prefix has as many queries as rows then: 192 of heads of 64.
TEST(GpuPrefixes, AgreeForManyRequestsOfGroupsOfOne) {
  for (const std::int32_t head_dim : {64, 128}) {
    for (const std::int32_t count : {200, 400}) {
      RandomBatchOptions options = testing::exact_options(DType::kBFloat16, 1, 2, head_dim);
      options.shared_pages = 40;
      options.requests.clear();
      for (std::int32_t seq = 0; seq < count; ++seq) {
        options.requests.push_back({1, 40 * 16 + 1 + seq * 13 % 97});
      }
      expect_shared(options, std::to_string(count) + ", " + std::to_string(head_dim));
    }
  }
}

TEST(GpuPrefixes, AgreeForCachesOf8Bits) {
  for (const DType dtype : {DType::kFloat8E4M3, DType::kInt8}) {
    RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
    options.spec.kv_dtype = dtype;
    for (const KvScale scale : {KvScale::kPerHead, KvScale::kPerToken}) {
      options.spec.kv_scale = scale;
      expect_shared(options, std::string(to_string(dtype)));
    }
  }
}

TEST(GpuPrefixes, AgreeAtTwoLevels) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
  options.branch_pages = 70;
  for (testing::Request& request : options.requests) {
    if (request.kv_len > 40) request.kv_len += 60 * 16;
  }
  expect_shared(options, "long branches", 2);
}

// So many prefixes that some are read after the keys behind them, which others take meanwhile.
TEST(GpuPrefixes, AgreeWhereOwnKeysAreReadFirst) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
  options.shared_pages = 0;
  options.num_branches = 256;
  options.branch_pages = 128;
  options.requests.clear();
  for (std::int32_t seq = 0; seq < 2 * options.num_branches; ++seq) {
    options.requests.push_back({1, 128 * 16 + 1 + seq % 20});
  }
  expect_shared(options, "pairs");
}

// Requests of 33 to 64 rows share, too, and where there is a Hopper kernel their own keys are large
// units, whose results wait to be joined.
TEST(GpuPrefixes, AgreeWhereOwnKeysAreLargeUnits) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
  options.requests.clear();
  for (std::int32_t seq = 0; seq < 24; ++seq) {
    const std::int32_t queries = seq % 4 == 3 ? 1 : 9 + seq % 8;
    options.requests.push_back({queries, 100 * 16 + queries + seq * 37});
  }
  expect_shared(options, "9 to 16 queries");
  options.branch_pages = 70;
  for (testing::Request& request : options.requests) request.kv_len += 70 * 16;
  expect_shared(options, "at two levels", 2);
}

TEST(GpuPrefixes, AgreeForOptionsTablesAndPageSizes) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
  for (const std::int32_t page_size : {1, 5, 16, 48, 64}) {
    options.spec.page_size = page_size;
    options.shared_pages = 1024 / page_size;
    options.branch_pages = 272 / page_size;
    expect_shared(options, "page size " + std::to_string(page_size));
  }
  options = sharing(DType::kBFloat16, 4, 128);
  options.spec.kv_layout = KvLayout::kHND;
  options.source = testing::KeySource::kCsr;
  options.strided_output = true;
  options.spec.o_dtype = DType::kNone;
  expect_shared(options, "HND, CSR, output of q's dtype");
  options = sharing(DType::kBFloat16, 4, 128);
  options.spec.sinks = true;
  options.spec.logits_soft_cap = 30.0F;
  options.spec.kv_scale = KvScale::kPerHead;
  expect_shared(options, "sinks, soft cap and scales");
  for (const Mask mask : {Mask::kNone, Mask::kTree}) {
    options = sharing(DType::kBFloat16, 4, 128);
    options.spec.mask = mask;
    expect_shared(options, mask == Mask::kNone ? "no mask" : "trees");
  }
}

TEST(GpuPrefixes, GiveTheSameBitsInEveryRunAndAgreeWithUnsharedWithinRounding) {
  RandomBatch host(sharing(DType::kBFloat16, 4, 128));
  DeviceBatch batch(host);
  const Attention attention(kGpu, host.spec, testing::kRoomyLimits);
  DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  ASSERT_TRUE(batch.launch(attention, workspaces).ok());
  const std::vector<std::byte> expected = batch.result_bytes();
  for (int run = 0; run < 30; ++run) {
    batch.forget_results();
    if (run % 3 == 0) workspaces.fill_schedule(testing::Rubbish::kRandom, batch.stream);
    if (run % 3 == 1) workspaces.fill_scratch(testing::Rubbish::kOnes, batch.stream);
    ASSERT_TRUE(batch.launch(attention, workspaces).ok());
    ASSERT_EQ(batch.result_bytes(), expected) << "run " << run;
  }
  AttentionSpec apart = host.spec;
  apart.share_prefixes = false;
  const Attention without(kGpu, apart, testing::kRoomyLimits);
  batch.forget_results();
  const DeviceWorkspaces others(without.workspace_sizes(), batch.stream);
  ASSERT_TRUE(batch.launch(without, others).ok());
  EXPECT_NE(batch.result_bytes(), expected);
  EXPECT_EQ(header_of(others, batch.stream).overview.num_prefixes, 0);
  expect_matches(host, oracle_of(host));
}

TEST(GpuPrefixes, ThatAreNamedGiveTheBitsOfThoseThatAreFound) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
  options.named_prefixes = true;
  expect_shared(options, "named");
  options.requests.pop_back();  // one page, which makes a level of its own
  RandomBatch host(options);
  ASSERT_TRUE(host.names_all_prefixes);
  DeviceBatch batch(host);
  const Attention attention(kGpu, host.spec, testing::kRoomyLimits);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  ASSERT_TRUE(batch.launch(attention, workspaces).ok());
  const std::vector<std::byte> expected = batch.result_bytes();
  batch.forget_results();
  batch.batch.prefix_leaders = batch.batch.prefix_pages = {};
  ASSERT_TRUE(batch.launch(attention, workspaces).ok());
  EXPECT_EQ(batch.result_bytes(), expected);
}

TEST(GpuPrefixes, FollowGroupsThatChangeUnderACapturedGraph) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
  options.named_prefixes = true;
  options.pool_pages = 9000;
  options.table_width = 128;
  RandomBatch first(options);
  DeviceBatch batch(first);
  const Attention attention(kGpu, first.spec, testing::kRoomyLimits);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  const Graph graph(batch.stream, [&] { EXPECT_TRUE(batch.launch(attention, workspaces).ok()); });
  for (int step = 0; step < 6; ++step) {
    SCOPED_TRACE(step);
    options.seed = static_cast<std::uint32_t>(step + 2);
    RandomBatch host(options);
    const bool shares = step % 2 == 0;
    if (!shares) std::ranges::fill(host.prefix_leaders, -1);  // though the tables do
    batch.replace(host);
    graph.launch(batch.stream);
    batch.download_into(host);
    EXPECT_EQ(header_of(workspaces, batch.stream).overview.num_prefixes > 0, shares);
    expect_matches(host, oracle_of(host));
  }
}

TEST(GpuPrefixes, FollowTablesThatChangeUnderACapturedGraph) {
  RandomBatchOptions options = sharing(DType::kBFloat16, 4, 128);
  options.pool_pages = 9000;
  options.table_width = 128;
  RandomBatch first(options);
  DeviceBatch batch(first);
  const Attention attention(kGpu, first.spec, testing::kRoomyLimits);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  const Graph graph(batch.stream, [&] { EXPECT_TRUE(batch.launch(attention, workspaces).ok()); });
  for (int step = 0; step < 6; ++step) {
    SCOPED_TRACE(step);
    options.seed = static_cast<std::uint32_t>(step + 2);
    options.shared_pages = step % 2 == 0 ? 64 : 0;
    options.branch_pages = step % 3 == 0 ? 17 : 0;
    RandomBatch host(options);
    batch.replace(host);
    graph.launch(batch.stream);
    batch.download_into(host);
    const bool shares = options.shared_pages > 0;
    EXPECT_EQ(header_of(workspaces, batch.stream).overview.num_prefixes > 0, shares);
    expect_matches(host, oracle_of(host));
  }
}

}  // namespace
}  // namespace quire
