// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a backend provides. `src/cpu` and `src/cuda` implement it; a backend that is not built is a
/// file of stubs, so that nobody else asks what was built.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/kernel_table.hpp"
#include "core/problem.hpp"
#include "quire/attention.hpp"
#include "quire/copies.hpp"
#include "quire/fence.hpp"
#include "quire/info.hpp"

namespace quire {
namespace core {

/// Everything needed to make a backend's attention, resolved and consistent.
struct AttentionConfig {
  Device device;
  AttentionSpec spec;  ///< defaults filled in
  ProblemShape shape;
  BatchLimits limits;
  const KernelRow* kernel = nullptr;
  Executor* executor = nullptr;  ///< CPU threads; never null on the CPU
};

}  // namespace core

inline namespace v0 {
namespace internal {

/// One spec on one device. Arguments arrive validated as far as the host can see.
class AttentionBackend {
 public:
  AttentionBackend(const core::AttentionConfig& attention_config, WorkspaceSizes workspaces)
      : config(attention_config), sizes(workspaces) {}
  virtual ~AttentionBackend() = default;

  virtual Status schedule(const core::BatchArrays& batch, const core::PrefixGroups& groups,
                          Workspace schedule, const CallOptions& call) const noexcept = 0;
  virtual Status run(const core::BatchArrays& batch, const core::LayerTensors& tensors,
                     Workspace schedule, Workspace scratch,
                     const CallOptions& call) const noexcept = 0;
  virtual Status count_key_reads(const core::BatchArrays& batch, Workspace schedule,
                                 KeyReads& reads) const noexcept;

  const core::AttentionConfig config;
  const WorkspaceSizes sizes;
};

/// An event of a device's streams. See `Fence`.
class FenceBackend {
 public:
  virtual ~FenceBackend() = default;

  virtual Status record(void* stream) noexcept = 0;
  virtual Status query(bool& reached) const noexcept = 0;
  virtual Status wait(void* stream) const noexcept = 0;
  virtual Status synchronize() const noexcept = 0;
};

}  // namespace internal
}  // namespace v0

namespace cpu {
std::unique_ptr<internal::AttentionBackend> make_attention(const core::AttentionConfig& config);
WorkspaceSizes workspace_sizes(const core::AttentionConfig& config);
Status append(const core::BatchArrays& batch, const core::AppendArrays& arrays,
              const CallOptions& call, Executor* executor) noexcept;
Status merge_states(const core::MergeArrays& arrays, Executor* executor) noexcept;
void execute_copies(KvLayout layout, std::span<const CopyOp> copies,
                    std::span<const CopyTensors> caches) noexcept;
/// Rows of the kernel table, in the order of preference.
std::span<const core::KernelRow> kernel_rows() noexcept;
/// @return Name of the kernel that the environment's `QUIRE_CPU_TIER` asks for, empty if unset.
std::string forced_kernel();
std::vector<DeviceInfo> devices();
}  // namespace cpu

namespace cuda {
/// @return True if the CUDA backend is part of this build.
bool built() noexcept;
std::unique_ptr<internal::AttentionBackend> make_attention(const core::AttentionConfig& config);
WorkspaceSizes workspace_sizes(const core::AttentionConfig& config);
Status append(Device device, const core::BatchArrays& batch, const core::AppendArrays& arrays,
              const CallOptions& call) noexcept;
Status merge_states(Device device, const core::MergeArrays& arrays,
                    const CallOptions& call) noexcept;
Status execute_copies(Device device, KvLayout layout, std::span<const CopyOp> copies,
                      std::span<const CopyTensors> caches, const CallOptions& call) noexcept;
/// @throws Error `kOutOfMemory` or `kDeviceError`.
std::unique_ptr<internal::FenceBackend> make_fence(Device device);
/// Memory of a device. @throws Error `kOutOfMemory` or `kDeviceError`.
void* allocate(Device device, std::size_t bytes);
/// Waits for the stream first.
void release(Device device, void* memory, void* stream) noexcept;
/// Copies the record to the host after what is on the stream.
Status read_check_record(Device device, const CheckRecord* record, const CallOptions& call,
                         CheckRecord& out) noexcept;
/// Rows of the kernel table, in the order of preference.
std::span<const core::KernelRow> kernel_rows() noexcept;
std::vector<DeviceInfo> devices();
}  // namespace cuda

}  // namespace quire
