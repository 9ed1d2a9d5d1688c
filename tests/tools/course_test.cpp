// SPDX-License-Identifier: Apache-2.0
#include "bench/course.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "bench/ceilings.hpp"
#include "bench/embedded.hpp"
#include "bench/workload.hpp"
#include "common/exit_code.hpp"

namespace quire::tool {
namespace {

const Workload& find(const Course& course, std::string_view name) {
  for (const Workload& workload : course.workloads) {
    if (workload.name == name) return workload;
  }
  throw std::runtime_error("no such workload");
}

double bytes(const Workload& workload) {
  return workload.bytes(DType::kBFloat16, DType::kBFloat16);
}

TEST(Course, HasTheWorkloadsOnceAndAFirstPart) {
  const Course course = parse_course(kCourse);
  std::set<std::string> names;
  for (const Workload& workload : course.workloads) names.insert(workload.name);
  EXPECT_EQ(names.size(), course.workloads.size());
  EXPECT_EQ(names.size(), 34U);
  const auto first = std::count_if(course.workloads.begin(), course.workloads.end(),
                                   [](const Workload& workload) { return workload.first_course; });
  EXPECT_GE(first, 8);
}

TEST(Course, FiguresAreThoseOfTheBatches) {
  const Course course = parse_course(kCourse);
  EXPECT_EQ(find(course, "dec b1 1k").flop(), 16777216);
  EXPECT_EQ(bytes(find(course, "dec b1 1k")), 4210688);
  EXPECT_EQ(find(course, "dec b256 skew").flop(), 10431823872);
  EXPECT_EQ(bytes(find(course, "dec b256 skew")), 2612150272);
  EXPECT_EQ(find(course, "chunk 512@16k x4").flop(), 541182656512);
  EXPECT_EQ(find(course, "pre 32 skew").flop(), 502282911744);
  EXPECT_EQ(bytes(find(course, "pre 32 skew")), 538439680);
  EXPECT_EQ(find(course, "pre 1x16k full").flop(), 4398046511104);
  EXPECT_EQ(find(course, "mix 2x1k+120dec").flop(), 75230838784);
  EXPECT_EQ(find(course, "pre 1x16k win1k").flop(), 266548019200);
}

TEST(Course, SharedPrefixesAndWindowsAreReadOnce) {
  const Course course = parse_course(kCourse);
  EXPECT_EQ(bytes(find(course, "share 64x(8k+256)")), 101711872);
  EXPECT_EQ(bytes(find(course, "share 2lvl 128")), 157286400);
  EXPECT_EQ(bytes(find(course, "dec b64 16k win1k")), 269746176);
}

TEST(Course, ScalingDividesLongLengthsOnly) {
  const Course course = parse_course(kCourse);
  const Workload spec = scaled(find(course, "spec4 b64 4k"), 8);
  EXPECT_EQ(spec.qo_len.front(), 4);
  EXPECT_EQ(spec.kv_len.front(), 512);
  const Workload share = scaled(find(course, "share 2lvl 128"), 8);
  EXPECT_EQ(share.shared[0].tokens, 512);
  EXPECT_EQ(share.shared[1].tokens, 640);
  EXPECT_EQ(share.kv_len.front(), 665);
  for (const Workload& workload : course.workloads) {
    const Workload small = scaled(workload, 100);
    for (std::size_t i = 0; i < small.kv_len.size(); ++i) {
      EXPECT_GE(small.kv_len[i], small.qo_len[i]) << workload.name;
    }
    EXPECT_EQ(scaled(workload, 1).kv_len, workload.kv_len);
  }
}

TEST(Course, ABrokenCourseSaysWhatIsMissing) {
  const auto complaint = [](std::string_view json) -> std::string {
    try {
      parse_course(json);
    } catch (const CommandError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(complaint("{}"), testing::HasSubstr("key 'cpu_scale' not found"));
  EXPECT_THAT(
      complaint("{\"cpu_scale\": 1, \"workloads\": [{\"name\": \"x\", \"heads\": [1, 1], "
                "\"head_dim\": 8, \"page_size\": 1, \"qo_len\": [1], \"kv_len\": [[1, 2]]}]}"),
      testing::HasSubstr("course: x: expected as many kv_len as qo_len, got 2 and 1"));
}

TEST(Ceilings, AreMeasured) {
  const std::unique_ptr<Executor> executor = make_thread_pool(1);
  Stream stream(*executor);
  const Ceilings ceilings = measure_ceilings(*executor, stream);
  EXPECT_GT(ceilings.read_gb_per_s, 0.1);
  EXPECT_GT(ceilings.fma_gflop_per_s, 0.1);
}

TEST(Measurement, TheNearerCeilingCounts) {
  Measurement measured;
  measured.us_median = 1000;
  measured.bytes = 10e6;  // 10 GB/s
  measured.flop = 50e6;   // 50 GFLOP/s
  EXPECT_DOUBLE_EQ(measured.percent_of({40, 100}), 50);
  EXPECT_FALSE(measured.bound_by_reading({40, 100}));
  EXPECT_DOUBLE_EQ(measured.percent_of({12.5, 100}), 80);
  EXPECT_TRUE(measured.bound_by_reading({12.5, 100}));
}

}  // namespace
}  // namespace quire::tool
