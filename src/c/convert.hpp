// SPDX-License-Identifier: Apache-2.0
/// @file
/// C structs into the C++ ones that they mirror, and back.
#pragma once

#include <memory>
#include <string_view>

#include "c/structs.hpp"
#include "quire/attention.hpp"
#include "quire/page_table.hpp"
#include "quire/quire.h"

namespace quire::c {

TensorView to_view(const quire_tensor& tensor) noexcept;
MutableTensorView to_mutable_view(const quire_tensor& tensor) noexcept;

quire_attention_spec to_c(const AttentionSpec& spec) noexcept;
quire_batch_limits to_c(const BatchLimits& limits) noexcept;
quire_device to_c(Device device) noexcept;

inline SeqId to_cpp(quire_seq_id seq) noexcept { return {seq.slot, seq.generation}; }
inline quire_seq_id to_c(SeqId seq) noexcept { return {seq.slot, seq.generation}; }

/// The readers below check what the C++ types cannot hold: NULL, sizes, flags, kinds of device.
Status read_device(std::string_view function, quire_device given, Device& out);
Status read_layout(std::string_view function, std::int32_t given, KvLayout& out);
Status read_spec(std::string_view function, const quire_attention_spec* given, AttentionSpec& out);
Status read_limits(std::string_view function, const quire_batch_limits* given, BatchLimits& out);
Status read_batch(std::string_view function, const quire_batch* given, Batch& out);
Status read_tensors(std::string_view function, const quire_attention_tensors* given,
                    AttentionTensors& out);
Status read_append_tensors(std::string_view function, const quire_append_tensors* given,
                           AppendTensors& out);
Status read_merge_tensors(std::string_view function, const quire_merge_tensors* given,
                          MergeTensors& out);
Status read_call(std::string_view function, const quire_call_options* given, CallOptions& out);

/// The executor of options, NULL included; the kernel's name is left out, so nothing allocates.
Status read_executor(std::string_view function, const quire_attention_options* given,
                     AttentionOptions& out);
/// All of the options. @param keep  Shares the executor, for whoever outlives the call.
Status read_options(std::string_view function, const quire_attention_options* given,
                    AttentionOptions& out, std::shared_ptr<Executor>& keep);

}  // namespace quire::c
