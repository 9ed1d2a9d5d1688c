// SPDX-License-Identifier: Apache-2.0
// Functions that need no attention handle: append, merge, the record of checked mode, tensors.
#include <limits>

#include "c/convert.hpp"
#include "c/handles.hpp"

namespace quire::c {
namespace {

Status append(quire_device device, std::int32_t kv_layout, const quire_batch* batch,
              const quire_append_tensors* tensors, const quire_call_options* call,
              const quire_attention_options* options) {
  constexpr std::string_view kFunction = "quire_append";
  Device on;
  Batch cpp_batch;
  AppendTensors cpp_tensors;
  CallOptions cpp_call;
  AttentionOptions cpp_options;
  KvLayout layout = KvLayout::kNHD;
  Status status = read_device(kFunction, device, on);
  if (status.ok()) status = read_layout(kFunction, kv_layout, layout);
  if (status.ok() && batch != nullptr) status = read_batch(kFunction, batch, cpp_batch);
  if (status.ok()) status = read_append_tensors(kFunction, tensors, cpp_tensors);
  if (status.ok()) status = read_call(kFunction, call, cpp_call);
  if (status.ok()) status = read_executor(kFunction, options, cpp_options);
  return status.ok() ? quire::append(on, layout, cpp_batch, cpp_tensors, cpp_call, cpp_options)
                     : status;
}

Status merge_states(quire_device device, const quire_merge_tensors* tensors,
                    const quire_call_options* call, const quire_attention_options* options) {
  constexpr std::string_view kFunction = "quire_merge_states";
  Device on;
  MergeTensors cpp_tensors;
  CallOptions cpp_call;
  AttentionOptions cpp_options;
  Status status = read_device(kFunction, device, on);
  if (status.ok()) status = read_merge_tensors(kFunction, tensors, cpp_tensors);
  if (status.ok()) status = read_call(kFunction, call, cpp_call);
  if (status.ok()) status = read_executor(kFunction, options, cpp_options);
  return status.ok() ? quire::merge_states(on, cpp_tensors, cpp_call, cpp_options) : status;
}

Status check_record(quire_device device, const quire_check_record* record,
                    const quire_call_options* call) {
  constexpr std::string_view kFunction = "quire_check_result";
  if (record == nullptr) return null_argument({kFunction, "record", "a quire_check_record"});
  Device on;
  CallOptions cpp_call;
  Status status = read_device(kFunction, device, on);
  if (status.ok()) status = read_call(kFunction, call, cpp_call);
  if (!status.ok()) return status;
  return quire::check_result(on, reinterpret_cast<const CheckRecord*>(record), cpp_call);
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_append(quire_device device, int32_t kv_layout, const quire_batch* batch,
                          const quire_append_tensors* tensors, const quire_call_options* call,
                          const quire_attention_options* options) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::append(device, kv_layout, batch, tensors, call, options); });
}

quire_status quire_merge_states(quire_device device, const quire_merge_tensors* tensors,
                                const quire_call_options* call,
                                const quire_attention_options* options) noexcept {
  return quire::c::guarded([&] { return quire::c::merge_states(device, tensors, call, options); });
}

quire_status quire_check_result(quire_device device, const quire_check_record* record,
                                const quire_call_options* call) noexcept {
  return quire::c::guarded([&] { return quire::c::check_record(device, record, call); });
}

quire_tensor quire_tensor_packed(const void* data, quire_dtype dtype, quire_device device,
                                 int32_t rank, const int64_t* shape) noexcept {
  quire_tensor tensor = QUIRE_TENSOR_NONE;
  if (shape == nullptr || rank < 0 || rank > QUIRE_MAX_RANK) return tensor;
  tensor.data = const_cast<void*>(data);  // quire writes only where a parameter says so
  tensor.dtype = dtype;
  tensor.rank = rank;
  tensor.device = device;
  uint64_t stride = 1;  // unsigned: a shape too large to exist wraps instead of overflowing
  for (int32_t axis = rank; axis-- > 0;) {
    tensor.shape[axis] = shape[axis];
    tensor.strides[axis] = static_cast<int64_t>(stride);
    stride *= static_cast<uint64_t>(shape[axis]);
  }
  return tensor;
}

}  // extern "C"
