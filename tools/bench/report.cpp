// SPDX-License-Identifier: Apache-2.0
#include "bench/report.hpp"

#include <fmt/format.h>

#include <cstdio>

#include "common/exit_code.hpp"
#include "common/options.hpp"

namespace quire::tool {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kNone = "–";

std::string microseconds(double us) { return us > 0 ? fmt::format("{:.1f}", us) : kNone; }

std::string verdict(const SpotCheckResult& checks) {
  if (checks.rows == 0) return kNone;
  return checks.failed == 0 ? "ok" : "WRONG";
}

std::string percent(const Run& run, const Measurement& measured) {
  if (measured.bytes == 0 || !ceiling_is_known(run, measured)) return kNone;
  return fmt::format("{:.1f}", measured.percent_of(run.ceilings));
}

/// The ceiling that bounds a row, in words.
std::string_view bound(const Run& run, const Measurement& measured) {
  if (measured.bytes == 0) return kNone;
  // An unmeasured ceiling does not make a row one that reading bounds.
  const Ceilings& ceilings = ceiling_is_known(run, measured) ? run.ceilings : run.published;
  return measured.bound_by_reading(ceilings) ? "read" : run.arithmetic;
}

/// What only a GPU has.
void add_gpu_members(Json& row, const Run& run, const Workload& workload,
                     const Measurement& measured) {
  row["us_both"] = measured.us_both;
  row["us_empty"] = run.empty_us;
  row["floor_us"] = row.at("pct_of_ceiling").is_null()
                        ? Json()
                        : Json(run.ceilings.floor_us(measured.bytes, measured.flop));
  if (const auto comparison = compare(run, workload, measured)) {
    row["peer"] = comparison->peer.name;
    row["us_peer_published"] = comparison->peer.us;
    row["us_peer_scaled"] = comparison->us_here;
    row["ratio_to_peer"] = comparison->ratio;
  }
}

std::string page_size_of(const Workload& workload) {
  if (workload.page_size == kContiguousKv) return "–";
  return fmt::format("{}", workload.page_size);
}

void add_cpu_row(Table& table, const Run& run, const Workload& workload,
                 const Measurement& measured) {
  table.add({workload.name, page_size_of(workload), fmt::format("{:.1f}", measured.us_median),
             fmt::format("{:.1f}", measured.us_p5), fmt::format("{:.1f}", measured.us_p95),
             microseconds(measured.us_schedule), fmt::format("{:.1f}", measured.gb_per_s()),
             fmt::format("{:.1f}", measured.gflop_per_s()), percent(run, measured),
             std::string(bound(run, measured)), verdict(measured.checks)});
}

void add_gpu_row(Table& table, const Run& run, const Workload& workload,
                 const Measurement& measured) {
  const auto comparison = compare(run, workload, measured);
  const double floor =
      ceiling_is_known(run, measured) ? run.ceilings.floor_us(measured.bytes, measured.flop) : 0;
  table.add({workload.name, fmt::format("{:.1f}", measured.us_median),
             fmt::format("{:.1f}", measured.us_p5), fmt::format("{:.1f}", measured.us_p95),
             microseconds(measured.us_schedule), microseconds(measured.us_both),
             microseconds(floor), percent(run, measured), std::string(bound(run, measured)),
             comparison ? comparison->peer.name : kNone,
             comparison ? fmt::format("{:.1f}", comparison->peer.us) : kNone,
             comparison ? fmt::format("{:.1f}", comparison->us_here) : kNone,
             comparison ? fmt::format("{:.3f}", comparison->ratio) : kNone,
             verdict(measured.checks)});
}

}  // namespace

bool ceiling_is_known(const Run& run, const Measurement& measured) {
  return run.ceilings.gflop_per_s > 0 || measured.bound_by_reading(run.published);
}

std::optional<Comparison> compare(const Run& run, const Workload& workload,
                                  const Measurement& measured) {
  const std::optional<Peer> peer = workload.best_peer();
  if (!peer || run.scale != 1) return std::nullopt;
  const Ceilings& there = run.published;
  const bool reading = measured.bound_by_reading(there);
  const double theirs = reading ? there.read_gb_per_s : there.gflop_per_s;
  const double ours = reading ? run.ceilings.read_gb_per_s : run.ceilings.gflop_per_s;
  Comparison comparison{*peer, peer->us};
  if (theirs > 0 && ours > 0) comparison.us_here *= theirs / ours;
  comparison.ratio = measured.us_median / comparison.us_here;
  return comparison;
}

Json json_of(const BenchOptions& options, const Run& run, const Workload& workload,
             const Measurement& measured) {
  const bool cpu = options.device.type == DeviceType::kCpu;
  const bool rated = measured.bytes > 0 && ceiling_is_known(run, measured);
  Json row{{"schema", 1},
           {"workload", workload.name},
           {"impl", "quire"},
           {"kernel", measured.kernel},
           {"device", device_name(options.device)},
           {"dtype", to_string(options.measure.dtype)},
           {"q_dtype", to_string(query_dtype(workload, options.measure))},
           {"kv_dtype", to_string(cache_dtype(workload, options.measure))},
           {"kv_scale", kv_scale_name(spec_of(workload, options.measure).kv_scale)},
           {"page_size", workload.page_size},
           {"scale", run.scale},
           {"us_median", measured.us_median},
           {"us_p5", measured.us_p5},
           {"us_p95", measured.us_p95},
           {"us_schedule", measured.us_schedule},
           {"repetitions", measured.repetitions},
           {"bytes", measured.bytes},
           {"flop", measured.flop},
           {"gb_per_s", measured.gb_per_s()},
           {"gflop_per_s", measured.gflop_per_s()},
           {"pct_of_ceiling", rated ? Json(measured.percent_of(run.ceilings)) : Json()},
           {"bound", bound(run, measured)},
           {"ceiling_gb_per_s", run.ceilings.read_gb_per_s},
           {"ceiling_gflop_per_s", run.ceilings.gflop_per_s},
           {"checked_rows", measured.checks.rows},
           {"wrong_rows", measured.checks.failed},
           {"seed", options.measure.seed},
           {"commit", options.commit},
           {"machine", run.machine},
           {"date", run.date}};
  row["batch_invariant"] = options.measure.batch_invariant;
  row["named_prefixes"] = options.measure.named_prefixes;
  if (cpu) {
    row["threads"] = run.threads;
    row["huge_pages"] = options.pages == PageKind::kHuge;
  } else {
    row["exact_limits"] = options.measure.exact_limits;
    row["share_prefixes"] = options.measure.share_prefixes;
    add_gpu_members(row, run, workload, measured);
  }
  return row;
}

Json json_of_skipped(const BenchOptions& options, const Workload& workload,
                     const std::string& reason) {
  return {{"schema", 1},       {"workload", workload.name},
          {"impl", "quire"},   {"device", device_name(options.device)},
          {"skipped", reason}, {"commit", options.commit}};
}

Table table_of(Device device) {
  if (device.type == DeviceType::kCpu) {
    return Table({"workload", ">page", ">µs median", ">p5", ">p95", ">schedule", ">GB/s",
                  ">GFLOP/s", ">% of ceiling", "bound", "checked"});
  }
  return Table({"workload", ">µs median", ">p5", ">p95", ">schedule", ">both", ">floor",
                ">% of ceiling", "bound", "best peer", ">published", ">scaled", ">ratio",
                "checked"});
}

void add_row(Table& table, Device device, const Run& run, const Workload& workload,
             const Measurement& measured) {
  if (device.type == DeviceType::kCpu) {
    add_cpu_row(table, run, workload, measured);
  } else {
    add_gpu_row(table, run, workload, measured);
  }
}

RowWriter::RowWriter(const BenchOptions& options) : json_(options.json) {
  if (options.output.empty()) return;
  file_.open(options.output, std::ios::app);
  if (!file_) {
    throw CommandError(ExitCode::kUsage,
                       fmt::format("--output: {} cannot be written", options.output));
  }
}

void RowWriter::write(const Json& row) {
  if (json_) {
    fmt::print("{}\n", row.dump());
    std::fflush(stdout);
  }
  if (file_.is_open()) file_ << row.dump() << std::endl;
}

}  // namespace quire::tool
