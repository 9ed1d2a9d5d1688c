// SPDX-License-Identifier: Apache-2.0
// quire info: what this build and this machine offer.
#include "quire/info.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "command.hpp"
#include "common/options.hpp"
#include "common/table.hpp"
#include "common/terminal.hpp"
#include "quire/error.hpp"
#include "quire/executor.hpp"

namespace quire::tool {
namespace {

struct Variable {
  const char* name;
  const char* meaning;
};
constexpr std::array kVariables = {
    Variable{"QUIRE_NUM_THREADS", "threads of the CPU backend (default: one per core)"},
    Variable{"QUIRE_PIN_THREADS", "1: threads of the CPU backend on cores of their own"},
    Variable{"QUIRE_CPU_TIER", "CPU kernel where none is named, such as avx2 for cpu.avx2"},
    Variable{"QUIRE_CUDA_SHARED_MEMORY",
             "bytes that a CUDA kernel may use at most, to try small ones"},
    Variable{"QUIRE_TIMELINE",
             "where a build with QUIRE_CUDA_TIMELINE writes what the last launch did"},
    Variable{"NO_COLOR", "no colours, whatever the terminal"},
};

std::string_view device_name(DeviceType type) { return type == DeviceType::kCuda ? "cuda" : "cpu"; }

std::string value_of(const Variable& variable) {
  const char* value = std::getenv(variable.name);
  return value == nullptr ? "" : value;
}

nlohmann::ordered_json to_json() {
  nlohmann::ordered_json json = {{"schema", 1}, {"command", "info"}, {"version", version()}};
  json["devices"] = nlohmann::ordered_json::array();
  for (const DeviceInfo& info : devices()) {
    nlohmann::ordered_json facts = nlohmann::ordered_json::object();
    for (const auto& [name, value] : info.facts) facts[name] = value;
    json["devices"].push_back({{"type", device_name(info.device.type)},
                               {"index", info.device.index},
                               {"name", info.name},
                               {"facts", facts}});
  }
  json["kernels"] = nlohmann::ordered_json::array();
  for (const KernelInfo& info : kernels()) {
    json["kernels"].push_back({{"name", info.name},
                               {"device", device_name(info.device)},
                               {"summary", info.summary},
                               {"q_dtypes", info.q_dtypes},
                               {"kv_dtypes", info.kv_dtypes},
                               {"head_dims", info.head_dims},
                               {"masks", info.masks},
                               {"options", info.options},
                               {"kv_scales", info.kv_scales}});
  }
  json["threads"] = default_executor().concurrency();
  json["environment"] = nlohmann::ordered_json::object();
  for (const Variable& variable : kVariables) {
    const char* value = std::getenv(variable.name);
    json["environment"][variable.name] =
        value == nullptr ? nlohmann::ordered_json() : nlohmann::ordered_json(value);
  }
  return json;
}

/// The support matrix: a column per kernel, a row per property.
Table support_matrix() {
  const std::vector<KernelInfo> infos = kernels();
  std::vector<std::string> headings = {"kernel"};
  for (const KernelInfo& info : infos) headings.push_back("`" + info.name + "`");
  Table table(std::move(headings));
  const auto add = [&](const std::string& title, std::string KernelInfo::* column) {
    std::vector<std::string> cells = {title};
    for (const KernelInfo& info : infos) cells.push_back(info.*column);
    table.add(std::move(cells));
  };
  add("what it is", &KernelInfo::summary);
  add("queries", &KernelInfo::q_dtypes);
  add("cache", &KernelInfo::kv_dtypes);
  add("head dims", &KernelInfo::head_dims);
  add("masks", &KernelInfo::masks);
  add("options", &KernelInfo::options);
  add("cache scales", &KernelInfo::kv_scales);
  return table;
}

void print() {
  fmt::print("{}\n\n", painted(fmt::format("quire {}", version()), Paint::kStrong));
  fmt::print("{}\n", painted("Devices", Paint::kStrong));
  for (const DeviceInfo& info : devices()) {
    fmt::print("  {}:{}  {}\n", device_name(info.device.type), info.device.index, info.name);
    for (const auto& [name, value] : info.facts) fmt::print("         {}: {}\n", name, value);
  }
  fmt::print("  The CPU backend runs on {} threads.\n", default_executor().concurrency());

  fmt::print("\n{} (in order of preference)\n", painted("Kernels", Paint::kStrong));
  for (const KernelInfo& info : kernels()) {
    fmt::print("  {}  {}\n", info.name, info.summary);
    const auto line = [](std::string_view title, const std::string& text) {
      if (!text.empty()) fmt::print("    {:<14}{}\n", title, text);
    };
    line("device", std::string(device_name(info.device)));
    line("queries", info.q_dtypes);
    line("cache", info.kv_dtypes);
    line("head dims", info.head_dims);
    line("masks", info.masks);
    line("options", info.options);
    line("cache scales", info.kv_scales);
  }

  fmt::print("\n{}\n", painted("Environment", Paint::kStrong));
  for (const Variable& variable : kVariables) {
    const std::string value = value_of(variable);
    fmt::print("  {}={}  {}\n", variable.name, value.empty() ? "(not set)" : value,
               variable.meaning);
  }
}

struct InfoOptions {
  bool json = false;
  bool markdown = false;
};

}  // namespace

void add_info(CLI::App& app, Session& /*session*/) {
  const auto options = std::make_shared<InfoOptions>();
  CLI::App* command = app.add_subcommand("info", "Say what this build and this machine offer");
  CLI::Option* json = add_json(*command, options->json, "Print one JSON object, for bug reports");
  command->add_flag("--markdown", options->markdown, "Print the support matrix as Markdown")
      ->excludes(json);
  command->callback([options] {
    if (options->json) {
      fmt::print("{}\n", to_json().dump());
    } else if (options->markdown) {
      fmt::print("{}", support_matrix().markdown());
    } else {
      print();
    }
  });
}

}  // namespace quire::tool
