// SPDX-License-Identifier: Apache-2.0
#include "bench/runs.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cstdio>
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

/// The arithmetic of the kernel that serves the first workload that one serves.
Arithmetic arithmetic_of_run(const BenchOptions& options, const std::vector<Workload>& workloads) {
  for (const Workload& workload : workloads) {
    const Support support = supports(options.device, spec_of(workload, options.measure));
    if (support.supported) return arithmetic_of(support.kernel);
  }
  return arithmetic_of({});
}

Run cpu_run(const BenchOptions& options, const Course& course,
            const std::vector<Workload>& workloads, Executor& executor, Stream& stream) {
  const Arithmetic arithmetic = arithmetic_of_run(options, workloads);
  Run run;
  run.arithmetic = arithmetic.name;
  run.threads = executor.concurrency();
  run.scale = options.scale > 0 ? options.scale : course.cpu_scale;
  run.date = today();
  const std::vector<DeviceInfo> present = devices();
  run.machine = present.empty() ? "unknown" : present.front().name;
  run.ceilings = measure_ceilings(executor, stream, arithmetic);
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
      "{} · {} threads · ceilings measured now: {:.1f} GB/s streaming read, {:.1f} GFLOP/s {}\n"
      "Lengths of the course divided by {}; caches are cold.\n\n",
      run.machine, run.threads, run.ceilings.read_gb_per_s, run.ceilings.gflop_per_s,
      run.arithmetic, run.scale);
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

/// Measures row after row and prints them in the end, even if that comes early.
class CourseRun {
 public:
  CourseRun(const BenchOptions& options, RowWriter& writer, const Run& run)
      : options_(options), writer_(writer), run_(run), table_(table_of(options.device)) {}

  ExitCode measure_all(const std::vector<Workload>& workloads, const Measure& measure_one) {
    Progress progress("bench", static_cast<std::int64_t>(workloads.size()));
    try {
      for (std::size_t i = 0; i < workloads.size(); ++i) {
        progress.update(static_cast<std::int64_t>(i), workloads[i].name);
        measure(scaled(workloads[i], run_.scale), measure_one, progress);
      }
    } catch (...) {
      progress.wipe();
      print();
      throw;
    }
    progress.wipe();
    print();
    return code_;
  }

 private:
  void measure(const Workload& workload, const Measure& measure_one, Progress& progress) {
    const Support support = supports(options_.device, spec_of(workload, options_.measure));
    if (!support.supported) {
      skipped_ += fmt::format("{}: skipped: {}\n", workload.name, support.reason);
      progress.wipe();
      return writer_.write(json_of_skipped(options_, workload, support.reason));
    }
    const Measurement measured = measure_one(workload);
    add_row(table_, options_.device, run_, workload, measured);
    progress.wipe();
    writer_.write(json_of(options_, run_, workload, measured));
    if (judge(workload, measured) != ExitCode::kOk) code_ = ExitCode::kFailed;
  }

  void print() const {
    if (options_.json) return;
    fmt::print("{}{}{}", heading(options_.device, run_), table_.text(), skipped_);
    std::fflush(stdout);
  }

  const BenchOptions& options_;
  RowWriter& writer_;
  const Run& run_;
  Table table_;
  std::string skipped_;
  ExitCode code_ = ExitCode::kOk;
};

}  // namespace

ExitCode bench_on_cpu(const BenchOptions& options, const Course& course,
                      const std::vector<Workload>& workloads) {
  RowWriter writer(options);
  const std::unique_ptr<Executor> own = make_threads(options.threads);
  Executor& executor = own != nullptr ? *own : default_executor();
  Stream stream(executor);
  const Run run = cpu_run(options, course, workloads, executor, stream);
  return CourseRun(options, writer, run).measure_all(workloads, [&](const Workload& workload) {
    return measure(workload, options.measure, {options.pages, &executor}, stream);
  });
}

ExitCode bench_on_gpu(const BenchOptions& options, const Course& course,
                      const std::vector<Workload>& workloads) {
  RowWriter writer(options);
  const std::unique_ptr<Gpu> gpu = open_gpu(options.device);
  ColdTimer timer(*gpu, options.measure.repetitions);
  const Run run = gpu_run(options, course, timer);
  return CourseRun(options, writer, run).measure_all(workloads, [&](const Workload& workload) {
    return measure_on_gpu(workload, options.measure, timer);
  });
}

}  // namespace quire::tool
