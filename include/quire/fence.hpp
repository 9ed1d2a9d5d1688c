// SPDX-License-Identifier: Apache-2.0
/// @file
/// `Fence`: whether work on a stream is done, for the host and for other streams.
#pragma once

#include <memory>

#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/tensor.hpp"

namespace quire {
inline namespace v0 {

namespace internal {
class FenceBackend;
}

/// A point in the work of a stream (on CUDA, an event). What is copied on a stream of its own needs
/// one: until `execute_copies` has run, the pages that it reads must not be written and those that
/// it writes must not be read. Keep a reference to them (`PagePool::retain`), record a fence after
/// the copies and release them once it is reached.
///
/// On the CPU calls are synchronous, so that a fence is reached at once. One that was never recorded
/// is reached. Calls must not overlap in time with `record()`. Movable, not copyable.
class QUIRE_API Fence {
 public:
  /// Allocates; the other calls do not.
  /// @throws Error `kDeviceError` (no such device), `kOutOfMemory`.
  explicit Fence(Device device);
  Fence(Fence&&) noexcept;             ///< A moved-from one may only be destroyed or assigned to.
  Fence& operator=(Fence&&) noexcept;  ///< Likewise.
  Fence(const Fence&) = delete;
  Fence& operator=(const Fence&) = delete;
  ~Fence();  ///< Does not wait.

  /// Moves the fence behind all work that is on the stream by now. Does not synchronise. While the
  /// stream is captured the fence is part of the capture and only `wait()` may follow.
  /// @param stream  A cudaStream_t of the fence's device. Ignored on the CPU.
  /// @return `kDeviceError`.
  Status record(void* stream = nullptr) noexcept;
  /// Tells whether that work is done, without waiting for it. Then what it wrote is there to be
  /// read, by the host too.
  /// @param reached  Written if the call succeeds.
  /// @return `kDeviceError`, also for an error that the work met.
  Status query(bool& reached) const noexcept;
  /// Makes what is put on a stream from now on wait for the fence as it was recorded last. Does not
  /// synchronise and may be captured.
  /// @param stream  A cudaStream_t of any device. Ignored on the CPU.
  /// @return `kDeviceError`.
  Status wait(void* stream = nullptr) const noexcept;
  /// Blocks the calling thread until the fence is reached.
  /// @return As `query()`.
  Status synchronize() const noexcept;

 private:
  std::unique_ptr<internal::FenceBackend> backend_;  // null on the CPU
};

}  // namespace v0
}  // namespace quire
