// SPDX-License-Identifier: Apache-2.0
#include "c/convert.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "c/handles.hpp"

namespace quire::c {
namespace {

template <typename View>
View copy_view(const quire_tensor& tensor) noexcept {
  static_assert(View::kMaxRank == QUIRE_MAX_RANK);
  View view;
  view.data = tensor.data;
  view.dtype = static_cast<DType>(tensor.dtype);
  view.rank = tensor.rank;
  view.device = {static_cast<DeviceType>(tensor.device.type), tensor.device.index};
  std::copy_n(tensor.shape, QUIRE_MAX_RANK, view.shape.begin());
  std::copy_n(tensor.strides, QUIRE_MAX_RANK, view.strides.begin());
  return view;
}

Status read_flag(std::string_view function, std::string_view name, std::int32_t value, bool& out) {
  if (value != 0 && value != 1) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] {}: expected 0 or 1, got {}", function, name, value)};
  }
  out = value == 1;
  return {};
}

}  // namespace

TensorView to_view(const quire_tensor& tensor) noexcept { return copy_view<TensorView>(tensor); }

MutableTensorView to_mutable_view(const quire_tensor& tensor) noexcept {
  return copy_view<MutableTensorView>(tensor);
}

quire_attention_spec to_c(const AttentionSpec& spec) noexcept {
  quire_attention_spec out = QUIRE_ATTENTION_SPEC_INIT;
  out.num_qo_heads = spec.num_qo_heads;
  out.num_kv_heads = spec.num_kv_heads;
  out.head_dim_qk = spec.head_dim_qk;
  out.head_dim_vo = spec.head_dim_vo;
  out.q_dtype = static_cast<quire_dtype>(spec.q_dtype);
  out.kv_dtype = static_cast<quire_dtype>(spec.kv_dtype);
  out.o_dtype = static_cast<quire_dtype>(spec.o_dtype);
  out.kv_layout = static_cast<std::int32_t>(spec.kv_layout);
  out.page_size = spec.page_size;
  out.mask = static_cast<std::int32_t>(spec.mask);
  out.window_left = spec.window_left;
  out.sm_scale = spec.sm_scale;
  out.logits_soft_cap = spec.logits_soft_cap;
  out.sinks = spec.sinks ? 1 : 0;
  out.alibi = spec.alibi ? 1 : 0;
  out.kv_scale = static_cast<std::int32_t>(spec.kv_scale);
  out.no_shared_prefixes = spec.share_prefixes ? 0 : 1;
  out.batch_invariant = spec.batch_invariant ? 1 : 0;
  return out;
}

quire_batch_limits to_c(const BatchLimits& limits) noexcept {
  quire_batch_limits out = QUIRE_BATCH_LIMITS_INIT;
  out.max_num_seqs = limits.max_num_seqs;
  out.max_total_q = limits.max_total_q;
  out.max_kv_len = limits.max_kv_len;
  return out;
}

quire_device to_c(Device device) noexcept {
  return {static_cast<std::int32_t>(device.type), device.index};
}

Status read_device(std::string_view function, quire_device given, Device& out) {
  const bool known = given.type == QUIRE_DEVICE_CPU || given.type == QUIRE_DEVICE_CUDA;
  if (!known || given.index < 0) {
    return {
        ErrorCode::kInvalidArgument,
        fmt::format("[{}] device: expected type 0 (CPU) or 1 (CUDA) and index >= 0, got type {} "
                    "and index {}",
                    function, given.type, given.index)};
  }
  out = {static_cast<DeviceType>(given.type), given.index};
  return {};
}

Status read_layout(std::string_view function, std::int32_t given, KvLayout& out) {
  if (given != QUIRE_LAYOUT_NHD && given != QUIRE_LAYOUT_HND) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] kv_layout: expected 0 (NHD) or 1 (HND), got {}", function, given)};
  }
  out = static_cast<KvLayout>(given);
  return {};
}

Status read_spec(std::string_view function, const quire_attention_spec* given, AttentionSpec& out) {
  quire_attention_spec spec;
  if (Status status = read_struct(function, "spec", given, spec); !status.ok()) return status;
  out.num_qo_heads = spec.num_qo_heads;
  out.num_kv_heads = spec.num_kv_heads;
  out.head_dim_qk = spec.head_dim_qk;
  out.head_dim_vo = spec.head_dim_vo;
  out.q_dtype = static_cast<DType>(spec.q_dtype);
  out.kv_dtype = static_cast<DType>(spec.kv_dtype);
  out.o_dtype = static_cast<DType>(spec.o_dtype);
  out.kv_layout = static_cast<KvLayout>(spec.kv_layout);
  out.page_size = spec.page_size;
  out.mask = static_cast<Mask>(spec.mask);
  out.window_left = spec.window_left;
  out.sm_scale = spec.sm_scale;
  out.logits_soft_cap = spec.logits_soft_cap;
  out.kv_scale = static_cast<KvScale>(spec.kv_scale);
  if (Status status = read_flag(function, "spec.sinks", spec.sinks, out.sinks); !status.ok()) {
    return status;
  }
  if (Status status = read_flag(function, "spec.alibi", spec.alibi, out.alibi); !status.ok()) {
    return status;
  }
  if (Status status =
          read_flag(function, "spec.batch_invariant", spec.batch_invariant, out.batch_invariant);
      !status.ok()) {
    return status;
  }
  bool apart = false;
  const Status status =
      read_flag(function, "spec.no_shared_prefixes", spec.no_shared_prefixes, apart);
  out.share_prefixes = !apart;
  return status;
}

Status read_limits(std::string_view function, const quire_batch_limits* given, BatchLimits& out) {
  quire_batch_limits limits;
  if (Status status = read_struct(function, "limits", given, limits); !status.ok()) return status;
  if (limits.reserved != 0) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] limits.reserved: expected 0, got {}", function, limits.reserved)};
  }
  out.max_num_seqs = limits.max_num_seqs;
  out.max_total_q = limits.max_total_q;
  out.max_kv_len = limits.max_kv_len;
  return {};
}

Status read_batch(std::string_view function, const quire_batch* given, Batch& out) {
  quire_batch batch;
  if (Status status = read_struct(function, "batch", given, batch); !status.ok()) return status;
  out.qo_indptr = to_view(batch.qo_indptr);
  out.kv_len = to_view(batch.kv_len);
  out.page_table = to_view(batch.page_table);
  out.kv_page_indptr = to_view(batch.kv_page_indptr);
  out.kv_page_indices = to_view(batch.kv_page_indices);
  out.kv_last_page_len = to_view(batch.kv_last_page_len);
  out.kv_indptr = to_view(batch.kv_indptr);
  out.tree_mask = to_view(batch.tree_mask);
  out.full_mask = to_view(batch.full_mask);
  out.full_mask_indptr = to_view(batch.full_mask_indptr);
  out.prefix_leaders = to_view(batch.prefix_leaders);
  out.prefix_pages = to_view(batch.prefix_pages);
  return {};
}

Status read_tensors(std::string_view function, const quire_attention_tensors* given,
                    AttentionTensors& out) {
  quire_attention_tensors tensors;
  if (Status status = read_struct(function, "tensors", given, tensors); !status.ok()) return status;
  out.q = to_view(tensors.q);
  out.k = to_view(tensors.k);
  out.v = to_view(tensors.v);
  out.o = to_mutable_view(tensors.o);
  out.lse = to_mutable_view(tensors.lse);
  out.k_scale = to_view(tensors.k_scale);
  out.v_scale = to_view(tensors.v_scale);
  out.sinks = to_view(tensors.sinks);
  out.alibi_slopes = to_view(tensors.alibi_slopes);
  out.q_scale = to_view(tensors.q_scale);
  return {};
}

Status read_append_tensors(std::string_view function, const quire_append_tensors* given,
                           AppendTensors& out) {
  quire_append_tensors tensors;
  if (Status status = read_struct(function, "tensors", given, tensors); !status.ok()) return status;
  out.k = to_view(tensors.k);
  out.v = to_view(tensors.v);
  out.k_cache = to_mutable_view(tensors.k_cache);
  out.v_cache = to_mutable_view(tensors.v_cache);
  out.slot_mapping = to_view(tensors.slot_mapping);
  out.k_scale = to_view(tensors.k_scale);
  out.v_scale = to_view(tensors.v_scale);
  out.k_token_scale = to_mutable_view(tensors.k_token_scale);
  out.v_token_scale = to_mutable_view(tensors.v_token_scale);
  return {};
}

Status read_merge_tensors(std::string_view function, const quire_merge_tensors* given,
                          MergeTensors& out) {
  quire_merge_tensors tensors;
  if (Status status = read_struct(function, "tensors", given, tensors); !status.ok()) return status;
  out.o_parts = to_view(tensors.o_parts);
  out.lse_parts = to_view(tensors.lse_parts);
  out.o = to_mutable_view(tensors.o);
  out.lse = to_mutable_view(tensors.lse);
  return {};
}

Status read_call(std::string_view function, const quire_call_options* given, CallOptions& out) {
  // The record is read and written on the device, so the two types are one layout.
  static_assert(sizeof(quire_check_record) == sizeof(CheckRecord));
  static_assert(offsetof(quire_check_record, position) == offsetof(CheckRecord, position));
  static_assert(offsetof(quire_check_record, bound) == offsetof(CheckRecord, bound));
  quire_call_options call;
  if (Status status = read_optional(function, "call", given, call); !status.ok()) return status;
  out.stream = call.stream;
  out.check = reinterpret_cast<CheckRecord*>(call.check);
  return {};
}

Status read_executor(std::string_view function, const quire_attention_options* given,
                     AttentionOptions& out) {
  quire_attention_options options;
  if (Status status = read_optional(function, "options", given, options); !status.ok()) {
    return status;
  }
  if (options.executor == nullptr) return {};
  if (Status status = check_handle(function, "options.executor", options.executor); !status.ok()) {
    return status;
  }
  out.executor = options.executor->executor.get();
  return {};
}

Status read_options(std::string_view function, const quire_attention_options* given,
                    AttentionOptions& out, std::shared_ptr<Executor>& keep) {
  if (Status status = read_executor(function, given, out); !status.ok()) return status;
  quire_attention_options options;
  if (Status status = read_optional(function, "options", given, options); !status.ok()) {
    return status;
  }
  if (options.executor != nullptr) keep = options.executor->executor;
  if (options.kernel != nullptr) out.kernel = options.kernel;
  return {};
}

}  // namespace quire::c
