// SPDX-License-Identifier: Apache-2.0
#include "bench/runs.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>
#include <functional>
#include <memory>

#include "bench/ceilings.hpp"
#include "bench/cold_timer.hpp"
#include "bench/gpu_workload.hpp"
#include "bench/report.hpp"
#include "bench/workload.hpp"
#include "common/terminal.hpp"
#include "quire/info.hpp"

namespace quire::tool {
namespace {

std::string today() { return fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr))); }

Run cpu_run(const BenchOptions& options, const Course& course, Executor& executor, Stream& stream) {
  Run run;
  run.arithmetic = "fma";
  run.threads = executor.concurrency();
  run.scale = options.scale > 0 ? options.scale : course.cpu_scale;
  run.date = today();
  const std::vector<DeviceInfo> present = devices();
  run.machine = present.empty() ? "unknown" : present.front().name;
  run.ceilings = measure_ceilings(executor, stream);
  return run;
}

Run gpu_run(const BenchOptions& options, const Course& course, ColdTimer& timer) {
  Run run;
  run.arithmetic = "matmul";
  run.published = course.published;
  run.scale = options.scale > 0 ? options.scale : 1;
  run.date = today();
  run.machine = timer.gpu().name();
  run.empty_us = timer.empty_us();
  run.ceilings = timer.measure_ceilings();
  return run;
}

std::string cpu_heading(const Run& run) {
  return fmt::format(
      "{} · {} threads · ceilings measured now: {:.1f} GB/s streaming read, {:.1f} GFLOP/s fp32 "
      "multiply-add\nLengths of the course divided by {}; caches are cold.\n\n",
      run.machine, run.threads, run.ceilings.read_gb_per_s, run.ceilings.gflop_per_s, run.scale);
}

std::string gpu_heading(const Run& run) {
  constexpr double kGigaPerTera = 1000;
  const std::string matmul =
      run.ceilings.gflop_per_s > 0
          ? fmt::format("{:.0f} TFLOP/s bfloat16 matmul", run.ceilings.gflop_per_s / kGigaPerTera)
          : "matmul not measured (no cuBLAS), so rows that it bounds have no percentage";
  return fmt::format(
      "{} · ceilings measured now: {:.0f} GB/s read, {}\n"
      "Graph replays with a cold second-level cache; an empty kernel takes {:.1f} µs, which "
      "schedule has been relieved of.\nPeers: published for {:.0f} GB/s and {:.0f} TFLOP/s, scaled "
      "by this run's ceiling, ratio of our time.\n\n",
      run.machine, run.ceilings.read_gb_per_s, matmul, run.empty_us, run.published.read_gb_per_s,
      run.published.gflop_per_s / kGigaPerTera);
}

std::string heading(Device device, const Run& run) {
  return device.type == DeviceType::kCpu ? cpu_heading(run) : gpu_heading(run);
}

/// Says on stderr what is wrong.
ExitCode judge(const Workload& workload, const Measurement& measured) {
  if (measured.checks.failed == 0) return ExitCode::kOk;
  fmt::print(stderr, "quire: {}: {} of {} checked rows are wrong; {}\n", workload.name,
             measured.checks.failed, measured.checks.rows, measured.checks.first_failure);
  return ExitCode::kFailed;
}

using Measure = std::function<Measurement(const Workload&)>;

/// Measures and tells row after row, then prints the table.
ExitCode run_course(const BenchOptions& options, const Run& run, RowWriter& writer,
                    const std::vector<Workload>& workloads, const Measure& measure_one) {
  ExitCode code = ExitCode::kOk;
  std::string skipped;
  Table table = table_of(options.device);
  Progress progress("bench", static_cast<std::int64_t>(workloads.size()));
  for (std::size_t i = 0; i < workloads.size(); ++i) {
    progress.update(static_cast<std::int64_t>(i), workloads[i].name);
    const Workload workload = scaled(workloads[i], run.scale);
    const Support support = supports(options.device, spec_of(workload, options.measure));
    if (!support.supported) {
      skipped += fmt::format("{}: skipped: {}\n", workload.name, support.reason);
      writer.write(json_of_skipped(options, workload, support.reason));
      continue;
    }
    const Measurement measured = measure_one(workload);
    progress.wipe();
    add_row(table, options.device, run, workload, measured);
    writer.write(json_of(options, run, workload, measured));
    if (judge(workload, measured) != ExitCode::kOk) code = ExitCode::kFailed;
  }
  progress.wipe();
  if (options.json) return code;
  fmt::print("{}{}{}", heading(options.device, run), table.text(), skipped);
  return code;
}

}  // namespace

ExitCode bench_on_cpu(const BenchOptions& options, const Course& course,
                      const std::vector<Workload>& workloads) {
  RowWriter writer(options);
  const std::unique_ptr<Executor> own = make_threads(options.threads);
  Executor& executor = own != nullptr ? *own : default_executor();
  Stream stream(executor);
  const Run run = cpu_run(options, course, executor, stream);
  return run_course(options, run, writer, workloads, [&](const Workload& workload) {
    return measure(workload, options.measure, executor, stream);
  });
}

ExitCode bench_on_gpu(const BenchOptions& options, const Course& course,
                      const std::vector<Workload>& workloads) {
  RowWriter writer(options);
  const std::unique_ptr<Gpu> gpu = open_gpu(options.device);
  ColdTimer timer(*gpu, options.measure.repetitions);
  const Run run = gpu_run(options, course, timer);
  return run_course(options, run, writer, workloads, [&](const Workload& workload) {
    return measure_on_gpu(workload, options.measure, timer);
  });
}

}  // namespace quire::tool
