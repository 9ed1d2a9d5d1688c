// SPDX-License-Identifier: Apache-2.0
// Copy plans on the GPU. A plan travels in the parameters of its kernels: it is small, the caller
// may change it as soon as the call returns, and there is no buffer to fill, upload and fence.
// Kernels also move pages to and from the host: a page is scattered rows of a few KiB, which the
// copy engines would take one command each.
#include "core/copies.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <string_view>

#include "core/backend.hpp"
#include "core/expect.hpp"
#include "cuda/copy/kernel.hpp"
#include "cuda/copy/launch.hpp"
#include "cuda/runtime.hpp"

namespace quire::cuda {
namespace {

constexpr std::string_view kOperation = "execute_copies";

std::string name_of(std::size_t index, std::string_view tensor) {
  return fmt::format("caches[{}].{}", index, tensor);
}

Status check_page_pieces(const core::CopyRows& rows, std::size_t index) {
  const std::int64_t piece = piece_bytes(rows);
  const std::int64_t pieces_of_row = rows.row_bytes / piece;
  if (rows.page_size <= kMaxPagePieces / rows.num_heads / pieces_of_row) return {};
  return {ErrorCode::kUnsupported,
          fmt::format("[{}] {}: expected pages of at most {} pieces of {} bytes, got {} · {} · {}",
                      kOperation, name_of(index, "dst"), kMaxPagePieces, piece, rows.page_size,
                      rows.num_heads, pieces_of_row)};
}

bool is_on_host(const TensorView& view) {
  return view.given() && view.device.type == DeviceType::kCpu;
}

/// Puts the device's address in the place of the host's.
template <typename Byte>
Status map(const TensorView& view, std::size_t index, std::string_view tensor, Byte*& data) {
  if (!is_on_host(view)) return {};
  cudaPointerAttributes attributes{};
  const cudaError_t error = cudaPointerGetAttributes(&attributes, data);
  if (error != cudaSuccess) return status_of(kOperation, error);
  const bool pinned =
      attributes.type == cudaMemoryTypeHost || attributes.type == cudaMemoryTypeManaged;
  if (!pinned || attributes.devicePointer == nullptr) {
    return core::invalid(kOperation, name_of(index, tensor),
                         "expected pinned memory (cudaHostAlloc, cudaHostRegister), got memory of "
                         "the host that is not");
  }
  data = static_cast<Byte*>(attributes.devicePointer);
  return {};
}

Status map(const CopyTensors& tensors, std::size_t index, core::CopyRows& rows) {
  Status status = map(tensors.dst, index, "dst", rows.dst.data);
  if (!tensors.src.given()) {
    rows.src.data = rows.dst.data;
  } else if (status.ok()) {
    status = map(tensors.src, index, "src", rows.src.data);
  }
  return status;
}

/// Calls `body` with each cache that has anything to copy until one call fails.
template <typename Body>
Status for_each_cache(KvLayout layout, std::span<const CopyTensors> caches, Body body) {
  Status status;
  for (std::size_t index = 0; status.ok() && index < caches.size(); ++index) {
    core::CopyRows rows = core::rows_of(caches[index], layout);
    if (!rows.empty()) status = body(index, rows);
  }
  return status;
}

/// @param caches  Checked: all is mapped.
Status execute(KvLayout layout, std::span<const CopyOp> copies, std::span<const CopyTensors> caches,
               cudaStream_t stream) {
  const bool one_cache = std::ranges::any_of(caches, core::is_one_cache);
  const bool crosses_link = std::ranges::any_of(caches, [](const CopyTensors& tensors) {
    return is_on_host(tensors.src) || is_on_host(tensors.dst);
  });
  CopyLaunch launches(layout);
  const auto flush = [&] {
    const cudaError_t error = launches.execute(copies, one_cache, [&](const CopyParams& params) {
      return launch_copy(params, crosses_link, stream);
    });
    launches = CopyLaunch(layout);
    return status_of(kOperation, error);
  };
  Status status = for_each_cache(layout, caches, [&](std::size_t index, core::CopyRows& rows) {
    Status so_far = launches.full() ? flush() : Status();
    if (so_far.ok()) so_far = map(caches[index], index, rows);
    if (so_far.ok()) launches.add(rows);
    return so_far;
  });
  return status.ok() ? flush() : status;
}

}  // namespace

Status execute_copies(Device device, KvLayout layout, std::span<const CopyOp> copies,
                      std::span<const CopyTensors> caches, const CallOptions& call) noexcept {
  try {
    Status status = for_each_cache(layout, caches, [](std::size_t index, core::CopyRows& rows) {
      return check_page_pieces(rows, index);
    });
    if (!status.ok()) return status;
    const CurrentDevice current(device);
    status = status_of(kOperation, current.error());
    if (!status.ok() || copies.empty()) return status;
    status = for_each_cache(layout, caches, [&](std::size_t index, core::CopyRows& rows) {
      return map(caches[index], index, rows);
    });
    if (!status.ok()) return status;
    return execute(layout, copies, caches, static_cast<cudaStream_t>(call.stream));
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, {}};
  }
}

}  // namespace quire::cuda
