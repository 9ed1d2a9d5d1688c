// SPDX-License-Identifier: Apache-2.0
/// @file
/// From the caller's views to the kernels' pointers: shapes, dtypes, devices and workspaces are
/// checked here, once, for every backend. Values that live on the device are the backend's to
/// check.
#pragma once

#include <string_view>

#include "core/backend.hpp"
#include "core/problem.hpp"
#include "quire/attention.hpp"

namespace quire::core {

/// @param operation  Stands in front of error texts, e.g. "schedule".
Status bind_batch(std::string_view operation, const AttentionConfig& config, const Batch& batch,
                  BatchArrays& out) noexcept;

/// @param batch  Bound before.
Status bind_groups(std::string_view operation, const AttentionConfig& config, const Batch& batch,
                   PrefixGroups& out) noexcept;

Status bind_layer(const AttentionConfig& config, const AttentionTensors& tensors,
                  LayerTensors& out) noexcept;

Status bind_append(Device device, KvLayout layout, const Batch& batch, const AppendTensors& tensors,
                   BatchArrays& batch_out, AppendArrays& out) noexcept;

Status bind_merge(Device device, const MergeTensors& tensors, MergeArrays& out) noexcept;

Status check_workspace(std::string_view operation, std::string_view name, Workspace workspace,
                       std::size_t needed) noexcept;

}  // namespace quire::core
