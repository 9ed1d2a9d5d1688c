// SPDX-License-Identifier: Apache-2.0
#include "trace/preset.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "common/random.hpp"
#include "trace/quantile_tables.hpp"

namespace quire::tool {
namespace {

constexpr std::array kPresets = {
    Preset{"azure-conv", "chat at Azure, 2023: 1,155 tokens in, 211 out on average, 5.5 requests/s",
           kAzureConvInput, kAzureConvOutput, kAzureConvGap},
    Preset{"mooncake-conv",
           "chat at Kimi, 2024: 12,035 tokens in, 343 out on average, 3.4 requests/s",
           kMooncakeConvInput, kMooncakeConvOutput, kMooncakeConvGap},
};

/// Inverts the distribution: the value that a fraction of the samples does not exceed.
double value_at(std::span<const double> quantiles, double fraction) {
  const auto above =
      std::upper_bound(kQuantileFractions.begin() + 1, kQuantileFractions.end() - 1, fraction);
  const auto high = static_cast<std::size_t>(above - kQuantileFractions.begin());
  const double part = (fraction - kQuantileFractions[high - 1]) /
                      (kQuantileFractions[high] - kQuantileFractions[high - 1]);
  return std::lerp(quantiles[high - 1], quantiles[high], part);
}

}  // namespace

std::span<const Preset> presets() { return kPresets; }

const Preset* find_preset(std::string_view name) {
  const auto found = std::find_if(kPresets.begin(), kPresets.end(),
                                  [&](const Preset& preset) { return preset.name == name; });
  return found == kPresets.end() ? nullptr : &*found;
}

std::vector<TraceRequest> draw_requests(const Preset& preset, std::size_t count,
                                        std::uint64_t seed) {
  constexpr double kMillisecond = 1e-3;
  Random random(seed);
  const auto draw = [&](std::span<const double> quantiles) {
    return value_at(quantiles, random.uniform());
  };
  const auto tokens = [&](std::span<const double> quantiles) {
    return std::max<std::int32_t>(1, static_cast<std::int32_t>(std::lround(draw(quantiles))));
  };
  std::vector<TraceRequest> requests(count);
  double now = 0;
  for (TraceRequest& request : requests) {
    request.arrival_s = now;
    request.input_tokens = tokens(preset.input);
    request.output_tokens = tokens(preset.output);
    now += draw(preset.gap_ms) * kMillisecond;
  }
  return requests;
}

}  // namespace quire::tool
