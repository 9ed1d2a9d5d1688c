// SPDX-License-Identifier: Apache-2.0
// Runs the steps of the ladder on some workloads, checks each against the reference and times it.
//
// Each step runs in a process of its own: after an illegal access a process can do nothing more
// with its GPU, and one wrong step shall not hide the others.
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "05_library.hpp"
#include "reference.hpp"
#include "steps.hpp"

namespace ladder {
namespace {

constexpr unsigned kSecondsPerStep = 180;  // then a step counts as hanging
constexpr int kExitWrong = 1;
constexpr int kExitUsage = 2;

constexpr const char* kHelp =
    "usage: ladder [--quick] [--step NN] [--workload NAME] [--repetitions N]\n"
    "\n"
    "Runs the teaching kernels (docs/ladder.md) on a GPU, checks each against a reference in "
    "double\n"
    "precision on the CPU, times it and prints how much faster it is than the step before.\n"
    "\n"
    "  --quick          small workloads, few repetitions: a test\n"
    "  --step NN        01, 02, 03, 04 or 05 only\n"
    "  --workload NAME  long, shared or odd only\n"
    "  --repetitions N  timed replays of a step; the median counts (30; --quick: 5)\n"
    "  --help           this text\n"
    "\n"
    "Exit code: 0 if every step agrees with the reference, 1 if one does not or fails, 2 for "
    "wrong\n"
    "arguments.\n";

struct Options {
  bool quick = false;
  std::string step;
  std::string workload;
  int repetitions = 0;
};

/// What a step's process tells.
struct Outcome {
  bool ok = false;
  double microseconds = 0;
  double worst = 0;  // the largest error, in units of its bound
  std::array<char, 1024> text{};
};

void say(Outcome& outcome, const std::string& text) {
  std::snprintf(outcome.text.data(), outcome.text.size(), "%s", text.c_str());
}

/// Compares o with the reference; says which value is furthest off.
void compare(const Workload& workload, const Reference& reference, const std::vector<float>& o,
             bool weights_are_bf16, Outcome& outcome) {
  std::size_t wrong = 0;
  std::size_t first = 0;
  for (std::size_t i = 0; i < o.size(); ++i) {
    const double bound = error_bound(weights_are_bf16, reference.concentration[i / kHeadDim]);
    const double error = std::abs(double{o[i]} - reference.o[i]) / bound;
    if (!(error <= 1) && wrong++ == 0) first = i;  // a NaN is wrong too
    if (error > outcome.worst) outcome.worst = error;
  }
  outcome.ok = wrong == 0;
  if (wrong == 0) return;
  const std::size_t row = first / kHeadDim;
  const auto heads = static_cast<std::size_t>(workload.num_qo_heads);
  int index = 0;
  while (workload.requests[static_cast<std::size_t>(index)].q_start !=
         static_cast<int>(row / heads)) {
    ++index;
  }
  std::snprintf(outcome.text.data(), outcome.text.size(),
                "%zu of %zu values are wrong; the first: request %d (%d keys, row %zu of q), head "
                "%zu, component %zu: expected %.9g +- %.2g, got %.9g",
                wrong, o.size(), index, workload.requests[static_cast<std::size_t>(index)].seq_len,
                row / heads, row % heads, first % kHeadDim, reference.o[first],
                error_bound(weights_are_bf16, reference.concentration[row]), double{o[first]});
}

/// A page table with an entry that names no page, which every step must report.
struct BrokenTable {
  std::vector<int> page_table;
  int request = 0;
  int entry = 0;
  int page_id = 0;
};

BrokenTable break_table(const Workload& workload) {
  BrokenTable broken{.page_table = workload.page_table};
  // The last page of the last request: in every workload its own.
  broken.request = workload.batch() - 1;
  const RequestInfo& info = workload.requests[static_cast<std::size_t>(broken.request)];
  broken.entry = info.kv_page_start + pages_of(info.seq_len) - 1;
  broken.page_id = workload.num_pages;
  broken.page_table[static_cast<std::size_t>(broken.entry)] = broken.page_id;
  return broken;
}

/// A step in fp32 or bf16: what it puts on a stream.
template <typename T>
void measure(const Workload& workload, const Reference& reference, const DeviceWorkload<T>& device,
             const Work& work, int repetitions, Outcome& outcome) {
  constexpr bool kIsBf16 = sizeof(T) == sizeof(__nv_bfloat16);
  device.poison_output();
  run_once(work);
  if (const PageError error = device.page_error(); error.found != 0) {
    say(outcome, "entry " + std::to_string(error.entry) + " of the page table, " +
                     std::to_string(error.page_id) + ", was reported, and is not wrong");
    return;
  }
  compare(workload, reference, device.output(), kIsBf16, outcome);
  if (!outcome.ok) return;
  outcome.microseconds = median_microseconds(work, repetitions);
  compare(workload, reference, device.output(), kIsBf16, outcome);  // after the replays
}

template <typename T>
void expect_report(const DeviceWorkload<T>& device, const BrokenTable& broken, const Work& work,
                   Outcome& outcome) {
  if (!outcome.ok) return;
  device.set_page_table(broken.page_table);
  run_once(work);
  const PageError error = device.page_error();
  if (error.found == 1 && error.entry == broken.entry && error.page_id == broken.page_id) return;
  outcome.ok = false;
  say(outcome, "a page table whose entry " + std::to_string(broken.entry) + " is " +
                   std::to_string(broken.page_id) + ": expected a report of it, got found " +
                   std::to_string(error.found) + ", entry " + std::to_string(error.entry) +
                   ", page id " + std::to_string(error.page_id));
}

using Launch = void (*)(const Problem<float>&, cudaStream_t);
template <Launch kLaunch>
void run_fp32(const Workload& workload, const Reference& reference, int repetitions,
              Outcome& outcome) {
  const DeviceWorkload<float> device(workload);
  const Work work = [&](cudaStream_t stream) { kLaunch(device.problem(), stream); };
  measure(workload, reference, device, work, repetitions, outcome);
  expect_report(device, break_table(workload), work, outcome);
}

void run_03(const Workload& workload, const Reference& reference, int repetitions,
            Outcome& outcome) {
  const DeviceWorkload<__nv_bfloat16> device(workload);
  const DevicePlan plan(plan_requests(workload), device.problem());
  PlanView view = plan.view();
  view.o = device.problem().o;
  const Work work = [&](cudaStream_t stream) { launch_03(device.problem(), view, stream); };
  measure(workload, reference, device, work, repetitions, outcome);
  expect_report(device, break_table(workload), work, outcome);
}

void run_04(const Workload& workload, const Reference& reference, int repetitions,
            Outcome& outcome) {
  const DeviceWorkload<__nv_bfloat16> device(workload);
  const DevicePlan plan(plan_shared_prefixes(workload), device.problem());
  const Work work = [&](cudaStream_t stream) { launch_04(device.problem(), plan.view(), stream); };
  measure(workload, reference, device, work, repetitions, outcome);
  expect_report(device, break_table(workload), work, outcome);
}

void run_05(const Workload& workload, const Reference& reference, int repetitions,
            Outcome& outcome) {
  const DeviceWorkload<__nv_bfloat16> device(workload);
  const Library library(workload, device);
  run_once([&](cudaStream_t stream) { library.schedule(stream); });
  const Work work = [&](cudaStream_t stream) { library.run(stream); };
  measure(workload, reference, device, work, repetitions, outcome);
  if (!outcome.ok) return;
  const BrokenTable broken = break_table(workload);
  const quire::CheckRecord found = library.check(broken.page_table);
  const int row = workload.requests[static_cast<std::size_t>(broken.request)].q_start;
  if (found.what == static_cast<int>(quire::CheckedItem::kPageId) && found.seq == row &&
      found.value == broken.page_id) {
    return;
  }
  outcome.ok = false;
  say(outcome, "a page id of " + std::to_string(broken.page_id) + " in row " + std::to_string(row) +
                   ": expected checked mode to find it, got what " + std::to_string(found.what) +
                   ", seq " + std::to_string(found.seq) + ", value " + std::to_string(found.value));
}

void run_05_with_schedule(const Workload& workload, const Reference& reference, int repetitions,
                          Outcome& outcome) {
  const DeviceWorkload<__nv_bfloat16> device(workload);
  const Library library(workload, device);
  const Work work = [&](cudaStream_t stream) {
    library.schedule(stream);
    library.run(stream);
  };
  measure(workload, reference, device, work, repetitions, outcome);
}

struct Step {
  const char* number;
  const char* name;
  int element_size;
  bool one_head;
  bool is_compared;  // its speed-up over the step before means something
  void (*run)(const Workload&, const Reference&, int, Outcome&);
};

constexpr Step kSteps[] = {
    {"01", "a look-up per position, one head", 4, true, false, run_fp32<launch_01_one_head>},
    {"01", "the same with heads", 4, false, false, run_fp32<launch_01_heads>},
    {"02", "pages in flight", 4, false, true, run_fp32<launch_02>},
    {"03", "CuTe and tensor cores, bf16", 2, false, true, run_03},
    {"04", "shared prefixes", 2, false, true, run_04},
    {"05", "the library, run()", 2, false, true, run_05},
    {"05", "schedule() and run()", 2, false, false, run_05_with_schedule},
};

/// Bytes that have to be read and written: each token's key and value once, however many requests
/// share it, and q and o.
double needed_bytes(const Workload& workload, const Step& step) {
  const double kv = 2.0 * static_cast<double>(workload.distinct_tokens()) * workload.num_kv_heads;
  const double q_and_o = static_cast<double>(workload.num_rows());
  return kHeadDim * (step.element_size * (kv + q_and_o) + double{sizeof(float)} * q_and_o);
}

/// Runs a step in a process of its own.
Outcome run_apart(const Step& step, const Workload& workload, const Reference& reference,
                  int repetitions) {
  Outcome outcome;
  int ends[2];
  if (pipe(ends) != 0) return say(outcome, "no pipe"), outcome;
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) return say(outcome, "no process"), outcome;
  if (child == 0) {
    alarm(kSecondsPerStep);
    try {
      step.run(workload, reference, repetitions, outcome);
    } catch (const std::exception& error) {
      outcome.ok = false;
      say(outcome, error.what());
    }
    const bool told = write(ends[1], &outcome, sizeof outcome) == ssize_t{sizeof outcome};
    _exit(told ? 0 : kExitWrong);
  }
  close(ends[1]);
  std::size_t got = 0;
  auto* const bytes = reinterpret_cast<char*>(&outcome);
  for (ssize_t n = 1; n > 0 && got < sizeof outcome;
       got += static_cast<std::size_t>(n > 0 ? n : 0)) {
    n = read(ends[0], bytes + got, sizeof outcome - got);
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (got == sizeof outcome) return outcome;
  outcome = Outcome();
  say(outcome, WIFSIGNALED(status) ? std::string("its process ended by signal ") +
                                         std::to_string(WTERMSIG(status)) +
                                         (WTERMSIG(status) == SIGALRM ? ": it hung" : "")
                                   : std::string("its process ended without a word"));
  return outcome;
}

/// @return Whether every step agrees.
bool climb(const Workload& workload, const Options& options) {
  std::printf("\n%s: %s\n", workload.name.c_str(), workload.description.c_str());
  std::printf("  %-4s %-34s %10s %8s %9s  %s\n", "step", "", "us", "GB/s", "speed-up",
              "error, of its bound");
  const Workload one_head = with_one_head(workload);
  const Reference reference = compute_reference(workload);
  const Reference one_head_reference = compute_reference(one_head);
  bool all_ok = true;
  double before = 0;  // µs of the step before, 0 if it is not known
  for (const Step& step : kSteps) {
    if (!options.step.empty() && options.step != step.number) continue;
    const Workload& its = step.one_head ? one_head : workload;
    const Outcome outcome =
        run_apart(step, its, step.one_head ? one_head_reference : reference, options.repetitions);
    all_ok = all_ok && outcome.ok;
    std::printf("  %-4s %-34s ", step.number, step.name);
    if (!outcome.ok) {
      std::printf("WRONG: %s\n", outcome.text.data());
    } else {
      std::printf("%10.1f %8.0f ", outcome.microseconds,
                  needed_bytes(its, step) / outcome.microseconds * 1e-3);
      if (step.is_compared && before > 0) {
        std::printf("%8.2fx", before / outcome.microseconds);
      } else {
        std::printf("%9s", "");
      }
      std::printf("  %.2f\n", outcome.worst);
    }
    std::fflush(stdout);
    before = outcome.ok && !step.one_head ? outcome.microseconds : 0;
  }
  return all_ok;
}

[[noreturn]] void refuse(const std::string& text) {
  std::fprintf(stderr, "ladder: %s (see --help)\n", text.c_str());
  std::exit(kExitUsage);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--help" || name == "-h") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    }
    if (name == "--quick") {
      options.quick = true;
      continue;
    }
    if (name != "--step" && name != "--workload" && name != "--repetitions") {
      refuse("unknown argument " + std::string(name));
    }
    if (i + 1 == argc) refuse(std::string(name) + ": expected a value");
    const std::string value = argv[++i];
    if (name == "--step") options.step = value;
    if (name == "--workload") options.workload = value;
    if (name == "--repetitions") options.repetitions = std::atoi(value.c_str());
    if (name == "--repetitions" && options.repetitions < 1) {
      refuse("--repetitions: expected a number from 1 on, got " + value);
    }
  }
  if (options.repetitions == 0) options.repetitions = options.quick ? 5 : 30;
  return options;
}

int climb_all(const Options& options) {
  bool all_ok = true;
  bool any_step = options.step.empty();
  for (const Step& step : kSteps) any_step = any_step || options.step == step.number;
  if (!any_step) refuse("--step: expected 01 to 05, got " + options.step);
  int count = 0;
  for (const Workload& workload : make_workloads(options.quick)) {
    if (!options.workload.empty() && options.workload != workload.name) continue;
    ++count;
    all_ok = climb(workload, options) && all_ok;
  }
  if (count == 0) refuse("--workload: expected long, shared or odd, got " + options.workload);
  std::printf(
      "\nGB/s: each key and value that the batch needs counted once, though steps may read it "
      "more often.\nSpeed-up: over the line before. Steps 03 to 05 read half the bytes of 02. "
      "Plans of 03 and 04 are\nmade before, on the host; 05 makes its own in schedule().\n");
  std::puts(all_ok ? "every step agrees with the reference" : "WRONG: see above");
  return all_ok ? 0 : kExitWrong;
}

}  // namespace
}  // namespace ladder

int main(int argc, char** argv) { return ladder::climb_all(ladder::parse(argc, argv)); }
