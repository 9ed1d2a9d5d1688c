// SPDX-License-Identifier: Apache-2.0
/// @file
/// A step of an engine on the GPU: append the new tokens' keys and values, schedule, run.
#pragma once

#include <random>

#include "support/device_batch.hpp"
#include "support/new_rows.hpp"

namespace quire::testing {

/// What a captured step fixes: the shapes of its tensors.
inline constexpr BatchLimits kStepLimits{6, 64, 220};

/// A step's batch of random lengths, always of the same shapes.
inline RandomBatchOptions step_options(std::uint32_t seed, KeySource source) {
  std::mt19937 random(seed);
  const auto below = [&](std::int32_t n) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(n));
  };
  RandomBatchOptions options = exact_options(DType::kBFloat16, 4, 2, 64);
  options.source = source;
  options.seed = seed;
  options.stale_pages = 0;
  options.table_width =
      (kStepLimits.max_kv_len + options.spec.page_size - 1) / options.spec.page_size;
  options.pool_pages = kStepLimits.max_num_seqs * options.table_width + 3;
  options.padding_rows = kStepLimits.max_total_q;
  options.requests.clear();
  for (std::int32_t seq = 0; seq < kStepLimits.max_num_seqs; ++seq) {
    const std::int32_t most = std::min(below(3) > 0 ? 1 : 30, options.padding_rows);
    const std::int32_t queries = most > 1 ? below(most + 1) : most;
    const std::int32_t keys = below(8) == 0 ? below(queries + 1) : queries + below(180);
    options.requests.push_back({queries, keys});
    options.padding_rows -= queries;
  }
  return options;
}

/// The device's side of a step.
class DeviceStep {
 public:
  /// @param host  The first batch; its new rows are taken out of its cache.
  explicit DeviceStep(RandomBatch& host) : device(host), first_(host), spec_(host.spec) {
    mirror_.add(first_.k_elements.bytes(), DeviceMirror::Use::kRead, device.stream);
    mirror_.add(first_.v_elements.bytes(), DeviceMirror::Use::kRead, device.stream);
    append_.k = mirror_.on_device(first_.tensors.k);
    append_.v = mirror_.on_device(first_.tensors.v);
    append_.k_cache = writable(device.tensors.k);
    append_.v_cache = writable(device.tensors.v);
    device.replace(host);
  }

  /// Puts another step's batch in this one's place.
  void load(RandomBatch& host) const {
    NewRows rows(host);
    mirror_.upload(0, rows.k_elements.bytes(), device.stream);
    mirror_.upload(1, rows.v_elements.bytes(), device.stream);
    device.replace(host);
  }

  /// Puts the step on the stream; does not wait.
  void launch(const Attention& attention, const DeviceWorkspaces& workspaces) const {
    append(kGpu, spec_.kv_layout, device.batch, append_, {device.stream.get(), nullptr})
        .throw_if_error();
    device.launch(attention, workspaces).throw_if_error();
  }

  DeviceBatch device;

 private:
  static MutableTensorView writable(const TensorView& view) {
    MutableTensorView result(const_cast<void*>(view.data), view.dtype, {}, view.device);
    result.rank = view.rank;
    result.shape = view.shape;
    result.strides = view.strides;
    return result;
  }

  NewRows first_;
  AttentionSpec spec_;
  DeviceMirror mirror_;
  AppendTensors append_;
};

}  // namespace quire::testing
