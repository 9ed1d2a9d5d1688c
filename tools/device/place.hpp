// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where a command computes. Everything else of the command is the same for all devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/buffer.hpp"
#include "quire/executor.hpp"
#include "quire/tensor.hpp"

namespace quire::tool {

/// A device with its memory. On a GPU, everything here is put in order on one stream.
class Place {
 public:
  Place() = default;
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  virtual ~Place() = default;

  [[nodiscard]] virtual Device device() const = 0;
  /// @return What `CallOptions::stream` takes.
  [[nodiscard]] virtual void* stream() const = 0;
  /// @return Memory with any content, aligned to `kWorkspaceAlignment`.
  /// @throws CommandError if there is not that much.
  [[nodiscard]] virtual std::byte* allocate(std::size_t bytes) = 0;
  virtual void release(std::byte* data) noexcept = 0;
  /// Copies between any two memories of the host and of the device. The host's memory may be used
  /// again when this returns.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill(void* to, int byte, std::size_t bytes) = 0;
  /// Waits for everything, and throws what went wrong in it.
  virtual void synchronize() = 0;
  /// Begins a range of the calling thread's work, for profilers. Ranges nest.
  virtual void begin_range(const char* /*name*/, std::int64_t /*number*/) noexcept {}
  virtual void end_range() noexcept {}
};

/// A range from its making to its end.
class ProfiledRange {
 public:
  ProfiledRange(Place& place, const char* name, std::int64_t number) : place_(place) {
    place_.begin_range(name, number);
  }
  ProfiledRange(const ProfiledRange&) = delete;
  ProfiledRange& operator=(const ProfiledRange&) = delete;
  ~ProfiledRange() { place_.end_range(); }

 private:
  Place& place_;
};

/// Work that a GPU repeats without the host.
class Graph {
 public:
  virtual ~Graph() = default;
};

/// A place that is a GPU: what measuring needs besides.
class Gpu : public Place {
 public:
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual std::size_t free_bytes() const = 0;

  /// Captures what `body` puts on `stream()`.
  [[nodiscard]] virtual std::unique_ptr<Graph> capture(const std::function<void()>& body) = 0;
  virtual void launch(Graph& graph) = 0;
  /// @return Microseconds of each launch, between events around it; `before` is not counted.
  [[nodiscard]] virtual std::vector<double> time(Graph& graph, std::int32_t repetitions,
                                                 const std::function<void()>& before) = 0;

  /// Puts a kernel that does nothing on the stream.
  virtual void do_nothing() = 0;
  /// Likewise one that reads memory once, in loads of 16 bytes.
  /// @param bytes  A multiple of 16.
  virtual void read(const std::byte* data, std::size_t bytes) = 0;
  /// Likewise the bfloat16 product c = a · b of n × n matrices.
  /// @return False if there is no library that can do it.
  virtual bool multiply(std::byte* c, const std::byte* a, const std::byte* b, std::int32_t n) = 0;
};

/// @return The GPU. @throws CommandError (no device) if it is not there or CUDA is not built.
std::unique_ptr<Gpu> open_gpu(Device device);
/// How the host's memory is made.
struct HostMemory {
  PageKind pages = PageKind::kHuge;
  /// Whose threads touch it first; null: whoever writes first. Outlives the place.
  Executor* executor = nullptr;
};

/// @param memory  Of the CPU; a GPU has its own.
/// @return The CPU or the GPU. @throws CommandError likewise.
std::unique_ptr<Place> open_place(Device device, const HostMemory& memory = {});

/// Gives memory back to its place.
struct Release {
  Place* place = nullptr;
  void operator()(std::byte* data) const noexcept { place->release(data); }
};

/// Bytes at a place; the place outlives them.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Place& place, std::size_t bytes)
      : data_(place.allocate(bytes), Release{&place}), size_(bytes) {}

  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {data_.get(), size_}; }

  /// Writes from host memory. @param offset  In bytes.
  void upload(std::span<const std::byte> from, std::size_t offset = 0) const {
    place().copy(data() + offset, from.data(), from.size());
  }
  /// Reads into host memory.
  void download(std::span<std::byte> to, std::size_t offset = 0) const {
    place().copy(to.data(), data() + offset, to.size());
  }
  void fill(int byte) const { place().fill(data(), byte, size_); }

 private:
  [[nodiscard]] Place& place() const { return *data_.get_deleter().place; }

  std::unique_ptr<std::byte, Release> data_;
  std::size_t size_ = 0;
};

/// Bytes that the host and a device both work on: on the CPU the same ones.
class SharedBytes {
 public:
  SharedBytes() = default;
  SharedBytes(Place& place, std::size_t bytes)
      : device_(place, bytes),
        host_(place.device().type == DeviceType::kCpu ? Buffer() : Buffer(bytes)) {}

  [[nodiscard]] std::byte* device() const noexcept { return device_.data(); }
  [[nodiscard]] std::byte* host() const noexcept {
    return host_.size() > 0 ? host_.data() : device_.data();
  }
  /// Shows the device the first bytes as the host has them.
  void push(std::size_t bytes) const {
    if (host_.size() > 0) device_.upload(host_.bytes().first(bytes));
  }
  /// Shows the host the first bytes as the device has them.
  void pull(std::size_t bytes) const {
    if (host_.size() > 0) device_.download(host_.bytes().first(bytes));
  }

 private:
  DeviceMemory device_;
  Buffer host_;
};

}  // namespace quire::tool
