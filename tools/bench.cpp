// SPDX-License-Identifier: Apache-2.0
// quire bench: the course, against the ceilings of the same run.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "bench/course.hpp"
#include "bench/embedded.hpp"
#include "bench/options.hpp"
#include "bench/runs.hpp"
#include "command.hpp"
#include "common/format.hpp"
#include "common/options.hpp"
#include "common/table.hpp"

namespace quire::tool {
namespace {

bool wanted(const BenchOptions& command, const Workload& workload) {
  const bool gpu = command.device.type != DeviceType::kCpu;  // takes all of it in seconds
  if (command.workloads.empty()) return command.all || gpu || workload.first_course;
  for (const std::string& part : command.workloads) {
    if (workload.name.find(part) != std::string::npos) return true;
  }
  return false;
}

std::vector<Workload> chosen(const BenchOptions& command, const Course& course) {
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

void run_bench(BenchOptions options, Session& session) {
  const Course course = parse_course(kCourse);
  if (options.list) return print_list(course);
  std::vector<Workload> workloads = chosen(options, course);
  for (Workload& workload : workloads) {
    // Peers were timed with the course's own cache.
    const DType its_own = cache_dtype(workload, {.dtype = options.measure.dtype});
    if (cache_dtype(workload, options.measure) != its_own ||
        options.measure.q_dtype != DType::kNone) {
      workload.peers.clear();
    }
  }
  session.exit_code = options.device.type == DeviceType::kCpu
                          ? bench_on_cpu(options, course, workloads)
                          : bench_on_gpu(options, course, workloads);
}

}  // namespace

void add_bench(CLI::App& app, Session& session) {
  constexpr std::int32_t kLargestScale = 1024;
  constexpr std::int32_t kFewestRepetitions = 25;
  constexpr std::int32_t kMostRepetitions = 100'000;
  constexpr double kLongest = 3600;
  const auto command = std::make_shared<BenchOptions>();
  CLI::App* sub = app.add_subcommand("bench", "Time the course against this run's own ceilings");
  add_device(*sub, command->device);
  sub->add_option("--workload", command->workloads, "Only workloads with this in their name")
      ->type_name("TEXT");
  sub->add_flag("--all", command->all, "The whole course, as on a GPU, not only the first part");
  sub->add_flag("--list", command->list, "Print the names of the workloads and exit");
  add_whole(*sub, "--scale", command->scale, 0, kLargestScale,
            "Divide lengths by this; 0 is the course's own for a CPU, 1 on a GPU");
  add_dtype(*sub, "--dtype", command->measure.dtype, "Of queries and outputs: fp32, fp16 or bf16");
  add_dtype(*sub, "--q-dtype", command->measure.q_dtype,
            "Of queries, float8_e4m3 with a cache of the same (default: as the row says, else as "
            "--dtype)");
  add_dtype(*sub, "--kv-dtype", command->measure.kv_dtype,
            "Of the cache (default: as the row says, else as --dtype)");
  add_kv_scale(*sub, command->measure.kv_scale);
  add_real(*sub, "--min-time", command->measure.min_seconds, 0, kLongest,
           "On the CPU: seconds to repeat each workload at least");
  add_whole(*sub, "--repetitions", command->measure.repetitions, kFewestRepetitions,
            kMostRepetitions, "On a GPU: how often each workload is repeated");
  sub->add_flag("--exact-limits", command->measure.exact_limits,
                "On a GPU: limits that just fit, not those of an engine");
  auto* const apart = sub->add_flag("!--no-shared-prefixes", command->measure.share_prefixes,
                                    "Every request reads its own keys, shared or not");
  sub->add_flag("--named-prefixes", command->measure.named_prefixes,
                "Batches say which requests share prefixes, instead of having it found out")
      ->excludes(apart);
  sub->add_flag("--batch-invariant", command->measure.batch_invariant,
                "Results of a request do not depend on the batch");
  add_whole(*sub, "--threads", command->threads, 0, kMostThreads, "0 is the default (quire info)");
  add_page_kind(*sub, command->pages);
  add_seed(*sub, command->measure.seed);
  sub->add_option("--commit", command->commit, "What the rows say was measured")
      ->type_name("TEXT")
      ->capture_default_str();
  sub->add_option("-o,--output", command->output, "Append the rows to a file, as JSON lines")
      ->type_name("FILE");
  add_json(*sub, command->json, "Print the rows as JSON lines");
  sub->callback([command, &session] { run_bench(*command, session); });
}

}  // namespace quire::tool
