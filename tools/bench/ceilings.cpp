// SPDX-License-Identifier: Apache-2.0
// The loops are compiled once for each instruction set and the best that the processor has is run.
#include "bench/ceilings.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/ceilings.cpp"
#include <hwy/foreach_target.h>
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace quire::tool::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using FloatTag = hn::ScalableTag<float>;

/// Adds up everything, so that nothing can be left out.
float SumFloats(const float* data, std::size_t count) {
  constexpr std::size_t kStreams = 8;  // independent sums hide the latency of the additions
  const FloatTag tag;
  const std::size_t lanes = hn::Lanes(tag);
  auto s0 = hn::Zero(tag), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (std::size_t i = 0; i + kStreams * lanes <= count; i += kStreams * lanes) {
    s0 = hn::Add(s0, hn::LoadU(tag, data + i));
    s1 = hn::Add(s1, hn::LoadU(tag, data + i + lanes));
    s2 = hn::Add(s2, hn::LoadU(tag, data + i + 2 * lanes));
    s3 = hn::Add(s3, hn::LoadU(tag, data + i + 3 * lanes));
    s4 = hn::Add(s4, hn::LoadU(tag, data + i + 4 * lanes));
    s5 = hn::Add(s5, hn::LoadU(tag, data + i + 5 * lanes));
    s6 = hn::Add(s6, hn::LoadU(tag, data + i + 6 * lanes));
    s7 = hn::Add(s7, hn::LoadU(tag, data + i + 7 * lanes));
  }
  s0 =
      hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)));
  return hn::GetLane(hn::SumOfLanes(tag, s0));
}

/// @return Something that depends on every multiply-add: `rounds` × 12 × lanes of them.
float MultiplyAdd(std::size_t rounds, float start) {
  const FloatTag tag;
  const auto a = hn::Set(tag, 0.999F);
  const auto b = hn::Set(tag, start);
  // All different: equal ones would be computed once.
  auto s0 = hn::Iota(tag, 0.0F), s1 = hn::Add(s0, a), s2 = hn::Add(s1, a), s3 = hn::Add(s2, a);
  auto s4 = hn::Add(s3, a), s5 = hn::Add(s4, a), s6 = hn::Add(s5, a), s7 = hn::Add(s6, a);
  auto s8 = hn::Add(s7, a), s9 = hn::Add(s8, a), s10 = hn::Add(s9, a), s11 = hn::Add(s10, a);
  for (std::size_t i = 0; i < rounds; ++i) {
    s0 = hn::MulAdd(s0, a, b), s1 = hn::MulAdd(s1, a, b), s2 = hn::MulAdd(s2, a, b);
    s3 = hn::MulAdd(s3, a, b), s4 = hn::MulAdd(s4, a, b), s5 = hn::MulAdd(s5, a, b);
    s6 = hn::MulAdd(s6, a, b), s7 = hn::MulAdd(s7, a, b), s8 = hn::MulAdd(s8, a, b);
    s9 = hn::MulAdd(s9, a, b), s10 = hn::MulAdd(s10, a, b), s11 = hn::MulAdd(s11, a, b);
  }
  s0 = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
  s4 = hn::Add(hn::Add(s4, s5), hn::Add(s6, s7));
  s8 = hn::Add(hn::Add(s8, s9), hn::Add(s10, s11));
  return hn::GetLane(hn::SumOfLanes(tag, hn::Add(s0, hn::Add(s4, s8))));
}

Arithmetic MultiplyAdds() {
  constexpr double kAccumulators = 12;
  return {"fma", MultiplyAdd, 2 * kAccumulators * static_cast<double>(hn::Lanes(FloatTag()))};
}

}  // namespace quire::tool::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quire::tool {
namespace {

HWY_EXPORT(SumFloats);
HWY_EXPORT(MultiplyAdds);

constexpr std::size_t kStreamBytes = std::size_t{256} << 20;  // several times the largest caches
constexpr int kReadPasses = 16;
constexpr int kArithmeticPasses = 20;
constexpr double kFlopPerPass = 8e8;  // some milliseconds
constexpr double kGiga = 1e9;

/// Keeps the optimiser from leaving the loops out.
std::atomic<float> g_sink;

template <typename Body>
double seconds(Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct ReadTask {
  const std::byte* data;
  std::size_t bytes_each;
};

void read_part(void* context, std::int32_t index) noexcept {
  const auto* task = static_cast<const ReadTask*>(context);
  const auto* part = task->data + static_cast<std::size_t>(index) * task->bytes_each;
  g_sink.store(HWY_DYNAMIC_DISPATCH(SumFloats)(reinterpret_cast<const float*>(part),
                                               task->bytes_each / sizeof(float)));
}

struct ArithmeticTask {
  const Arithmetic& arithmetic;
  std::size_t rounds;
};

void compute(void* context, std::int32_t index) noexcept {
  const auto* task = static_cast<const ArithmeticTask*>(context);
  g_sink.store(task->arithmetic.repeat(task->rounds, static_cast<float>(index) + 1.0F));
}

}  // namespace

Stream::Stream(Executor& executor) : executor_(executor), buffer_(kStreamBytes) {
  first_touch(buffer_.bytes(), executor);
  std::memset(buffer_.data(), 0, buffer_.size());
}

std::size_t Stream::read() {
  constexpr std::size_t kCacheLine = 64;
  const std::int32_t parts = executor_.concurrency();
  const std::size_t each =
      buffer_.size() / static_cast<std::size_t>(parts) / kCacheLine * kCacheLine;
  ReadTask task{buffer_.data(), each};
  executor_.parallel(parts, read_part, &task);
  return each * static_cast<std::size_t>(parts);
}

Arithmetic arithmetic_of(std::string_view kernel) {
  if (kernel == "cpu.amx_bf16") return tiles_of_bf16();
  if (kernel == "cpu.avx512_bf16") return pairs_of_bf16();
#if HWY_TARGETS & HWY_AVX3
  if (kernel == "cpu.avx512") return N_AVX3::MultiplyAdds();
#endif
#if HWY_TARGETS & HWY_AVX2
  if (kernel == "cpu.avx2") return N_AVX2::MultiplyAdds();
#endif
  return HWY_DYNAMIC_DISPATCH(MultiplyAdds)();
}

Ceilings measure_ceilings(Executor& executor, Stream& stream, const Arithmetic& arithmetic) {
  Ceilings ceilings;
  for (int pass = 0; pass < kReadPasses; ++pass) {
    std::size_t bytes = 0;
    const double time = seconds([&] { bytes = stream.read(); });
    ceilings.read_gb_per_s =
        std::max(ceilings.read_gb_per_s, static_cast<double>(bytes) / time / kGiga);
  }
  const std::int32_t parts = executor.concurrency();
  ArithmeticTask task{arithmetic,
                      static_cast<std::size_t>(kFlopPerPass / arithmetic.flop_per_round)};
  const double flop = static_cast<double>(task.rounds) * arithmetic.flop_per_round * parts;
  for (int pass = 0; pass < kArithmeticPasses; ++pass) {
    const double time = seconds([&] { executor.parallel(parts, compute, &task); });
    ceilings.gflop_per_s = std::max(ceilings.gflop_per_s, flop / time / kGiga);
  }
  return ceilings;
}

}  // namespace quire::tool
#endif  // HWY_ONCE
