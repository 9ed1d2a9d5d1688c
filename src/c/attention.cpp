// SPDX-License-Identifier: Apache-2.0
// Attention handles: create, schedule, run, one-shot.
#include "quire/attention.hpp"

#include <utility>

#include "c/convert.hpp"
#include "c/handles.hpp"
#include "c/info.hpp"

namespace quire::c {
namespace {

Workspace workspace(void* data, std::size_t bytes) noexcept {
  return {static_cast<std::byte*>(data), data == nullptr ? 0 : bytes};
}

void store_sizes(const WorkspaceSizes& sizes, std::size_t* schedule, std::size_t* scratch) {
  if (schedule != nullptr) *schedule = sizes.schedule;
  if (scratch != nullptr) *scratch = sizes.scratch;
}

Status create(quire_device device, const quire_attention_spec* spec,
              const quire_batch_limits* limits, const quire_attention_options* options,
              quire_attention** out) {
  constexpr std::string_view kFunction = "quire_attention_create";
  Device on;
  AttentionSpec cpp_spec;
  BatchLimits cpp_limits;
  AttentionOptions cpp_options;
  std::shared_ptr<Executor> keep;
  Status status = check_result_handle(kFunction, "attention", out);
  if (status.ok()) status = read_device(kFunction, device, on);
  if (status.ok()) status = read_spec(kFunction, spec, cpp_spec);
  if (status.ok()) status = read_limits(kFunction, limits, cpp_limits);
  if (status.ok()) status = read_options(kFunction, options, cpp_options, keep);
  if (!status.ok()) return status;
  *out = new quire_attention{.executor = std::move(keep),
                             .attention = Attention(on, cpp_spec, cpp_limits, cpp_options)};
  return {};
}

Status workspace_sizes(quire_device device, const quire_attention_spec* spec,
                       const quire_batch_limits* limits, const quire_attention_options* options,
                       std::size_t* schedule, std::size_t* scratch) {
  constexpr std::string_view kFunction = "quire_workspace_sizes";
  Device on;
  AttentionSpec cpp_spec;
  BatchLimits cpp_limits;
  AttentionOptions cpp_options;
  std::shared_ptr<Executor> keep;
  Status status = read_device(kFunction, device, on);
  if (status.ok()) status = read_spec(kFunction, spec, cpp_spec);
  if (status.ok()) status = read_limits(kFunction, limits, cpp_limits);
  if (status.ok()) status = read_options(kFunction, options, cpp_options, keep);
  if (!status.ok()) return status;
  store_sizes(quire::workspace_sizes(on, cpp_spec, cpp_limits, cpp_options), schedule, scratch);
  return {};
}

Status supports(quire_device device, const quire_attention_spec* spec, const char** kernel) {
  constexpr std::string_view kFunction = "quire_supports";
  Device on;
  AttentionSpec cpp_spec;
  Status status = read_device(kFunction, device, on);
  if (status.ok()) status = read_spec(kFunction, spec, cpp_spec);
  if (!status.ok()) return status;
  const Support support = quire::supports(on, cpp_spec);
  if (!support.supported) return {ErrorCode::kUnsupported, support.reason};
  if (kernel != nullptr) *kernel = kernel_name(support.kernel);
  return {};
}

Status once(quire_device device, const quire_attention_spec* spec, const quire_batch* batch,
            const quire_attention_tensors* tensors, const quire_call_options* call,
            const quire_attention_options* options) {
  constexpr std::string_view kFunction = "quire_attention_once";
  Device on;
  AttentionSpec cpp_spec;
  Batch cpp_batch;
  AttentionTensors cpp_tensors;
  CallOptions cpp_call;
  AttentionOptions cpp_options;
  std::shared_ptr<Executor> keep;
  Status status = read_device(kFunction, device, on);
  if (status.ok()) status = read_spec(kFunction, spec, cpp_spec);
  if (status.ok()) status = read_batch(kFunction, batch, cpp_batch);
  if (status.ok()) status = read_tensors(kFunction, tensors, cpp_tensors);
  if (status.ok()) status = read_call(kFunction, call, cpp_call);
  if (status.ok()) status = read_options(kFunction, options, cpp_options, keep);
  if (status.ok()) quire::attention(on, cpp_spec, cpp_batch, cpp_tensors, cpp_call, cpp_options);
  return status;
}

Status schedule(const quire_attention* attention, const quire_batch* batch, void* data,
                std::size_t bytes, const quire_call_options* call) {
  constexpr std::string_view kFunction = "quire_attention_schedule";
  Batch cpp_batch;
  CallOptions cpp_call;
  Status status = check_handle(kFunction, "attention", attention);
  if (status.ok()) status = read_batch(kFunction, batch, cpp_batch);
  if (status.ok()) status = read_call(kFunction, call, cpp_call);
  return status.ok() ? attention->attention.schedule(cpp_batch, workspace(data, bytes), cpp_call)
                     : status;
}

Status run(const quire_attention* attention, const quire_batch* batch,
           const quire_attention_tensors* tensors, Workspace schedule, Workspace scratch,
           const quire_call_options* call) {
  constexpr std::string_view kFunction = "quire_attention_run";
  Batch cpp_batch;
  AttentionTensors cpp_tensors;
  CallOptions cpp_call;
  Status status = check_handle(kFunction, "attention", attention);
  if (status.ok()) status = read_batch(kFunction, batch, cpp_batch);
  if (status.ok()) status = read_tensors(kFunction, tensors, cpp_tensors);
  if (status.ok()) status = read_call(kFunction, call, cpp_call);
  return status.ok() ? attention->attention.run(cpp_batch, cpp_tensors, schedule, scratch, cpp_call)
                     : status;
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_supports(quire_device device, const quire_attention_spec* spec,
                            const char** kernel) noexcept {
  return quire::c::guarded([&] { return quire::c::supports(device, spec, kernel); });
}

quire_status quire_workspace_sizes(quire_device device, const quire_attention_spec* spec,
                                   const quire_batch_limits* limits,
                                   const quire_attention_options* options, size_t* schedule_bytes,
                                   size_t* scratch_bytes) noexcept {
  return quire::c::guarded([&] {
    return quire::c::workspace_sizes(device, spec, limits, options, schedule_bytes, scratch_bytes);
  });
}

quire_status quire_attention_create(quire_device device, const quire_attention_spec* spec,
                                    const quire_batch_limits* limits,
                                    const quire_attention_options* options,
                                    quire_attention** attention) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::create(device, spec, limits, options, attention); });
}

void quire_attention_destroy(quire_attention* attention) noexcept { quire::c::release(attention); }

quire_status quire_attention_get_spec(const quire_attention* attention,
                                      quire_attention_spec* spec) noexcept {
  return quire::c::guarded([&] {
    constexpr std::string_view kFunction = "quire_attention_get_spec";
    quire::Status status = quire::c::check_handle(kFunction, "attention", attention);
    if (!status.ok()) return status;
    return quire::c::write_struct(kFunction, "spec", quire::c::to_c(attention->attention.spec()),
                                  spec);
  });
}

quire_status quire_attention_get_limits(const quire_attention* attention,
                                        quire_batch_limits* limits) noexcept {
  return quire::c::guarded([&] {
    constexpr std::string_view kFunction = "quire_attention_get_limits";
    quire::Status status = quire::c::check_handle(kFunction, "attention", attention);
    if (!status.ok()) return status;
    return quire::c::write_struct(kFunction, "limits",
                                  quire::c::to_c(attention->attention.limits()), limits);
  });
}

const char* quire_attention_kernel(const quire_attention* attention) noexcept {
  const char* name = nullptr;
  quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_attention_kernel", "attention", attention);
    if (status.ok()) name = quire::c::kernel_name(attention->attention.kernel());
    return status;
  });
  return name;
}

quire_status quire_attention_workspace_sizes(const quire_attention* attention,
                                             size_t* schedule_bytes,
                                             size_t* scratch_bytes) noexcept {
  return quire::c::guarded([&] {
    quire::Status status =
        quire::c::check_handle("quire_attention_workspace_sizes", "attention", attention);
    if (status.ok()) {
      quire::c::store_sizes(attention->attention.workspace_sizes(), schedule_bytes, scratch_bytes);
    }
    return status;
  });
}

quire_status quire_attention_schedule(const quire_attention* attention, const quire_batch* batch,
                                      void* schedule, size_t schedule_bytes,
                                      const quire_call_options* call) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::schedule(attention, batch, schedule, schedule_bytes, call); });
}

quire_status quire_attention_run(const quire_attention* attention, const quire_batch* batch,
                                 const quire_attention_tensors* tensors, void* schedule,
                                 size_t schedule_bytes, void* scratch, size_t scratch_bytes,
                                 const quire_call_options* call) noexcept {
  return quire::c::guarded([&] {
    return quire::c::run(attention, batch, tensors, quire::c::workspace(schedule, schedule_bytes),
                         quire::c::workspace(scratch, scratch_bytes), call);
  });
}

quire_status quire_attention_once(quire_device device, const quire_attention_spec* spec,
                                  const quire_batch* batch, const quire_attention_tensors* tensors,
                                  const quire_call_options* call,
                                  const quire_attention_options* options) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::once(device, spec, batch, tensors, call, options); });
}

}  // extern "C"
