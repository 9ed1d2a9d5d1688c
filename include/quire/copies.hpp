// SPDX-License-Identifier: Apache-2.0
/// @file
/// `CopyOp`: copies of pages as data, and their execution on a device. Page tables make them
/// (copy-on-write); who moves pages between the device and the host makes them too.
#pragma once

#include <cstdint>
#include <span>

#include "quire/attention.hpp"
#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/page_pool.hpp"
#include "quire/tensor.hpp"

namespace quire {
inline namespace v0 {

/// "Copy `tokens` tokens of page `src` to page `dst`", in K and in V of every layer: those from
/// `src_begin` on to `dst_begin` and the places behind it.
/// Plans are executed in order, after the writes of earlier steps and before those of the step that
/// they were made for. The ops of successive `PageTable::append`s, with no other mutation in
/// between, do not depend on one another and may run at the same time.
struct CopyOp {
  PageId src = kNoPage;  ///< Read.
  PageId dst = kNoPage;  ///< Written; tokens that are not read if both are one page of one cache.
  std::int32_t tokens = 0;     ///< At most page_size less the greater of the two places below.
  std::int32_t src_begin = 0;  ///< Place of the first token that is read: 0…page_size.
  std::int32_t dst_begin = 0;  ///< Place that it is written to, likewise.

  /// Equal in every field.
  friend bool operator==(const CopyOp&, const CopyOp&) = default;
};

/// The K or the V of one layer, in which a plan is executed: one cache, or the two that pages move
/// between. On CUDA each lies on the device or in pinned memory of the host (`cudaHostAlloc`,
/// `cudaHostRegister`), as a view on the CPU.
struct CopyTensors {
  MutableTensorView dst{};  ///< `NHD` or `HND` pages of any dtype; `CopyOp::dst` is one of them.
  /// The pages that `CopyOp::src` is one of: dst's page_size, heads, head_dim and dtype, any number
  /// of pages, strides of its own. Must not overlap dst. Not given: dst.
  TensorView src{};
};

/// Executes a copy plan in the caches of one layer or of many. The result is that of the ops one
/// after another: an op that reads a page that an earlier one wrote copies what that one wrote.
///
/// Does not allocate. On CUDA the copies run on `call.stream` and the call does not synchronise and
/// may be captured; a graph replays the plan that it was captured with. `copies` and `caches` are
/// read before the call returns, the pages when the copies run: see `Fence`. One kernel copies up
/// to 96 ops in up to 24 caches; an op that touches tokens that an earlier one wrote, or writes what it
/// reads, waits for the next kernel. `call.check` is not used: all is checked here.
/// O(ops + caches) on the host, O(ops · caches · tokens · heads · head_dim) in all.
/// @param layout  Of all caches.
/// @param copies  Checked as a whole before the first copy.
/// @param caches  Do not overlap. Equal numbers of pages and equal page_size; heads, head_dim,
///                dtype and strides may differ.
/// @return `kInvalidArgument` (a wrong shape, stride or device, a page that a cache does not have,
///   tokens of a page onto themselves, more tokens than a page has, memory of the host that is not
///   pinned), `kUnsupported` (on CUDA, pages of more than 8 GiB, or 512 MiB where rows are not
///   aligned to 16 bytes), `kDeviceError`, `kOutOfMemory` (for the sentence of one of these);
///   nothing was copied then, unless a kernel could not be launched.
QUIRE_API Status execute_copies(Device device, KvLayout layout, std::span<const CopyOp> copies,
                                std::span<const CopyTensors> caches,
                                const CallOptions& call = {}) noexcept;

}  // namespace v0
}  // namespace quire
