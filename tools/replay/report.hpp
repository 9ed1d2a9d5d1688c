// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "replay/engine.hpp"
#include "replay/options.hpp"

namespace quire::tool {

/// @param source  Where the requests came from, in words.
std::string report_text(const ReplayOptions& options, const ReplayReport& report,
                        const std::string& source);
nlohmann::ordered_json report_json(const ReplayOptions& options, const ReplayReport& report,
                                   const std::string& source);

/// @return Model, pool and budget in a line.
std::string report_setup(const ReplayOptions& options);
/// @return Pairs of a setting and its value, in words.
nlohmann::json report_settings(const ReplayOptions& options, const ReplayReport& report);

}  // namespace quire::tool
