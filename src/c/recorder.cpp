// SPDX-License-Identifier: Apache-2.0
// Records of what a batcher did.
#include "quire/recorder.hpp"

#include <fmt/format.h>

#include <cstddef>
#include <cstring>

#include "c/serving.hpp"
#include "c/structs.hpp"

namespace quire::c {
namespace {

static_assert(static_cast<int>(EventKind::kSubmit) == QUIRE_EVENT_SUBMIT);
static_assert(static_cast<int>(EventKind::kAdmit) == QUIRE_EVENT_ADMIT);
static_assert(static_cast<int>(EventKind::kPrefill) == QUIRE_EVENT_PREFILL);
static_assert(static_cast<int>(EventKind::kDecode) == QUIRE_EVENT_DECODE);
static_assert(static_cast<int>(EventKind::kPreempt) == QUIRE_EVENT_PREEMPT);
static_assert(static_cast<int>(EventKind::kFinish) == QUIRE_EVENT_FINISH);

quire_request_event to_c(const RequestEvent& event) {
  return {.request = event.request,
          .first_step = event.first_step,
          .last_step = event.last_step,
          .begin = event.begin,
          .end = event.end,
          .position = event.position,
          .num_tokens = event.num_tokens,
          .kind = static_cast<std::uint8_t>(event.kind)};
}

quire_step_record to_c(const StepRecord& step) {
  return {.step = step.step,
          .begin = step.begin,
          .end = step.end,
          .cached_tokens = step.cached_tokens,
          .prefill_tokens = step.prefill_tokens,
          .decode_tokens = step.decode_tokens,
          .reused_tokens = step.reused_tokens,
          .num_prefills = step.num_prefills,
          .num_decodes = step.num_decodes,
          .num_admitted = step.num_admitted,
          .num_preempted = step.num_preempted,
          .num_ended = step.num_ended,
          .waiting = step.waiting,
          .running = step.running,
          .used_pages = step.used_pages};
}

quire_request_record to_c(const RequestRecord& record) {
  return {.request = record.request,
          .submitted = record.submitted,
          .admitted = record.admitted,
          .first_token = record.first_token,
          .finished = record.finished,
          .longest_gap = record.longest_gap,
          .prompt_tokens = record.prompt_tokens,
          .new_tokens = record.new_tokens,
          .num_preemptions = record.num_preemptions,
          .recomputed_tokens = record.recomputed_tokens,
          .reused_tokens = record.reused_tokens};
}

Status create(const quire_recorder_spec* spec, quire_recorder** out) {
  constexpr std::string_view kFunction = "quire_recorder_create";
  quire_recorder_spec given;
  Status status = check_result_handle(kFunction, "recorder", out);
  if (status.ok()) status = read_optional(kFunction, "spec", spec, given);
  if (!status.ok()) return status;
  *out = new quire_recorder{.recorder = Recorder({.max_events = given.max_events,
                                                  .max_steps = given.max_steps,
                                                  .max_ended = given.max_ended,
                                                  .max_requests = given.max_requests})};
  return {};
}

Status submitted(quire_recorder* recorder, const quire_request* request, double time) {
  constexpr std::string_view kFunction = "quire_recorder_submitted";
  Request given;
  Status status = check_handle(kFunction, "recorder", recorder);
  if (status.ok()) status = read_request(kFunction, request, given);
  if (status.ok()) recorder->recorder.submitted(given, time);
  return status;
}

Status committed(quire_recorder* recorder, const quire_step_plan* plan,
                 const quire_batcher* batcher, double time) {
  constexpr std::string_view kFunction = "quire_recorder_committed";
  Status status = check_handle(kFunction, "recorder", recorder);
  if (status.ok()) status = check_handle(kFunction, "plan", plan);
  if (status.ok()) status = check_handle(kFunction, "batcher", batcher);
  if (status.ok()) recorder->recorder.committed(plan->plan, batcher->batcher.stats(), time);
  return status;
}

Status finished(quire_recorder* recorder, std::span<const std::uint64_t> ended,
                std::span<const std::uint64_t> stopped, double time) {
  constexpr std::string_view kFunction = "quire_recorder_finished";
  Status status = check_handle(kFunction, "recorder", recorder);
  if (status.ok()) {
    status = check_array(kFunction, "ended", "uint64", ended.data(), ended.size());
  }
  if (status.ok()) {
    status = check_array(kFunction, "stopped", "uint64", stopped.data(), stopped.size());
  }
  if (status.ok()) recorder->recorder.finished(ended, stopped, time);
  return status;
}

Status counts(const quire_recorder* recorder, quire_record_counts* kept,
              quire_record_counts* lost) {
  Status status = check_handle("quire_recorder_counts", "recorder", recorder);
  if (!status.ok()) return status;
  const Recorder& from = recorder->recorder;
  if (kept != nullptr) {
    *kept = {static_cast<std::int64_t>(from.events().size()),
             static_cast<std::int64_t>(from.steps().size()),
             static_cast<std::int64_t>(from.ended().size())};
  }
  if (lost != nullptr) {
    const RecorderLosses losses = from.losses();
    *lost = {losses.events, losses.steps, losses.ended};
  }
  return {};
}

/// Copies a stretch of one kind of record.
template <typename Record, typename CRecord>
Status copy_records(std::string_view function, std::string_view name,
                    const quire_recorder* recorder, Records<Record> (Recorder::*list)() const,
                    std::size_t first, CRecord* out, std::size_t count) {
  Status status = check_handle(function, "recorder", recorder);
  if (status.ok()) status = check_array(function, name, "records", out, count);
  if (!status.ok()) return status;
  const Records<Record> records = (recorder->recorder.*list)();
  if (first > records.size() || count > records.size() - first) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] first, count: expected a stretch of the {} records kept, got {} from "
                        "number {} on",
                        function, records.size(), count, first)};
  }
  for (std::size_t i = 0; i < count; ++i) out[i] = to_c(records[first + i]);
  return {};
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_recorder_create(const quire_recorder_spec* spec,
                                   quire_recorder** recorder) noexcept {
  return quire::c::guarded([&] { return quire::c::create(spec, recorder); });
}

void quire_recorder_destroy(quire_recorder* recorder) noexcept { quire::c::release(recorder); }

quire_status quire_recorder_submitted(quire_recorder* recorder, const quire_request* request,
                                      double time) noexcept {
  return quire::c::guarded([&] { return quire::c::submitted(recorder, request, time); });
}

quire_status quire_recorder_committed(quire_recorder* recorder, const quire_step_plan* plan,
                                      const quire_batcher* batcher, double time) noexcept {
  return quire::c::guarded([&] { return quire::c::committed(recorder, plan, batcher, time); });
}

quire_status quire_recorder_cancelled(quire_recorder* recorder, uint64_t request,
                                      double time) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_recorder_cancelled", "recorder", recorder);
    if (status.ok()) recorder->recorder.cancelled(request, time);
    return status;
  });
}

quire_status quire_recorder_finished(quire_recorder* recorder, const uint64_t* ended,
                                     size_t num_ended, const uint64_t* stopped, size_t num_stopped,
                                     double time) noexcept {
  return quire::c::guarded([&] {
    return quire::c::finished(recorder, {ended, num_ended}, {stopped, num_stopped}, time);
  });
}

quire_status quire_recorder_counts(const quire_recorder* recorder, quire_record_counts* kept,
                                   quire_record_counts* lost) noexcept {
  return quire::c::guarded([&] { return quire::c::counts(recorder, kept, lost); });
}

quire_status quire_recorder_events(const quire_recorder* recorder, size_t first,
                                   quire_request_event* events, size_t count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::copy_records("quire_recorder_events", "events", recorder,
                                  &quire::Recorder::events, first, events, count);
  });
}

quire_status quire_recorder_steps(const quire_recorder* recorder, size_t first,
                                  quire_step_record* steps, size_t count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::copy_records("quire_recorder_steps", "steps", recorder,
                                  &quire::Recorder::steps, first, steps, count);
  });
}

quire_status quire_recorder_ended(const quire_recorder* recorder, size_t first,
                                  quire_request_record* ended, size_t count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::copy_records("quire_recorder_ended", "ended", recorder,
                                  &quire::Recorder::ended, first, ended, count);
  });
}

}  // extern "C"
