// SPDX-License-Identifier: Apache-2.0
// The CUDA backend of a build without CUDA: there are no devices, and whoever asks for one is told
// so.
#include "core/backend.hpp"

namespace quire::cuda {
namespace {

constexpr std::string_view kNotBuilt =
    "this build of quire has no CUDA backend; configure with -DQUIRE_CUDA=ON";

}  // namespace

bool built() noexcept { return false; }

std::unique_ptr<internal::AttentionBackend> make_attention(const core::AttentionConfig&) {
  throw Error(ErrorCode::kDeviceError, std::string("[attention] ").append(kNotBuilt));
}

WorkspaceSizes workspace_sizes(const core::AttentionConfig&) {
  throw Error(ErrorCode::kDeviceError, std::string("[attention] ").append(kNotBuilt));
}

Status append(Device, const core::BatchArrays&, const core::AppendArrays&,
              const CallOptions&) noexcept {
  return {ErrorCode::kDeviceError, kNotBuilt};
}

Status merge_states(Device, const core::MergeArrays&, const CallOptions&) noexcept {
  return {ErrorCode::kDeviceError, kNotBuilt};
}

Status execute_copies(Device, KvLayout, std::span<const CopyOp>, std::span<const CopyTensors>,
                      const CallOptions&) noexcept {
  return {ErrorCode::kDeviceError, kNotBuilt};
}

std::unique_ptr<internal::FenceBackend> make_fence(Device) {
  throw Error(ErrorCode::kDeviceError, std::string("[fence] ").append(kNotBuilt));
}

void* allocate(Device, std::size_t) {
  throw Error(ErrorCode::kDeviceError, std::string("[attention] ").append(kNotBuilt));
}

void release(Device, void*, void*) noexcept {}

Status read_check_record(Device, const CheckRecord*, const CallOptions&, CheckRecord&) noexcept {
  return {ErrorCode::kDeviceError, kNotBuilt};
}

std::span<const core::KernelRow> kernel_rows() noexcept { return {}; }

std::vector<DeviceInfo> devices() { return {}; }

}  // namespace quire::cuda
