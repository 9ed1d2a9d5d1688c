// SPDX-License-Identifier: Apache-2.0
// Copy plans on the GPU against the same plans on the CPU, and fences between streams.
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "quire/fence.hpp"
#include "support/device_copies.hpp"

namespace quire {
namespace {

using testing::copy_cases;
using testing::CopyCase;
using testing::DeviceBytes;
using testing::DeviceCopies;
using testing::Graph;
using testing::kGpu;
using testing::PinnedBytes;
using testing::Place;
using testing::RandomCopies;
using testing::require;
using testing::Stream;

TEST(GpuCopies, MoveWhatTheOracleMoves) {
  for (const CopyCase& c : copy_cases()) {
    expect_copies(c, Place::kDevice, Place::kDevice);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(GpuCopies, MoveWhatTheOracleMovesToAndFromThePinnedHost) {
  for (const CopyCase& c : copy_cases()) {
    expect_copies(c, Place::kHost, Place::kDevice);
    if (c.src_pages > 0) {
      expect_copies(c, Place::kDevice, Place::kHost);
      expect_copies(c, Place::kHost, Place::kHost);
    }
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(GpuCopies, OfChainedOpsSeeWhatEarlierOnesWrote) {
  CopyCase c;
  c.page_size = 64;
  c.num_heads = 8;  // many blocks for each op
  c.head_dim = 128;
  c.num_ops = 0;
  RandomCopies wanted(c);
  RandomCopies copied(c);
  for (std::int32_t page = 0; page + 1 < c.num_pages; ++page) {
    wanted.plan.push_back({page, page + 1, 64 - page});
  }
  wanted.plan.push_back({1, 0, 64});  // writes what the first one read
  wanted.plan.push_back({5, 0, 3});   // writes what the one before wrote
  copied.plan = wanted.plan;
  wanted.execute();
  const DeviceCopies device(copied);
  ASSERT_TRUE(device.execute().ok());
  device.download();
  EXPECT_TRUE(copied.dst == wanted.dst);
}

TEST(GpuCopies, ReplayTheirPlanOnWhateverThePagesHoldThen) {
  for (const std::int64_t src_pages : {0, 9}) {
    for (const Place src : {Place::kDevice, Place::kHost}) {
      if (src_pages == 0 && src == Place::kHost) continue;
      CopyCase c;
      c.src_pages = src_pages;
      RandomCopies copied(c);
      const DeviceCopies device(copied, Place::kDevice, src);
      const Graph graph(device.stream, [&] { device.execute().throw_if_error(); });
      for (std::uint32_t replay = 0; replay < 3; ++replay) {
        c.seed = 10 + replay;
        RandomCopies wanted(c);
        wanted.plan = copied.plan;
        for (std::size_t i = 0; i < copied.dst.size(); ++i) {  // views stay where they are
          std::ranges::copy(wanted.dst[i], copied.dst[i].begin());
          if (src_pages > 0) std::ranges::copy(wanted.src[i], copied.src[i].begin());
        }
        device.upload();
        graph.launch(device.stream);
        device.stream.synchronize();
        device.download();
        wanted.execute();
        EXPECT_TRUE(copied.dst == wanted.dst) << "replay " << replay;
      }
    }
  }
}

TEST(GpuCopies, ReachPagesBeyondFourGiB) {
  constexpr std::int64_t kFar = (std::int64_t{1} << 32) + 64;  // bytes from page to page
  constexpr std::size_t kPage = 4096;
  const Stream stream;
  const DeviceBytes pool(static_cast<std::size_t>(kFar) + kPage);
  std::vector<std::byte> page(kPage);
  for (std::size_t i = 0; i < kPage; ++i) page[i] = std::byte(i * 31 % 251);
  pool.fill(std::byte{0}, stream);
  pool.upload(page, 0, stream);
  for (const std::int64_t offset : {0, 1}) {  // pieces of 16 bytes, and of one
    SCOPED_TRACE(offset);
    const CopyTensors cache{
        .dst = {pool.data() + offset, DType::kUInt8, {2, 16, 1, 128}, {kFar, 128, 128, 1}, kGpu}};
    const CopyOp op{0, 1, 15};
    ASSERT_TRUE(
        execute_copies(kGpu, KvLayout::kNHD, {&op, 1}, {&cache, 1}, {stream.get(), nullptr}).ok());
    std::vector<std::byte> copy(kPage / 2);
    pool.download(copy, static_cast<std::size_t>(kFar + offset), stream);
    std::vector<std::byte> wanted(copy.size());
    std::copy_n(page.begin() + offset, 15 * 128, wanted.begin());
    EXPECT_TRUE(copy == wanted);
  }
}

TEST(GpuCopies, RefuseHostMemoryThatIsNotPinnedAndCopyNothing) {
  CopyCase c;
  c.src_pages = 4;
  RandomCopies copies(c);
  const std::vector<std::vector<std::byte>> before = copies.dst;
  DeviceCopies device(copies);
  std::vector<std::byte> pageable(copies.src[1].size());
  device.caches[1].src.data = pageable.data();
  device.caches[1].src.device = Device::cpu();
  const Status status = device.execute();
  EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            "[execute_copies] caches[1].src: expected pinned memory (cudaHostAlloc, "
            "cudaHostRegister), got memory of the host that is not");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  device.download();
  EXPECT_TRUE(copies.dst == before);
}

/// Work of a stream that ends when it is told to.
class Roadblock {
 public:
  explicit Roadblock(const Stream& stream) : stream_(stream) {
    const auto wait = [](void* open) {
      while (!static_cast<std::atomic<bool>*>(open)->load()) std::this_thread::yield();
    };
    require(cudaLaunchHostFunc(stream.get(), wait, &open_));
  }
  Roadblock(const Roadblock&) = delete;
  Roadblock& operator=(const Roadblock&) = delete;
  ~Roadblock() {
    open();
    cudaStreamSynchronize(stream_.get());  // reads open_ until then
  }
  void open() { open_ = true; }

 private:
  const Stream& stream_;
  std::atomic<bool> open_{false};
};

bool is_reached(const Fence& fence) {
  bool reached = false;
  fence.query(reached).throw_if_error();
  return reached;
}

TEST(GpuFence, IsReachedOnceTheWorkBeforeItIsDone) {
  const Stream stream;
  Fence fence(kGpu);
  EXPECT_TRUE(is_reached(fence)) << "never recorded";
  Roadblock block(stream);
  ASSERT_TRUE(fence.record(stream.get()).ok());
  EXPECT_FALSE(is_reached(fence));
  block.open();
  ASSERT_TRUE(fence.synchronize().ok());
  EXPECT_TRUE(is_reached(fence));
}

TEST(GpuFence, TellsTheHostWhenPagesHaveArrivedThere) {
  CopyCase c;
  c.src_pages = 20;
  c.page_size = 256;
  c.num_heads = 8;
  RandomCopies wanted(c);
  RandomCopies copied(c);
  wanted.execute();
  const DeviceCopies device(copied, Place::kHost, Place::kDevice);
  Fence fence(kGpu);
  ASSERT_TRUE(device.execute().ok());
  ASSERT_TRUE(fence.record(device.stream.get()).ok());
  while (!is_reached(fence)) std::this_thread::yield();
  for (std::size_t i = 0; i < copied.dst.size(); ++i) {
    const auto* const arrived = static_cast<const std::byte*>(device.caches[i].dst.data);
    EXPECT_TRUE(std::ranges::equal(std::span(arrived, wanted.dst[i].size()), wanted.dst[i]));
  }
}

TEST(GpuFence, MakesAnotherStreamWait) {
  CopyCase c;
  RandomCopies wanted(c);
  RandomCopies copied(c);
  for (int times = 0; times < 3; ++times) wanted.execute();
  const DeviceCopies device(copied);
  ASSERT_TRUE(device.execute().ok());  // loads the kernel, which may wait for all streams
  device.stream.synchronize();
  const Stream other;
  const CallOptions on_other{other.get(), nullptr};
  Fence first(kGpu);
  Fence second(kGpu);
  Roadblock block(other);
  ASSERT_TRUE(execute_copies(kGpu, c.layout, copied.plan, device.caches, on_other).ok());
  ASSERT_TRUE(first.record(other.get()).ok());
  ASSERT_TRUE(first.wait(device.stream.get()).ok());
  ASSERT_TRUE(device.execute().ok());
  ASSERT_TRUE(second.record(device.stream.get()).ok());
  EXPECT_FALSE(is_reached(second));
  block.open();
  ASSERT_TRUE(second.synchronize().ok());
  EXPECT_TRUE(is_reached(first));
  device.download();
  EXPECT_TRUE(copied.dst == wanted.dst);
}

TEST(GpuFence, LetsCopiesLeaveACapturedStreamAndComeBack) {
  CopyCase c;
  RandomCopies wanted(c);
  RandomCopies copied(c);
  wanted.execute();
  const DeviceCopies device(copied);
  const Stream main;
  Fence fork(kGpu);
  Fence join(kGpu);
  const Graph graph(main, [&] {
    fork.record(main.get()).throw_if_error();
    fork.wait(device.stream.get()).throw_if_error();
    device.execute().throw_if_error();
    join.record(device.stream.get()).throw_if_error();
    join.wait(main.get()).throw_if_error();
  });
  graph.launch(main);
  main.synchronize();
  device.download();
  EXPECT_TRUE(copied.dst == wanted.dst);
}

}  // namespace
}  // namespace quire
