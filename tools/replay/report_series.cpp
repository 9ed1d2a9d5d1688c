// SPDX-License-Identifier: Apache-2.0
#include "replay/report_series.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base64.hpp"
#include "replay/latency.hpp"

namespace quire::tool {
namespace {

using nlohmann::json;

float as_float(double value) { return static_cast<float>(value); }

/// What a group of steps shows: means of a step, or the most of its steps, or sums.
struct StepColumn {
  enum class How { kMean, kMost, kSum };
  const char* name;
  How how;
  double (*value)(const StepRecord&);
};

constexpr std::array kStepColumns = {
    StepColumn{"prefill", StepColumn::How::kMean,
               [](const StepRecord& s) { return double{1} * s.prefill_tokens; }},
    StepColumn{"decode", StepColumn::How::kMean,
               [](const StepRecord& s) { return double{1} * s.decode_tokens; }},
    StepColumn{"prefills", StepColumn::How::kMean,
               [](const StepRecord& s) { return double{1} * s.num_prefills; }},
    StepColumn{"decodes", StepColumn::How::kMean,
               [](const StepRecord& s) { return double{1} * s.num_decodes; }},
    StepColumn{"seconds", StepColumn::How::kMean,
               [](const StepRecord& s) { return s.end - s.begin; }},
    StepColumn{"longest", StepColumn::How::kMost,
               [](const StepRecord& s) { return s.end - s.begin; }},
    StepColumn{"running", StepColumn::How::kMost,
               [](const StepRecord& s) { return double{1} * s.running; }},
    StepColumn{"waiting", StepColumn::How::kMost,
               [](const StepRecord& s) { return double{1} * s.waiting; }},
    StepColumn{"used", StepColumn::How::kMost,
               [](const StepRecord& s) { return double{1} * s.used_pages; }},
    StepColumn{"usedMean", StepColumn::How::kMean,
               [](const StepRecord& s) { return double{1} * s.used_pages; }},
    StepColumn{"cached", StepColumn::How::kMean,
               [](const StepRecord& s) { return static_cast<double>(s.cached_tokens); }},
    StepColumn{"reused", StepColumn::How::kSum,
               [](const StepRecord& s) { return double{1} * s.reused_tokens; }},
    StepColumn{"admitted", StepColumn::How::kSum,
               [](const StepRecord& s) { return double{1} * s.num_admitted; }},
    StepColumn{"preempted", StepColumn::How::kSum,
               [](const StepRecord& s) { return double{1} * s.num_preempted; }}};

float value_of_group(const StepColumn& column, const Records<StepRecord>& steps, std::size_t from,
                     std::size_t to) {
  double sum = 0;
  double most = 0;
  for (std::size_t i = from; i < to; ++i) {
    const double value = column.value(steps[i]);
    sum += value;
    most = std::max(most, value);
  }
  if (column.how == StepColumn::How::kMost) return as_float(most);
  if (column.how == StepColumn::How::kSum) return as_float(sum);
  return as_float(sum / static_cast<double>(to - from));
}

float mean_of_group(std::span<const StepPages> pages, float StepPages::* member,
                    std::uint64_t first, std::size_t count) {
  double sum = 0;
  for (const StepPages& step : pages.subspan(static_cast<std::size_t>(first), count)) {
    sum += step.*member;
  }
  return as_float(sum / static_cast<double>(count));
}

/// A histogram over a logarithmic axis from the least to the greatest positive sample.
json histogram(std::string_view title, std::string_view css, bool in_tokens,
               std::vector<double> samples) {
  constexpr std::size_t kBins = 70;
  constexpr double kMargin = 1.02;
  std::erase_if(samples, [](double sample) { return std::isnan(sample) || sample <= 0; });
  json figure = {
      {"title", title}, {"css", css}, {"inTokens", in_tokens}, {"note", ""}, {"n", samples.size()}};
  if (samples.empty()) return figure;
  const auto [least, greatest] = std::ranges::minmax(samples);
  const double low = least / kMargin;
  const double high = greatest * kMargin;
  const double width = std::log(high / low) / static_cast<double>(kBins);
  std::vector<std::int64_t> bins(kBins);
  for (const double sample : samples) {
    ++bins[std::min(kBins - 1, static_cast<std::size_t>(std::log(sample / low) / width))];
  }
  const Percentiles found = percentiles_of(std::move(samples));
  figure["low"] = low;
  figure["high"] = high;
  figure["bins"] = bins;
  figure["marks"] = json::array({json::array({"p50", found.p50}), json::array({"p90", found.p90}),
                                 json::array({"p99", found.p99})});
  return figure;
}

/// Ended requests by submission, every so many-th so that they and their events are few enough.
std::vector<RequestRecord> shown_requests(const Recorder& recorder, const ReportDetail& detail) {
  const Records<RequestRecord> ended = recorder.ended();
  std::vector<RequestRecord> all;
  for (std::size_t i = 0; i < ended.size(); ++i) {
    if (!std::isnan(ended[i].submitted)) all.push_back(ended[i]);
  }
  std::ranges::stable_sort(all, {}, &RequestRecord::submitted);
  const auto times_too_many = [](std::size_t count, std::size_t most) {
    return (count + most - 1) / most;
  };
  const std::size_t every =
      std::max({std::size_t{1}, times_too_many(all.size(), detail.max_requests),
                times_too_many(recorder.events().size(), detail.max_events)});
  std::vector<RequestRecord> shown;
  for (std::size_t i = 0; i < all.size(); i += every) shown.push_back(all[i]);
  return shown;
}

/// The events of the requests shown, request after request.
json events_of(const Recorder& recorder, const std::vector<RequestRecord>& shown,
               std::vector<std::uint32_t>& event_from) {
  std::unordered_map<std::uint64_t, std::size_t> index_of;
  for (std::size_t i = 0; i < shown.size(); ++i) index_of[shown[i].request] = i;
  std::vector<std::vector<RequestEvent>> of_request(shown.size());
  const Records<RequestEvent> events = recorder.events();
  for (std::size_t i = 0; i < events.size(); ++i) {
    const RequestEvent& event = events[i];
    if (event.kind == EventKind::kSubmit || event.kind == EventKind::kFinish) continue;
    const auto found = index_of.find(event.request);
    if (found != index_of.end()) of_request[found->second].push_back(event);
  }
  std::vector<std::uint8_t> kind;
  std::vector<float> begin, end;
  std::vector<std::uint32_t> tokens;
  for (std::size_t i = 0; i < shown.size(); ++i) {
    event_from.push_back(static_cast<std::uint32_t>(kind.size()));
    for (const RequestEvent& event : of_request[i]) {
      kind.push_back(static_cast<std::uint8_t>(event.kind));
      begin.push_back(as_float(event.begin - shown[i].submitted));
      end.push_back(as_float(event.end - shown[i].submitted));
      tokens.push_back(static_cast<std::uint32_t>(event.num_tokens));
    }
  }
  event_from.push_back(static_cast<std::uint32_t>(kind.size()));
  return {{"kind", base64_of(kind)},
          {"begin", base64_of(begin)},
          {"end", base64_of(end)},
          {"tokens", base64_of(tokens)}};
}

/// Every so many-th page of a map.
json map_json(const PageMap& map, std::size_t every) {
  constexpr std::int32_t kMostOwners = std::numeric_limits<std::uint16_t>::max() - 2;
  constexpr std::int32_t kMostTokens = std::numeric_limits<std::uint16_t>::max();
  constexpr std::int32_t kMostRefs = std::numeric_limits<std::uint8_t>::max();
  std::vector<std::uint32_t> request, tokens;
  for (const PageMap::Owner& owner : map.owners) {
    request.push_back(static_cast<std::uint32_t>(owner.request));
    tokens.push_back(static_cast<std::uint32_t>(owner.tokens));
  }
  std::vector<std::uint16_t> owner, filled;
  std::vector<std::uint8_t> refs;
  for (std::size_t id = 0; id < map.pages.size(); id += every) {
    const PageMap::Page& page = map.pages[id];
    std::uint16_t code = page.owner == PageMap::kFree ? 0 : 1;
    if (page.owner >= 0 && page.owner < kMostOwners) {
      code = static_cast<std::uint16_t>(page.owner + 2);
    }
    owner.push_back(code);
    filled.push_back(static_cast<std::uint16_t>(std::min(page.tokens, kMostTokens)));
    refs.push_back(static_cast<std::uint8_t>(std::min(page.refs, kMostRefs)));
  }
  return {{"step", map.step},
          {"time", map.time_s},
          {"request", base64_of(request)},
          {"tokens", base64_of(tokens)},
          {"owner", base64_of(owner)},
          {"filled", base64_of(filled)},
          {"refs", base64_of(refs)}};
}

}  // namespace

json step_series(const Records<StepRecord>& steps, std::span<const StepPages> pages,
                 std::size_t most) {
  const std::size_t per_group = std::max<std::size_t>(1, (steps.size() + most - 1) / most);
  std::vector<std::uint32_t> first;
  std::vector<double> begin, end;
  std::array<std::vector<float>, kStepColumns.size()> values;
  std::vector<float> tokens, positions, idle;
  for (std::size_t from = 0; from < steps.size(); from += per_group) {
    const std::size_t to = std::min(steps.size(), from + per_group);
    first.push_back(static_cast<std::uint32_t>(steps[from].step));
    begin.push_back(steps[from].begin);
    end.push_back(steps[to - 1].end);
    for (std::size_t c = 0; c < kStepColumns.size(); ++c) {
      values[c].push_back(value_of_group(kStepColumns[c], steps, from, to));
    }
    tokens.push_back(mean_of_group(pages, &StepPages::tokens, steps[from].step, to - from));
    positions.push_back(mean_of_group(pages, &StepPages::positions, steps[from].step, to - from));
    idle.push_back(mean_of_group(pages, &StepPages::idle, steps[from].step, to - from));
  }
  json series = {{"n", first.size()},
                 {"perGroup", per_group},
                 {"first", base64_of(first)},
                 {"begin", base64_of(begin)},
                 {"end", base64_of(end)},
                 {"tokens", base64_of(tokens)},
                 {"positions", base64_of(positions)},
                 {"idle", base64_of(idle)}};
  for (std::size_t c = 0; c < kStepColumns.size(); ++c) {
    series[kStepColumns[c].name] = base64_of(values[c]);
  }
  return series;
}

json distributions(const Records<RequestRecord>& ended) {
  std::vector<double> first_token, per_token, longest_gap, whole, prompt, answer;
  for (std::size_t i = 0; i < ended.size(); ++i) {
    const RequestRecord& life = ended[i];
    first_token.push_back(life.time_to_first_token());
    per_token.push_back(life.time_per_token());
    longest_gap.push_back(life.longest_gap);
    whole.push_back(life.finished - life.submitted);
    prompt.push_back(life.prompt_tokens);
    answer.push_back(life.new_tokens);
  }
  return json::array(
      {histogram("Time to first token", "prefill", false, std::move(first_token)),
       histogram("Time per token after it", "decode", false, std::move(per_token)),
       histogram("Longest gap between tokens", "plain", false, std::move(longest_gap)),
       histogram("Whole request", "waiting", false, std::move(whole)),
       histogram("Prompt, tokens", "prefill", true, std::move(prompt)),
       histogram("Answer, tokens", "decode", true, std::move(answer))});
}

void add_lives(json& data, const Recorder& recorder, const ReportDetail& detail) {
  const std::vector<RequestRecord> shown = shown_requests(recorder, detail);
  std::vector<std::uint32_t> id, prompt, answer, preemptions, event_from;
  std::vector<double> submitted;
  std::vector<float> admitted, first, finished, gap;
  for (const RequestRecord& life : shown) {
    id.push_back(static_cast<std::uint32_t>(life.request));
    submitted.push_back(life.submitted);
    admitted.push_back(as_float(life.admitted - life.submitted));
    first.push_back(as_float(life.first_token - life.submitted));
    finished.push_back(as_float(life.finished - life.submitted));
    gap.push_back(as_float(life.longest_gap));
    prompt.push_back(static_cast<std::uint32_t>(life.prompt_tokens));
    answer.push_back(static_cast<std::uint32_t>(life.new_tokens));
    preemptions.push_back(static_cast<std::uint32_t>(life.num_preemptions));
  }
  data["events"] = events_of(recorder, shown, event_from);
  data["requests"] = {{"n", shown.size()},
                      {"of", recorder.ended().size()},
                      {"id", base64_of(id)},
                      {"submitted", base64_of(submitted)},
                      {"admitted", base64_of(admitted)},
                      {"first", base64_of(first)},
                      {"finished", base64_of(finished)},
                      {"gap", base64_of(gap)},
                      {"prompt", base64_of(prompt)},
                      {"answer", base64_of(answer)},
                      {"preemptions", base64_of(preemptions)},
                      {"eventFrom", base64_of(event_from)}};
}

void add_tree(json& data, const PrefixTree& tree, std::size_t max_runs) {
  const std::vector<PrefixTree::Run> runs = tree.runs(max_runs);
  const auto column = [&runs](auto member) {
    std::vector<std::int32_t> values;
    for (const PrefixTree::Run& run : runs) values.push_back(run.*member);
    return base64_of(values);
  };
  data["tree"] = {{"n", runs.size()},
                  {"pages", tree.num_pages()},
                  {"hostPages", tree.num_host_pages()},
                  {"found", tree.num_found()},
                  {"parent", column(&PrefixTree::Run::parent)},
                  {"position", column(&PrefixTree::Run::position)},
                  {"tokens", column(&PrefixTree::Run::tokens)},
                  {"runPages", column(&PrefixTree::Run::pages)},
                  {"subtree", column(&PrefixTree::Run::subtree)},
                  {"finds", column(&PrefixTree::Run::finds)},
                  {"onHost", column(&PrefixTree::Run::on_host)},
                  {"hidden", column(&PrefixTree::Run::hidden)}};
}

void add_pages(json& data, const PageHistory& history, std::size_t max_cells) {
  std::vector<double> time;
  std::vector<std::uint32_t> step, owner;
  std::size_t rows = 0;
  for (const PageHistory::Column& column : history.columns()) {
    time.push_back(column.time_s);
    step.push_back(static_cast<std::uint32_t>(column.step));
    owner.insert(owner.end(), column.owners.begin(), column.owners.end());
    rows = column.owners.size();
  }
  data["columns"] = {{"n", time.size()},
                     {"rows", rows},
                     {"pagesPerRow", history.pages_per_row()},
                     {"time", base64_of(time)},
                     {"step", base64_of(step)},
                     {"owner", base64_of(owner)}};
  std::vector<PageMap> maps = history.maps();
  const PageMap& fullest = history.fullest();
  const auto place = std::ranges::lower_bound(maps, fullest.step, {}, &PageMap::step);
  const std::ptrdiff_t index = place - maps.begin();
  const bool is_new = place == maps.end() || place->step != fullest.step;
  if (is_new && !fullest.pages.empty()) maps.insert(place, fullest);
  const std::size_t pages = maps.empty() ? 1 : maps.front().pages.size();
  const std::size_t every = (pages + max_cells - 1) / max_cells;
  data["pagesPerCell"] = every;
  data["fullest"] = index;
  data["maps"] = json::array();
  for (const PageMap& map : maps) data["maps"].push_back(map_json(map, every));
}

}  // namespace quire::tool
