// SPDX-License-Identifier: Apache-2.0
// The pieces of a split unit are merged in the order of the keys, whoever finishes last. Here the
// test decides who does: reading some keys takes until all other pieces are done.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <ctime>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "quire/attention.hpp"

namespace quire {
namespace {

constexpr std::int32_t kKeys = 32768;  // enough for several pieces
constexpr std::int32_t kDim = 64;
constexpr std::int32_t kHeldKeys = 64;  // a tile, which lies in one piece; 16 KiB: whole pages
constexpr std::int32_t kThreads = 4;
constexpr std::size_t kHeldBytes = kHeldKeys * kDim * sizeof(float);

/// Memory that nobody can read until `open()`: who tries waits.
class HeldMemory {
 public:
  explicit HeldMemory(float* start) {
    start_ = reinterpret_cast<std::byte*>(start);
    open_ = false;
    readers_ = 0;
    struct sigaction action{};
    action.sa_sigaction = wait;
    action.sa_flags = SA_SIGINFO;
    EXPECT_EQ(sigaction(SIGSEGV, &action, &before_), 0);
    EXPECT_EQ(mprotect(start_, kHeldBytes, PROT_NONE), 0);
  }
  HeldMemory(const HeldMemory&) = delete;
  HeldMemory& operator=(const HeldMemory&) = delete;
  ~HeldMemory() {
    EXPECT_EQ(mprotect(start_, kHeldBytes, PROT_READ | PROT_WRITE), 0);
    sigaction(SIGSEGV, &before_, nullptr);
  }

  static void open() { open_ = true; }
  /// @return How many waited for it.
  static std::int32_t readers() { return readers_; }

 private:
  static void wait(int, siginfo_t* info, void*) {
    const auto* address = static_cast<const std::byte*>(info->si_addr);
    if (address < start_ || address >= start_ + kHeldBytes) {
      signal(SIGSEGV, SIG_DFL);  // a crash like any other
      return;
    }
    constexpr int kMostWaits = 100'000;  // 10 s, then the test fails
    constexpr timespec kWait{.tv_sec = 0, .tv_nsec = 100'000};
    for (int waits = 0; !open_ && waits < kMostWaits; ++waits) nanosleep(&kWait, nullptr);
    if (open_) ++readers_;
    mprotect(start_, kHeldBytes, PROT_READ | PROT_WRITE);
  }

  static inline std::byte* start_ = nullptr;
  static inline std::atomic<bool> open_ = false;
  static inline std::atomic<std::int32_t> readers_ = 0;
  struct sigaction before_{};
};

/// Two threads. Once one finds no more work, the held memory, at which the other waits, opens.
class TwoThreads final : public Executor {
 public:
  [[nodiscard]] std::int32_t concurrency() const noexcept override { return kThreads; }
  void parallel(std::int32_t count, Task task, void* context) noexcept override {
    const auto run = [&](std::int32_t index) {
      task(context, index);
      HeldMemory::open();
    };
    std::thread other(run, 0);
    run(1);
    other.join();
    for (std::int32_t i = 2; i < count; ++i) task(context, i);
  }
};

/// A decode of one long request with contiguous keys.
class ALongRequest : public testing::Test {
 protected:
  ALongRequest() {
    void* memory =
        mmap(nullptr, kCacheBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    keys_ = static_cast<float*>(memory);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& value : query_) value = normal(random);
    for (float& value : values_) value = normal(random);
    for (std::int32_t i = 0; i < kKeys * kDim; ++i) keys_[i] = normal(random);
  }
  ~ALongRequest() override { munmap(keys_, kCacheBytes); }

  std::vector<float> result(Executor& executor) {
    const AttentionSpec spec{.num_qo_heads = 1,
                             .num_kv_heads = 1,
                             .head_dim_qk = kDim,
                             .q_dtype = DType::kFloat32,
                             .kv_dtype = DType::kFloat32,
                             .page_size = kContiguousKv};
    std::vector<float> out(kDim);
    const Batch batch{.qo_indptr = {qo_indptr_, DType::kInt32, {2}},
                      .kv_indptr = {kv_indptr_, DType::kInt32, {2}}};
    const AttentionTensors tensors{.q = {query_.data(), DType::kFloat32, {1, 1, kDim}},
                                   .k = {keys_, DType::kFloat32, {kKeys, 1, kDim}},
                                   .v = {values_.data(), DType::kFloat32, {kKeys, 1, kDim}},
                                   .o = {out.data(), DType::kFloat32, {1, 1, kDim}}};
    attention(Device::cpu(), spec, batch, tensors, {}, {.executor = &executor});
    return out;
  }

  /// The result if the piece of keys [first, first + kHeldKeys) is the last to finish.
  std::vector<float> result_if_last(std::int32_t first) {
    const HeldMemory held(keys_ + first * kDim);
    TwoThreads threads;
    std::vector<float> out = result(threads);
    EXPECT_EQ(HeldMemory::readers(), 1);
    return out;
  }

  static constexpr std::size_t kCacheBytes = sizeof(float) * kKeys * kDim;
  const std::int32_t qo_indptr_[2] = {0, 1};
  const std::int32_t kv_indptr_[2] = {0, kKeys};
  std::vector<float> query_ = std::vector<float>(kDim);
  std::vector<float> values_ = std::vector<float>(kKeys * kDim);
  float* keys_ = nullptr;
};

TEST_F(ALongRequest, HasTheSameBitsWhicheverPieceFinishesLast) {
  const std::vector<float> expected = result_if_last(kKeys - kHeldKeys);  // in the order of keys
  for (std::int32_t first = 0; first < kKeys; first += kKeys / 16) {
    const std::vector<float> got = result_if_last(first);
    ASSERT_FALSE(HasFailure());
    EXPECT_EQ(std::memcmp(got.data(), expected.data(), sizeof(float) * kDim), 0)
        << "with keys from " << first << " on last";
  }
}

}  // namespace
}  // namespace quire
