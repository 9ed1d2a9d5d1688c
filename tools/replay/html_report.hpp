// SPDX-License-Identifier: Apache-2.0
/// @file
/// The report of a replay as one HTML file that needs nothing else.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "replay/engine.hpp"
#include "replay/options.hpp"

namespace quire::tool {

/// The page, its parts in `tools/replay/report`.
struct ReportParts {
  std::string_view page;  ///< With {{style}}, {{script}} and {{data}}.
  std::string_view style;
  std::string_view script;
};
extern const ReportParts kReportParts;  ///< As built in.

/// How finely the report shows a run; bounds its size.
struct ReportDetail {
  std::size_t max_step_groups = 16000;
  std::size_t max_requests = 40000;  ///< Of longer runs, every so many-th.
  std::size_t max_events = 160000;   ///< Of the requests shown.
  std::size_t max_cells = 100000;    ///< Of a page map; of larger pools, every so many-th page.
  std::size_t max_runs = 12000;      ///< Of the prefix tree; of larger ones, the largest.
};

/// @param report  With steps and a page history.
/// @param source  Where the requests came from, in words.
/// @return What the page draws. See the arrays' readers in `tools/replay/report`.
nlohmann::json report_data(const ReplayOptions& options, const ReplayReport& report,
                           const std::string& source, const ReportDetail& detail = {});
/// @return The file, in UTF-8. Same arguments.
std::string html_report(const ReplayOptions& options, const ReplayReport& report,
                        const std::string& source);

}  // namespace quire::tool
