// SPDX-License-Identifier: Apache-2.0
// quire prefixes: how much of a trace's prompts a prefix cache of some sizes would have.
#include <fmt/format.h>

#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "command.hpp"
#include "common/format.hpp"
#include "common/options.hpp"
#include "common/table.hpp"
#include "prefixes/hit_rate.hpp"
#include "trace/reader.hpp"

namespace quire::tool {
namespace {

struct PrefixesCommand {
  std::string trace;
  std::int32_t requests = 0;
  std::int32_t page_size = kBlockTokens;
  std::vector<std::int32_t> capacities;
  bool json = false;
};

nlohmann::json to_json(const PrefixesCommand& command, const std::vector<HitRate>& rates) {
  nlohmann::json rows = nlohmann::json::array();
  for (const HitRate& rate : rates) {
    nlohmann::json row = {{"pages", rate.pages},           {"hit_pages", rate.hit_pages},
                          {"tokens", rate.tokens},         {"hit_tokens", rate.hit_tokens},
                          {"evicted_pages", rate.evicted}, {"capacity_pages", nullptr}};
    if (rate.capacity > 0) row["capacity_pages"] = rate.capacity;
    rows.push_back(std::move(row));
  }
  return {{"trace", command.trace}, {"page_size", command.page_size}, {"hit_rates", rows}};
}

void print(const PrefixesCommand& command, std::size_t requests,
           const std::vector<HitRate>& rates) {
  fmt::print("{}: {} requests, {} pages of {} tokens\n\n", command.trace,
             human_count(static_cast<std::int64_t>(requests)), human_count(rates.front().pages),
             command.page_size);
  Table table({">cached pages", ">pages hit", ">tokens hit", ">evicted"});
  for (const HitRate& rate : rates) {
    table.add({rate.capacity > 0 ? human_count(rate.capacity) : "all",
               fmt::format("{:.1f} %", rate.page_percent()),
               fmt::format("{:.1f} %", rate.token_percent()), human_count(rate.evicted)});
  }
  fmt::print("{}", table.text());
}

void run_prefixes(const PrefixesCommand& command) {
  const TraceReading trace = load_trace(command.trace, static_cast<std::size_t>(command.requests));
  std::vector<HitRate> rates = {hit_rate(trace.requests, command.page_size, 0)};
  for (const std::int32_t capacity : command.capacities) {
    rates.push_back(hit_rate(trace.requests, command.page_size, capacity));
  }
  if (command.json) {
    fmt::print("{}\n", to_json(command, rates).dump());
  } else {
    print(command, trace.requests.size(), rates);
  }
}

}  // namespace

void add_prefixes(CLI::App& app, Session& /*session*/) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const auto command = std::make_shared<PrefixesCommand>();
  CLI::App* sub = app.add_subcommand(
      "prefixes", "Replay a trace's prompts through a prefix cache; report how much it had");
  sub->add_option("TRACE", command->trace, "Mooncake JSONL with hash_ids, .gz or not")
      ->type_name("FILE")
      ->required();
  sub->add_option_function<std::vector<std::string>>(
         "--capacity",
         [command](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) {
             try {
               command->capacities.push_back(
                   static_cast<std::int32_t>(parse_whole(text, 1, kMost)));
             } catch (const std::invalid_argument& error) {
               throw CLI::ValidationError("--capacity", error.what());
             }
           }
         },
         "Also with so many cached pages, such as 500,3000; the least recently used go first")
      ->delimiter(',')
      ->type_name("N,…");
  add_whole(*sub, "--page-size", command->page_size, 1, kLargestPage, "Tokens per page");
  add_whole(*sub, "--requests", command->requests, 0, TraceReading::kMostRequests,
            "At most so many; 0 is all");
  add_json(*sub, command->json, "Print one JSON object");
  sub->callback([command] { run_prefixes(*command); });
}

}  // namespace quire::tool
