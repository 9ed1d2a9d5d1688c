// SPDX-License-Identifier: Apache-2.0
#include "trace/preset.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "trace/quantile_tables.hpp"

namespace quire::tool {
namespace {

constexpr std::size_t kMany = 20000;

struct Figures {
  double input = 0;
  double output = 0;
  double gap_s = 0;
  std::int32_t longest_input = 0;
  double middle_input = 0;
};

Figures figures_of(std::string_view name) {
  std::vector<TraceRequest> requests = draw_requests(*find_preset(name), kMany, 7);
  Figures figures;
  for (const TraceRequest& request : requests) {
    figures.input += request.input_tokens / static_cast<double>(kMany);
    figures.output += request.output_tokens / static_cast<double>(kMany);
    figures.longest_input = std::max(figures.longest_input, request.input_tokens);
  }
  figures.gap_s = requests.back().arrival_s / static_cast<double>(kMany - 1);
  std::sort(requests.begin(), requests.end(),
            [](const auto& a, const auto& b) { return a.input_tokens < b.input_tokens; });
  figures.middle_input = requests[kMany / 2].input_tokens;
  return figures;
}

TEST(Preset, AzureHasTheFiguresOfItsTrace) {
  const Figures figures = figures_of("azure-conv");
  EXPECT_NEAR(figures.input, 1155, 0.03 * 1155);
  EXPECT_NEAR(figures.output, 211, 0.03 * 211);
  EXPECT_NEAR(figures.middle_input, 1020, 20);
  EXPECT_NEAR(1 / figures.gap_s, 5.53, 0.05 * 5.53);
  EXPECT_LE(figures.longest_input, 14050);
}

TEST(Preset, MooncakeHasTheFiguresOfItsTrace) {
  const Figures figures = figures_of("mooncake-conv");
  EXPECT_NEAR(figures.input, 12035, 0.03 * 12035);
  EXPECT_NEAR(figures.output, 343, 0.03 * 343);
  EXPECT_NEAR(1 / figures.gap_s, 3.40, 0.05 * 3.40);
  EXPECT_LE(figures.longest_input, 126195);
}

TEST(Preset, TheSameSeedDrawsTheSameRequests) {
  const Preset& preset = *find_preset("azure-conv");
  EXPECT_EQ(draw_requests(preset, 100, 3), draw_requests(preset, 100, 3));
  EXPECT_NE(draw_requests(preset, 100, 3), draw_requests(preset, 100, 4));
}

TEST(Preset, AnUnknownNameIsNone) { EXPECT_EQ(find_preset("azure"), nullptr); }

TEST(Preset, QuantilesNeverFall) {
  EXPECT_TRUE(std::is_sorted(kQuantileFractions.begin(), kQuantileFractions.end()));
  for (const Preset& preset : presets()) {
    EXPECT_TRUE(std::is_sorted(preset.input.begin(), preset.input.end())) << preset.name;
    EXPECT_TRUE(std::is_sorted(preset.output.begin(), preset.output.end())) << preset.name;
    EXPECT_TRUE(std::is_sorted(preset.gap_ms.begin(), preset.gap_ms.end())) << preset.name;
  }
}

}  // namespace
}  // namespace quire::tool
