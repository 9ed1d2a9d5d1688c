// SPDX-License-Identifier: Apache-2.0
#include "replay/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench/embedded.hpp"
#include "common/format.hpp"
#include "common/options.hpp"
#include "common/statistics.hpp"
#include "common/table.hpp"
#include "common/terminal.hpp"
#include "replay/latency.hpp"

namespace quire::tool {
namespace {

constexpr double kPercent = 100;
constexpr double kMilliseconds = 1e3;
constexpr double kHigh = 0.95;

// What became of the tokens that preemptions took away.
const char* fate(const ReplayOptions& options) {
  const bool left = options.prefix_cache || options.host_pages > 0;
  return left ? "taken away, or left to the prefix cache" : "computed again";
}

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }
double percent(double part, double whole) { return kPercent * share(part, whole); }

double step_ms(const ReplayReport& report, double fraction) {
  return kMilliseconds * quantile(report.step_seconds, fraction);
}

std::string_view arrivals_name(Arrivals arrivals) {
  return arrivals == Arrivals::kAsap ? "asap" : "trace";
}

std::string shape_text(const ReplayOptions& options) {
  const Shape& shape = options.shape;
  std::string text = fmt::format("{} layer{}, {}/{} heads, head dim {}, {}", options.layers,
                                 options.layers == 1 ? "" : "s", shape.heads.qo, shape.heads.kv,
                                 shape.head_dim, to_string(shape.dtype));
  if (shape.query_dtype() != shape.dtype) {
    text += fmt::format(", queries of {}", to_string(shape.query_dtype()));
  }
  if (shape.cache_dtype() != shape.dtype) {
    text += fmt::format(" over {}", to_string(shape.cache_dtype()));
  }
  return text;
}

std::string arrivals_text(const ReplayOptions& options) {
  const std::string clock =
      options.attention ? "on a clock that counts the work" : "on a simulated clock";
  return (options.arrivals == Arrivals::kAsap ? "all at once, in the trace's order, "
                                              : "at the trace's times, ") +
         clock;
}

std::string cost_text(const ReplayOptions& options) {
  const CostModel& cost = options.cost;
  return fmt::format("{} µs + bytes at {} GB/s + FLOP at {} TFLOP/s, {}e9 weights",
                     cost.overhead_us, cost.bandwidth_gbps, cost.peak_tflops, cost.params_billion);
}

void add_latencies(Table& table, const ReplayReport& report) {
  if (!report.recorder) return;
  const Latencies latencies = latencies_of(report.recorder->ended());
  const auto row = [&](const char* name, const Percentiles& seconds, const char* what) {
    table.add({name, fmt::format("p50 {}, p90 {}, p99 {}, max {}{}", human_duration(seconds.p50),
                                 human_duration(seconds.p90), human_duration(seconds.p99),
                                 human_duration(seconds.max), what)});
  };
  row("time to 1st token", latencies.first_token, "");
  row("time per token", latencies.per_token, " (means of the requests)");
  row("longest gap", latencies.longest_gap, " (between two tokens of a request)");
}

std::string requests_text(const ReplayReport& report) {
  std::string text = fmt::format("{} served", human_count(report.batcher.finished));
  if (report.refused > 0) text += fmt::format(", {} refused", human_count(report.refused));
  if (report.left_out > 0) {
    text += fmt::format(", {} left out when the time was over", human_count(report.left_out));
  }
  return text;
}

void add_speed(Table& table, const ReplayReport& report) {
  const double total = report.busy_s();
  const auto rate = [total](std::int64_t tokens) {
    return human_count(static_cast<std::int64_t>(share(static_cast<double>(tokens), total)));
  };
  const BatcherStats& stats = report.batcher;
  table.add(
      {"tokens", fmt::format("{} = {} prefill + {} decode", human_count(report.tokens()),
                             human_count(stats.prefill_tokens), human_count(stats.decode_tokens))});
  table.add({"speed", fmt::format("{} tokens/s, {} of them decoded", rate(report.tokens()),
                                  rate(stats.decode_tokens))});
  const auto step_time = [&](double fraction) {
    return human_duration(quantile(report.step_seconds, fraction));
  };
  table.add({"steps", fmt::format("{}: p50 {}, p95 {}, max {}", human_count(stats.steps),
                                  step_time(0.5), step_time(kHigh), step_time(1))});
  if (report.kernel.empty()) return;
  const StepTimes& times = report.times;
  table.add({"time of steps",
             fmt::format("attention {:.1f} %, append {:.1f} %, batching {:.1f} %, random q, k, v "
                         "in place of a model {:.1f} %",
                         percent(times.attention, total), percent(times.appending, total),
                         percent(times.planning, total), percent(times.generating, total))});
}

void add_memory(Table& table, const ReplayOptions& options, const ReplayReport& report) {
  const auto positions = [&](const Positions& at) {
    const auto bytes = [&](double count) {
      return human_bytes(static_cast<std::uint64_t>(count) * report.position_bytes);
    };
    return fmt::format("tokens {}, pages {}, padded {}: pages save {:.1f} %", bytes(at.used),
                       bytes(at.paged), bytes(at.padded),
                       at.padded > 0 ? percent(at.padded - at.paged, at.padded) : 0.0);
  };
  const BatcherStats& stats = report.batcher;
  table.add({"pages",
             fmt::format("peak {} of {} ({:.1f} %) of {} tokens",
                         human_count(stats.peak_used_pages), human_count(options.pages),
                         percent(stats.peak_used_pages, options.pages), options.shape.page_size)});
  table.add({"memory, mean step", positions(report.mean)});
  table.add({"memory, fullest", positions(report.peak)});
  std::string waste;
  for (const TailWaste& tail : report.tail_waste) {
    waste += fmt::format("{}{:.2f} % at page {}", waste.empty() ? "" : ", ", tail.percent,
                         tail.page_size);
  }
  if (!waste.empty()) table.add({"tail waste", waste + " (of the pages at final length)"});
  table.add({"preemptions", fmt::format("{} ({} tokens {})", human_count(stats.preemptions),
                                        human_count(stats.recomputed_tokens), fate(options))});
}

void add_host_tier(Table& table, const ReplayOptions& options, const ReplayReport& report) {
  if (options.host_pages == 0) return;
  const PrefixCacheStats& cache = report.cache;
  table.add(
      {"host tier",
       fmt::format("{} pages: {} went there, {} came back with {} tokens, {} had to make room",
                   human_count(options.host_pages), human_count(cache.offloaded),
                   human_count(cache.fetched), human_count(report.batcher.fetched_tokens),
                   human_count(cache.host_evicted))});
  table.add({"swaps", fmt::format("{} of {} preemptions", human_count(report.batcher.swaps),
                                  human_count(report.batcher.preemptions))});
}

void add_hits(Table& table, const ReplayOptions& options, const ReplayReport& report) {
  if (!options.prefix_cache) return;
  const BatcherStats& stats = report.batcher;
  table.add({"prefix cache",
             fmt::format("{:.1f} % of {} tokens found at admission: {} not computed",
                         percent(static_cast<double>(stats.hit_tokens),
                                 static_cast<double>(stats.asked_tokens)),
                         human_count(stats.asked_tokens), human_count(stats.hit_tokens))});
  const auto apart = static_cast<std::uint64_t>(report.key_reads.apart) * report.position_bytes;
  table.add({"shared prefixes",
             fmt::format(
                 "{:.1f} % of {} of K and V that steps see: {} not read",
                 percent(static_cast<double>(report.bytes_not_read()), static_cast<double>(apart)),
                 human_bytes(apart), human_bytes(report.bytes_not_read()))});
}

nlohmann::ordered_json percentiles_json(const Percentiles& seconds) {
  return {{"count", seconds.count},
          {"p50", seconds.p50},
          {"p90", seconds.p90},
          {"p99", seconds.p99},
          {"max", seconds.max}};
}

void add_json_of_recorder(nlohmann::ordered_json& json, const ReplayOptions& options,
                          const ReplayReport& report) {
  if (report.recorder) {
    const Latencies latencies = latencies_of(report.recorder->ended());
    json["first_token_s"] = percentiles_json(latencies.first_token);
    json["per_token_s"] = percentiles_json(latencies.per_token);
    json["longest_gap_s"] = percentiles_json(latencies.longest_gap);
    json["whole_request_s"] = percentiles_json(latencies.whole_request);
  }
  auto& waste = json["tail_waste_percent"] = nlohmann::ordered_json::object();
  for (const TailWaste& tail : report.tail_waste) {
    waste[fmt::format("{}", tail.page_size)] = tail.percent;
  }
  if (options.attention) return;
  json["cost_model"] = {{"overhead_us", options.cost.overhead_us},
                        {"bandwidth_gbps", options.cost.bandwidth_gbps},
                        {"peak_tflops", options.cost.peak_tflops},
                        {"params_billion", options.cost.params_billion},
                        {"link_gbps", options.cost.link_gbps}};
}

std::string verdict(bool good) {
  return good ? painted("PASS", Paint::kGood) : painted("FAIL", Paint::kBad);
}

void add_checks(Table& table, const ReplayOptions& options, const ReplayReport& report) {
  const SpotCheckResult& checks = report.checks;
  std::string spot = "none: no attention";
  if (options.attention && checks.rows == 0) spot = "none: --check-every 0";
  if (checks.rows > 0) {
    spot = fmt::format("{} ({} of {} rows match the oracle, max error {:.1e})",
                       verdict(checks.failed == 0), human_count(checks.rows - checks.failed),
                       human_count(checks.rows), checks.max_error);
  }
  if (checks.failed > 0) spot += "; first: " + checks.first_failure;
  table.add({"spot checks", spot});
  std::string back = verdict(report.lost_pages == 0 && report.broken_invariant.empty()) + " (";
  back += report.lost_pages == 0 ? fmt::format("all {} are back", human_count(options.pages))
                                 : fmt::format("{} are lost", human_count(report.lost_pages));
  if (!report.broken_invariant.empty()) back += "; " + report.broken_invariant;
  if (report.batcher.idle_pages > 0) {
    back += fmt::format(", {} of them in the prefix cache", human_count(report.batcher.idle_pages));
  }
  table.add({"pages at the end", back + ")"});
}

}  // namespace

std::string report_text(const ReplayOptions& options, const ReplayReport& report,
                        const std::string& source) {
  Table table({"requests", requests_text(report)});
  if (report.refused > 0) table.add({"first refusal", report.first_refusal});
  table.add({"source", source});
  table.add({"arrivals", arrivals_text(options)});
  table.add({"model", shape_text(options)});
  table.add({"kernel", report.kernel.empty() ? "none: bookkeeping only" : report.kernel});
  if (options.attention) {
    table.add(
        {"wall time", fmt::format("{}, of which spot checks {}", human_duration(report.wall_s),
                                  human_duration(report.checking_s))});
  } else {
    table.add({"step time", cost_text(options)});
    table.add(
        {"wall time",
         fmt::format("{}, of which batching {}; simulated {}", human_duration(report.wall_s),
                     human_duration(report.times.planning), human_duration(report.virtual_s))});
  }
  add_speed(table, report);
  add_latencies(table, report);
  add_memory(table, options, report);
  add_hits(table, options, report);
  add_host_tier(table, options, report);
  add_checks(table, options, report);
  return table.text();
}

std::string report_setup(const ReplayOptions& options) {
  return fmt::format("{}; {} pages of {} tokens; steps of at most {} tokens and {} requests",
                     shape_text(options), human_count(options.pages), options.shape.page_size,
                     human_count(options.max_tokens_per_step), human_count(options.max_seqs));
}

nlohmann::json report_settings(const ReplayOptions& options, const ReplayReport& report) {
  const auto row = [](const char* name, const std::string& value) {
    return nlohmann::json::array({name, value});
  };
  nlohmann::json rows = nlohmann::json::array();
  rows.push_back(row("arrivals", arrivals_text(options)));
  rows.push_back(row("kernel", report.kernel.empty() ? "none: bookkeeping only" : report.kernel));
  if (!options.attention) rows.push_back(row("step time", cost_text(options)));
  rows.push_back(
      row("tokens", fmt::format("{} prefill, {} decode; by preemptions {} {}",
                                human_count(report.batcher.prefill_tokens),
                                human_count(report.batcher.decode_tokens),
                                human_count(report.batcher.recomputed_tokens), fate(options))));
  rows.push_back(row("seed", fmt::format("{}", options.seed)));
  rows.push_back(row("made by", fmt::format("quire {}, commit {}", version(), kBuildCommit)));
  return rows;
}

nlohmann::ordered_json report_json(const ReplayOptions& options, const ReplayReport& report,
                                   const std::string& source) {
  const BatcherStats& stats = report.batcher;
  const StepTimes& times = report.times;
  const double busy = report.busy_s();
  const auto positions = [](const Positions& at) {
    return nlohmann::ordered_json{{"used", at.used}, {"paged", at.paged}, {"padded", at.padded}};
  };
  nlohmann::ordered_json json = {
      {"schema", 1},
      {"command", "replay"},
      {"source", source},
      {"seed", options.seed},
      {"arrivals", arrivals_name(options.arrivals)},
      {"layers", options.layers},
      {"num_qo_heads", options.shape.heads.qo},
      {"num_kv_heads", options.shape.heads.kv},
      {"head_dim", options.shape.head_dim},
      {"dtype", to_string(options.shape.dtype)},
      {"q_dtype", to_string(options.shape.query_dtype())},
      {"kv_dtype", to_string(options.shape.cache_dtype())},
      {"page_size", options.shape.page_size},
      {"pages", options.pages},
      {"max_tokens_per_step", options.max_tokens_per_step},
      {"max_seqs", options.max_seqs},
      {"attention", options.attention},
      {"device", device_name(options.device)},
      {"kernel", report.kernel},
      {"requests_served", stats.finished},
      {"requests_refused", report.refused},
      {"requests_left_out", report.left_out},
      {"prefill_tokens", stats.prefill_tokens},
      {"decode_tokens", stats.decode_tokens},
      {"recomputed_tokens", stats.recomputed_tokens},
      {"preemptions", stats.preemptions},
      {"prefix_cache", options.prefix_cache},
      {"asked_tokens", stats.asked_tokens},
      {"hit_tokens", stats.hit_tokens},
      {"key_reads_apart", report.key_reads.apart},
      {"key_reads_grouped", report.key_reads.grouped},
      {"kv_bytes_not_read", report.bytes_not_read()},
      {"host_pages", options.host_pages},
      {"fetched_tokens", stats.fetched_tokens},
      {"swaps", stats.swaps},
      {"offloaded_pages", report.cache.offloaded},
      {"fetched_pages", report.cache.fetched},
      {"host_evicted_pages", report.cache.host_evicted},
      {"steps", stats.steps},
      {"wall_s", report.wall_s},
      {"virtual_s", report.virtual_s},
      {"tokens_per_s", share(static_cast<double>(report.tokens()), busy)},
      {"decode_tokens_per_s", share(static_cast<double>(stats.decode_tokens), busy)},
      {"step_ms_p50", step_ms(report, 0.5)},
      {"step_ms_p95", step_ms(report, kHigh)},
      {"step_ms_max", step_ms(report, 1)},
      {"seconds_attention", times.attention},
      {"seconds_append", times.appending},
      {"seconds_batching", times.planning},
      {"seconds_generating", times.generating},
      {"seconds_checking", report.checking_s},
      {"attention_share", share(times.attention, times.total())},
      {"peak_pages", stats.peak_used_pages},
      {"bytes_per_position", report.position_bytes},
      {"mean_positions", positions(report.mean)},
      {"peak_positions", positions(report.peak)},
      {"spot_checks", report.checks.rows},
      {"spot_checks_failed", report.checks.failed},
      {"max_error", report.checks.max_error},
      {"lost_pages", report.lost_pages},
      {"passed", report.passed()}};
  add_json_of_recorder(json, options, report);
  return json;
}

}  // namespace quire::tool
