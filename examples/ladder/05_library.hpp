// SPDX-License-Identifier: Apache-2.0
/// @file
/// Step 05: the library on the same problem.
#pragma once

#include "device.hpp"
#include "quire/attention.hpp"

namespace ladder {

/// quire::Attention for a workload in bf16, with its workspaces.
class Library {
 public:
  /// @param device  Outlives this.
  Library(const Workload& workload, const DeviceWorkload<__nv_bfloat16>& device);

  /// Cuts the batch into equal work, on the device: once per step, for all layers.
  void schedule(cudaStream_t stream) const;
  /// Attention: once per layer.
  void run(cudaStream_t stream) const;
  /// Runs in checked mode, with another table of the same size.
  quire::CheckRecord check(const std::vector<int>& page_table) const;
  /// Name of the kernel.
  [[nodiscard]] std::string kernel() const { return std::string(attention_.kernel()); }

 private:
  void run(const quire::CallOptions& call) const;

  DeviceArray<int> qo_indptr_;
  DeviceArray<int> kv_len_;
  DeviceArray<int> page_table_;
  quire::Attention attention_;
  DeviceBytes schedule_;
  DeviceBytes scratch_;
  quire::Batch batch_;
  quire::AttentionTensors tensors_;
  Workload workload_;
};

}  // namespace ladder
