// SPDX-License-Identifier: Apache-2.0
#include "device/mirror.hpp"

#include <span>

namespace quire::tool {
namespace {

/// Bytes from a view's first element to the end of its last.
std::size_t extent(const TensorView& view) {
  std::int64_t last = 0;
  for (std::int32_t axis = 0; axis < view.rank; ++axis) {
    if (view.size(axis) == 0) return 0;
    last += (view.size(axis) - 1) * view.stride(axis);
  }
  return static_cast<std::size_t>(last + 1) * size_of(view.dtype);
}

}  // namespace

template <typename Void>
BasicTensorView<Void> Mirror::copy_of(BasicTensorView<Void> host) {
  if (!host.given() || place_.device() == host.device) return host;
  const std::size_t bytes = extent(host);
  auto found = copies_.find(host.data);
  if (found == copies_.end()) {
    found = copies_.emplace(host.data, DeviceMemory(place_, bytes)).first;
    found->second.upload({static_cast<const std::byte*>(host.data), bytes});
  }
  host.data = found->second.data();
  host.device = place_.device();
  return host;
}

TensorView Mirror::of(const TensorView& host) { return copy_of(host); }
MutableTensorView Mirror::of(const MutableTensorView& host) { return copy_of(host); }

Batch Mirror::of(const Batch& host) {
  Batch batch;
  for (TensorView Batch::* view :
       {&Batch::qo_indptr, &Batch::kv_len, &Batch::page_table, &Batch::kv_page_indptr,
        &Batch::kv_page_indices, &Batch::kv_last_page_len, &Batch::kv_indptr, &Batch::tree_mask,
        &Batch::full_mask, &Batch::full_mask_indptr, &Batch::prefix_leaders,
        &Batch::prefix_pages}) {
    batch.*view = of(host.*view);
  }
  return batch;
}

AttentionTensors Mirror::of(const AttentionTensors& host) {
  using Tensors = AttentionTensors;
  Tensors tensors;
  for (TensorView Tensors::* view :
       {&Tensors::q, &Tensors::k, &Tensors::v, &Tensors::q_scale, &Tensors::k_scale,
        &Tensors::v_scale, &Tensors::sinks, &Tensors::alibi_slopes}) {
    tensors.*view = of(host.*view);
  }
  tensors.o = of(host.o);
  tensors.lse = of(host.lse);
  return tensors;
}

AppendTensors Mirror::of(const AppendTensors& host) {
  using Tensors = AppendTensors;
  Tensors tensors;
  for (TensorView Tensors::* view :
       {&Tensors::k, &Tensors::v, &Tensors::slot_mapping, &Tensors::k_scale, &Tensors::v_scale}) {
    tensors.*view = of(host.*view);
  }
  tensors.k_cache = of(host.k_cache);
  tensors.v_cache = of(host.v_cache);
  tensors.k_token_scale = of(host.k_token_scale);
  tensors.v_token_scale = of(host.v_token_scale);
  return tensors;
}

void Mirror::download(const MutableTensorView& host) const {
  const auto found = copies_.find(host.data);
  if (found == copies_.end()) return;
  found->second.download({static_cast<std::byte*>(host.data), extent(host)});
}

}  // namespace quire::tool
