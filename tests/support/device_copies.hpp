// SPDX-License-Identifier: Apache-2.0
/// @file
/// A `RandomCopies` on a GPU, its pools on the device or in pinned memory of the host.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "support/device_memory.hpp"
#include "support/random_copies.hpp"

namespace quire::testing {

enum class Place { kDevice, kHost };

/// Its memory and views where the GPU reaches them, on a stream of its own.
class DeviceCopies {
 public:
  explicit DeviceCopies(RandomCopies& copies, Place dst = Place::kDevice,
                        Place src = Place::kDevice)
      : host(copies) {
    for (std::size_t i = 0; i < host.caches.size(); ++i) {
      CopyTensors tensors;
      tensors.dst = put(host.dst[i], host.caches[i].dst, dst);
      if (!host.src.empty()) tensors.src = put(host.src[i], host.caches[i].src, src);
      caches.push_back(tensors);
    }
    stream.synchronize();
  }

  /// Does not wait.
  Status execute() const {
    return execute_copies(kGpu, host.c.layout, host.plan, caches, {stream.get(), nullptr});
  }
  /// Brings all bytes to the host's buffers.
  void download() const {
    mirror_.download(stream);
    for (const Pinned& pinned : pinned_) std::ranges::copy(pinned.bytes->get(), pinned.home.data());
    EXPECT_TRUE(mirror_.guards_are_untouched(stream));
  }
  /// Puts other bytes of the host's buffers in their places.
  void upload() const {
    mirror_.upload(stream);
    for (const Pinned& pinned : pinned_) std::ranges::copy(pinned.home, pinned.bytes->get().data());
    stream.synchronize();
  }

  RandomCopies& host;
  Stream stream;
  std::vector<CopyTensors> caches;

 private:
  struct Pinned {
    std::span<std::byte> home;
    std::unique_ptr<PinnedBytes> bytes;
  };

  template <typename View>
  View put(std::vector<std::byte>& buffer, View view, Place place) {
    if (place == Place::kDevice) {
      mirror_.add(buffer, DeviceMirror::Use::kWritten, stream);
      return mirror_.on_device(view);
    }
    pinned_.push_back({buffer, std::make_unique<PinnedBytes>(buffer)});
    view.data = pinned_.back().bytes->get().data() +
                (static_cast<const std::byte*>(view.data) - buffer.data());
    return view;
  }

  DeviceMirror mirror_;
  std::vector<Pinned> pinned_;
};

/// Executes a plan on the GPU and compares every byte of both pools with the oracle's.
inline void expect_copies(const CopyCase& c, Place dst, Place src) {
  SCOPED_TRACE(c.text() + (dst == Place::kHost ? " to the host" : "") +
               (src == Place::kHost ? " from the host" : ""));
  RandomCopies wanted(c);
  RandomCopies copied(c);
  wanted.execute();
  const DeviceCopies device(copied, dst, src);
  const Status status = device.execute();
  ASSERT_TRUE(status.ok()) << status.message();
  std::ranges::fill(copied.plan, CopyOp{});  // the plan was read before the call returned
  device.stream.synchronize();
  device.download();
  EXPECT_TRUE(copied.dst == wanted.dst) << "dst differs";
  EXPECT_TRUE(copied.src == wanted.src) << "src differs";
}

}  // namespace quire::testing
