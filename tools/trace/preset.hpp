// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "trace/request.hpp"

namespace quire::tool {

/// A stand-in for a trace: distributions of lengths and of gaps between arrivals.
struct Preset {
  std::string_view name;
  std::string_view summary;
  std::span<const double> input;   ///< Tokens, at `kQuantileFractions`.
  std::span<const double> output;  ///< Likewise.
  std::span<const double> gap_ms;  ///< Likewise.
};

std::span<const Preset> presets();
/// @return Null for an unknown name.
const Preset* find_preset(std::string_view name);

/// @return Requests whose lengths and gaps follow the preset. The same seed draws the same
/// requests.
std::vector<TraceRequest> draw_requests(const Preset& preset, std::size_t count,
                                        std::uint64_t seed);

}  // namespace quire::tool
