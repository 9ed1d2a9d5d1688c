// SPDX-License-Identifier: Apache-2.0
/// @file
/// An `AppendBatch` on a GPU.
#pragma once

#include "support/append_batch.hpp"
#include "support/device_memory.hpp"

namespace quire::testing {

/// Its memory and views on the device, on a stream of its own.
class DeviceAppend {
 public:
  explicit DeviceAppend(AppendBatch& host_batch) : host(host_batch) {
    constexpr auto kRead = DeviceMirror::Use::kRead;
    mirror.add(host.fused.bytes(), kRead, stream);
    for (std::vector<std::int32_t>* values :
         {&host.c.qo_indptr, &host.c.kv_len, &host.table, &host.kv_page_indptr}) {
      mirror.add(bytes_of(*values), kRead, stream);
    }
    mirror.add(bytes_of(host.slots), kRead, stream);
    mirror.add(bytes_of(host.k_scale), kRead, stream);
    mirror.add(bytes_of(host.v_scale), kRead, stream);
    mirror.add(bytes_of(host.k_token_scale), DeviceMirror::Use::kWritten, stream);
    mirror.add(bytes_of(host.v_token_scale), DeviceMirror::Use::kWritten, stream);
    mirror.add(host.k_cache.bytes(), DeviceMirror::Use::kWritten, stream);
    mirror.add(host.v_cache.bytes(), DeviceMirror::Use::kWritten, stream);
    batch = on_device(mirror, host.batch);
    tensors.k = mirror.on_device(host.tensors.k);
    tensors.v = mirror.on_device(host.tensors.v);
    tensors.k_cache = mirror.on_device(host.tensors.k_cache);
    tensors.v_cache = mirror.on_device(host.tensors.v_cache);
    tensors.slot_mapping = mirror.on_device(host.tensors.slot_mapping);
    tensors.k_scale = mirror.on_device(host.tensors.k_scale);
    tensors.v_scale = mirror.on_device(host.tensors.v_scale);
    tensors.k_token_scale = mirror.on_device(host.tensors.k_token_scale);
    tensors.v_token_scale = mirror.on_device(host.tensors.v_token_scale);
  }

  /// Does not wait.
  Status append(CheckRecord* check = nullptr) const {
    return quire::append(kGpu, host.c.layout, batch, tensors, {stream.get(), check});
  }
  /// Brings the cache to the host.
  void download() const {
    mirror.download(stream);
    EXPECT_TRUE(mirror.guards_are_untouched(stream));
  }

  AppendBatch& host;
  Stream stream;
  DeviceMirror mirror;
  Batch batch;
  AppendTensors tensors;
};

}  // namespace quire::testing
