// SPDX-License-Identifier: Apache-2.0
// The public class: resolve once, then bind and hand over to the backend.
#include "quire/attention.hpp"

#include <algorithm>
#include <limits>
#include <new>

#include "core/backend.hpp"
#include "core/bind.hpp"
#include "core/expect.hpp"
#include "core/resolve.hpp"

namespace quire {
inline namespace v0 {
namespace {

/// Caller-owned memory for those who do not care.
class OwnedWorkspace {
 public:
  OwnedWorkspace(Device device, std::size_t bytes, void* stream)
      : device_(device), stream_(stream), bytes_(bytes) {
    const std::size_t some = std::max<std::size_t>(bytes, 1);
    data_ = static_cast<std::byte*>(
        is_on_cuda() ? cuda::allocate(device, some)
                     : ::operator new(some, std::align_val_t(kWorkspaceAlignment)));
  }
  OwnedWorkspace(const OwnedWorkspace&) = delete;
  OwnedWorkspace& operator=(const OwnedWorkspace&) = delete;
  ~OwnedWorkspace() {
    if (is_on_cuda()) {
      cuda::release(device_, data_, stream_);
    } else {
      ::operator delete(data_, std::align_val_t(kWorkspaceAlignment));
    }
  }

  [[nodiscard]] Workspace get() const { return {data_, bytes_}; }

 private:
  [[nodiscard]] bool is_on_cuda() const { return device_.type == DeviceType::kCuda; }

  Device device_;
  void* stream_;
  std::byte* data_ = nullptr;
  std::size_t bytes_;
};

std::int32_t to_int32(std::int64_t value) {
  return static_cast<std::int32_t>(
      std::clamp<std::int64_t>(value, 0, std::numeric_limits<std::int32_t>::max()));
}

/// Limits that hold one batch, from shapes alone: its values may be on a device.
BatchLimits limits_of(const AttentionSpec& spec, const Batch& batch,
                      const AttentionTensors& tensors) {
  std::int64_t max_kv_len = 0;
  if (spec.page_size == kContiguousKv) {
    max_kv_len = tensors.k.size(spec.kv_layout == KvLayout::kHND ? 1 : 0);
  } else if (batch.page_table.given()) {
    max_kv_len = std::int64_t{to_int32(batch.page_table.size(1))} * spec.page_size;
  } else if (batch.kv_page_indices.given()) {
    max_kv_len = std::int64_t{to_int32(batch.kv_page_indices.size(0))} * spec.page_size;
  }
  BatchLimits limits;
  limits.max_num_seqs = to_int32(batch.qo_indptr.size(0) - 1);
  limits.max_total_q = to_int32(tensors.q.size(0));
  limits.max_kv_len = to_int32(max_kv_len);
  return limits;
}

}  // namespace

/// Of a backend whose schedules are not in the host's memory.
Status internal::AttentionBackend::count_key_reads(const core::BatchArrays& /*batch*/,
                                                   Workspace /*schedule*/,
                                                   KeyReads& /*reads*/) const noexcept {
  return {ErrorCode::kUnsupported,
          core::invalid("key reads", "device", "expected cpu, got cuda").message()};
}

Support supports(Device device, const AttentionSpec& spec) {
  Support support;
  try {
    const AttentionSpec resolved = core::resolve_spec(spec);
    const core::KernelRow* row = core::find_kernel(device.type, resolved, {}, support.reason);
    support.supported = row != nullptr;
    if (row != nullptr) support.kernel = row->name;
  } catch (const Error& error) {
    support.reason = error.what();
  }
  return support;
}

WorkspaceSizes workspace_sizes(Device device, const AttentionSpec& spec, const BatchLimits& limits,
                               const AttentionOptions& options) {
  const core::AttentionConfig config = core::resolve(device, spec, limits, options);
  return device.type == DeviceType::kCuda ? cuda::workspace_sizes(config)
                                          : cpu::workspace_sizes(config);
}

Attention::Attention(Device device, const AttentionSpec& spec, const BatchLimits& limits,
                     const AttentionOptions& options) {
  const core::AttentionConfig config = core::resolve(device, spec, limits, options);
  backend_ =
      device.type == DeviceType::kCuda ? cuda::make_attention(config) : cpu::make_attention(config);
}

Attention::Attention(Attention&&) noexcept = default;
Attention& Attention::operator=(Attention&&) noexcept = default;
Attention::~Attention() = default;

const AttentionSpec& Attention::spec() const noexcept { return backend_->config.spec; }
const BatchLimits& Attention::limits() const noexcept { return backend_->config.limits; }
Device Attention::device() const noexcept { return backend_->config.device; }
std::string_view Attention::kernel() const noexcept { return backend_->config.kernel->name; }
WorkspaceSizes Attention::workspace_sizes() const noexcept { return backend_->sizes; }

Status Attention::schedule(const Batch& batch, Workspace schedule,
                           const CallOptions& call) const noexcept {
  core::BatchArrays arrays;
  core::PrefixGroups groups;
  Status status = core::bind_batch("schedule", backend_->config, batch, arrays);
  if (status.ok()) status = core::bind_groups("schedule", backend_->config, batch, groups);
  if (status.ok()) {
    status =
        core::check_workspace("schedule", "schedule workspace", schedule, backend_->sizes.schedule);
  }
  return status.ok() ? backend_->schedule(arrays, groups, schedule, call) : status;
}

Status Attention::run(const Batch& batch, const AttentionTensors& tensors, Workspace schedule,
                      Workspace scratch, const CallOptions& call) const noexcept {
  core::BatchArrays arrays;
  core::LayerTensors layer;
  Status status = core::bind_batch("attention", backend_->config, batch, arrays);
  if (status.ok()) status = core::bind_layer(backend_->config, tensors, layer);
  if (status.ok()) {
    status = core::check_workspace("attention", "schedule workspace", schedule,
                                   backend_->sizes.schedule);
  }
  if (status.ok()) {
    status =
        core::check_workspace("attention", "scratch workspace", scratch, backend_->sizes.scratch);
  }
  return status.ok() ? backend_->run(arrays, layer, schedule, scratch, call) : status;
}

Status Attention::count_key_reads(const Batch& batch, Workspace schedule,
                                  KeyReads& reads) const noexcept {
  core::BatchArrays arrays;
  Status status = core::bind_batch("key reads", backend_->config, batch, arrays);
  if (status.ok()) {
    status = core::check_workspace("key reads", "schedule workspace", schedule,
                                   backend_->sizes.schedule);
  }
  return status.ok() ? backend_->count_key_reads(arrays, schedule, reads) : status;
}

void attention(Device device, const AttentionSpec& spec, const Batch& batch,
               const AttentionTensors& tensors, const CallOptions& call,
               const AttentionOptions& options) {
  const Attention attention(device, spec, limits_of(spec, batch, tensors), options);
  const WorkspaceSizes sizes = attention.workspace_sizes();
  const OwnedWorkspace schedule(device, sizes.schedule, call.stream);
  const OwnedWorkspace scratch(device, sizes.scratch, call.stream);
  attention.schedule(batch, schedule.get(), call).throw_if_error();
  attention.run(batch, tensors, schedule.get(), scratch.get(), call).throw_if_error();
}

}  // namespace v0
}  // namespace quire
