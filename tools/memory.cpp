// SPDX-License-Identifier: Apache-2.0
// quire memory: what a batch takes as a padded rectangle, and what it takes in pages.
#include "memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "command.hpp"
#include "common/format.hpp"
#include "common/options.hpp"
#include "common/table.hpp"
#include "quire/tensor.hpp"

namespace quire::tool {
namespace {

struct MemoryOptions {
  std::vector<std::int32_t> lengths;
  std::int32_t page_size = 16;
  Heads heads;
  std::int32_t head_dim = 128;
  DType dtype = DType::kBFloat16;
  std::int32_t layers = 1;
  bool json = false;

  /// Bytes of one position: K and V of every layer.
  [[nodiscard]] std::uint64_t position_bytes() const {
    constexpr std::uint64_t kKeyAndValue = 2;
    return kKeyAndValue * static_cast<std::uint64_t>(heads.kv) *
           static_cast<std::uint64_t>(head_dim) * size_of(dtype) *
           static_cast<std::uint64_t>(layers);
  }
};

nlohmann::ordered_json to_json(const MemoryOptions& options, const MemoryFigures& figures) {
  const std::uint64_t bytes = options.position_bytes();
  const auto in_bytes = [bytes](std::int64_t positions) {
    return static_cast<std::uint64_t>(positions) * bytes;
  };
  return {{"schema", 1},
          {"command", "memory"},
          {"lengths", options.lengths},
          {"page_size", options.page_size},
          {"used_positions", figures.used},
          {"padded_positions", figures.padded},
          {"pages", figures.pages},
          {"paged_positions", figures.paged},
          {"saved_percent", figures.saved_percent()},
          {"saved_by_pages_percent", figures.saved_by_pages_percent()},
          {"bytes_per_position", bytes},
          {"used_bytes", in_bytes(figures.used)},
          {"padded_bytes", in_bytes(figures.padded)},
          {"paged_bytes", in_bytes(figures.paged)}};
}

void print(const MemoryOptions& options, const MemoryFigures& figures) {
  const auto bytes = [&](std::int64_t positions) {
    return human_bytes(static_cast<std::uint64_t>(positions) * options.position_bytes());
  };
  const auto row = [&](std::string what, std::int64_t positions, std::string how) {
    return std::vector<std::string>{std::move(what), human_count(positions), bytes(positions),
                                    std::move(how)};
  };
  Table table({"", ">positions", ">memory", ""});
  table.add(row("padded batch", figures.padded,
                fmt::format("{} requests as long as the longest", options.lengths.size())));
  table.add(row("tokens", figures.used, fmt::format("{:.1f} % saved", figures.saved_percent())));
  table.add(
      row("in pages", figures.paged,
          fmt::format("{:.1f} % saved: {} pages of {} tokens", figures.saved_by_pages_percent(),
                      human_count(figures.pages), options.page_size)));
  table.add(row("rounding to pages", figures.paged - figures.used, "unused ends of last pages"));
  fmt::print("{}\n", table.text());
  fmt::print("Memory is K and V of {} layer{}, {} kv heads, head dim {}, {}.\n", options.layers,
             options.layers == 1 ? "" : "s", options.heads.kv, options.head_dim,
             to_string(options.dtype));
}

}  // namespace

MemoryFigures memory_figures(std::span<const std::int32_t> lengths, std::int32_t page_size) {
  MemoryFigures figures;
  std::int64_t longest = 0;
  for (const std::int64_t length : lengths) {
    longest = std::max(longest, length);
    figures.used += length;
    figures.pages += (length + page_size - 1) / page_size;
  }
  figures.padded = longest * static_cast<std::int64_t>(lengths.size());
  figures.paged = figures.pages * page_size;
  return figures;
}

void add_memory(CLI::App& app, Session& /*session*/) {
  constexpr std::int32_t kMostLayers = 10000;
  const auto options = std::make_shared<MemoryOptions>();
  CLI::App* command =
      app.add_subcommand("memory", "Compare a padded batch with pages for given lengths");
  command
      ->add_option_function<std::vector<std::string>>(
          "LENGTHS",
          [options](const std::vector<std::string>& texts) {
            for (const std::string& text : texts) {
              try {
                options->lengths.push_back(static_cast<std::int32_t>(
                    parse_whole(text, 0, std::numeric_limits<std::int32_t>::max())));
              } catch (const std::invalid_argument& error) {
                throw CLI::ValidationError("LENGTHS", error.what());
              }
            }
          },
          "Tokens of each request, such as 100 50 75 200")
      ->type_name("N")
      ->required();
  add_whole(*command, "--page-size", options->page_size, 1, kLargestPage, "Tokens per page");
  add_heads(*command, options->heads);
  add_whole(*command, "--head-dim", options->head_dim, 1, kLongestHeadDim, "Elements of a head");
  add_dtype(*command, "--dtype", options->dtype, "Of the cache");
  add_whole(*command, "--layers", options->layers, 1, kMostLayers, "Layers of the model");
  add_json(*command, options->json, "Print one JSON object");
  command->callback([options] {
    const MemoryFigures figures = memory_figures(options->lengths, options->page_size);
    if (options->json) {
      fmt::print("{}\n", to_json(*options, figures).dump());
    } else {
      print(*options, figures);
    }
  });
}

}  // namespace quire::tool
