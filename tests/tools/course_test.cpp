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
  EXPECT_EQ(names.size(), 56U);
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
  EXPECT_EQ(find(course, "schedule 1024").flop(), 0);
  EXPECT_EQ(bytes(find(course, "schedule 1024")), 0);
}

TEST(Course, RowsOfEightBitCachesAreOfHalfTheBytes) {
  const Course course = parse_course(kCourse);
  const Workload& narrow = find(course, "fp8 b64 4k");
  const Workload& wide = find(course, "dec b64 4k");
  MeasureOptions options;
  EXPECT_EQ(cache_dtype(narrow, options), DType::kFloat8E4M3);
  EXPECT_EQ(cache_dtype(wide, options), options.dtype);
  const double queries = 2.0 * 2 * 64 * 32 * 128;  // q and o
  EXPECT_EQ(narrow.bytes(DType::kBFloat16, DType::kFloat8E4M3) - queries,
            (bytes(wide) - queries) / 2);
  options.kv_dtype = DType::kInt8;
  EXPECT_EQ(cache_dtype(narrow, options), DType::kInt8);
  EXPECT_EQ(spec_of(narrow, options).kv_scale, KvScale::kPerTensor);
  options.kv_scale = KvScale::kPerToken;
  EXPECT_EQ(spec_of(narrow, options).kv_scale, KvScale::kPerToken);
}

TEST(Course, SharedPrefixesAndWindowsAreReadOnce) {
  const Course course = parse_course(kCourse);
  EXPECT_EQ(bytes(find(course, "share 64x(8k+256)")), 101711872);
  EXPECT_EQ(bytes(find(course, "share 2lvl 128")), 157286400);
  EXPECT_EQ(bytes(find(course, "dec b64 16k win1k")), 269746176);
}

TEST(Course, ATreeIsAsLongAsItsCausalTwinButSeesLess) {
  const Course course = parse_course(kCourse);
  const Workload& tree = find(course, "tree8 b64 4k");
  const Workload& causal = find(course, "spec8 b64 4k");
  EXPECT_EQ(tree.mask, Mask::kTree);
  EXPECT_EQ(bytes(tree), bytes(causal));
  // Of eight nodes one sees itself alone, two 2 nodes, four 3 and one 4.
  EXPECT_EQ(tree.visible_pairs(), 64 * (8 * 4096 + 21));
  EXPECT_EQ(causal.visible_pairs(), 64 * (8 * 4096 + 36));
}

TEST(Course, TheBestPeerReadsTheSamePages) {
  const Course course = parse_course(kCourse);
  const std::optional<Peer> decode = find(course, "dec b64 4k").best_peer();
  ASSERT_TRUE(decode.has_value());
  EXPECT_EQ(decode->name, "flashinfer_tc");
  EXPECT_EQ(decode->us, 256.3);
  EXPECT_EQ(find(course, "pre 1x16k").best_peer()->us, 3783);  // page 128 took 3316
  EXPECT_FALSE(find(course, "append b256").best_peer().has_value());
}

TEST(Course, FloorsAreThoseOfThePublishedCeilings) {
  const Course course = parse_course(kCourse);
  EXPECT_EQ(course.published.read_gb_per_s, 4535);
  const Ceilings h200{4580, 803e3};
  const auto floor = [&](std::string_view name) {
    const Workload& workload = find(course, name);
    return h200.floor_us(bytes(workload), workload.flop());
  };
  EXPECT_NEAR(floor("dec b64 4k"), 234.7, 0.05);
  EXPECT_NEAR(floor("pre 1x16k"), 2738.7, 0.05);
  EXPECT_NEAR(floor("share 64x(8k+256)"), 22.2, 0.05);
  EXPECT_NEAR(floor("tree8 b64 4k"), 236.7, 0.05);
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
  EXPECT_THAT(
      complaint("{\"cpu_scale\": 1, \"workloads\": [{\"name\": \"x\", \"op\": \"dance\"}]}"),
      testing::HasSubstr("course: x: no such op: \"dance\""));
}

TEST(Ceilings, AreMeasuredWithTheArithmeticOfEveryKernelThatRunsHere) {
  const std::unique_ptr<Executor> executor = make_thread_pool(1);
  Stream stream(*executor);
  for (const char* kernel :
       {"cpu.amx_bf16", "cpu.avx512_bf16", "cpu.avx512", "cpu.avx2", "cpu.portable"}) {
    AttentionSpec spec;
    spec.num_qo_heads = spec.num_kv_heads = 1;
    spec.head_dim_qk = 128;
    try {
      const Attention attention(Device::cpu(), spec, {}, {.kernel = kernel});
    } catch (const Error& error) {
      continue;  // not on this machine
    }
    const Ceilings ceilings = measure_ceilings(*executor, stream, arithmetic_of(kernel));
    EXPECT_GT(ceilings.read_gb_per_s, 0.1) << kernel;
    EXPECT_GT(ceilings.gflop_per_s, 0.1) << kernel;
  }
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
  EXPECT_DOUBLE_EQ(measured.percent_of({40, 0}), 25);  // arithmetic was not measured
}

}  // namespace
}  // namespace quire::tool
