// SPDX-License-Identifier: Apache-2.0
// The device's schedule is the host's, bit for bit, and so is the work that follows from it.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "cuda/schedule/kernel.hpp"
#include "cuda/walk_kernel.hpp"

namespace quire {
namespace {

constexpr int kRandomBatches = 10000;
constexpr std::int32_t kMaxTotalQueries = 4000;  // bounds the work items of a batch
constexpr std::byte kPoison{0xA5};

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/// An array on the device.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    void* data = nullptr;
    require(cudaMalloc(&data, std::max<std::size_t>(size, 1) * sizeof(T)));
    data_ = static_cast<T*>(data);
    require(cudaMemset(data_, static_cast<int>(kPoison), size * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    require(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::vector<T> to_host() const {
    std::vector<T> values(size_);
    require(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

/// A batch's lengths in one of the three forms in which engines give them.
struct Lengths {
  std::vector<std::int32_t> qo_indptr = {0};
  std::vector<std::int32_t> kv_len;
  std::vector<std::int32_t> kv_page_indptr;
  std::vector<std::int32_t> kv_last_page_len;
  std::vector<std::int32_t> kv_indptr;
};

struct Case {
  schedule::Policy policy;
  core::ProblemShape shape;
  Lengths lengths;
};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::int32_t in(std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(engine_);
  }
  bool one_in(std::int32_t n) { return in(1, n) == 1; }
  template <typename T>
  T one_of(std::initializer_list<T> choices) {
    return *(choices.begin() + in(0, static_cast<std::int32_t>(choices.size()) - 1));
  }

 private:
  std::mt19937 engine_;
};

Lengths random_lengths(Random& random, std::int32_t page_size) {
  Lengths lengths;
  const std::int32_t num_seqs = random.one_in(8) ? random.in(1000, 3000) : random.in(0, 64);
  const std::int32_t longest = random.one_of({1, 40, 700, 20000});
  std::vector<std::int32_t> kv_len;
  for (std::int32_t seq = 0; seq < num_seqs; ++seq) {
    const std::int32_t left = kMaxTotalQueries - lengths.qo_indptr.back();
    const std::int32_t queries = random.in(0, std::min(left, random.one_in(3) ? longest : 4));
    lengths.qo_indptr.push_back(lengths.qo_indptr.back() + queries);
    kv_len.push_back(random.one_in(6) ? random.in(0, queries) : queries + random.in(0, longest));
  }
  switch (random.in(0, 2)) {
    case 0:
      lengths.kv_len = kv_len;
      break;
    case 1:
      lengths.kv_page_indptr = {0};
      for (const std::int32_t keys : kv_len) {
        const std::int32_t pages = (keys + page_size - 1) / page_size;
        lengths.kv_page_indptr.push_back(lengths.kv_page_indptr.back() + pages);
        lengths.kv_last_page_len.push_back(keys - std::max(0, pages - 1) * page_size);
      }
      break;
    default:
      lengths.kv_indptr = {0};
      for (const std::int32_t keys : kv_len) {
        lengths.kv_indptr.push_back(lengths.kv_indptr.back() + keys);
      }
  }
  return lengths;
}

schedule::TilePolicy random_line(Random& random, const core::ProblemShape& shape) {
  schedule::TilePolicy policy;
  policy.keys_per_tile = random.one_of({1, 16, 64, 100});
  policy.tile_rows = random.one_of({1, 16, 64, 128});
  policy.num_ranges = random.one_of({1, 2, 13, 132, 264, 2000});
  policy.heads_abreast = std::gcd(shape.num_kv_heads, random.one_of({1, 2, 4, 8}));
  policy.min_split_tiles = random.in(1, 8);
  policy.cost_of_unit = random.in(1, 40);
  policy.cost_of_tile = random.in(0, 40);
  policy.cost_of_row = random.in(1, 3);
  policy.min_range_cost = random.one_of({1, 1000, 100000});
  return policy;
}

Case random_case(unsigned seed) {
  Random random(seed);
  Case result;
  core::ProblemShape& shape = result.shape;
  shape.group_size = random.in(1, 16);
  shape.num_kv_heads = random.in(1, 8);
  shape.num_qo_heads = shape.group_size * shape.num_kv_heads;
  shape.page_size = random.one_of({1, 16, 24, 64});
  shape.mask = random.one_of({Mask::kNone, Mask::kCausal, Mask::kTree, Mask::kFull});
  shape.window_left = random.one_of({-1, -1, 0, 100, 4000});
  result.policy = schedule::Policy(random_line(random, shape));
  schedule::TilePolicy& small = result.policy.lines[schedule::kSmallUnits];
  small.all_heads_rows = random.one_of({0, 16, 64});
  if (random.in(0, 2) > 0) {
    schedule::TilePolicy& large = result.policy.lines[schedule::kLargeUnits];
    large = random_line(random, shape);
    large.over_rows = small.up_to_rows = random.one_of({0, 64, 1000});
    result.policy.workers = random.one_of({0, 1, 13, 132});
    result.policy.cost_of_change = random.in(0, 100);
    small.shares_at_once = random.in(1, 2);
    large.ranges_in_turn = random.in(1, 2);
    small.most_workers = random.in(1, 132);
  }
  result.lengths = random_lengths(random, shape.page_size);
  return result;
}

/// What a schedule holds once made, and the work that its ranges find.
struct Made {
  std::int32_t num_seqs = 0;
  std::int32_t large_workers = 0;
  std::vector<std::int32_t> num_ranges;
  std::vector<std::int64_t> total_cost;
  std::vector<std::byte> ranges;  // int32 members only, so no padding
  std::vector<std::uint32_t> arrivals;
};

std::size_t bytes_of(const Case& test) {
  return schedule::schedule_bytes(test.policy,
                                  static_cast<std::int32_t>(test.lengths.qo_indptr.size() - 1));
}

Made read(const Case& test, schedule::ScheduleView view) {
  Made made;
  made.num_seqs = view.header->num_seqs;
  made.large_workers = view.header->overview.large_workers;
  for (int line = 0; line < schedule::kLines; ++line) {
    made.num_ranges.push_back(view.header->overview.num_ranges[line]);
    made.total_cost.push_back(view.header->total_cost[line]);
    const schedule::TilePolicy& policy = test.policy.lines[line];
    const auto num_ranges = static_cast<std::size_t>(policy.num_ranges);
    const std::size_t counters = num_ranges * static_cast<std::size_t>(policy.heads_abreast);
    const schedule::LineView& of = view.lines[line];
    const auto* const ranges = reinterpret_cast<const std::byte*>(of.ranges);
    made.ranges.insert(made.ranges.end(), ranges, ranges + num_ranges * sizeof(schedule::Range));
    made.arrivals.insert(made.arrivals.end(), of.arrivals, of.arrivals + counters);
  }
  return made;
}

/// `Batch` over arrays that lie wherever `address_of` says.
template <typename AddressOf>
core::BatchArrays arrays_of(const Lengths& lengths, AddressOf address_of) {
  core::BatchArrays batch;
  batch.num_seqs = static_cast<std::int32_t>(lengths.qo_indptr.size() - 1);
  batch.qo_indptr = address_of(lengths.qo_indptr);
  if (!lengths.kv_page_indptr.empty()) {
    batch.kv_page_indptr = address_of(lengths.kv_page_indptr);
    batch.kv_last_page_len = address_of(lengths.kv_last_page_len);
  } else if (!lengths.kv_indptr.empty()) {
    batch.kv_indptr = address_of(lengths.kv_indptr);
  } else {
    batch.kv_len = address_of(lengths.kv_len);
  }
  return batch;
}

/// The host's schedule and all work items, by line and range.
struct HostWork {
  std::vector<std::byte> workspace;
  Made made;
  std::array<std::vector<std::int32_t>, schedule::kLines> item_begin;
  std::array<std::vector<schedule::WorkItem>, schedule::kLines> items;
};

HostWork host_work(const Case& test) {
  HostWork work;
  const core::BatchArrays batch = arrays_of(
      test.lengths, [](const std::vector<std::int32_t>& values) { return values.data(); });
  work.workspace.resize(bytes_of(test), kPoison);
  const schedule::ScheduleView view =
      schedule::view_of(test.policy, batch.num_seqs, work.workspace.data());
  schedule::build(test.policy, test.shape, batch, view);
  work.made = read(test, view);
  for (int line = 0; line < schedule::kLines; ++line) {
    const auto at = static_cast<std::size_t>(line);
    work.item_begin[at] = {0};
    for (std::int32_t range = 0; range < test.policy.lines[line].num_ranges; ++range) {
      schedule::WorkCursor cursor(test.policy, test.shape, batch, view, line, range);
      schedule::WorkItem item;
      while (cursor.next(item)) work.items[at].push_back(item);
      work.item_begin[at].push_back(static_cast<std::int32_t>(work.items[at].size()));
    }
  }
  return work;
}

bool same(const schedule::WorkItem& a, const schedule::WorkItem& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;  // int32 members only, so no padding
}

void expect_same_work(const Case& test, const HostWork& host, const core::BatchArrays& batch,
                      schedule::ScheduleView view) {
  for (int line = 0; line < schedule::kLines; ++line) {
    if (test.policy.lines[line].num_ranges == 0) continue;
    const std::vector<std::int32_t>& begins = host.item_begin.at(static_cast<std::size_t>(line));
    const std::vector<schedule::WorkItem>& expected = host.items.at(static_cast<std::size_t>(line));
    const DeviceArray<std::int32_t> item_begin(begins);
    const DeviceArray<schedule::WorkItem> items(expected.size());
    const DeviceArray<std::int32_t> num_items(begins.size() - 1);
    require(testing::launch_walk(test.policy, test.shape, batch, view, line,
                                 {item_begin.data(), items.data(), num_items.data()}));
    const std::vector<std::int32_t> found = num_items.to_host();
    for (std::size_t range = 0; range < found.size(); ++range) {
      ASSERT_EQ(found[range], begins[range + 1] - begins[range]) << "range " << range;
    }
    EXPECT_TRUE(std::ranges::equal(items.to_host(), expected, same));
  }
}

/// Makes the schedule on the device and compares everything with the host's.
void expect_same_schedule(const Case& test) {
  const HostWork host = host_work(test);
  std::vector<std::unique_ptr<DeviceArray<std::int32_t>>> arrays;
  const core::BatchArrays batch =
      arrays_of(test.lengths, [&](const std::vector<std::int32_t>& values) {
        arrays.push_back(std::make_unique<DeviceArray<std::int32_t>>(values));
        return arrays.back()->data();
      });
  const DeviceArray<std::byte> workspace(bytes_of(test));
  const schedule::ScheduleView view =
      schedule::view_of(test.policy, batch.num_seqs, workspace.data());
  require(cuda::launch_schedule(test.policy, test.shape, batch, {}, view, 0, nullptr, nullptr));

  std::vector<std::byte> copy = workspace.to_host();
  const Made made = read(test, schedule::view_of(test.policy, batch.num_seqs, copy.data()));
  EXPECT_EQ(made.num_seqs, host.made.num_seqs);
  EXPECT_EQ(made.num_ranges, host.made.num_ranges);
  EXPECT_EQ(made.large_workers, host.made.large_workers);
  EXPECT_EQ(made.total_cost, host.made.total_cost);
  EXPECT_EQ(made.ranges, host.made.ranges);
  EXPECT_EQ(made.arrivals, host.made.arrivals);
  EXPECT_THAT(made.arrivals, ::testing::Each(0U));
  expect_same_work(test, host, batch, view);
}

TEST(ScheduleOnTheDevice, IsTheHostsBitForBitOverRandomBatches) {
  for (unsigned seed = 0; seed < kRandomBatches && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    expect_same_schedule(random_case(seed));
  }
}

TEST(ScheduleOnTheDevice, CountsCostsBeyond32Bits) {
  Case test = random_case(0);
  test.shape.mask = Mask::kNone;
  test.shape.window_left = -1;
  test.lengths = {};
  for (int seq = 0; seq < 8; ++seq) {
    test.lengths.qo_indptr.push_back(test.lengths.qo_indptr.back() + 10'000);
    test.lengths.kv_len.push_back(1'000'000);
  }
  schedule::TilePolicy& policy = test.policy.lines[schedule::kSmallUnits];
  test.policy = schedule::Policy(policy);
  policy.up_to_rows = INT32_MAX;
  policy.keys_per_tile = 1;
  policy.num_ranges = 132;
  policy.tile_rows = 64;
  EXPECT_GT(host_work(test).made.total_cost.front(), std::int64_t{1} << 32);
  expect_same_schedule(test);
}

TEST(ScheduleOnTheDevice, IsMadeInOnePassAndInManyAlike) {
  for (const std::int32_t num_seqs : {1023, 1024, 1025, 2048, 5000}) {
    SCOPED_TRACE(num_seqs);
    Case test = random_case(1);
    test.lengths = {};
    for (std::int32_t seq = 0; seq < num_seqs; ++seq) {
      test.lengths.qo_indptr.push_back(seq + 1);
      test.lengths.kv_len.push_back(1 + seq % 977);
    }
    expect_same_schedule(test);
  }
}

TEST(ScheduleOnTheDevice, MayBeCapturedAndReplayedForOtherLengths) {
  Case test = random_case(2);
  test.shape.mask = Mask::kCausal;
  test.lengths = {{0, 1, 2, 12}, {50, 700, 12}, {}, {}, {}};
  const DeviceArray<std::int32_t> qo_indptr(test.lengths.qo_indptr);
  const DeviceArray<std::int32_t> kv_len(test.lengths.kv_len);
  core::BatchArrays batch;
  batch.num_seqs = 3;
  batch.qo_indptr = qo_indptr.data();
  batch.kv_len = kv_len.data();
  const DeviceArray<std::byte> workspace(bytes_of(test));
  const schedule::ScheduleView view =
      schedule::view_of(test.policy, batch.num_seqs, workspace.data());

  cudaStream_t stream = nullptr;
  require(cudaStreamCreate(&stream));
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  require(cuda::launch_schedule(test.policy, test.shape, batch, {}, view, 0, nullptr, stream));
  cudaGraph_t graph = nullptr;
  require(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable = nullptr;
  require(cudaGraphInstantiate(&executable, graph, 0));

  test.lengths.kv_len = {9, 8'000, 2'000};
  require(cudaMemcpy(kv_len.data(), test.lengths.kv_len.data(), 3 * sizeof(std::int32_t),
                     cudaMemcpyHostToDevice));
  require(cudaGraphLaunch(executable, stream));
  require(cudaStreamSynchronize(stream));
  std::vector<std::byte> copy = workspace.to_host();
  EXPECT_EQ(read(test, schedule::view_of(test.policy, 3, copy.data())).ranges,
            host_work(test).made.ranges);
  require(cudaGraphExecDestroy(executable));
  require(cudaGraphDestroy(graph));
  require(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace quire
