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

}  // namespace quire::tool
