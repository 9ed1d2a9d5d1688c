// SPDX-License-Identifier: Apache-2.0
// quire check: ragged batches against the oracle.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "check/batch.hpp"
#include "command.hpp"
#include "common/numbers.hpp"
#include "common/options.hpp"
#include "common/random.hpp"
#include "common/terminal.hpp"
#include "device/place.hpp"

namespace quire::tool {
namespace {

struct CheckCommand {
  Shape shape;
  Mask mask = Mask::kCausal;
  std::int32_t random = 8;
  std::uint64_t seed = 1;
  std::int32_t threads = 0;
  Device device;
  bool json = false;
  // Unless given, random batches draw their own.
  const CLI::Option* heads_option = nullptr;
  const CLI::Option* page_size_option = nullptr;
  const CLI::Option* mask_option = nullptr;
  const CLI::Option* window_option = nullptr;
  const CLI::Option* soft_cap_option = nullptr;
};

/// The batch that is always checked: four prompts at once.
std::vector<RequestLengths> first_requests() { return {{12, 12}, {8, 8}, {15, 15}, {5, 5}}; }

AttentionSpec spec_of(const CheckCommand& command) {
  AttentionSpec spec = command.shape.spec();
  spec.mask = command.mask;
  return spec;
}

template <typename List>
auto any_of(Random& random, const List& list) {
  return list[static_cast<std::size_t>(
      random.between(0, static_cast<std::int32_t>(list.size()) - 1))];
}

/// Draws what the command line leaves open.
void draw_spec(const CheckCommand& command, Random& random, AttentionSpec& spec) {
  constexpr std::array kHeads = {Heads{8, 2}, Heads{4, 4}, Heads{6, 2}, Heads{5, 1}, Heads{16, 1}};
  constexpr std::array kPageSizes = {1, 3, 8, 16, 64};
  constexpr std::array kDrawnMasks = {Mask::kCausal, Mask::kCausal, Mask::kNone, Mask::kTree,
                                      Mask::kFull};
  constexpr std::array kWindows = {-1, -1, -1, 0, 7, 100};
  constexpr std::array kSoftCaps = {0.0F, 0.0F, 0.0F, 20.0F};
  const Heads heads = any_of(random, kHeads);
  const std::int32_t page_size = any_of(random, kPageSizes);
  const Mask mask = any_of(random, kDrawnMasks);
  const std::int32_t window = any_of(random, kWindows);
  const float soft_cap = any_of(random, kSoftCaps);
  if (command.heads_option->empty()) {
    spec.num_qo_heads = heads.qo;
    spec.num_kv_heads = heads.kv;
  }
  if (command.page_size_option->empty()) spec.page_size = page_size;
  if (command.mask_option->empty()) spec.mask = mask;
  if (command.window_option->empty()) spec.window_left = window;
  if (command.soft_cap_option->empty()) spec.logits_soft_cap = soft_cap;
  if (random.between(0, 1) == 1) spec.kv_layout = KvLayout::kHND;
  if (random.between(0, 1) == 1) spec.o_dtype = DType::kFloat32;
  spec.sinks = random.between(0, 3) == 0;
  spec.alibi = random.between(0, 3) == 0;
}

std::vector<CheckBatch> batches_of(const CheckCommand& command) {
  std::vector<CheckBatch> batches = {{spec_of(command), first_requests(), command.seed}};
  for (std::int32_t i = 1; i <= command.random; ++i) {
    Random random(command.seed + static_cast<std::uint64_t>(i));
    CheckBatch batch{spec_of(command), {}, random.bits()};
    draw_spec(command, random, batch.spec);
    batch.requests = random_requests(random, batch.spec.page_size);
    batches.push_back(std::move(batch));
  }
  return batches;
}

/// What the results come to.
struct Summary {
  std::int64_t requests = 0;
  std::int64_t failed = 0;
  std::int64_t skipped = 0;  ///< Batches that the device has no kernel for.
  double max_error = 0;
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();

  [[nodiscard]] bool passed() const { return failed == 0; }
};

std::string title(const CheckBatch& batch, std::size_t index) {
  const AttentionSpec& spec = batch.spec;
  std::string options;
  if (spec.window_left >= 0) options += fmt::format(", window {}", spec.window_left);
  if (spec.logits_soft_cap > 0) options += fmt::format(", soft cap {:g}", spec.logits_soft_cap);
  if (spec.sinks) options += ", sinks";
  if (spec.alibi) options += ", ALiBi";
  return fmt::format(
      "{}: {}/{} heads, head dim {}, {}, pages of {} ({}), mask {}{}",
      index == 0 ? "First batch" : fmt::format("Random batch {}", index), spec.num_qo_heads,
      spec.num_kv_heads, spec.head_dim_qk, to_string(spec.kv_dtype), spec.page_size,
      spec.kv_layout == KvLayout::kNHD ? "NHD" : "HND", mask_name(spec.mask), options);
}

std::string line_of(std::size_t index, const RequestVerdict& verdict) {
  const RequestLengths& lengths = verdict.lengths;
  const std::string queries =
      lengths.queries == lengths.keys ? "" : fmt::format(", queries={}", lengths.queries);
  const std::string result =
      verdict.complaint.empty()
          ? painted("PASS", Paint::kGood)
          : fmt::format("{} ({})", painted("FAIL", Paint::kBad), verdict.complaint);
  return fmt::format("Request {} (len={}{}): {}", index, lengths.keys, queries, result);
}

void add_to(Summary& summary, std::size_t batch, const std::vector<RequestVerdict>& verdicts) {
  for (std::size_t i = 0; i < verdicts.size(); ++i) {
    const RequestVerdict& verdict = verdicts[i];
    ++summary.requests;
    summary.failed += verdict.complaint.empty() ? 0 : 1;
    summary.max_error = std::max(summary.max_error, verdict.max_error);
    summary.rows.push_back({{"batch", batch},
                            {"request", i},
                            {"kv_len", verdict.lengths.keys},
                            {"qo_len", verdict.lengths.queries},
                            {"max_error", verdict.max_error},
                            {"passed", verdict.complaint.empty()},
                            {"complaint", verdict.complaint}});
  }
}

void print(const CheckCommand& command, const Summary& summary) {
  if (command.json) {
    const nlohmann::ordered_json json = {{"schema", 1},
                                         {"command", "check"},
                                         {"device", device_name(command.device)},
                                         {"seed", command.seed},
                                         {"requests", summary.requests},
                                         {"failed", summary.failed},
                                         {"skipped_batches", summary.skipped},
                                         {"max_error", summary.max_error},
                                         {"passed", summary.passed()},
                                         {"results", summary.rows}};
    fmt::print("{}\n", json.dump());
    return;
  }
  if (summary.skipped > 0) fmt::print("\n{} batches were skipped\n", summary.skipped);
  if (summary.passed()) {
    fmt::print("\n{} quire: All requests match reference (max error: {:.1e})\n",
               painted("[PASS]", Paint::kGood), summary.max_error);
  } else {
    fmt::print("\n{} quire: {} of {} requests differ from the reference (max error: {:.1e})\n",
               painted("[FAIL]", Paint::kBad), summary.failed, summary.requests, summary.max_error);
  }
}

/// Batches that no kernel serves are skipped, but not all of them.
void require_one_supported(Device device, const std::vector<CheckBatch>& batches) {
  for (const CheckBatch& batch : batches) {
    if (supports(device, batch.spec).supported) return;
  }
  throw Error(ErrorCode::kUnsupported, supports(device, batches.front().spec).reason);
}

/// Checks a batch, or says why not.
void run_one(const CheckCommand& command, std::size_t index, const CheckBatch& batch, Place& place,
             Executor* threads, Progress& progress, Summary& summary) {
  const Support support = supports(command.device, batch.spec);
  std::vector<RequestVerdict> verdicts;
  if (support.supported) {
    verdicts = run_check(batch, place, threads);
    add_to(summary, index, verdicts);
  } else {
    ++summary.skipped;
    summary.rows.push_back({{"batch", index}, {"skipped", support.reason}});
  }
  progress.wipe();
  if (command.json) return;
  fmt::print("\n{}\n", title(batch, index));
  if (!support.supported) fmt::print("Skipped: {}\n", support.reason);
  for (std::size_t r = 0; r < verdicts.size(); ++r) fmt::print("{}\n", line_of(r, verdicts[r]));
}

void run_all(const CheckCommand& command, Session& session) {
  if (!is_float(command.shape.dtype)) {
    throw CommandError(ExitCode::kUsage, "--dtype: expected fp32, fp16 or bf16");
  }
  const std::unique_ptr<Place> place = open_place(command.device);
  const std::unique_ptr<Executor> threads = make_threads(command.threads);
  const std::vector<CheckBatch> batches = batches_of(command);
  require_one_supported(command.device, batches);
  Summary summary;
  Progress progress("check", static_cast<std::int64_t>(batches.size()));
  if (!command.json) fmt::print("Seed {}\n", command.seed);
  for (std::size_t i = 0; i < batches.size(); ++i) {
    progress.update(static_cast<std::int64_t>(i));
    run_one(command, i, batches[i], *place, threads.get(), progress, summary);
  }
  print(command, summary);
  if (!summary.passed()) session.exit_code = ExitCode::kFailed;
}

}  // namespace

void add_check(CLI::App& app, Session& session) {
  constexpr std::int32_t kMostBatches = 1'000'000;
  const auto command = std::make_shared<CheckCommand>();
  CLI::App* sub = app.add_subcommand(
      "check", "Compare ragged batches with the oracle: is the arithmetic right here?");
  add_shape(*sub, command->shape);
  command->heads_option = sub->get_option("--heads");
  command->page_size_option = sub->get_option("--page-size");
  command->window_option = sub->get_option("--window");
  command->soft_cap_option = sub->get_option("--soft-cap");
  command->mask_option = add_mask(*sub, command->mask);
  add_whole(*sub, "--random", command->random, 0, kMostBatches, "Random batches after the first");
  add_seed(*sub, command->seed);
  add_device(*sub, command->device);
  add_whole(*sub, "--threads", command->threads, 0, kMostThreads, "0 is the default (quire info)");
  add_json(*sub, command->json, "Print one JSON object");
  sub->callback([command, &session] { run_all(*command, session); });
}

}  // namespace quire::tool
