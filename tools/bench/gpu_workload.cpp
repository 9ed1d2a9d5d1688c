// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu_workload.hpp"

#include <algorithm>

#include "bench/row_checks.hpp"
#include "common/statistics.hpp"

namespace quire::tool {
namespace {

constexpr int kPoison = 0xff;  // NaN in every format that has one

void measure_append(const Arrays& arrays, const MeasureOptions& options, ColdTimer& timer,
                    Measurement& measurement) {
  Gpu& gpu = timer.gpu();
  const AppendTensors tensors = arrays.append();
  measurement.kernel = "append";
  measurement.take_times(timer.time([&] {
    append(gpu.device(), KvLayout::kNHD, arrays.batch(), tensors, {gpu.stream()}).throw_if_error();
  }));
  measurement.checks = check_append(arrays, options.seed);
}

void measure_attention(const Workload& workload, const Arrays& arrays,
                       const MeasureOptions& options, ColdTimer& timer, Measurement& measurement) {
  Gpu& gpu = timer.gpu();
  const BatchLimits own = arrays.layout().limits();
  const Attention attention(gpu.device(), arrays.spec(),
                            options.exact_limits ? own : engine_limits(own));
  const WorkspaceSizes sizes = attention.workspace_sizes();
  const DeviceMemory schedule_space(gpu, sizes.schedule);
  const DeviceMemory scratch(gpu, sizes.scratch);
  const AttentionTensors tensors = arrays.attention();
  const CallOptions call{gpu.stream()};
  const auto schedule = [&] {
    attention.schedule(arrays.batch(), schedule_space.bytes(), call).throw_if_error();
  };
  const auto run = [&] {
    attention.run(arrays.batch(), tensors, schedule_space.bytes(), scratch.bytes(), call)
        .throw_if_error();
  };
  const auto both = [&] {
    schedule();
    run();
  };

  measurement.kernel = attention.kernel();
  const std::vector<double> scheduling = timer.time(schedule);
  measurement.us_schedule = std::max(0.0, quantile(scheduling, 0.5) - timer.empty_us());
  if (workload.operation == Operation::kSchedule) {
    measurement.take_times(scheduling);
    return;
  }
  measurement.take_times(timer.time(run));  // with the schedule that the replays above left
  arrays.o().fill(kPoison);
  measurement.us_both = quantile(timer.time(both), 0.5);
  measurement.checks = check_attention(arrays, attention.spec(), options.seed);
}

}  // namespace

BatchLimits engine_limits(const BatchLimits& batch) {
  constexpr BatchLimits kEngine{.max_num_seqs = 1024, .max_total_q = 32768, .max_kv_len = 131072};
  return {.max_num_seqs = std::max(kEngine.max_num_seqs, batch.max_num_seqs),
          .max_total_q = std::max(kEngine.max_total_q, batch.max_total_q),
          .max_kv_len = std::max(kEngine.max_kv_len, batch.max_kv_len)};
}

Measurement measure_on_gpu(const Workload& workload, const MeasureOptions& options,
                           ColdTimer& timer) {
  const Arrays arrays(workload, options, timer.gpu());
  Measurement measurement;
  measurement.bytes = workload.bytes(options.dtype, cache_dtype(workload, options));
  measurement.flop = workload.flop();
  if (workload.operation == Operation::kAppend) {
    measure_append(arrays, options, timer, measurement);
  } else {
    measure_attention(workload, arrays, options, timer, measurement);
  }
  return measurement;
}

}  // namespace quire::tool
