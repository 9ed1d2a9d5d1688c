// SPDX-License-Identifier: Apache-2.0
// The public free functions that need no spec: append, merge_states,
// execute_copies, check_result.
#include <fmt/format.h>

#include <array>
#include <new>
#include <string>

#include "core/backend.hpp"
#include "core/bind.hpp"
#include "core/copies.hpp"
#include "core/prefix_groups.hpp"
#include "quire/attention.hpp"

namespace quire {
inline namespace v0 {
namespace {

struct CheckedText {
  CheckedItem item;
  std::string_view name;
  bool exclusive = false;  ///< the value had to stay below the bound
  ErrorCode code = ErrorCode::kInvalidArgument;
};

constexpr std::array kCheckedTexts = {
    CheckedText{CheckedItem::kQoIndptr, "qo_indptr"},
    CheckedText{CheckedItem::kKvLen, "kv_len"},
    CheckedText{CheckedItem::kPageId, "page id", true},
    CheckedText{CheckedItem::kKvPageIndptr, "kv_page_indptr"},
    CheckedText{CheckedItem::kKvLastPageLen, "kv_last_page_len"},
    CheckedText{CheckedItem::kKvIndptr, "kv_indptr"},
    CheckedText{CheckedItem::kSlot, "slot_mapping", true},
    CheckedText{CheckedItem::kFullMaskIndptr, "full_mask_indptr"},
    CheckedText{CheckedItem::kMaxTotalQ, "rows of q", false, ErrorCode::kTooLong},
    CheckedText{CheckedItem::kMaxKvLen, "keys", false, ErrorCode::kTooLong},
};

std::string expected(const CheckedText& text, const CheckRecord& record) {
  if (text.exclusive) return fmt::format("a value in [0, {})", record.bound);
  return fmt::format("a value of at {} {}", record.value < record.bound ? "least" : "most",
                     record.bound);
}

Status sentence(const CheckRecord& record) {
  for (const CheckedText& text : kCheckedTexts) {
    if (static_cast<std::int32_t>(text.item) != record.what) continue;
    return {text.code,
            fmt::format("[check] {} of request {}, position {}: expected {}, got {}", text.name,
                        record.seq, record.position, expected(text, record), record.value)};
  }
  if (const std::string offence = core::describe_group_offence(record); !offence.empty()) {
    return {ErrorCode::kInvalidArgument, "[check] " + offence};
  }
  return {ErrorCode::kInternal, fmt::format("[check] unknown item {}", record.what)};
}

Executor& executor_of(const AttentionOptions& options) {
  return options.executor != nullptr ? *options.executor : default_executor();
}

/// Turns what a body may throw into a status.
template <typename Body>
Status guarded(Body body) noexcept {
  try {
    return body();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, {}};
  }
}

}  // namespace

Status append(Device device, KvLayout layout, const Batch& batch, const AppendTensors& tensors,
              const CallOptions& call, const AttentionOptions& options) noexcept {
  return guarded([&] {
    core::BatchArrays batch_arrays;
    core::AppendArrays arrays;
    Status status = core::bind_append(device, layout, batch, tensors, batch_arrays, arrays);
    if (!status.ok()) return status;
    if (device.type == DeviceType::kCuda) return cuda::append(device, batch_arrays, arrays, call);
    return cpu::append(batch_arrays, arrays, call, &executor_of(options));
  });
}

Status merge_states(Device device, const MergeTensors& tensors, const CallOptions& call,
                    const AttentionOptions& options) noexcept {
  return guarded([&] {
    core::MergeArrays arrays;
    Status status = core::bind_merge(device, tensors, arrays);
    if (!status.ok()) return status;
    if (device.type == DeviceType::kCuda) return cuda::merge_states(device, arrays, call);
    return cpu::merge_states(arrays, &executor_of(options));
  });
}

Status execute_copies(Device device, KvLayout layout, std::span<const CopyOp> copies,
                      std::span<const CopyTensors> caches, const CallOptions& call) noexcept {
  return guarded([&] {
    Status status = core::check_copies(device, layout, copies, caches);
    if (!status.ok()) return status;
    if (device.type == DeviceType::kCuda) {
      return cuda::execute_copies(device, layout, copies, caches, call);
    }
    cpu::execute_copies(layout, copies, caches);
    return status;
  });
}

Status check_result(Device device, const CheckRecord* record, const CallOptions& call) noexcept {
  return guarded([&]() -> Status {
    CheckRecord copy;
    if (record == nullptr) {
      return {ErrorCode::kInvalidArgument, "[check] record: expected a place in memory, got null"};
    }
    if (device.type == DeviceType::kCuda) {
      Status status = cuda::read_check_record(device, record, call, copy);
      if (!status.ok()) return status;
    } else {
      copy = *record;
    }
    return copy.what == 0 ? Status() : sentence(copy);
  });
}

}  // namespace v0
}  // namespace quire
