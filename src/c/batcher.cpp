// SPDX-License-Identifier: Apache-2.0
// Continuous batching: requests, plans, steps.
#include "quire/batcher.hpp"

#include <fmt/format.h>

#include <cstddef>
#include <utility>

#include "c/serving.hpp"
#include "c/structs.hpp"

namespace quire::c {

Status read_request(std::string_view function, const quire_request* given, Request& out) {
  quire_request known;
  Status status = read_struct(function, "request", given, known);
  if (!status.ok()) return status;
  out = {.id = known.id,
         .prompt_tokens = known.prompt_tokens,
         .max_new_tokens = known.max_new_tokens,
         .arrival = known.arrival,
         .name_space = known.name_space,
         .retention = {.priority = known.priority, .time_to_live = known.time_to_live},
         .head_start = known.head_start};
  if (known.prompt != nullptr && known.prompt_tokens > 0) {
    out.prompt = {known.prompt, static_cast<std::size_t>(known.prompt_tokens)};
  }
  if (known.num_further_samples > 0) {
    status = check_array(function, "request.further_samples", "uint64", known.further_samples,
                         static_cast<std::size_t>(known.num_further_samples));
    if (!status.ok()) return status;
    out.further_samples = {known.further_samples,
                           static_cast<std::size_t>(known.num_further_samples)};
  }
  return {};
}

namespace {

// Arrays of these are given out in place.
static_assert(sizeof(quire_step_item) == sizeof(StepItem));
static_assert(offsetof(quire_step_item, index) == offsetof(StepItem, index));
static_assert(offsetof(quire_step_item, seq) == offsetof(StepItem, seq));
static_assert(offsetof(quire_step_item, position) == offsetof(StepItem, position));
static_assert(offsetof(quire_step_item, num_new_tokens) == offsetof(StepItem, num_new_tokens));
static_assert(offsetof(quire_step_item, num_samples) == offsetof(StepItem, num_samples));
static_assert(offsetof(quire_step_item, is_prefill) == offsetof(StepItem, is_prefill));
static_assert(offsetof(quire_step_item, samples) == offsetof(StepItem, samples));
static_assert(offsetof(quire_step_item, admitted) == offsetof(StepItem, admitted));
static_assert(offsetof(quire_step_item, awaits_token) == offsetof(StepItem, awaits_token));

BatcherSpec to_cpp_spec(const quire_batcher_spec& given) {
  return {.max_requests = given.max_requests,
          .watermark_pages = given.watermark_pages,
          .max_steps_in_flight = given.max_steps_in_flight,
          .cached_windows = given.cached_windows};
}

Status create(quire_page_table* table, quire_prefix_cache* cache, const quire_batcher_spec* spec,
              quire_batcher** out) {
  constexpr std::string_view kFunction = "quire_batcher_create";
  quire_batcher_spec given;
  Status status = check_result_handle(kFunction, "batcher", out);
  if (status.ok()) status = check_handle(kFunction, "table", table);
  if (status.ok() && cache != nullptr) status = check_handle(kFunction, "cache", cache);
  if (status.ok()) status = read_optional(kFunction, "spec", spec, given);
  if (!status.ok()) return status;
  const BatcherSpec cpp_spec = to_cpp_spec(given);
  Batcher made = cache != nullptr ? Batcher(table->table, cache->cache, cpp_spec)
                                  : Batcher(table->table, cpp_spec);
  *out = new quire_batcher{.batcher = std::move(made), .ended = {}};
  return {};
}

Status create_windowed(quire_page_table* table, quire_prefix_cache* cache,
                       quire_page_table* const* windows, std::size_t num_windows,
                       const quire_batcher_spec* spec, quire_batcher** out) {
  constexpr std::string_view kFunction = "quire_batcher_create_windowed";
  Status status = check_result_handle(kFunction, "batcher", out);
  if (status.ok()) status = check_handle(kFunction, "table", table);
  if (status.ok() && cache != nullptr) status = check_handle(kFunction, "cache", cache);
  if (status.ok()) {
    status = check_array(kFunction, "windows", "quire_page_table*", windows, num_windows);
  }
  std::vector<PageTable*> tables;
  for (std::size_t i = 0; status.ok() && i < num_windows; ++i) {
    status = check_handle(kFunction, fmt::format("windows[{}]", i), windows[i]);
    if (status.ok()) tables.push_back(&windows[i]->table);
  }
  quire_batcher_spec given;
  if (status.ok()) status = read_optional(kFunction, "spec", spec, given);
  if (!status.ok()) return status;
  const BatcherSpec cpp_spec = to_cpp_spec(given);
  Batcher made = cache != nullptr ? Batcher(table->table, cache->cache, tables, cpp_spec)
                                  : Batcher(table->table, tables, cpp_spec);
  *out = new quire_batcher{.batcher = std::move(made), .ended = {}};
  return {};
}

Status window_of(const quire_step_plan* plan, std::size_t window, const quire_batch_entry** entries,
                 std::size_t* num_entries, const quire_copy_op** ops, std::size_t* num_ops) {
  constexpr std::string_view kFunction = "quire_step_plan_window";
  Status status = check_handle(kFunction, "plan", plan);
  if (status.ok()) status = check_place(kFunction, "entries", "a place for the list", entries);
  if (status.ok()) {
    status = check_place(kFunction, "num_entries", "a place for its length", num_entries);
  }
  if (!status.ok()) return status;
  if (window >= plan->plan.windows.size()) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] window: expected one of {} in a committed plan, got {}", kFunction,
                        plan->plan.windows.size(), window)};
  }
  const StepPlan::Window& of = plan->plan.windows[window];
  status = give_copies(kFunction, "ops", "num_ops", of.copies, ops, num_ops);
  if (!status.ok()) return status;
  *entries = reinterpret_cast<const quire_batch_entry*>(of.batch.data());
  *num_entries = of.batch.size();
  return {};
}

Status submit(quire_batcher* batcher, const quire_request* request) {
  constexpr std::string_view kFunction = "quire_batcher_submit";
  Request given;
  Status status = check_handle(kFunction, "batcher", batcher);
  if (status.ok()) status = read_request(kFunction, request, given);
  return status.ok() ? batcher->batcher.submit(given) : status;
}

Status plan_step(const quire_batcher* batcher, const quire_step_budget* budget,
                 quire_step_plan* plan) {
  constexpr std::string_view kFunction = "quire_batcher_plan";
  quire_step_budget given;
  Status status = check_handle(kFunction, "batcher", batcher);
  if (status.ok()) status = read_optional(kFunction, "budget", budget, given);
  if (status.ok()) status = check_handle(kFunction, "plan", plan);
  if (!status.ok()) return status;
  return batcher->batcher.plan({.max_tokens = given.max_tokens, .max_seqs = given.max_seqs},
                               plan->plan);
}

Status commit(quire_batcher* batcher, quire_step_plan* plan, quire_copy_plan* copies) {
  constexpr std::string_view kFunction = "quire_batcher_commit";
  Status status = check_handle(kFunction, "batcher", batcher);
  if (status.ok()) status = check_handle(kFunction, "plan", plan);
  if (status.ok()) status = check_handle(kFunction, "copies", copies);
  return status.ok() ? batcher->batcher.commit(plan->plan, copies->ops) : status;
}

Status finish_step(quire_batcher* batcher, const quire_step_plan* plan,
                   std::span<const std::int32_t> sampled, std::span<const std::uint64_t> stopped,
                   const std::uint64_t** ended, std::size_t* num_ended) {
  constexpr std::string_view kFunction = "quire_batcher_finish";
  Status status = check_handle(kFunction, "batcher", batcher);
  if (status.ok()) status = check_handle(kFunction, "plan", plan);
  if (status.ok()) {
    status = check_array(kFunction, "sampled", "int32", sampled.data(), sampled.size());
  }
  if (status.ok()) {
    status = check_array(kFunction, "stopped", "uint64", stopped.data(), stopped.size());
  }
  if (status.ok()) status = check_place(kFunction, "ended", "a place for the ids", ended);
  if (status.ok()) {
    status = check_place(kFunction, "num_ended", "a place for their number", num_ended);
  }
  if (!status.ok()) return status;
  batcher->ended.clear();
  status = batcher->batcher.finish(plan->plan, sampled, stopped, batcher->ended);
  if (!status.ok()) return status;
  *ended = batcher->ended.data();
  *num_ended = batcher->ended.size();
  return {};
}

Status get_stats(const quire_batcher* batcher, quire_batcher_stats* stats) {
  constexpr std::string_view kFunction = "quire_batcher_get_stats";
  Status status = check_handle(kFunction, "batcher", batcher);
  if (!status.ok()) return status;
  const BatcherStats now = batcher->batcher.stats();
  const quire_batcher_stats value = {.struct_size = 0,
                                     .steps = now.steps,
                                     .finished = now.finished,
                                     .preemptions = now.preemptions,
                                     .prefill_tokens = now.prefill_tokens,
                                     .decode_tokens = now.decode_tokens,
                                     .recomputed_tokens = now.recomputed_tokens,
                                     .cancelled = now.cancelled,
                                     .asked_tokens = now.asked_tokens,
                                     .hit_tokens = now.hit_tokens,
                                     .waiting = now.waiting,
                                     .running = now.running,
                                     .used_pages = now.used_pages,
                                     .idle_pages = now.idle_pages,
                                     .peak_used_pages = now.peak_used_pages,
                                     .reserved = 0,
                                     .swaps = now.swaps,
                                     .fetched_tokens = now.fetched_tokens};
  return write_struct(kFunction, "stats", value, stats);
}

/// Checks a plan and the two results of a function that gives out one of its lists.
template <typename Result, typename Element>
Status give_list(std::string_view function, std::string_view name, const quire_step_plan* plan,
                 std::vector<Element> StepPlan::* list, const Result** out, std::size_t* count) {
  Status status = check_handle(function, "plan", plan);
  if (status.ok()) status = check_place(function, name, "a place for the list", out);
  if (status.ok()) status = check_place(function, "count", "a place for its length", count);
  if (!status.ok()) return status;
  *out = reinterpret_cast<const Result*>((plan->plan.*list).data());
  *count = (plan->plan.*list).size();
  return {};
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_batcher_create(quire_page_table* table, quire_prefix_cache* cache,
                                  const quire_batcher_spec* spec,
                                  quire_batcher** batcher) noexcept {
  return quire::c::guarded([&] { return quire::c::create(table, cache, spec, batcher); });
}

quire_status quire_batcher_create_windowed(quire_page_table* table, quire_prefix_cache* cache,
                                           quire_page_table* const* windows, size_t num_windows,
                                           const quire_batcher_spec* spec,
                                           quire_batcher** batcher) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::create_windowed(table, cache, windows, num_windows, spec, batcher); });
}

void quire_batcher_destroy(quire_batcher* batcher) noexcept { quire::c::release(batcher); }

quire_status quire_batcher_submit(quire_batcher* batcher, const quire_request* request) noexcept {
  return quire::c::guarded([&] { return quire::c::submit(batcher, request); });
}

quire_status quire_batcher_cancel(quire_batcher* batcher, uint64_t request) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_batcher_cancel", "batcher", batcher);
    return status.ok() ? batcher->batcher.cancel(request) : status;
  });
}

quire_status quire_batcher_plan(const quire_batcher* batcher, const quire_step_budget* budget,
                                quire_step_plan* plan) noexcept {
  return quire::c::guarded([&] { return quire::c::plan_step(batcher, budget, plan); });
}

quire_status quire_batcher_commit(quire_batcher* batcher, quire_step_plan* plan,
                                  quire_copy_plan* copies) noexcept {
  return quire::c::guarded([&] { return quire::c::commit(batcher, plan, copies); });
}

quire_status quire_batcher_finish(quire_batcher* batcher, const quire_step_plan* plan,
                                  const int32_t* sampled, size_t num_sampled,
                                  const uint64_t* stopped, size_t num_stopped,
                                  const uint64_t** ended, size_t* num_ended) noexcept {
  return quire::c::guarded([&] {
    return quire::c::finish_step(batcher, plan, {sampled, num_sampled}, {stopped, num_stopped},
                                 ended, num_ended);
  });
}

int32_t quire_batcher_idle(const quire_batcher* batcher) noexcept {
  return quire::c::number_of("quire_batcher_idle", "batcher", batcher, quire::c::kNone,
                             [&] { return batcher->batcher.idle() ? 1 : 0; });
}

quire_status quire_batcher_get_stats(const quire_batcher* batcher,
                                     quire_batcher_stats* stats) noexcept {
  return quire::c::guarded([&] { return quire::c::get_stats(batcher, stats); });
}

quire_status quire_batcher_check(const quire_batcher* batcher) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_batcher_check", "batcher", batcher);
    return status.ok() ? batcher->batcher.check() : status;
  });
}

quire_status quire_step_plan_create(quire_step_plan** plan) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_result_handle("quire_step_plan_create", "plan", plan);
    if (status.ok()) *plan = new quire_step_plan{};
    return status;
  });
}

void quire_step_plan_destroy(quire_step_plan* plan) noexcept { quire::c::release(plan); }

uint64_t quire_step_plan_step(const quire_step_plan* plan) noexcept {
  return quire::c::number_of("quire_step_plan_step", "plan", plan, uint64_t{0},
                             [&] { return plan->plan.step; });
}

int32_t quire_step_plan_num_tokens(const quire_step_plan* plan) noexcept {
  return quire::c::number_of("quire_step_plan_num_tokens", "plan", plan, quire::c::kNone,
                             [&] { return plan->plan.num_tokens; });
}

quire_status quire_step_plan_items(const quire_step_plan* plan, const quire_step_item** items,
                                   size_t* count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::give_list("quire_step_plan_items", "items", plan, &quire::StepPlan::items,
                               items, count);
  });
}

quire_status quire_step_plan_preempted(const quire_step_plan* plan, const uint64_t** requests,
                                       size_t* count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::give_list("quire_step_plan_preempted", "requests", plan,
                               &quire::StepPlan::preempted, requests, count);
  });
}

quire_status quire_step_plan_batch(const quire_step_plan* plan, const quire_batch_entry** entries,
                                   size_t* count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::give_list("quire_step_plan_batch", "entries", plan, &quire::StepPlan::batch,
                               entries, count);
  });
}

quire_status quire_step_plan_window(const quire_step_plan* plan, size_t window,
                                    const quire_batch_entry** entries, size_t* num_entries,
                                    const quire_copy_op** ops, size_t* num_ops) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::window_of(plan, window, entries, num_entries, ops, num_ops); });
}

}  // extern "C"
