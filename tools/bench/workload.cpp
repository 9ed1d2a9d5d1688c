// SPDX-License-Identifier: Apache-2.0
#include "bench/workload.hpp"

#include <chrono>
#include <memory>
#include <vector>

#include "bench/row_checks.hpp"
#include "common/statistics.hpp"
#include "device/place.hpp"

namespace quire::tool {
namespace {

constexpr double kMicrosecond = 1e-6;

double seconds_of(const std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

/// Repeats `body`, with cold caches, until there is enough to judge: a slow workload is repeated
/// less often than a fast one. @return Microseconds of each, at least one.
template <typename Body>
std::vector<double> repeat(double min_seconds, Stream& stream, Body body) {
  constexpr std::size_t kFewest = 5;
  constexpr std::size_t kMost = 200;
  constexpr double kMostTimesLonger = 10;
  std::vector<double> samples;
  double spent = 0;
  body();  // touches memory for the first time
  for (bool enough = false; !enough;) {
    stream.read();
    const auto start = std::chrono::steady_clock::now();
    body();
    const double seconds = seconds_of(std::chrono::steady_clock::now() - start);
    samples.push_back(seconds / kMicrosecond);
    spent += seconds;
    enough = (spent >= min_seconds && samples.size() >= kFewest) ||
             spent >= kMostTimesLonger * min_seconds || samples.size() >= kMost;
  }
  return samples;
}

}  // namespace

Measurement measure(const Workload& workload, const MeasureOptions& options,
                    const HostMemory& memory, Stream& stream) {
  const std::unique_ptr<Place> place = open_place(Device::cpu(), memory);
  const Arrays arrays(workload, options, *place);
  const Batch& batch = arrays.batch();
  Measurement measurement;
  measurement.bytes = workload.bytes(options.dtype, cache_dtype(workload, options));
  measurement.flop = workload.flop();
  if (workload.operation == Operation::kAppend) {
    measurement.kernel = "append";
    measurement.take_times(repeat(options.min_seconds, stream, [&] {
      append(Device::cpu(), KvLayout::kNHD, batch, arrays.append(), {}, {memory.executor, {}})
          .throw_if_error();
    }));
    measurement.checks = check_append(arrays, options.seed);
    return measurement;
  }

  const Attention attention(Device::cpu(), arrays.spec(), arrays.layout().limits(),
                            {memory.executor, {}});
  const WorkspaceSizes sizes = attention.workspace_sizes();
  const DeviceMemory schedule(*place, sizes.schedule);
  const DeviceMemory scratch(*place, sizes.scratch);
  measurement.kernel = attention.kernel();
  constexpr double kScheduleSeconds = 0.01;
  const std::vector<double> scheduling = repeat(kScheduleSeconds, stream, [&] {
    attention.schedule(batch, schedule.bytes()).throw_if_error();
  });
  measurement.us_schedule = quantile(scheduling, 0.5);
  if (workload.operation == Operation::kSchedule) {
    measurement.take_times(scheduling);
    return measurement;
  }
  const AttentionTensors tensors = arrays.attention();
  measurement.take_times(repeat(options.min_seconds, stream, [&] {
    attention.run(batch, tensors, schedule.bytes(), scratch.bytes()).throw_if_error();
  }));
  measurement.checks = check_attention(arrays, attention.spec(), options.seed);
  return measurement;
}

}  // namespace quire::tool
