// SPDX-License-Identifier: Apache-2.0
/// @file
/// A recording as the arrays that the HTML report draws.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <span>

#include "quire/recorder.hpp"
#include "replay/html_report.hpp"
#include "replay/page_history.hpp"
#include "replay/prefix_tree.hpp"

namespace quire::tool {

/// @param pages  Of all steps, the first included.
/// @return The steps, in groups of equal number, at most `most` of them.
nlohmann::json step_series(const Records<StepRecord>& steps, std::span<const StepPages> pages,
                           std::size_t most);
/// @return Histograms over logarithmic axes: latencies, then lengths.
nlohmann::json distributions(const Records<RequestRecord>& ended);
/// Adds "requests" and "events", by submission.
void add_lives(nlohmann::json& data, const Recorder& recorder, const ReportDetail& detail);
/// Adds "tree".
void add_tree(nlohmann::json& data, const PrefixTree& tree, std::size_t max_runs);
/// Adds "columns", "maps", "fullest" and "pagesPerCell".
void add_pages(nlohmann::json& data, const PageHistory& history, std::size_t max_cells);

}  // namespace quire::tool
