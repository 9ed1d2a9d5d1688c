// SPDX-License-Identifier: Apache-2.0
// Copy plans executed, and the fences that tell when they have been.
#include <fmt/format.h>

#include <cstddef>

#include "c/convert.hpp"
#include "c/handles.hpp"
#include "quire/copies.hpp"

namespace quire::c {
namespace {

// Arrays of these are read in place: no memory is taken for a copy of them.
static_assert(sizeof(quire_copy_op) == sizeof(CopyOp));
static_assert(offsetof(quire_copy_op, dst) == offsetof(CopyOp, dst));
static_assert(offsetof(quire_copy_op, tokens) == offsetof(CopyOp, tokens));
static_assert(offsetof(quire_copy_op, src_begin) == offsetof(CopyOp, src_begin));
static_assert(offsetof(quire_copy_op, dst_begin) == offsetof(CopyOp, dst_begin));
static_assert(sizeof(quire_copy_tensors) == sizeof(CopyTensors));
static_assert(offsetof(quire_copy_tensors, src) == offsetof(CopyTensors, src));
static_assert(sizeof(quire_tensor) == sizeof(TensorView));
static_assert(offsetof(quire_tensor, dtype) == offsetof(TensorView, dtype));
static_assert(offsetof(quire_tensor, rank) == offsetof(TensorView, rank));
static_assert(offsetof(quire_tensor, device) == offsetof(TensorView, device));
static_assert(offsetof(quire_tensor, shape) == offsetof(TensorView, shape));
static_assert(offsetof(quire_tensor, strides) == offsetof(TensorView, strides));

Status execute_copies(quire_device device, std::int32_t kv_layout, const quire_copy_op* ops,
                      std::size_t count, const quire_copy_tensors* caches, std::size_t num_caches,
                      const quire_call_options* call) {
  constexpr std::string_view kFunction = "quire_execute_copies";
  if (ops == nullptr && count > 0) {
    return null_argument({kFunction, "ops", fmt::format("quire_copy_op [{}]", count)});
  }
  if (caches == nullptr && num_caches > 0) {
    return null_argument({kFunction, "caches", fmt::format("quire_copy_tensors [{}]", num_caches)});
  }
  Device on;
  KvLayout layout = KvLayout::kNHD;
  CallOptions cpp_call;
  Status status = read_device(kFunction, device, on);
  if (status.ok()) status = read_layout(kFunction, kv_layout, layout);
  if (status.ok()) status = read_call(kFunction, call, cpp_call);
  if (!status.ok()) return status;
  return quire::execute_copies(on, layout, {reinterpret_cast<const CopyOp*>(ops), count},
                               {reinterpret_cast<const CopyTensors*>(caches), num_caches},
                               cpp_call);
}

Status create_fence(quire_device device, quire_fence** out) {
  constexpr std::string_view kFunction = "quire_fence_create";
  Device on;
  Status status = check_result_handle(kFunction, "fence", out);
  if (status.ok()) status = read_device(kFunction, device, on);
  if (status.ok()) *out = new quire_fence{.fence = Fence(on)};
  return status;
}

Status query_fence(const quire_fence* fence, std::int32_t* reached) {
  constexpr std::string_view kFunction = "quire_fence_query";
  Status status = check_handle(kFunction, "fence", fence);
  if (status.ok() && reached == nullptr) {
    status = null_argument({kFunction, "reached", "a place for 0 or 1"});
  }
  bool is_reached = false;
  if (status.ok()) status = fence->fence.query(is_reached);
  if (status.ok()) *reached = is_reached ? 1 : 0;
  return status;
}

/// Checks a fence, then hands it to `body`.
template <typename Handle, typename Body>
quire_status with_fence(std::string_view function, Handle* fence, Body body) noexcept {
  return guarded([&] {
    Status status = check_handle(function, "fence", fence);
    return status.ok() ? body(fence->fence) : status;
  });
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_execute_copies(quire_device device, int32_t kv_layout, const quire_copy_op* ops,
                                  size_t count, const quire_copy_tensors* caches, size_t num_caches,
                                  const quire_call_options* call) noexcept {
  return quire::c::guarded([&] {
    return quire::c::execute_copies(device, kv_layout, ops, count, caches, num_caches, call);
  });
}

quire_status quire_fence_create(quire_device device, quire_fence** fence) noexcept {
  return quire::c::guarded([&] { return quire::c::create_fence(device, fence); });
}

void quire_fence_destroy(quire_fence* fence) noexcept { quire::c::release(fence); }

quire_status quire_fence_record(quire_fence* fence, void* stream) noexcept {
  return quire::c::with_fence("quire_fence_record", fence,
                              [&](quire::Fence& on) { return on.record(stream); });
}

quire_status quire_fence_query(const quire_fence* fence, int32_t* reached) noexcept {
  return quire::c::guarded([&] { return quire::c::query_fence(fence, reached); });
}

quire_status quire_fence_wait(const quire_fence* fence, void* stream) noexcept {
  return quire::c::with_fence("quire_fence_wait", fence,
                              [&](const quire::Fence& on) { return on.wait(stream); });
}

quire_status quire_fence_synchronize(const quire_fence* fence) noexcept {
  return quire::c::with_fence("quire_fence_synchronize", fence,
                              [](const quire::Fence& on) { return on.synchronize(); });
}

}  // extern "C"
