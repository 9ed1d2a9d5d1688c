// SPDX-License-Identifier: Apache-2.0
// Runs the built command, as a user would.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tools/run_quire.hpp"

namespace quire::tool {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr const char* kTrace =
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,37,4\n"
    "2023-11-16 18:15:50.9951690,39,1\n"
    "2023-11-16 18:15:51.2224670,8,5\n";

void expect_error(const std::vector<std::string>& arguments, int exit_code,
                  const std::string& text) {
  const CommandResult result = run_quire(arguments);
  EXPECT_EQ(result.exit_code, exit_code);
  EXPECT_EQ(result.error, "quire: error: " + text + "\n");
  EXPECT_EQ(result.out, "");
}

TEST(Command, HelpNamesTheSubcommandsAndTheExitCodes) {
  const CommandResult result = run_quire({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* name : {"info", "check", "memory", "bench", "replay", "map", "Exit codes"}) {
    EXPECT_THAT(result.out, HasSubstr(name));
  }
  for (const char* name : {"info", "check", "memory", "bench", "replay", "map"}) {
    const CommandResult help = run_quire({name, "--help"});
    EXPECT_EQ(help.exit_code, 0) << name;
    EXPECT_THAT(help.out, AllOf(HasSubstr("--json"), HasSubstr("--help"))) << name;
    EXPECT_EQ(help.error, "") << name;
  }
}

TEST(Command, VersionIsALine) {
  EXPECT_THAT(run_quire({"--version"}).out,
              testing::MatchesRegex("quire [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(Command, WrongUsageGetsItsSentenceAndExitCodeTwo) {
  expect_error({}, 2,
               "expected one of info, check, memory, bench, replay, map, prefixes, got "
               "nothing\nTry quire --help");
  expect_error(
      {"frobnicate"}, 2,
      "expected one of info, check, memory, bench, replay, map, prefixes, got \"frobnicate\"\n"
      "Try quire --help");
  const std::string names =
      "expected one of info, check, memory, bench, replay, map, prefixes, got ";
  expect_error({"chekc"}, 2, names + "\"chekc\"; nearest: check\nTry quire --help");
  expect_error({"mem", "1"}, 2, names + "\"mem\"; nearest: memory\nTry quire --help");
  expect_error({"bogus"}, 2, names + "\"bogus\"\nTry quire --help");
  expect_error({"check", "--device", "gpu"}, 2,
               "--device: expected cpu, cuda or cuda:N, got \"gpu\"\nTry quire check --help");
  expect_error({"info", "--frob"}, 2,
               "The following argument was not expected: --frob\nTry quire info --help");
  expect_error({"memory"}, 2, "LENGTHS is required\nTry quire memory --help");
  expect_error({"memory", "1", "x"}, 2,
               "LENGTHS: expected a whole number from 0 to 2147483647, got \"x\"\n"
               "Try quire memory --help");
  expect_error({"memory", "1", "--page-size", "0"}, 2,
               "--page-size: expected a whole number from 1 to 65536, got \"0\"\n"
               "Try quire memory --help");
  expect_error(
      {"check", "--heads", "32:5"}, 2,
      "--heads: expected QUERY:KV heads, the first a multiple of the second, such as 32:8, "
      "got \"32:5\"\nTry quire check --help");
  expect_error({"check", "--mask", "casual"}, 2,
               "--mask: expected one of causal, none, tree, full, got \"casual\"\n"
               "Try quire check --help");
  expect_error({"check", "--dtype", "int8"}, 2, "--dtype: expected fp32, fp16 or bf16");
  expect_error({"replay"}, 2, "expected a TRACE file or --preset NAME\nTry quire replay --help");
  expect_error({"map"}, 2,
               "expected a SNAPSHOT file, --trace FILE or --preset NAME\nTry quire map --help");
  expect_error({"map", "/nonexistent"}, 2, "/nonexistent: expected a file, got none");
  expect_error({"replay", "--preset", "azure-conv", "--report", "/nonexistent/out.html"}, 1,
               "/nonexistent/out.html: could not be opened for writing");
  expect_error({"replay", "--preset", "azure-conv", "--snapshot-step", "3"}, 2,
               "--snapshot-step: expected --snapshot FILE with it");
  expect_error({"replay", "--preset", "azure"}, 2,
               "--preset: expected one of azure-conv, mooncake-conv, got \"azure\"");
  expect_error({"bench", "--workload", "nothing"}, 2,
               "--workload: expected a part of a name in quire bench --list, got \"nothing\"");
  EXPECT_EQ(run_quire({"info", "--json", "--markdown"}).exit_code, 2);
}

TEST(Command, WhatNoKernelServesIsAnErrorOfTheLibrary) {
  const CommandResult result = run_quire({"check", "--head-dim", "7"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.error, StartsWith("quire: error: [attention]"));
}

TEST(Command, AMissingDeviceIsExitCodeThree) {
  const json info = json::parse(run_quire({"info", "--json"}).out);
  for (const json& device : info.at("devices")) {
    if (device.at("type") == "cuda") GTEST_SKIP() << "this machine has one";
  }
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"check"}, {"bench"}, {"replay", "--preset", "azure-conv"}}) {
    std::vector<std::string> arguments = command;
    arguments.insert(arguments.end(), {"--device", "cuda:1"});
    const CommandResult result = run_quire(arguments);
    EXPECT_EQ(result.exit_code, 3);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(
        result.error,
        testing::AnyOf("quire: error: --device cuda: expected a build with CUDA, got one without; "
                       "configure with -DQUIRE_CUDA=ON\n",
                       "quire: error: --device cuda: expected a CUDA device, found none (see quire "
                       "info)\n"));
  }
}

TEST(Command, BadTracesAreNamedByFileAndLine) {
  const std::string bad = write_file("bad.csv", std::string(kTrace) + "2023-11-16,1\nx,1,1\n");
  expect_error({"replay", bad}, 2,
               bad +
                   ":5: expected 3 fields TIMESTAMP,ContextTokens,GeneratedTokens, got 2: "
                   "\"2023-11-16,1\"\n" +
                   bad + ":6: TIMESTAMP: expected YYYY-MM-DD HH:MM:SS.fraction, got \"x\"");
  const std::string empty = write_file("empty.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n");
  expect_error({"replay", empty}, 2, empty + ": expected at least one request, got none");
  expect_error({"replay", "/nonexistent/trace.csv"}, 2,
               "/nonexistent/trace.csv: cannot be opened: No such file or directory");
  expect_error({"replay", "/"}, 2, "/: expected a file, got a folder");
}

TEST(Command, MemoryComparesPaddingWithPages) {
  const CommandResult result = run_quire({"memory", "100", "50", "75", "200"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out,
            "                   positions    memory\n"
            "padded batch             800  3.12 MiB  4 requests as long as the longest\n"
            "tokens                   425  1.66 MiB  46.9 % saved\n"
            "in pages                 464  1.81 MiB  42.0 % saved: 29 pages of 16 tokens\n"
            "rounding to pages         39   156 KiB  unused ends of last pages\n"
            "\n"
            "Memory is K and V of 1 layer, 8 kv heads, head dim 128, bfloat16.\n");
  const json figures = json::parse(run_quire({"memory", "100", "50", "75", "200", "--json"}).out);
  EXPECT_EQ(figures.at("padded_positions"), 800);
  EXPECT_EQ(figures.at("used_positions"), 425);
  EXPECT_EQ(figures.at("saved_percent"), 46.875);
  EXPECT_EQ(figures.at("bytes_per_position"), 4096);
}

TEST(Command, CheckHasALinePerRequestAndASummary) {
  const CommandResult result = run_quire({"check", "--random", "0"});
  EXPECT_EQ(result.exit_code, 0) << result.out;
  EXPECT_THAT(
      result.out,
      AllOf(HasSubstr("Request 0 (len=12): PASS\n"), HasSubstr("Request 1 (len=8): PASS\n"),
            HasSubstr("Request 2 (len=15): PASS\n"), HasSubstr("Request 3 (len=5): PASS\n")));
  EXPECT_THAT(result.out, HasSubstr("\n[PASS] quire: All requests match reference (max error: "));
  EXPECT_THAT(result.out, StartsWith("Seed 1\n"));
}

TEST(Command, CheckServesEveryMaskAndDType) {
  for (const char* mask : {"causal", "none", "tree", "full"}) {
    for (const char* dtype : {"fp32", "fp16", "bf16"}) {
      const CommandResult result =
          run_quire({"check", "--mask", mask, "--dtype", dtype, "--head-dim", "64", "--random", "4",
                     "--window", "40", "--soft-cap", "20", "--json"});
      EXPECT_EQ(result.exit_code, 0) << result.out << result.error;
      const json report = json::parse(result.out);
      EXPECT_EQ(report.at("failed"), 0);
      EXPECT_GE(report.at("results").size(), 8U);
    }
  }
}

TEST(Command, InfoIsReadableByMachinesAndAsMarkdown) {
  const json info = json::parse(run_quire({"info", "--json"}).out);
  EXPECT_EQ(info.at("devices").at(0).at("type"), "cpu");
  EXPECT_FALSE(info.at("kernels").empty());
  EXPECT_TRUE(info.at("environment").contains("QUIRE_NUM_THREADS"));
  const CommandResult matrix = run_quire({"info", "--markdown"});
  EXPECT_THAT(matrix.out, AllOf(StartsWith("| kernel |"), HasSubstr("| head dims |")));
}

TEST(Command, BenchWritesARowOfEachWorkload) {
  const std::string path = write_file("rows.jsonl", "");
  const CommandResult result =
      run_quire({"bench", "--workload", "dec b8 2k", "--workload", "append b256", "--scale", "32",
                 "--min-time", "0", "--commit", "abc", "--json", "--output", path});
  EXPECT_EQ(result.exit_code, 0) << result.error;
  std::istringstream lines(result.out);
  std::string line;
  std::vector<std::string> workloads;
  while (std::getline(lines, line)) {
    const json row = json::parse(line);
    for (const char* field :
         {"workload", "impl", "device", "dtype", "kv_dtype", "page_size", "us_median", "us_p5",
          "us_p95", "pct_of_ceiling", "commit", "machine", "date", "threads"}) {
      EXPECT_TRUE(row.contains(field)) << field;
    }
    EXPECT_EQ(row.at("commit"), "abc");
    EXPECT_GT(row.at("us_median").get<double>(), 0);
    workloads.push_back(row.at("workload"));
  }
  EXPECT_THAT(workloads, testing::ElementsAre("dec b8 2k", "append b256"));
  EXPECT_THAT(run_quire({"bench", "--list"}).out, HasSubstr("share 64x(8k+256)"));
}

TEST(Command, ReplayOfATraceReportsAndChecks) {
  const std::string trace = write_file("trace.csv", kTrace);
  const std::vector<std::string> shape = {"replay",        trace, "--heads",   "4:2",
                                          "--head-dim",    "64",  "--pages",   "16",
                                          "--check-every", "1",   "--threads", "1"};
  const CommandResult result = run_quire(shape);
  EXPECT_EQ(result.exit_code, 0) << result.error;
  EXPECT_EQ(result.error, "");
  EXPECT_THAT(result.out, AllOf(HasSubstr("3 served"), HasSubstr("spot checks        PASS"),
                                HasSubstr("PASS (all 16 are back)"), Not(HasSubstr("\033"))));
  std::vector<std::string> arguments = shape;
  arguments.insert(arguments.end(), {"--json", "--arrivals", "trace"});
  const json report = json::parse(run_quire(arguments).out);
  EXPECT_EQ(report.at("requests_served"), 3);
  EXPECT_EQ(report.at("prefill_tokens"), 37 + 39 + 8);
  EXPECT_EQ(report.at("decode_tokens"), 3 + 0 + 4);
  EXPECT_EQ(report.at("lost_pages"), 0);
  EXPECT_EQ(report.at("passed"), true);
  EXPECT_GE(report.at("virtual_s").get<double>(), 4.5);
}

TEST(Command, ReplayOfAPresetNeedsNoFile) {
  const CommandResult result = run_quire(
      {"replay", "--preset", "azure-conv", "--requests", "20", "--no-attention", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.error;
  EXPECT_EQ(json::parse(result.out).at("requests_served"), 20);
}

TEST(Command, ReplayWithoutAttentionIsTheSameEveryTime) {
  const auto run = [] {
    json report = json::parse(run_quire({"replay", "--preset", "azure-conv", "--requests", "50",
                                         "--no-attention", "--arrivals", "trace", "--json"})
                                  .out);
    EXPECT_GT(report.at("first_token_s").at("p99").get<double>(), 0);
    EXPECT_EQ(report.at("layers"), 32);
    for (const char* measured : {"wall_s", "seconds_batching"}) report.erase(measured);
    return report;
  };
  EXPECT_EQ(run(), run());
}

TEST(Command, ASnapshotOfAReplayIsTheMapOfItsStep) {
  const std::string path = write_file("map.json", "");
  const std::vector<std::string> serving = {"--preset", "azure-conv", "--requests",
                                            "20",       "--pages",    "500"};
  std::vector<std::string> replay = {"replay", "--no-attention",  "--snapshot",
                                     path,     "--snapshot-step", "9"};
  replay.insert(replay.end(), serving.begin(), serving.end());
  EXPECT_EQ(run_quire(replay).exit_code, 0);
  std::vector<std::string> map = {"map", "--step", "9"};
  map.insert(map.end(), serving.begin(), serving.end());
  const CommandResult simulated = run_quire(map);
  EXPECT_EQ(simulated.exit_code, 0) << simulated.error;
  EXPECT_THAT(simulated.out, AllOf(StartsWith("step 9, at "), HasSubstr("of 500 pages")));
  EXPECT_EQ(run_quire({"map", path}).out, simulated.out);
  map[2] = "100000";
  EXPECT_EQ(run_quire(map).exit_code, 2);
}

}  // namespace
}  // namespace quire::tool
