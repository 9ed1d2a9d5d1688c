// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "common/cache_scales.hpp"
#include "common/format.hpp"
#include "common/options.hpp"
#include "common/random.hpp"
#include "common/statistics.hpp"
#include "common/table.hpp"
#include "common/terminal.hpp"

namespace quire::tool {
namespace {

template <typename Parse>
std::string refusal(Parse parse) {
  try {
    parse();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Options, NamesOfCacheScalesAreReadBackAndOthersRefused) {
  for (const KvScale scale :
       {KvScale::kNone, KvScale::kPerTensor, KvScale::kPerHead, KvScale::kPerToken}) {
    EXPECT_EQ(parse_kv_scale(kv_scale_name(scale)), scale);
  }
  EXPECT_THROW(parse_kv_scale("page"), std::invalid_argument);
}

TEST(CacheScales, LieWhereTheirShapeSaysAndDifferAmongNeighbours) {
  AttentionSpec spec;
  spec.num_kv_heads = 3;
  spec.page_size = 4;
  spec.kv_scale = KvScale::kPerToken;
  const CacheScales of_tokens(spec, 5, 0.5F);
  ASSERT_EQ(of_tokens.values().size(), 5U * 3U * 4U);
  EXPECT_EQ(of_tokens.values()[(2 * 3 + 1) * 4 + 3], of_tokens.at(2, 1, 3));
  EXPECT_NE(of_tokens.at(2, 1, 3), of_tokens.at(2, 1, 2));
  EXPECT_NE(of_tokens.at(2, 1, 3), of_tokens.at(2, 2, 3));
  EXPECT_NE(of_tokens.at(2, 1, 3), of_tokens.at(3, 1, 3));
  spec.kv_scale = KvScale::kPerHead;
  const CacheScales of_heads(spec, 5, 0.5F);
  ASSERT_EQ(of_heads.values().size(), 3U);
  EXPECT_EQ(of_heads.values()[2], of_heads.at(4, 2, 1));
  spec.kv_scale = KvScale::kNone;
  EXPECT_FALSE(CacheScales(spec, 5, 0.5F).view(nullptr).given());
}

TEST(Options, HeadsAreAPairOrOneNumber) {
  EXPECT_EQ(parse_heads("32:8"), (Heads{32, 8}));
  EXPECT_EQ(parse_heads("16"), (Heads{16, 16}));
  for (const char* text :
       {"", ":", "32:", ":8", "32:5", "8:32", "0:0", "32:8:1", "a:b", "9999:1"}) {
    EXPECT_EQ(refusal([&] { parse_heads(text); }),
              "expected QUERY:KV heads, the first a multiple of the second, such as 32:8, got \"" +
                  std::string(text) + "\"");
  }
}

TEST(Options, DevicesHaveAnIndexOrTakeTheFirst) {
  EXPECT_EQ(parse_device("cpu"), Device::cpu());
  EXPECT_EQ(parse_device("cuda"), Device::cuda(0));
  EXPECT_EQ(parse_device("cuda:3"), Device::cuda(3));
  EXPECT_EQ(device_name(Device::cuda(3)), "cuda:3");
  for (const char* wrong : {"", "gpu", "cuda:", "cuda:-1", "cuda3", "cpu:0", "cuda:1x"}) {
    EXPECT_THROW(static_cast<void>(parse_device(wrong)), std::invalid_argument) << wrong;
  }
}

TEST(Options, DTypesHaveShortAndLongNames) {
  EXPECT_EQ(parse_dtype("bf16"), DType::kBFloat16);
  EXPECT_EQ(parse_dtype("bfloat16"), DType::kBFloat16);
  EXPECT_EQ(parse_dtype("float8_e4m3"), DType::kFloat8E4M3);
  EXPECT_EQ(refusal([] { parse_dtype("bf17"); }),
            "expected one of fp32, fp16, bf16, int8, fp8, fp8_e4m3, fp8_e5m2, got \"bf17\"");
}

TEST(Options, NumbersSayTheirRange) {
  EXPECT_EQ(parse_whole("16", 1, 16), 16);
  EXPECT_EQ(refusal([] { parse_whole("17", 1, 16); }),
            "expected a whole number from 1 to 16, got \"17\"");
  EXPECT_EQ(refusal([] { parse_whole("1x", 1, 16); }),
            "expected a whole number from 1 to 16, got \"1x\"");
  EXPECT_EQ(parse_real("2.5", 0, 10), 2.5);
  EXPECT_EQ(refusal([] { parse_real("nan", 0, 10); }),
            "expected a number from 0 to 10, got \"nan\"");
}

TEST(Format, NumbersReadWell) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(19366), "19,366");
  EXPECT_EQ(human_count(-1234567), "-1,234,567");
  EXPECT_EQ(human_bytes(512), "512 B");
  EXPECT_EQ(human_bytes(std::uint64_t{3} << 29), "1.50 GiB");
  EXPECT_EQ(human_seconds(34.2), "35 s");
  EXPECT_EQ(human_seconds(125), "02:05");
  EXPECT_EQ(human_duration(0.0000123), "12.3 µs");
  EXPECT_EQ(human_duration(0.2), "200 ms");
  EXPECT_EQ(human_duration(1.6817), "1.68 s");
  EXPECT_EQ(human_duration(1681.7), "1682 s");
}

TEST(Format, QuotesHideNothingUnprintableAndAreShort) {
  EXPECT_EQ(in_quotes("a\x1b[31m"), "\"a\\x1b[31m\"");
  EXPECT_EQ(in_quotes(std::string(61, 'a')), "\"" + std::string(60, 'a') + "…\"");
}

TEST(Statistics, QuantilesAreSamples) {
  EXPECT_EQ(quantile({}, 0.5), 0);
  EXPECT_EQ(quantile({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(quantile({3, 1, 2}, 0), 1);
  EXPECT_EQ(quantile({3, 1, 2}, 1), 3);
}

TEST(Table, AlignsColumnsByCharactersNotBytes) {
  Table table({"name", ">µs"});
  table.add({"β", "1.5"});
  table.add({"alpha", "12.5"});
  EXPECT_EQ(table.text(),
            "name     µs\n"
            "β       1.5\n"
            "alpha  12.5\n");
  EXPECT_EQ(table.markdown(),
            "| name | µs |\n"
            "| --- | ---: |\n"
            "| β | 1.5 |\n"
            "| alpha | 12.5 |\n");
}

TEST(Progress, TheLineSaysWhatIsDoneAndWhenItEnds) {
  EXPECT_EQ(progress_line("replay", 1, 4, 10, "3 running"),
            "replay ▕█████░░░░░░░░░░░░░░░▏  25 %  eta 30 s  3 running");
  EXPECT_EQ(progress_line("replay", 0, 4, 10, ""), "replay ▕░░░░░░░░░░░░░░░░░░░░▏   0 %  ");
  EXPECT_EQ(progress_line("replay", 9, 4, 10, ""),
            "replay ▕████████████████████▏ 100 %  eta 0 s  ");
}

TEST(Random, StaysInItsBounds) {
  Random random(1);
  bool low = false;
  bool high = false;
  for (int i = 0; i < 1000; ++i) {
    const std::int32_t value = random.between(-2, 3);
    ASSERT_GE(value, -2);
    ASSERT_LE(value, 3);
    low = low || value == -2;
    high = high || value == 3;
  }
  EXPECT_TRUE(low && high);
}

}  // namespace
}  // namespace quire::tool
