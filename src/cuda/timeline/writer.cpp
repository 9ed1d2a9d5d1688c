// SPDX-License-Identifier: Apache-2.0
#include "cuda/timeline/writer.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/runtime.hpp"

namespace quire::cuda::timeline {
namespace {

/// The device's memory and where it goes in the end.
struct Destination {
  std::string path;
  int device = 0;
  std::int32_t num_blocks = 0;
  BlockRecord* blocks = nullptr;
};

Destination& destination() {
  static auto* const instance = new Destination;  // outlives everything else
  return *instance;
}

/// Clocks of multiprocessors run alike and begin anywhere.
class TimeScale {
 public:
  explicit TimeScale(const std::vector<const BlockRecord*>& blocks) {
    double clocks = 0.0;
    double nanoseconds = 0.0;
    for (const BlockRecord* block : blocks) {
      clocks += static_cast<double>(block->end.clock - block->begin.clock);
      nanoseconds += static_cast<double>(block->end.nanoseconds - block->begin.nanoseconds);
      begin_ = std::min(begin_, block->begin.nanoseconds);
    }
    nanoseconds_per_clock_ = clocks > 0.0 ? nanoseconds / clocks : 0.0;
  }

  /// Since the first block began.
  [[nodiscard]] double microseconds(const BlockRecord& block, std::uint64_t clock) const {
    const auto since_begin =
        static_cast<double>(static_cast<std::int64_t>(clock - block.begin.clock));
    return (static_cast<double>(block.begin.nanoseconds - begin_) +
            since_begin * nanoseconds_per_clock_) /
           1000.0;
  }

 private:
  std::uint64_t begin_ = UINT64_MAX;
  double nanoseconds_per_clock_ = 0.0;
};

/// A process for each block, a thread for each of its warps (Trace Event Format).
void write_events(std::FILE* file, const std::vector<BlockRecord>& records) {
  std::vector<const BlockRecord*> used;
  for (const BlockRecord& block : records) {
    // Others are of an earlier launch that had more.
    const auto index = static_cast<std::uint32_t>(&block - records.data());
    if (block.num_events[0] > 0 && index < records[0].num_blocks) used.push_back(&block);
  }
  const TimeScale scale(used);
  fmt::print(file, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n");
  const char* separator = "";
  for (const BlockRecord* block : used) {
    const auto index = block - records.data();
    fmt::print(
        file,
        "{}{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{},\"args\":{{\"name\":\"block {}, "
        "multiprocessor {}\"}}}}",
        separator, index, index, block->multiprocessor);
    separator = ",\n";
    for (int warp = 0; warp < kMostWarps; ++warp) {
      for (std::uint32_t i = 0; i + 1 < block->num_events[warp]; ++i) {
        const Event& event = block->events[warp][i];
        const double from = scale.microseconds(*block, event.clock);
        const double to = scale.microseconds(*block, block->events[warp][i + 1].clock);
        fmt::print(file,
                   ",\n{{\"ph\":\"X\",\"name\":\"{}\",\"pid\":{},\"tid\":{},\"ts\":{:.3f},"
                   "\"dur\":{:.3f},\"args\":{{\"of\":{}}}}}",
                   kNames[static_cast<std::size_t>(event.activity)], index, warp, from, to - from,
                   event.of);
      }
    }
  }
  fmt::print(file, "\n]}}\n");
}

void write_at_exit() {
  const Destination& to = destination();
  std::vector<BlockRecord> records(static_cast<std::size_t>(to.num_blocks));
  cudaError_t error = cudaSetDevice(to.device);
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error == cudaSuccess) {
    error = cudaMemcpy(records.data(), to.blocks, records.size() * sizeof(BlockRecord),
                       cudaMemcpyDeviceToHost);
  }
  if (error != cudaSuccess) {
    fmt::print(stderr, "quire: QUIRE_TIMELINE: {}\n", cudaGetErrorString(error));
    return;
  }
  std::FILE* const file = std::fopen(to.path.c_str(), "w");
  if (file == nullptr) {
    fmt::print(stderr, "quire: QUIRE_TIMELINE: cannot write {}\n", to.path);
    return;
  }
  write_events(file, records);
  if (std::fclose(file) != 0) {
    fmt::print(stderr, "quire: QUIRE_TIMELINE: cannot write {}\n", to.path);
  }
}

}  // namespace

Recorder<true> recorder(std::int32_t blocks) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  Destination& to = destination();
  const char* const path = std::getenv("QUIRE_TIMELINE");
  if (path == nullptr) return {};
  int device = 0;
  throw_if_error("timeline", cudaGetDevice(&device));
  if (to.blocks == nullptr) {
    constexpr std::int32_t kMostBlocks = 320;
    const std::size_t bytes = kMostBlocks * sizeof(BlockRecord);
    throw_if_error("timeline", cudaMalloc(reinterpret_cast<void**>(&to.blocks), bytes));
    throw_if_error("timeline", cudaMemset(to.blocks, 0, bytes));
    to.path = path;
    to.device = device;
    to.num_blocks = kMostBlocks;
    std::atexit(write_at_exit);
  }
  if (device != to.device || blocks > to.num_blocks) return {};
  return {to.blocks};
}

}  // namespace quire::cuda::timeline
