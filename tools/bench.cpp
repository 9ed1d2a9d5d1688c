// SPDX-License-Identifier: Apache-2.0
// quire bench: the course, against the ceilings of the same run.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/ceilings.hpp"
#include "bench/course.hpp"
#include "bench/embedded.hpp"
#include "bench/workload.hpp"
#include "command.hpp"
#include "common/format.hpp"
#include "common/options.hpp"
#include "common/table.hpp"
#include "common/terminal.hpp"
#include "quire/info.hpp"

namespace quire::tool {
namespace {

struct BenchCommand {
  MeasureOptions measure;
  DType kv_dtype = DType::kNone;
  std::vector<std::string> workloads;
  std::string commit{kBuildCommit};
  std::string output;
  std::int32_t scale = 0;
  std::int32_t threads = 0;
  bool all = false;
  bool list = false;
  bool json = false;
};

/// What is the same in all rows of a run.
struct Run {
  Ceilings ceilings;
  std::string machine;
  std::string date;
  std::int32_t threads = 0;
  std::int32_t scale = 1;
};

bool wanted(const BenchCommand& command, const Workload& workload) {
  if (command.workloads.empty()) return command.all || workload.first_course;
  for (const std::string& part : command.workloads) {
    if (workload.name.find(part) != std::string::npos) return true;
  }
  return false;
}

std::vector<Workload> chosen(const BenchCommand& command, const Course& course) {
  std::vector<Workload> workloads;
  for (const Workload& workload : course.workloads) {
    if (wanted(command, workload)) workloads.push_back(workload);
  }
  if (workloads.empty()) {
    throw CommandError(ExitCode::kUsage,
                       fmt::format("--workload: expected a part of a name in quire bench --list, "
                                   "got {}",
                                   in_quotes(command.workloads.front())));
  }
  return workloads;
}

nlohmann::ordered_json row_of(const BenchCommand& command, const Run& run, const Workload& workload,
                              const Measurement& measured) {
  return {{"schema", 1},
          {"workload", workload.name},
          {"impl", "quire"},
          {"kernel", measured.kernel},
          {"device", "cpu"},
          {"dtype", to_string(command.measure.dtype)},
          {"kv_dtype", to_string(command.measure.kv_dtype)},
          {"page_size", workload.page_size},
          {"scale", run.scale},
          {"us_median", measured.us_median},
          {"us_p5", measured.us_p5},
          {"us_p95", measured.us_p95},
          {"us_schedule", measured.us_schedule},
          {"repetitions", measured.repetitions},
          {"bytes", measured.bytes},
          {"flop", measured.flop},
          {"gb_per_s", measured.gb_per_s()},
          {"gflop_per_s", measured.gflop_per_s()},
          {"pct_of_ceiling", measured.percent_of(run.ceilings)},
          {"bound", measured.bound_by_reading(run.ceilings) ? "read" : "fma"},
          {"ceiling_gb_per_s", run.ceilings.read_gb_per_s},
          {"ceiling_gflop_per_s", run.ceilings.fma_gflop_per_s},
          {"seed", command.measure.seed},
          {"commit", command.commit},
          {"machine", run.machine},
          {"date", run.date},
          {"threads", run.threads}};
}

void add_row(Table& table, const Run& run, const Workload& workload, const Measurement& measured) {
  table.add({workload.name, fmt::format("{}", workload.page_size),
             fmt::format("{:.1f}", measured.us_median), fmt::format("{:.1f}", measured.us_p5),
             fmt::format("{:.1f}", measured.us_p95),
             measured.us_schedule > 0 ? fmt::format("{:.1f}", measured.us_schedule) : "–",
             fmt::format("{:.1f}", measured.gb_per_s()),
             fmt::format("{:.1f}", measured.gflop_per_s()),
             fmt::format("{:.1f}", measured.percent_of(run.ceilings)),
             measured.bound_by_reading(run.ceilings) ? "read" : "fma"});
}

void print_list(const Course& course) {
  Table table({"workload", "", ">requests", ">queries", ">keys", ">page"});
  const auto sum = [](const std::vector<std::int32_t>& lengths) {
    std::int64_t total = 0;
    for (const std::int32_t length : lengths) total += length;
    return human_count(total);
  };
  for (const Workload& workload : course.workloads) {
    table.add({workload.name, workload.first_course ? "first course" : "",
               fmt::format("{}", workload.qo_len.size()), sum(workload.qo_len),
               sum(workload.kv_len), fmt::format("{}", workload.page_size)});
  }
  fmt::print("{}", table.text());
}

Run start_run(const BenchCommand& command, const Course& course, Executor& executor,
              Stream& stream) {
  Run run;
  run.threads = executor.concurrency();
  run.scale = command.scale > 0 ? command.scale : course.cpu_scale;
  run.date = fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr)));
  const std::vector<DeviceInfo> present = devices();
  run.machine = present.empty() ? "unknown" : present.front().name;
  run.ceilings = measure_ceilings(executor, stream);
  return run;
}

void print_heading(const Run& run) {
  fmt::print(
      "{} · {} threads · ceilings measured now: {:.1f} GB/s streaming read, {:.1f} GFLOP/s fp32 "
      "multiply-add\nLengths of the course divided by {}; caches are cold.\n\n",
      run.machine, run.threads, run.ceilings.read_gb_per_s, run.ceilings.fma_gflop_per_s,
      run.scale);
}

/// Where the rows go besides the table.
class RowWriter {
 public:
  explicit RowWriter(const BenchCommand& command) : json_(command.json) {
    if (command.output.empty()) return;
    file_.open(command.output, std::ios::app);
    if (!file_) {
      throw CommandError(ExitCode::kUsage,
                         fmt::format("--output: {} cannot be written", command.output));
    }
  }
  void write(const nlohmann::ordered_json& row) {
    if (json_) fmt::print("{}\n", row.dump());
    if (file_.is_open()) file_ << row.dump() << '\n';
  }

 private:
  bool json_;
  std::ofstream file_;
};

void run_bench(BenchCommand command) {
  const Course course = parse_course(kCourse);
  if (command.list) return print_list(course);
  command.measure.kv_dtype =
      command.kv_dtype == DType::kNone ? command.measure.dtype : command.kv_dtype;
  const std::vector<Workload> workloads = chosen(command, course);
  RowWriter writer(command);

  const std::unique_ptr<Executor> own = make_threads(command.threads);
  Executor& executor = own != nullptr ? *own : default_executor();
  Stream stream(executor);
  const Run run = start_run(command, course, executor, stream);
  Table table({"workload", ">page", ">µs median", ">p5", ">p95", ">schedule", ">GB/s", ">GFLOP/s",
               ">% of ceiling", "bound"});
  Progress progress("bench", static_cast<std::int64_t>(workloads.size()));
  for (std::size_t i = 0; i < workloads.size(); ++i) {
    progress.update(static_cast<std::int64_t>(i), workloads[i].name);
    const Workload workload = scaled(workloads[i], run.scale);
    const Measurement measured = measure(workload, command.measure, executor, stream);
    add_row(table, run, workload, measured);
    progress.wipe();
    writer.write(row_of(command, run, workload, measured));
  }
  if (command.json) return;
  print_heading(run);
  fmt::print("{}", table.text());
}

}  // namespace

void add_bench(CLI::App& app, Session& /*session*/) {
  constexpr std::int32_t kLargestScale = 1024;
  constexpr double kLongest = 3600;
  const auto command = std::make_shared<BenchCommand>();
  CLI::App* sub = app.add_subcommand("bench", "Time the course against this run's own ceilings");
  sub->add_option("--workload", command->workloads, "Only workloads with this in their name")
      ->type_name("TEXT");
  sub->add_flag("--all", command->all, "The whole course, not only the first part");
  sub->add_flag("--list", command->list, "Print the names of the workloads and exit");
  add_whole(*sub, "--scale", command->scale, 0, kLargestScale,
            "Divide lengths by this; 0 is the course's own for a CPU");
  add_dtype(*sub, "--dtype", command->measure.dtype, "Of queries and outputs: fp32, fp16 or bf16");
  add_dtype(*sub, "--kv-dtype", command->kv_dtype, "Of the cache (default: as --dtype)");
  add_real(*sub, "--min-time", command->measure.min_seconds, 0, kLongest,
           "Seconds to repeat each workload at least");
  add_whole(*sub, "--threads", command->threads, 0, kMostThreads, "0 is the default (quire info)");
  add_seed(*sub, command->measure.seed);
  sub->add_option("--commit", command->commit, "What the rows say was measured")
      ->type_name("TEXT")
      ->capture_default_str();
  sub->add_option("-o,--output", command->output, "Append the rows to a file, as JSON lines")
      ->type_name("FILE");
  add_json(*sub, command->json, "Print the rows as JSON lines");
  sub->callback([command] { run_bench(*command); });
}

}  // namespace quire::tool
