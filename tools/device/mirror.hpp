// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>

#include "device/place.hpp"
#include "quire/attention.hpp"

namespace quire::tool {

/// Tensors of the host as a device sees them: on the CPU themselves, on a GPU copies, made when a
/// tensor is first asked for. The same host memory always is the same device memory.
class Mirror {
 public:
  explicit Mirror(Place& place) : place_(place) {}

  [[nodiscard]] TensorView of(const TensorView& host);
  [[nodiscard]] MutableTensorView of(const MutableTensorView& host);
  [[nodiscard]] Batch of(const Batch& host);
  [[nodiscard]] AttentionTensors of(const AttentionTensors& host);
  [[nodiscard]] AppendTensors of(const AppendTensors& host);

  /// Brings what the device wrote back into the host's memory.
  void download(const MutableTensorView& host) const;

 private:
  template <typename Void>
  BasicTensorView<Void> copy_of(BasicTensorView<Void> host);

  Place& place_;
  std::map<const void*, DeviceMemory> copies_;  // by where the host's bytes begin
};

}  // namespace quire::tool
