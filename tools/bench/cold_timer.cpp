// SPDX-License-Identifier: Apache-2.0
#include "bench/cold_timer.hpp"

#include <algorithm>
#include <memory>

#include "common/noise_block.hpp"
#include "common/statistics.hpp"

namespace quire::tool {
namespace {

constexpr std::size_t kGiB = std::size_t{1} << 30;
constexpr std::size_t kFlushBytes = kGiB / 4;    // several times the largest second-level cache
constexpr std::size_t kCeilingBytes = 8 * kGiB;  // so much that start and end of a launch vanish
constexpr std::size_t kLeaveFree = 4;            // of the memory, this part at most is taken
constexpr std::int32_t kMatrixSide = 8192;
constexpr double kPerMicrosecondToGiga = 1e-3;  // amount per µs, in 10⁹ per s

std::size_t cold_bytes(const Gpu& gpu) {
  return std::clamp(gpu.free_bytes() / kLeaveFree / kFlushBytes * kFlushBytes, kFlushBytes,
                    kCeilingBytes);
}

}  // namespace

ColdTimer::ColdTimer(Gpu& gpu, std::int32_t repetitions)
    : gpu_(gpu), repetitions_(repetitions), cold_(gpu, cold_bytes(gpu)) {
  cold_.fill(0);
  warm_up();
  empty_us_ = quantile(time([this] { gpu_.do_nothing(); }), 0.5);
}

/// Loads the kernels and wakes the clocks.
void ColdTimer::warm_up() {
  constexpr int kPasses = 20;
  gpu_.do_nothing();
  for (int pass = 0; pass < kPasses; ++pass) gpu_.read(cold_.data(), cold_.size());
  gpu_.synchronize();
}

std::vector<double> ColdTimer::time(const std::function<void()>& body) {
  constexpr std::int32_t kWarmUps = 3;
  const std::unique_ptr<Graph> graph = gpu_.capture(body);
  const auto flush = [this] { gpu_.read(cold_.data(), kFlushBytes); };
  static_cast<void>(gpu_.time(*graph, kWarmUps, flush));
  return gpu_.time(*graph, repetitions_, flush);
}

double ColdTimer::read_gb_per_s() {
  const auto read = [this] { gpu_.read(cold_.data(), cold_.size()); };
  return static_cast<double>(cold_.size()) / quantile(time(read), 0.5) * kPerMicrosecondToGiga;
}

double ColdTimer::multiply_gflop_per_s() {
  constexpr double kSide = kMatrixSide;
  const auto count = static_cast<std::size_t>(kMatrixSide) * kMatrixSide;
  const Noise noise(DType::kBFloat16, 1);
  const NoiseBlock block(noise, count, 0);
  const std::size_t bytes = count * size_of(DType::kBFloat16);
  const DeviceMemory a(gpu_, bytes);
  const DeviceMemory b(gpu_, bytes);
  const DeviceMemory c(gpu_, bytes);
  block.fill(gpu_, a);
  block.fill(gpu_, b);
  // The first call loads the library, which may not be captured.
  if (!gpu_.multiply(c.data(), a.data(), b.data(), kMatrixSide)) return 0;
  const std::vector<double> times =
      time([&] { gpu_.multiply(c.data(), a.data(), b.data(), kMatrixSide); });
  return 2 * kSide * kSide * kSide / quantile(times, 0.5) * kPerMicrosecondToGiga;
}

Ceilings ColdTimer::measure_ceilings() { return {read_gb_per_s(), multiply_gflop_per_s()}; }

}  // namespace quire::tool
