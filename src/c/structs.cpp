// SPDX-License-Identifier: Apache-2.0
#include "c/structs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace quire::c {
namespace {

/// No client's struct is larger; a size beyond is an uninitialised field.
constexpr std::size_t kMaxStructSize = 16384;

// Padding at the end of a struct would hold garbage of older clients once a field is put there.
template <typename Struct, typename Field>
constexpr bool ends_with(std::size_t offset_of_last) {
  return offset_of_last + sizeof(Field) == sizeof(Struct);
}
static_assert(ends_with<quire_executor_callbacks, std::int32_t>(offsetof(quire_executor_callbacks,
                                                                         reserved)));
static_assert(ends_with<quire_attention_spec, std::int32_t>(offsetof(quire_attention_spec,
                                                                     batch_invariant)));
static_assert(ends_with<quire_batch_limits, std::int32_t>(offsetof(quire_batch_limits, reserved)));
static_assert(ends_with<quire_attention_options, const char*>(offsetof(quire_attention_options,
                                                                       kernel)));
static_assert(ends_with<quire_batch, quire_tensor>(offsetof(quire_batch, prefix_pages)));
static_assert(ends_with<quire_attention_tensors, quire_tensor>(offsetof(quire_attention_tensors,
                                                                        q_scale)));
static_assert(ends_with<quire_call_options, void*>(offsetof(quire_call_options, check)));
static_assert(ends_with<quire_append_tensors, quire_tensor>(offsetof(quire_append_tensors,
                                                                     v_token_scale)));
static_assert(ends_with<quire_merge_tensors, quire_tensor>(offsetof(quire_merge_tensors, lse)));
static_assert(ends_with<quire_page_pool_spec, std::int32_t>(offsetof(quire_page_pool_spec,
                                                                     page_size)));
static_assert(ends_with<quire_page_table_spec, std::int32_t>(offsetof(quire_page_table_spec,
                                                                      reserved)));
static_assert(ends_with<quire_kernel_info, std::int32_t>(offsetof(quire_kernel_info, reserved)));
static_assert(ends_with<quire_device_info, const char*>(offsetof(quire_device_info, facts)));
static_assert(ends_with<quire_prefix_cache_spec, double>(offsetof(quire_prefix_cache_spec,
                                                                  prefill_tokens_per_second)));
static_assert(ends_with<quire_retention, std::int32_t>(offsetof(quire_retention, reserved)));
static_assert(ends_with<quire_prefix_cache_stats, std::int32_t>(offsetof(quire_prefix_cache_stats,
                                                                         in_flight)));
static_assert(ends_with<quire_staged_batch, const std::int32_t*>(offsetof(quire_staged_batch,
                                                                          page_table)));
static_assert(ends_with<quire_batcher_spec, std::int32_t>(offsetof(quire_batcher_spec,
                                                                   cached_windows)));
static_assert(ends_with<quire_request, const std::uint64_t*>(offsetof(quire_request,
                                                                      further_samples)));
static_assert(ends_with<quire_step_budget, std::int32_t>(offsetof(quire_step_budget, max_seqs)));
static_assert(ends_with<quire_batcher_stats, std::int64_t>(offsetof(quire_batcher_stats,
                                                                    fetched_tokens)));
static_assert(ends_with<quire_recorder_spec, std::int32_t>(offsetof(quire_recorder_spec,
                                                                    max_requests)));

/// The `struct_size` that every struct begins with.
std::size_t stated_size(const void* given) {
  std::size_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  return size;
}

bool plausible(const StructLayout& layout, std::size_t size) {
  return size >= sizeof(std::size_t) && size <= kMaxStructSize && size % layout.alignment == 0;
}

Status check_size(std::string_view function, std::string_view name, const StructLayout& layout,
                  const void* given) {
  if (given == nullptr) return null_argument({function, name, fmt::format("a {}", layout.name)});
  const std::size_t size = stated_size(given);
  if (plausible(layout, size)) return {};
  return {ErrorCode::kInvalidArgument,
          fmt::format("[{}] {}.struct_size: expected sizeof({}), {} in this version, got {}; begin "
                      "with {}",
                      function, name, layout.name, layout.size, size, layout.init)};
}

}  // namespace

Status read_bytes(std::string_view function, std::string_view name, const StructLayout& layout,
                  const void* given, void* out) {
  if (Status status = check_size(function, name, layout, given); !status.ok()) return status;
  const std::size_t size = stated_size(given);
  const auto* bytes = static_cast<const unsigned char*>(given);
  for (std::size_t offset = layout.size; offset < size; ++offset) {
    if (bytes[offset] == 0) continue;
    return {
        ErrorCode::kInvalidArgument,
        fmt::format("[{}] {}: expected zeros beyond byte {}, all that quire {} knows of {}, got "
                    "a value at byte {}; a newer library knows that field",
                    function, name, layout.size, version(), layout.name, offset)};
  }
  constexpr std::size_t kHeader = sizeof(std::size_t);
  std::memcpy(static_cast<unsigned char*>(out) + kHeader, bytes + kHeader,
              std::min(size, layout.size) - kHeader);
  return {};
}

Status write_bytes(std::string_view function, std::string_view name, const StructLayout& layout,
                   const void* value, void* given) {
  if (Status status = check_size(function, name, layout, given); !status.ok()) return status;
  constexpr std::size_t kHeader = sizeof(std::size_t);
  const std::size_t size = stated_size(given);
  const std::size_t known = std::min(size, layout.size);
  auto* bytes = static_cast<unsigned char*>(given);
  std::memcpy(bytes + kHeader, static_cast<const unsigned char*>(value) + kHeader, known - kHeader);
  std::memset(bytes + known, 0, size - known);
  return {};
}

quire_status init_bytes(const StructLayout& layout, const void* defaults, void* out,
                        std::size_t struct_size) noexcept {
  return guarded([&]() -> Status {
    if (out == nullptr)
      return null_argument({"quire_init", "out", fmt::format("a {}", layout.name)});
    if (!plausible(layout, struct_size)) {
      return {
          ErrorCode::kInvalidArgument,
          fmt::format("[quire_init] struct_size: expected sizeof({}), {} in this version, got {}",
                      layout.name, layout.size, struct_size)};
    }
    std::memcpy(out, &struct_size, sizeof(struct_size));
    return write_bytes("quire_init", "out", layout, defaults, out);
  });
}

}  // namespace quire::c

extern "C" {

quire_status quire_executor_callbacks_init(quire_executor_callbacks* callbacks,
                                           size_t struct_size) noexcept {
  return quire::c::init_struct(callbacks, struct_size);
}

quire_status quire_attention_spec_init(quire_attention_spec* spec, size_t struct_size) noexcept {
  return quire::c::init_struct(spec, struct_size);
}

quire_status quire_batch_limits_init(quire_batch_limits* limits, size_t struct_size) noexcept {
  return quire::c::init_struct(limits, struct_size);
}

quire_status quire_attention_options_init(quire_attention_options* options,
                                          size_t struct_size) noexcept {
  return quire::c::init_struct(options, struct_size);
}

quire_status quire_batch_init(quire_batch* batch, size_t struct_size) noexcept {
  return quire::c::init_struct(batch, struct_size);
}

quire_status quire_attention_tensors_init(quire_attention_tensors* tensors,
                                          size_t struct_size) noexcept {
  return quire::c::init_struct(tensors, struct_size);
}

quire_status quire_call_options_init(quire_call_options* call, size_t struct_size) noexcept {
  return quire::c::init_struct(call, struct_size);
}

quire_status quire_append_tensors_init(quire_append_tensors* tensors, size_t struct_size) noexcept {
  return quire::c::init_struct(tensors, struct_size);
}

quire_status quire_merge_tensors_init(quire_merge_tensors* tensors, size_t struct_size) noexcept {
  return quire::c::init_struct(tensors, struct_size);
}

quire_status quire_page_pool_spec_init(quire_page_pool_spec* spec, size_t struct_size) noexcept {
  return quire::c::init_struct(spec, struct_size);
}

quire_status quire_page_table_spec_init(quire_page_table_spec* spec, size_t struct_size) noexcept {
  return quire::c::init_struct(spec, struct_size);
}

quire_status quire_kernel_info_init(quire_kernel_info* info, size_t struct_size) noexcept {
  return quire::c::init_struct(info, struct_size);
}

quire_status quire_device_info_init(quire_device_info* info, size_t struct_size) noexcept {
  return quire::c::init_struct(info, struct_size);
}

quire_status quire_prefix_cache_spec_init(quire_prefix_cache_spec* spec,
                                          size_t struct_size) noexcept {
  return quire::c::init_struct(spec, struct_size);
}

quire_status quire_retention_init(quire_retention* retention, size_t struct_size) noexcept {
  return quire::c::init_struct(retention, struct_size);
}

quire_status quire_prefix_cache_stats_init(quire_prefix_cache_stats* stats,
                                           size_t struct_size) noexcept {
  return quire::c::init_struct(stats, struct_size);
}

quire_status quire_staged_batch_init(quire_staged_batch* batch, size_t struct_size) noexcept {
  return quire::c::init_struct(batch, struct_size);
}

quire_status quire_batcher_spec_init(quire_batcher_spec* spec, size_t struct_size) noexcept {
  return quire::c::init_struct(spec, struct_size);
}

quire_status quire_request_init(quire_request* request, size_t struct_size) noexcept {
  return quire::c::init_struct(request, struct_size);
}

quire_status quire_step_budget_init(quire_step_budget* budget, size_t struct_size) noexcept {
  return quire::c::init_struct(budget, struct_size);
}

quire_status quire_batcher_stats_init(quire_batcher_stats* stats, size_t struct_size) noexcept {
  return quire::c::init_struct(stats, struct_size);
}

quire_status quire_recorder_spec_init(quire_recorder_spec* spec, size_t struct_size) noexcept {
  return quire::c::init_struct(spec, struct_size);
}

}  // extern "C"
